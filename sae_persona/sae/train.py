"""Train an SAE on cached activations.

Training sees `z = (x - mean) * scale`, where `mean` is the data's and `scale` makes the mean of `||z||^2` equal to
d_in, so that one learning rate fits every layer of every model. At the end both are folded into the biases: the SAE
that is returned reads raw activations, its decoder rows are one long, and a latent's activation is a length in the
residual stream.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sae_persona.artifacts import write_file
from sae_persona.cache.reader import ActivationCache
from sae_persona.errors import SAEError
from sae_persona.logs import Log, no_log
from sae_persona.sae.config import TrainConfig
from sae_persona.sae.learner import Centring, Learner

if TYPE_CHECKING:
    from sae_lens import SAE

VERSION = 1
"""Raised when the same configuration and data would give another SAE."""
LOG_EVERY = 50
"""Steps between two records."""


def train_sae(
    cache: ActivationCache,
    hook_name: str,
    config: TrainConfig,
    *,
    device: str | torch.device = "cpu",
    log: Log = no_log,
    progress: Callable[[int], None] | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int = 1000,
) -> "SAE":
    """An SAE of the residual stream at `hook_name`, trained on the tokens of `cache` that count.

    With `checkpoint`, the state is written to that file every `checkpoint_every` steps and at the end, and a run that
    finds its own state there goes on from it, bit for bit as if it had not been stopped. `log` gets records under
    SAELens's keys, with `details/tokens_per_second` since the record before and `details/seconds_left` at that pace;
    `progress` gets the number of tokens just finished.

    Raises:
        SAEError: activations or the loss are not finite, the activations do not vary, or `checkpoint` belongs to
            another run.
        HookError: the cache does not hold that hook.
    """
    identity = json.dumps(
        {
            "version": VERSION,
            "cache": cache.manifest.fingerprint,
            "hook_name": hook_name,
            "config": config.model_dump(),
        },
        sort_keys=True,
    )
    centring = _centring(cache, hook_name)
    learner = Learner.begin(cache.d_in(hook_name), config, torch.device(device))
    if checkpoint is not None and checkpoint.exists():
        _load(learner, checkpoint, identity)
    batches = cache.batches(hook_name, batch_size=config.batch_size, seed=config.seed, skip=learner.step)
    pace = _Pace(learner.step)
    while learner.step < config.n_steps:
        z = centring.apply(next(batches).to(device))
        result = learner.advance(z)
        if learner.step % LOG_EVERY == 0 or learner.step == config.n_steps:
            record = learner.record(result, z)
            if not math.isfinite(record["losses/overall_loss"]):
                raise SAEError(_why_not_finite(cache, hook_name, learner))
            log(record | pace.measure(learner.step, config))
        if checkpoint is not None and (learner.step % checkpoint_every == 0 or learner.step == config.n_steps):
            _save(learner, checkpoint, identity)
        if progress:
            progress(config.batch_size)
    made_of = {"config": config.model_dump(), "cache": cache.manifest.fingerprint}
    metadata = {"model_name": cache.model, "hook_name": hook_name, "prepend_bos": False, "sae_persona": made_of}
    return learner.folded(centring, metadata)


class _Pace:
    """How fast training goes, from one record to the next."""

    def __init__(self, step: int) -> None:
        self._step, self._time = step, time.monotonic()

    def measure(self, step: int, config: TrainConfig) -> dict[str, float]:
        now = time.monotonic()
        seconds = max(now - self._time, 1e-9) / (step - self._step)
        self._step, self._time = step, now
        return {
            "details/tokens_per_second": config.batch_size / seconds,
            "details/seconds_left": (config.n_steps - step) * seconds,
        }


def _save(learner: Learner, path: Path, identity: str) -> None:
    """Write the state, whole or not at all."""
    with write_file(path) as partial:
        save_file(learner.state(), partial, metadata={"identity": identity, "step": str(learner.step)})


def _load(learner: Learner, path: Path, identity: str) -> None:
    """Take up the state that `_save` wrote.

    Raises:
        SAEError: the file is no checkpoint, or one of another run.
    """
    try:
        with safe_open(path, framework="pt", device=str(learner.weights.decoder.device)) as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise SAEError(f"{path} is no checkpoint that can be read ({error}). Delete it to train anew.") from error
    if metadata.get("identity") != identity:
        raise SAEError(
            f"{path} is the checkpoint of another run: its data, hook or config differ. "
            "Name another file, or delete it to train anew."
        )
    learner.restore(tensors, int(metadata["step"]))


def _centring(cache: ActivationCache, hook_name: str) -> Centring:
    total = float(cache.variance(hook_name).sum())
    if not math.isfinite(total):
        raise SAEError(_where_not_finite(cache, hook_name) or f"the statistics of {hook_name} are not finite.")
    if total == 0:
        raise SAEError(f"the activations at {hook_name} are all the same; there is nothing to learn. Check the data.")
    return Centring(cache.mean(hook_name), math.sqrt(cache.d_in(hook_name) / total))


def _why_not_finite(cache: ActivationCache, hook_name: str, learner: Learner) -> str:
    return _where_not_finite(cache, hook_name) or (
        f"the loss is not finite after {learner.step} steps at learning rate "
        f"{learner.config.lr_at(learner.step - 1):.2g}. Train with a smaller lr."
    )


def _where_not_finite(cache: ActivationCache, hook_name: str) -> str | None:
    """Which counted activations are NaN or infinite, in one line; None where all are numbers."""
    norms = torch.from_numpy(cache.hooks[hook_name].norms)
    wrong = (~torch.isfinite(norms) & torch.from_numpy(cache.counts)).nonzero().flatten()
    if not len(wrong):
        return None
    first = int(wrong[0])
    return (
        f"{len(wrong)} of {cache.n_counted} activations at {hook_name} are NaN or infinite, the first at position "
        f"{cache.positions[first]} of document {cache.document_ids[first]}. "
        "Cache again in float32 or bfloat16, without that document."
    )
