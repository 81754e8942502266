"""Train an SAE, or several, on a cache."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_persona.artifacts import Manifest, is_done, new_manifest, only_writer, read_manifest, write_folder
from sae_persona.cache.reader import ActivationCache
from sae_persona.data.files import read_jsonl, write_jsonl
from sae_persona.errors import ArtifactError, ConfigError
from sae_persona.logs import JsonlLog, Log, fan_out, no_log
from sae_persona.model.load import check_device
from sae_persona.sae.load import load_sae
from sae_persona.sae.ranks import ALONE, Ranks, Split, torchrun_ranks
from sae_persona.sae.train import TrainConfig, train_sae
from sae_persona.study.commands.shared import Progress, counting, fingerprint_of, no_progress

if TYPE_CHECKING:
    from sae_lens import SAE

VERSION = 2
"""Raised when the same inputs would give another folder."""
TRAINING = "training.jsonl"
_BYTES = 4
"""Of a number in float32."""


@dataclass(frozen=True)
class Start:
    """What training reads beside its settings."""

    cache: Path
    model: str | None = None
    """Which of the cache's models, where it holds several."""
    initial: str | None = None
    """The SAE to begin with, as `load_sae` takes it."""

    def open(self) -> ActivationCache:
        """The activations of one model.

        Raises:
            CacheFileError: the cache cannot be read.
            ConfigError: it holds several models and none is named, or none of that name.
        """
        cache = ActivationCache.open(self.cache)
        if self.model is not None:
            return cache.of_model(self.model)
        if cache.models:
            raise ConfigError(
                f"{self.cache} holds the models {', '.join(cache.models)}; name one of them with --model."
            )
        return cache

    def load_initial(self, device: str) -> "SAE | None":
        """The SAE to begin with."""
        return None if self.initial is None else load_sae(self.initial, device=device)

    def manifest(self, cache: ActivationCache, hook_name: str, config: TrainConfig, **more: object) -> Manifest:
        """Of an SAE that is trained so."""
        named = {} if self.model is None else {"model": self.model}
        begun = {} if self.initial is None else {"initial": fingerprint_of(self.initial)}
        return new_manifest(
            "sae",
            config={"hook_name": hook_name, **config.model_dump(mode="json"), **named, **more},
            inputs={"cache": cache.manifest.fingerprint, **begun},
            seed=config.seed,
            version=VERSION,
        )


def train_on_cache(
    start: Start,
    out: Path,
    config: TrainConfig,
    *,
    hook_name: str | None = None,
    split: Split = "tokens",
    device: str = "cpu",
    progress: Progress = no_progress,
    log: Log = no_log,
) -> dict[str, Any]:
    """Train on one hook of a cache, in SAELens's format, and return the last record of the training.

    `log` gets the records too that the folder will have.

    Without `hook_name` the cache must hold one hook only. A killed run goes on from `OUT.checkpoint`. The processes of
    a `torchrun` share the work as `split` says; the first writes, and the record is empty in the others.

    Raises:
        CacheFileError, HookError: the cache cannot be read, or lacks the hook.
        ConfigError: the cache holds several hooks or models and none is named, or the work cannot be split.
        SAEError, IncompatibleError: as `train_sae`.
        ArtifactError: `out` holds something else, such as an SAE of other settings, is being written by another
            process, or cannot be written.
    """
    check_device(device)
    cache = start.open()
    hook_name = only_hook(cache) if hook_name is None else hook_name
    cache.d_in(hook_name)  # a hook that is not there is found out before anything is written
    manifest = start.manifest(cache, hook_name, config)
    initial = start.load_initial(device)
    checkpoint, log_file = (out.with_name(f"{out.name}.{ending}") for ending in ("checkpoint", "checkpoint.jsonl"))

    def train(ranks: Ranks, **options: Any) -> "SAE":
        options |= {"device": device, "checkpoint": checkpoint, "initial": initial, "ranks": ranks}
        return train_sae(cache, hook_name, config, **options)

    with started_ranks(split) as ranks, contextlib.ExitStack() as held:
        refusal = None
        if ranks.rank == 0 and (checkpoint.exists() or not is_done(out, manifest)):
            try:
                held.enter_context(only_writer(out))
            except ArtifactError as error:
                refusal = error
        ranks.hear(refusal)
        done = is_done(out, manifest)
        if not done:
            check_not_finished(out)
            check_space(out, checkpoint, [(cache.d_in(hook_name), config.d_sae)])
        ranks.meet()  # before the first of them may write what the others look for
        if ranks.rank:
            if not done:
                train(ranks)
            ranks.meet()
            return {}
        if not done:
            whole = config.n_steps * config.batch_size
            with write_folder(out, manifest) as folder, _log_beside(checkpoint, log_file) as kept:
                train(ranks, log=fan_out(kept, log), progress=counting(progress, "training", whole)).save_model(folder)
                # What was logged after the last checkpoint of a killed run was logged again by the next.
                records = {record["details/n_training_samples"]: record for record in read_jsonl(log_file, dict)}
                write_jsonl(folder / TRAINING, records.values())
        ranks.meet()
        for left in (checkpoint, log_file):  # also of a run that was killed when the SAE was in its place
            left.unlink(missing_ok=True)
    return read_jsonl(out / TRAINING, dict)[-1]


def check_space(out: Path, checkpoint: Path, sizes: Sequence[tuple[int, int]]) -> None:
    """Raise where the disk has no room for the SAEs of these widths and numbers of latents, and for their checkpoints.

    Of each there are two matrices, in a checkpoint with both of Adam's moments, and a new checkpoint is written beside
    the old one.

    Raises:
        ArtifactError: it has not.
    """
    matrices = [2 * d_in * d_sae * _BYTES for d_in, d_sae in sizes]
    there = sum(file.stat().st_size for file in (checkpoint, *checkpoint.glob("*.state")) if file.is_file())
    needed = sum(matrices) * (1 + 3) + 3 * max(matrices) - there
    folder = next(one for one in out.absolute().parents if one.exists())
    if needed > (free := shutil.disk_usage(folder).free):
        raise ArtifactError(
            f"training into {out} may take {needed / 1e6:,.1f} MB with its checkpoints, and {folder} has "
            f"{free / 1e6:,.1f} MB left. Free some space, or choose another --out."
        )


def check_not_finished(out: Path) -> None:
    """Raise where another SAE stands: training takes too long for a slip of the pen to replace one.

    Raises:
        ArtifactError: it does.
    """
    found = read_manifest(out)
    if found is not None and found.kind == "sae":
        raise ArtifactError(
            f"{out} holds an SAE that was trained otherwise: on other data, with other settings or by an earlier "
            "version. Choose another --out, or delete it to train anew."
        )


def only_hook(cache: ActivationCache) -> str:
    """The hook of a cache that holds one.

    Raises:
        ConfigError: it holds several.
    """
    first, *others = cache.hook_names
    if others:
        raise ConfigError(f"{cache.path} holds {', '.join(cache.hook_names)}; name one of them with --hook.")
    return first


@contextlib.contextmanager
def started_ranks(split: Split) -> Iterator[Ranks]:
    """The processes that `torchrun` started; this one alone where it did not, or started one only."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    with torchrun_ranks(split) as ranks:
        yield ranks


@contextlib.contextmanager
def _log_beside(checkpoint: Path, log_file: Path) -> Iterator[JsonlLog]:
    """A log that lives as long as the checkpoint: without one, it begins anew and a failed run leaves none."""
    if not checkpoint.exists():
        log_file.unlink(missing_ok=True)
    try:
        with JsonlLog(log_file) as log:
            yield log
    finally:
        if not checkpoint.exists():
            log_file.unlink(missing_ok=True)
