"""Train several SAEs on one pass over a cache: other widths, `k`, seeds, architectures or hooks."""

import contextlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from sae_persona.artifacts import is_done, only_writer, read_manifest, write_folder
from sae_persona.data.files import read_jsonl, write_jsonl
from sae_persona.errors import ArtifactError, ConfigError
from sae_persona.logs import JsonlLog, Log, fan_out, no_log
from sae_persona.model.load import check_device
from sae_persona.sae.train import Job, TrainConfig, train_saes
from sae_persona.study.commands.shared import Progress, counting, no_progress
from sae_persona.study.commands.train import TRAINING, Start, check_not_finished, check_space
from sae_persona.study.config import load_settings

_N_TRAINED = "details/n_training_samples"


def variants(
    config_file: Path | None, overrides: Sequence[str], varied: Sequence[str], hook_names: Sequence[str]
) -> dict[str, tuple[str, TrainConfig]]:
    """Every combination of the hooks and of the values of `varied`, by name: `k16-seed0`, after the hook if several.

    Of each key in `varied`, `key=value` like `overrides`, every value is tried.

    Raises:
        ConfigError: as `load_settings`, or a value that cannot be part of a folder's name.
    """
    by_key: dict[str, list[str]] = {}
    for setting in dict.fromkeys(varied):
        by_key.setdefault(setting.partition("=")[0], []).append(setting)
    several = len(hook_names) > 1
    found = {}
    for hook_name, settings in product(hook_names, product(*by_key.values())):
        parts = [*([hook_name] if several else []), *map(_part_of_name, settings)]
        found["-".join(parts)] = (hook_name, load_settings(TrainConfig, config_file, [*overrides, *settings]))
    return found


def train_several_on_cache(
    start: Start,
    out: Path,
    wanted: Mapping[str, tuple[str, TrainConfig]],
    *,
    seed: int,
    device: str = "cpu",
    progress: Progress = no_progress,
    log: Log = no_log,
) -> dict[str, dict[str, Any]]:
    """Train on hooks of a cache, write one SAE folder `OUT/NAME` each, and return the last record of each training.

    Batches come in the order that `seed` gives. `log` gets the records of all, keys after the SAE's name. A killed run
    goes on from the folder `OUT.checkpoint`.

    Raises:
        ConfigError: the batch sizes differ, or there are several processes; also as `train_on_cache`.
        CacheFileError, HookError, SAEError, IncompatibleError, ArtifactError: as `train_on_cache`.
    """
    check_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("several SAEs are trained in one process; start it without torchrun, or train one SAE.")
    if out.is_file() or read_manifest(out) is not None:
        raise ArtifactError(f"{out} holds something else, and several SAEs need a folder of their own. Name another.")
    cache = start.open()
    manifests = {
        name: start.manifest(cache, hook_name, config, order=seed) for name, (hook_name, config) in wanted.items()
    }
    checkpoints = out.with_name(f"{out.name}.checkpoint")
    with contextlib.ExitStack() as held:
        if checkpoints.exists() or not all(is_done(out / name, manifest) for name, manifest in manifests.items()):
            held.enter_context(only_writer(out))
        left = [name for name, manifest in manifests.items() if not is_done(out / name, manifest)]
        for name in left:
            check_not_finished(out / name)
        if checkpoints.is_file():
            raise ArtifactError(
                f"{checkpoints} is the checkpoint of a single SAE that was to become {out}. Name another --out, or "
                "delete it."
            )
        if left:
            check_space(out, checkpoints, [(cache.d_in(wanted[name][0]), wanted[name][1].d_sae) for name in left])
            initial = start.load_initial(device)
            jobs = {name: Job(hook_name, config, initial) for name, (hook_name, config) in wanted.items()}
            whole = max(config.n_steps * config.batch_size for _, config in wanted.values())
            checkpoints.mkdir(parents=True, exist_ok=True)
            try:
                with JsonlLog(checkpoints / TRAINING) as kept:
                    saes = train_saes(
                        cache,
                        jobs,
                        seed=seed,
                        device=device,
                        log=fan_out(kept, log),
                        progress=counting(progress, "training", whole),
                        checkpoints=checkpoints,
                    )
            finally:
                if not any(checkpoints.glob("*.state")):
                    shutil.rmtree(checkpoints)
            records = read_jsonl(checkpoints / TRAINING, dict)
            for name, sae in saes.items():
                with write_folder(out / name, manifests[name]) as folder:
                    sae.save_model(folder)
                    write_jsonl(folder / TRAINING, _records_of(name, records))
        if checkpoints.exists():  # also of a run that was killed when its SAEs were in their places
            shutil.rmtree(checkpoints)
    return {name: read_jsonl(out / name / TRAINING, dict)[-1] for name in wanted}


def _part_of_name(setting: str) -> str:
    key, _, value = setting.partition("=")
    if not re.fullmatch(r"[\w.+-]+", value):
        raise ConfigError(f"--vary {setting!r}: expected KEY=VALUE with a plain number or word, such as k=16.")
    return value if value[0].isalpha() else key + value


def _records_of(name: str, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One SAE's records; of what a killed run logged twice, the later."""
    prefix = f"{name}/"
    own = [
        {k.removeprefix(prefix): v for k, v in record.items()} for record in records if prefix + _N_TRAINED in record
    ]
    return list({record[_N_TRAINED]: record for record in own}.values())
