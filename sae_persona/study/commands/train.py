"""Train an SAE on a cache."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae_persona.artifacts import is_done, new_manifest, write_folder
from sae_persona.cache.reader import ActivationCache
from sae_persona.data.files import read_jsonl, write_jsonl
from sae_persona.errors import ConfigError
from sae_persona.logs import JsonlLog
from sae_persona.model.load import check_device
from sae_persona.sae.train import TrainConfig, train_sae
from sae_persona.study.commands.shared import Progress, counting, no_progress

VERSION = 1
"""Raised when the same inputs would give another folder."""
TRAINING = "training.jsonl"


def train_on_cache(
    cache_path: Path,
    out: Path,
    config: TrainConfig,
    *,
    hook_name: str | None = None,
    device: str = "cpu",
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Train on one hook of a cache, in SAELens's format, and return the last record of the training.

    Without `hook_name` the cache must hold one hook only. A killed run goes on from `OUT.checkpoint`.

    Raises:
        CacheFileError, HookError: the cache cannot be read, or lacks the hook.
        ConfigError: the cache holds several hooks and none is named.
        SAEError: as `train_sae`.
        ArtifactError: `out` holds something else, or cannot be written.
    """
    check_device(device)
    cache = ActivationCache.open(cache_path)
    if hook_name is None:
        hook_name, *others = cache.hook_names
        if others:
            raise ConfigError(f"{cache_path} holds {', '.join(cache.hook_names)}; name one of them with --hook.")
    cache.d_in(hook_name)  # a hook that is not there is found out before anything is written
    manifest = new_manifest(
        "sae",
        config={"hook_name": hook_name, **config.model_dump(mode="json")},
        inputs={"cache": cache.manifest.fingerprint},
        seed=config.seed,
        version=VERSION,
    )
    if not is_done(out, manifest):
        checkpoint, log_file = (out.with_name(f"{out.name}.{ending}") for ending in ("checkpoint", "checkpoint.jsonl"))
        with write_folder(out, manifest) as folder, _log_beside(checkpoint, log_file) as log:
            sae = train_sae(
                cache,
                hook_name,
                config,
                device=device,
                log=log,
                progress=counting(progress, "training", config.n_steps * config.batch_size),
                checkpoint=checkpoint,
            )
            sae.save_model(folder)
            # What was logged after the last checkpoint of a killed run was logged again by the next.
            records = {record["details/n_training_samples"]: record for record in read_jsonl(log_file, dict)}
            write_jsonl(folder / TRAINING, records.values())
        checkpoint.unlink()
        log_file.unlink()
    return read_jsonl(out / TRAINING, dict)[-1]


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
