"""Open an activation cache, and read it in order or shuffled; memory stays bounded however large the file is.

Axes: `n_tokens` rows of the file, `d_in` width at a hook.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int32, UInt8
from torch import Tensor

from sae_persona.artifacts import Manifest
from sae_persona.cache.layout import SHARD_KIND, TOKEN_COLUMNS, Layout, read_layout
from sae_persona.cache.prefetch import prefetched
from sae_persona.cache.rows import StoredRows
from sae_persona.cache.shuffle import Visit, chunks_of, shuffled_batches
from sae_persona.errors import CacheFileError, ConfigError, HookError

PREFETCH = 4
"""Batches made while the consumer is busy: enough to bridge the start of a buffer."""


@dataclass(frozen=True, eq=False)
class CachedHook:
    """What a cache holds of one hook. Statistics are over the tokens that count."""

    rows: StoredRows = field(repr=False)
    """The activations, as they are stored."""
    norms: Float32[np.ndarray, " n_tokens"] = field(repr=False)
    mean: Float64[Tensor, " d_in"] = field(repr=False)
    variance: Float64[Tensor, " d_in"] = field(repr=False)
    median_norm: float


@dataclass(frozen=True, eq=False)
class ActivationCache:
    """A finished cache. Arrays are mapped from the file: opening reads next to nothing."""

    path: Path
    manifest: Manifest
    model: str
    """What the activations were taken from, as it was loaded."""
    models: Mapping[str, str]
    """The same by name, where the file holds several models; see `of_model`."""
    dtype: str
    """Precision of the stored activations: float32, float16 or bfloat16."""
    n_tokens: int
    n_counted: int
    """Tokens that count: not among the first of their document, finite, and not of outlying norm."""
    token_ids: Int32[np.ndarray, " n_tokens"] = field(repr=False)
    positions: Int32[np.ndarray, " n_tokens"] = field(repr=False)
    document_ids: Int32[np.ndarray, " n_tokens"] = field(repr=False)
    """Index of the token's document in the data."""
    parts: UInt8[np.ndarray, " n_tokens"] = field(repr=False)
    """`data.tokens.Part` of each token."""
    counts: Bool[np.ndarray, " n_tokens"] = field(repr=False)
    hooks: Mapping[str, CachedHook]
    """By hook name, after `MODEL/` where the file holds several models."""

    @classmethod
    def open(cls, path: Path | str) -> "ActivationCache":
        """The cache in a file.

        Raises:
            CacheFileError: the file is missing, unfinished, truncated, or no cache of ours.
        """
        path = Path(path)
        _check_present(path)
        layout = read_layout(path)
        if layout.manifest.kind == SHARD_KIND:
            raise CacheFileError(f"{path} is one shard of a cache. Open the file that stands for all of its shards.")
        if not layout.read("complete"):
            raise CacheFileError(
                f"{path} is unfinished: {layout.read('committed')} of {layout.n_tokens} tokens are in it. "
                "Run the cache command that began it again; it continues."
            )
        return cls(
            path=path,
            manifest=layout.manifest,
            model=layout.model,
            models=layout.models,
            dtype=layout.dtype,
            n_tokens=layout.n_tokens,
            n_counted=int(layout.read("n_counted")),
            hooks={hook: _open_hook(layout, hook) for hook in layout.hooks},
            **{name: layout.read(name) for name in TOKEN_COLUMNS},
        )

    @property
    def hook_names(self) -> tuple[str, ...]:
        """The hooks whose activations are stored."""
        return tuple(self.hooks)

    @property
    def context_size(self) -> int:
        """Tokens of the longest document, as the model read it."""
        return int(self.positions.max(initial=-1)) + 1

    def of_model(self, name: str) -> "ActivationCache":
        """One of several models, under plain hook names; tokens and mask are those of all.

        Raises:
            ConfigError: the file holds no model of that name.
        """
        if name not in self.models:
            held = ", ".join(self.models) or "one model without a name"
            raise ConfigError(f"{self.path} holds no model {name!r}; it holds {held}. Name one of these.")
        mine = {hook.removeprefix(f"{name}/"): one for hook, one in self.hooks.items() if hook.startswith(f"{name}/")}
        return replace(self, model=self.models[name], models={}, hooks=mine)

    def d_in(self, hook_name: str) -> int:
        """Width of the activations at a hook."""
        return self._hook(hook_name).rows.shape[1]

    def mean(self, hook_name: str) -> Float64[Tensor, " d_in"]:
        """Mean activation over counted tokens."""
        return self._hook(hook_name).mean

    def variance(self, hook_name: str) -> Float64[Tensor, " d_in"]:
        """Variance of each coordinate over counted tokens, `mean((x - mean(x))^2)`."""
        return self._hook(hook_name).variance

    def median_norm(self, hook_name: str) -> float:
        """Median Euclidean norm over counted tokens: the unit of steering strengths."""
        return self._hook(hook_name).median_norm

    def read(self, hook_name: str) -> Float[Tensor, "n_tokens d_in"]:
        """All activations in file order, in float32: for small caches. `counts` tells which rows count."""
        return self._hook(hook_name).rows.block(0, self.n_tokens).float()

    def batches(
        self, hook_name: str, *, batch_size: int, seed: int, n_epochs: int | None = None, skip: int = 0
    ) -> Iterator[Float[Tensor, "batch_size d_in"]]:
        """Counted rows in a random order given by `seed`, in float32, endlessly or for `n_epochs`.

        Every epoch visits every counted row once. Batches run on across the end of an epoch; only the last of a finite
        run may be smaller. The first `skip` batches are left out without being read, so that training goes on where it
        was stopped. The next batches are made in a thread while the caller is busy with one.
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
        """Batches of several hooks at once: row i is the same token at each, and the order is that of `batches`.

        `prefetch` is the number of batches made ahead of need; with 0, everything happens in the caller's thread.
        """
        rows = {name: self._hook(name).rows for name in hook_names}
        if batch_size < 1 or not rows:
            raise ConfigError(f"batch_size={batch_size}, {len(rows)} hooks: expected at least one of each.")
        visits = shuffled_batches(self.counts, batch_size=batch_size, seed=seed, n_epochs=n_epochs, skip=skip)
        return prefetched(_take(rows, visits), n_ahead=prefetch)

    def _hook(self, hook_name: str) -> CachedHook:
        if hook_name not in self.hooks:
            raise HookError(
                f"{self.path} holds no activations of {hook_name!r}; it holds {', '.join(self.hooks)}. "
                "Name one of these, or cache that hook too."
            )
        return self.hooks[hook_name]


def _take(
    rows: Mapping[str, StoredRows], visits: Iterator[Visit]
) -> Generator[dict[str, Float[Tensor, "batch_size d_in"]], None, None]:
    """Batches of all hooks, with the disk busy on the buffer after the one that is being read."""
    for visit in visits:
        for stored in rows.values():
            for chunk in chunks_of(visit.following):
                stored.fetch(chunk.start, chunk.stop)
        for batch in visit.batches:
            yield {name: stored.take(batch).float() for name, stored in rows.items()}
        for stored in rows.values():
            for chunk in chunks_of(visit.buffer):
                stored.release(chunk.start, chunk.stop)


def _check_present(path: Path) -> None:
    if path.is_file():
        return
    if path.is_dir():
        raise CacheFileError(f"{path} is a folder, and a cache is one HDF5 file. Name the file.")
    if (partial := partial_path(path)).is_file():
        raise CacheFileError(
            f"{path} is unfinished: only {partial.name} is there. Run the same cache command again; it continues."
        )
    raise CacheFileError(f"{path} does not exist. Check the path, or write it with `sae-persona cache`.")


def partial_path(path: Path) -> Path:
    """Where a cache is written until it is complete."""
    return path.with_name(f"{path.name}.partial")


def _open_hook(layout: Layout, hook: str) -> CachedHook:
    group = f"hooks/{hook}"
    return CachedHook(
        rows=StoredRows(layout.dtype, layout.activations[hook]),
        norms=layout.read(f"{group}/norms"),
        mean=torch.from_numpy(layout.read(f"{group}/mean")),
        variance=torch.from_numpy(layout.read(f"{group}/variance")),
        median_norm=float(layout.read(f"{group}/median_norm")),
    )
