"""Train an SAE on activations, from a cache or straight from a model.

Training sees `z = (x - mean) * scale`, where `mean` is the data's and `scale` makes the mean of `||z||^2` equal to
d_in, so that one learning rate fits every layer of every model. At the end both are folded into the biases: the SAE
that is returned reads raw activations, its decoder rows are one long, and a latent's activation is a length in the
residual stream.
"""

import glob
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_persona.artifacts import write_file
from sae_persona.cache.reader import ActivationCache
from sae_persona.cache.source import ActivationSource
from sae_persona.cache.transfer import on_device
from sae_persona.errors import ConfigError, SAEError
from sae_persona.logs import Log, no_log
from sae_persona.sae.config import TrainConfig
from sae_persona.sae.learner import Centring, Learner
from sae_persona.sae.ranks import ALONE, Ranks
from sae_persona.sae.saelens import SAELensLearner

if TYPE_CHECKING:
    from sae_lens import SAE

VERSION = 2
"""Raised when the same configuration and data would give another SAE."""
LOG_EVERY = 50
"""Steps between two records."""
_BLOCK_ROWS = 8192
"""Rows of a cache that are looked through at once."""


@dataclass(frozen=True, eq=False)
class Job:
    """One SAE to train."""

    hook_name: str
    config: TrainConfig
    initial: "SAE | None" = None
    """The SAE of raw activations whose weights training begins with, such as the base model's for a chat model."""


def train_sae(
    cache: ActivationSource,
    hook_name: str,
    config: TrainConfig,
    *,
    device: str | torch.device = "cpu",
    log: Log = no_log,
    progress: Callable[[int], None] | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int = 1000,
    initial: "SAE | None" = None,
    ranks: Ranks = ALONE,
) -> "SAE":
    """An SAE of the residual stream at `hook_name`, trained on the tokens of `cache` that count.

    With `checkpoint`, the state is written to that file every `checkpoint_every` steps and at the end, and a run that
    finds its own state there goes on from it, bit for bit as if it had not been stopped. `log` gets records under
    SAELens's keys, with `details/tokens_per_second` since the record before and `details/seconds_left` at that pace;
    `progress` gets the number of tokens just finished. With `initial`, training begins with that SAE's weights.

    Under `torchrun`, every process makes this call with its `ranks`; the first logs and writes, and all get the SAE.

    Raises:
        SAEError: activations or the loss are not finite, the activations do not vary, or `checkpoint` belongs to
            another run.
        ConfigError: SAELens refuses the `options`, or the work cannot be split between the `ranks`.
        IncompatibleError: training cannot begin with the weights of `initial`.
        HookError: the cache does not hold that hook.
    """
    course = _Course(
        cache, Job(hook_name, config, initial), torch.device(device), log, checkpoint, checkpoint_every, ranks
    )
    _run_through(cache, [course], seed=config.seed, progress=progress)
    return course.finished()


def train_saes(
    cache: ActivationSource,
    jobs: Mapping[str, Job],
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    log: Log = no_log,
    progress: Callable[[int], None] | None = None,
    checkpoints: Path | None = None,
    checkpoint_every: int = 1000,
) -> dict[str, "SAE"]:
    """Several SAEs, by name, trained on one pass over the data: other widths, `k`, seeds, architectures or hooks.

    Each batch is read once for all SAEs of its hook, in the order that `seed` gives; an SAE whose own seed that is
    comes out bit for bit as from `train_sae`. Records have keys `NAME/KEY`; checkpoints are `CHECKPOINTS/NAME.state`.

    Raises:
        ConfigError: the batch sizes differ.
        SAEError, IncompatibleError, HookError: as `train_sae`.
    """
    sizes = {job.config.batch_size for job in jobs.values()}
    if len(sizes) != 1:
        raise ConfigError(f"batch_size is {sorted(sizes)}; SAEs that share their batches need one and the same.")

    def log_of(name: str) -> Log:
        return lambda record: log({f"{name}/{key}": value for key, value in record.items()})

    courses = {
        name: _Course(
            cache,
            job,
            torch.device(device),
            log_of(name),
            None if checkpoints is None else checkpoints / f"{name}.state",
            checkpoint_every,
            order=seed,
        )
        for name, job in jobs.items()
    }
    _run_through(cache, list(courses.values()), seed=seed, progress=progress)
    return {name: course.finished() for name, course in courses.items()}


def _run_through(
    cache: ActivationSource, courses: "list[_Course]", *, seed: int, progress: Callable[[int], None] | None
) -> None:
    """Hand every batch to each SAE that has not had it yet; after a kill some may be further on than others."""
    batch_size = courses[0].job.config.batch_size
    left = [course for course in courses if not course.done]
    step = min((course.learner.step for course in left), default=0)
    ranks, device = courses[0].ranks, courses[0].device

    def own_batches(hook_name: str) -> Iterator[Tensor]:
        batches = cache.batches(hook_name, batch_size=batch_size, seed=seed, skip=step)
        return on_device(map(ranks.own_tokens, batches), device)

    streams = {name: own_batches(name) for name in dict.fromkeys(course.job.hook_name for course in left)}
    while left:
        batches = {name: next(streams[name]) for name in dict.fromkeys(course.job.hook_name for course in left)}
        for course in left:
            if course.learner.step == step:
                course.take(batches[course.job.hook_name])
        step += 1
        left = [course for course in left if not course.done]
        if progress:
            progress(batch_size)


class _Course:
    """The training of one SAE, batch by batch."""

    def __init__(
        self,
        cache: ActivationSource,
        job: Job,
        device: torch.device,
        log: Log,
        checkpoint: Path | None,
        checkpoint_every: int,
        ranks: Ranks = ALONE,
        order: int | None = None,
    ) -> None:
        self.job, self.ranks, self.device = job, ranks, device
        self._cache, self._log = cache, log
        self._checkpoint, self._checkpoint_every = checkpoint, checkpoint_every
        self._identity = _identity(cache, job, order)
        self._centring = _centring(cache, job.hook_name)
        self._centring_there = self._centring.to(device)
        self.learner = _learner(cache.d_in(job.hook_name), job, device, self._centring, ranks)
        if checkpoint is not None and checkpoint.exists():
            _load(self.learner, checkpoint, self._identity, device)
        self._pace = _Pace(self.learner.step)

    @property
    def done(self) -> bool:
        return self.learner.step >= self.job.config.n_steps

    def take(self, batch: Tensor) -> None:
        """One step on this process's tokens, which are on its device, and what is due after it."""
        learner = self.learner
        z = self._centring_there.apply(batch)
        result = learner.advance(z)
        if learner.step % LOG_EVERY == 0 or self.done:
            record = learner.record(result, z)
            if not math.isfinite(record["losses/overall_loss"]):
                raise SAEError(_why_not_finite(self._cache, self.job, learner.step))
            if self.ranks.rank == 0:
                self._log(record | self._pace.measure(learner.step, self.job.config))
        if self._checkpoint is not None and (learner.step % self._checkpoint_every == 0 or self.done):
            state = learner.state()
            if self.ranks.rank == 0:
                _save(state, learner.step, self._checkpoint, self._identity)

    def finished(self) -> "SAE":
        """The SAE of raw activations."""
        made_of = {"config": self.job.config.model_dump(), "cache": self._cache.manifest.fingerprint}
        metadata = {
            "model_name": self._cache.model,
            "hook_name": self.job.hook_name,
            "context_size": self._cache.context_size,
            "prepend_bos": False,
            "sae_persona": made_of,
        }
        return self.learner.folded(self._centring, metadata)


def _learner(d_in: int, job: Job, device: torch.device, centring: Centring, ranks: Ranks) -> "Learner | SAELensLearner":
    config = job.config
    ranks.check(batch_size=config.batch_size, d_sae=config.d_sae)
    if config.is_fast:
        return Learner.begin(d_in, config, device, centring=centring, initial=job.initial, ranks=ranks)
    if ranks.split or job.initial is not None:
        raise ConfigError(
            f"architecture={config.architecture!r} is trained by SAELens, in one process and from its own start; "
            "several processes and an SAE to begin with are for 'topk' and 'batchtopk'."
        )
    return SAELensLearner(d_in, config, device)


def _identity(cache: ActivationSource, job: Job, order: int | None) -> str:
    """What tells a checkpoint's run from others."""
    made_of = {
        "version": VERSION,
        "cache": cache.manifest.fingerprint,
        "hook_name": job.hook_name,
        "config": job.config.model_dump(),
        "order": job.config.seed if order is None else order,
    }
    if job.initial is not None:
        state = sorted(job.initial.state_dict().items())
        bits = b"".join(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() for _, tensor in state)
        made_of["initial"] = hashlib.sha256(bits).hexdigest()
    return json.dumps(made_of, sort_keys=True)


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


def _save(state: Mapping[str, Tensor], step: int, path: Path, identity: str) -> None:
    """Write the state, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in path.parent.glob(f"{glob.escape(path.name)}.partial-*"):
        abandoned.unlink()  # a run that was killed while it wrote: only one run at a time has a checkpoint
    with write_file(path) as partial:
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in state.items()},
            partial,
            metadata={"identity": identity, "step": str(step)},
        )


def _load(learner: "Learner | SAELensLearner", path: Path, identity: str, device: torch.device) -> None:
    """Take up the state that `_save` wrote.

    Raises:
        SAEError: the file is no checkpoint, or one of another run.
    """
    # A process may hold a share of the latents only: what is on the disk is read into memory beside its device.
    where = "cpu" if isinstance(learner, Learner) else str(device)
    try:
        with safe_open(path, framework="pt", device=where) as file:
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


def _centring(cache: ActivationSource, hook_name: str) -> Centring:
    if isinstance(cache, ActivationCache) and not cache.counts.any():
        raise SAEError(f"no token of {cache.path} counts; there is nothing to learn. Cache again.")
    total = float(cache.variance(hook_name).sum())
    if not math.isfinite(total):
        raise SAEError(_where_not_finite(cache, hook_name) or f"the statistics of {hook_name} are not finite.")
    if total == 0:
        raise SAEError(f"the activations at {hook_name} are all the same; there is nothing to learn. Check the data.")
    return Centring(cache.mean(hook_name), math.sqrt(cache.d_in(hook_name) / total))


def _why_not_finite(cache: ActivationSource, job: Job, n_steps: int) -> str:
    return _where_not_finite(cache, job.hook_name) or (
        f"the loss is not finite after {n_steps} steps at learning rate {job.config.lr_at(n_steps - 1):.2g}. "
        "Train with a smaller lr."
    )


def _where_not_finite(cache: ActivationSource, hook_name: str) -> str | None:
    """Which counted activations are NaN or infinite, in one line; None where all are numbers."""
    if not isinstance(cache, ActivationCache):
        return None  # a stream refuses such activations as it computes them
    stored = cache.hooks[hook_name]
    is_number = torch.isfinite(torch.from_numpy(stored.norms))
    for start in range(0, cache.n_tokens, _BLOCK_ROWS):  # where a file was damaged, its norms need not tell
        is_number[start : start + _BLOCK_ROWS] &= stored.rows.block(start, start + _BLOCK_ROWS).isfinite().all(-1)
        stored.rows.release(start, start + _BLOCK_ROWS)
    wrong = (~is_number & torch.from_numpy(cache.counts)).nonzero().flatten()
    if not len(wrong):
        return None
    first = int(wrong[0])
    return (
        f"{len(wrong)} of {cache.n_counted} activations at {hook_name} are NaN or infinite, the first at position "
        f"{cache.positions[first]} of document {cache.document_ids[first]}. "
        "Cache again in float32 or bfloat16, without that document."
    )
