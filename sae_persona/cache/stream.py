"""Activations straight from a model, with nothing on disk, under the interface of `ActivationCache`.

The model runs in a thread of its own while the consumer is busy with the batch before. Axes: `d_in` width at a hook.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from sae_persona.artifacts import Manifest
from sae_persona.cache.compute import ComputedBatch, compute_batch
from sae_persona.cache.moments import Moments
from sae_persona.cache.prefetch import prefetched
from sae_persona.cache.reader import PREFETCH
from sae_persona.cache.task import WritingTask, plan_writing
from sae_persona.data.tokens import TokenRow
from sae_persona.errors import ConfigError, DataError, HookError
from sae_persona.model.load import LoadedModel

BUFFER_ROWS = 32_768
"""Rows mixed at once, as in a cache."""
_STATISTICS_SEED = 0
"""First number of the seed of the order in which rows are sampled for the statistics; epochs have three numbers."""


@dataclass(frozen=True)
class _Statistics:
    """Of the sampled tokens at one hook."""

    norm_bound: float
    """Tokens above it do not count."""
    moments: Moments
    median_norm: float


@dataclass(frozen=True, eq=False)
class ActivationStream:
    """The tokens of some rows at some hooks, computed again in every epoch.

    Which tokens count, and all statistics, are settled on a sample at the beginning.
    """

    manifest: Manifest
    model: str
    models: Mapping[str, str]
    buffer_rows: int
    task: WritingTask = field(repr=False)
    statistics: Mapping[str, _Statistics] = field(repr=False)

    @classmethod
    def begin(
        cls,
        model: LoadedModel | Mapping[str, LoadedModel],
        rows: Sequence[TokenRow],
        *,
        hook_names: Sequence[str],
        batch_size: int = 64,
        drop_first: int = 1,
        norm_limit: float | None = 10.0,
        buffer_rows: int = BUFFER_ROWS,
        n_sampled: int = BUFFER_ROWS,
    ) -> "ActivationStream":
        """Check the request as `write_cache` does, and run the models over `n_sampled` tokens for the statistics.

        Raises:
            CacheFileError, HookError, DataError, IncompatibleError, ConfigError: as `write_cache`.
        """
        if buffer_rows < 1 or n_sampled < 1:
            raise ConfigError(f"buffer_rows={buffer_rows}, n_sampled={n_sampled}: expected at least 1.")
        task = plan_writing(
            model,
            rows,
            hook_names=hook_names,
            batch_size=batch_size,
            dtype="float32",
            drop_first=drop_first,
            norm_limit=norm_limit,
            not_finite="refuse",
        )
        config = {**task.manifest.config, "buffer_rows": buffer_rows, "n_sampled": n_sampled}
        sources = {name: one.source for name, one in task.models.items()}
        return cls(
            manifest=replace(task.manifest, kind="activation_stream", config=config),
            model=", ".join(sources.values()),
            models={} if "" in sources else sources,
            buffer_rows=buffer_rows,
            task=task,
            statistics=_sample(task, n_sampled),
        )

    @property
    def hook_names(self) -> tuple[str, ...]:
        """The hooks that are computed, after `MODEL/` where there are several models."""
        return tuple(self.statistics)

    @property
    def context_size(self) -> int:
        """Tokens of the longest document, as the model reads it."""
        return int(self.task.rows.lengths.max())

    def d_in(self, hook_name: str) -> int:
        """Width of the activations at a hook."""
        return len(self._hook(hook_name).moments.mean)

    def mean(self, hook_name: str) -> Float64[Tensor, " d_in"]:
        """Mean activation over the counted tokens of the sample."""
        return self._hook(hook_name).moments.mean

    def variance(self, hook_name: str) -> Float64[Tensor, " d_in"]:
        """Variance of each coordinate over the counted tokens of the sample, `mean((x - mean(x))^2)`."""
        return self._hook(hook_name).moments.variance

    def median_norm(self, hook_name: str) -> float:
        """Median Euclidean norm over the counted tokens of the sample."""
        return self._hook(hook_name).median_norm

    def batches(
        self, hook_name: str, *, batch_size: int, seed: int, n_epochs: int | None = None, skip: int = 0
    ) -> Iterator[Float[Tensor, "batch_size d_in"]]:
        """Counted rows in a random order given by `seed`, in float32, endlessly or for `n_epochs`.

        Every epoch visits every counted row once. The first `skip` batches are computed and left out.
        """
        aligned = self.aligned_batches([hook_name], batch_size=batch_size, seed=seed, n_epochs=n_epochs, skip=skip)
        return (batch[hook_name] for batch in aligned)

    def aligned_batches(
        self,
        hook_names: Sequence[str],
        *,
        batch_size: int,
        seed: int,
        n_epochs: int | None = None,
        skip: int = 0,
        prefetch: int = PREFETCH,
    ) -> Iterator[dict[str, Float[Tensor, "batch_size d_in"]]]:
        """Batches of several hooks at once: row i is the same token at each, and the order is that of `batches`."""
        for name in hook_names:
            self._hook(name)
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: expected at least 1.")
        batches = _in_batches(self._buffers(hook_names, seed, n_epochs), batch_size)
        return islice(prefetched(batches, n_ahead=prefetch), skip, None)

    def _buffers(self, hook_names: Sequence[str], seed: int, n_epochs: int | None) -> Iterator[dict[str, Tensor]]:
        """Counted rows of random documents, `buffer_rows` of them or a little more, mixed."""
        epoch = 0
        while n_epochs is None or epoch < n_epochs:
            order = np.random.default_rng([seed, epoch]).permutation(len(self.task.rows))
            for number, rows in enumerate(_groups(self.task, order, self.buffer_rows), start=1):
                taken: dict[str, list[Tensor]] = {name: [] for name in hook_names}
                for computed in _by_length(self.task, rows):
                    counts = self._counts(computed)
                    for name in hook_names:
                        taken[name].append(computed.activations[name][counts.to(computed.activations[name].device)])
                buffers = {name: torch.cat(blocks) for name, blocks in taken.items()}
                n = len(next(iter(buffers.values())))
                mixed = torch.from_numpy(np.random.default_rng([seed, epoch, number]).permutation(n))
                yield {name: buffer[mixed.to(buffer.device)] for name, buffer in buffers.items()}
            epoch += 1

    def _counts(self, computed: ComputedBatch) -> Tensor:
        counts = computed.columns["positions"] >= self.task.drop_first
        for name, norms in computed.norms.items():
            counts = counts & (norms <= self.statistics[name].norm_bound).to(counts.device)
        return counts

    def _hook(self, hook_name: str) -> _Statistics:
        if hook_name not in self.statistics:
            raise HookError(f"the stream has no {hook_name!r}; it has {', '.join(self.statistics)}. Name one of these.")
        return self.statistics[hook_name]


def _sample(task: WritingTask, n_sampled: int) -> dict[str, _Statistics]:
    """Bounds on norms and statistics from the first tokens of a random order, by hook."""
    order = np.random.default_rng([_STATISTICS_SEED, 0, 0, 0]).permutation(len(task.rows))
    rows = next(_groups(task, order, n_sampled))
    computed = list(_by_length(task, rows))
    late = torch.cat([one.columns["positions"] for one in computed]) >= task.drop_first
    norms = {name: torch.cat([one.norms[name].cpu() for one in computed]).numpy() for name in computed[0].norms}
    limit = float("inf") if task.norm_limit is None else task.norm_limit
    bounds = {name: limit * float(np.median(at_hook[late.numpy()])) for name, at_hook in norms.items()}
    counts = late.numpy() & np.all([at_hook <= bounds[name] for name, at_hook in norms.items()], axis=0)
    if not counts.any():
        raise DataError(f"no sampled token is within {task.norm_limit} median norms at every hook. Raise norm_limit.")
    statistics = {}
    for name, at_hook in norms.items():
        moments, start = Moments(), 0
        for one in computed:
            stop = start + len(one.activations[name])
            moments.add(one.activations[name].cpu()[torch.from_numpy(counts[start:stop])])
            start = stop
        statistics[name] = _Statistics(bounds[name], moments, float(np.median(at_hook[counts])))
    return statistics


def _groups(task: WritingTask, order: Int[np.ndarray, " n_rows"], n_tokens: int) -> Iterator[Int[np.ndarray, " group"]]:
    """Rows in the order given, cut where `n_tokens` that may count are together."""
    may_count = np.maximum(task.rows.lengths[order] - task.drop_first, 0)
    order, may_count = order[may_count > 0], may_count[may_count > 0]
    group = (np.cumsum(may_count) - may_count) // n_tokens
    yield from np.split(order, np.flatnonzero(np.diff(group)) + 1)


def _by_length(task: WritingTask, rows: Int[np.ndarray, " n_rows"]) -> Iterator[ComputedBatch]:
    """The rows computed, those of similar length together."""
    rows = rows[np.argsort(task.rows.lengths[rows], kind="stable")]
    for start in range(0, len(rows), task.batch_size):
        yield compute_batch(task, rows[start : start + task.batch_size])


def _in_batches(buffers: Iterator[dict[str, Tensor]], batch_size: int) -> Generator[dict[str, Tensor], None, None]:
    """Batches that run on across buffers; the last may be smaller."""
    waiting: dict[str, Tensor] = {}
    for buffer in buffers:
        waiting = {name: torch.cat([waiting[name], rows]) if waiting else rows for name, rows in buffer.items()}
        n_full = len(next(iter(waiting.values()))) // batch_size * batch_size
        for start in range(0, n_full, batch_size):
            yield {name: rows[start : start + batch_size] for name, rows in waiting.items()}
        waiting = {name: rows[n_full:] for name, rows in waiting.items()}
    if waiting and len(next(iter(waiting.values()))):
        yield waiting
