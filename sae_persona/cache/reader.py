"""Open an activation cache, and read it in order or shuffled; memory stays bounded however large the file is.

Axes: `n_tokens` rows of the file, `d_in` width at a hook.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, Int32, UInt8
from torch import Tensor

from sae_persona.artifacts import Manifest
from sae_persona.cache.layout import STORED_AS, TOKEN_COLUMNS, Layout, read_layout
from sae_persona.cache.shuffle import shuffled_rows
from sae_persona.errors import CacheFileError, HookError


@dataclass(frozen=True, eq=False)
class CachedHook:
    """What a cache holds of one hook. Statistics are over the tokens that count."""

    dtype: str
    """Precision of the stored activations: float32, float16 or bfloat16."""
    activations: np.ndarray = field(repr=False)
    """[n_tokens, d_in], mapped from the file; the bits of bfloat16 as uint16."""
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
    n_tokens: int
    n_counted: int
    """Tokens that count: not among the first of their document and not of outlying norm."""
    token_ids: Int32[np.ndarray, " n_tokens"] = field(repr=False)
    positions: Int32[np.ndarray, " n_tokens"] = field(repr=False)
    document_ids: Int32[np.ndarray, " n_tokens"] = field(repr=False)
    """Index of the token's row in the data."""
    parts: UInt8[np.ndarray, " n_tokens"] = field(repr=False)
    """`data.tokens.Part` of each token."""
    counts: Bool[np.ndarray, " n_tokens"] = field(repr=False)
    hooks: Mapping[str, CachedHook]

    @classmethod
    def open(cls, path: Path | str) -> "ActivationCache":
        """The cache in a file.

        Raises:
            CacheFileError: the file is missing, unfinished, truncated, or no cache of ours.
        """
        path = Path(path)
        _check_present(path)
        layout = read_layout(path)
        n_tokens = len(layout.read("token_ids"))
        if not layout.read("complete"):
            raise CacheFileError(
                f"{path} is unfinished: {layout.read('committed')} of {n_tokens} tokens are in it. "
                "Run the cache command that began it again; it continues."
            )
        return cls(
            path=path,
            manifest=layout.manifest,
            model=layout.model,
            n_tokens=n_tokens,
            n_counted=int(layout.read("n_counted")),
            hooks={name: _open_hook(layout, f"hooks/{name}") for name in layout.hook_names},
            **{name: layout.read(name) for name in TOKEN_COLUMNS},
        )

    @property
    def hook_names(self) -> tuple[str, ...]:
        """The hooks whose activations are stored."""
        return tuple(self.hooks)

    def d_in(self, hook_name: str) -> int:
        """Width of the activations at a hook."""
        return self._hook(hook_name).activations.shape[1]

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
        return self._rows(hook_name, np.arange(self.n_tokens))

    def batches(
        self, hook_name: str, *, batch_size: int, seed: int, n_epochs: int | None = None, skip: int = 0
    ) -> Iterator[Float[Tensor, "batch_size d_in"]]:
        """Counted rows in a random order given by `seed`, in float32, endlessly or for `n_epochs`.

        Every epoch visits every counted row once. Batches run on across the end of an epoch; only the last of a finite
        run may be smaller. The first `skip` batches are left out without being read, so that training goes on where it
        was stopped.
        """
        self._hook(hook_name)
        waiting = torch.empty(0, self.d_in(hook_name))
        for rows in shuffled_rows(self.counts, seed=seed, n_epochs=n_epochs, start=skip * batch_size):
            waiting = torch.cat([waiting, self._rows(hook_name, rows)])
            n_full = len(waiting) // batch_size * batch_size
            yield from waiting[:n_full].split(batch_size) if n_full else ()
            waiting = waiting[n_full:]
        if len(waiting):
            yield waiting

    def _rows(self, hook_name: str, rows: Int[np.ndarray, " n"]) -> Float[Tensor, "n d_in"]:
        """The rows in the order asked for; the file is read front to back."""
        hook = self._hook(hook_name)
        order = np.argsort(rows)
        read = hook.activations[rows[order]]
        values = torch.from_numpy(read).view(STORED_AS[hook.dtype][0]).float()
        wanted = torch.empty_like(values)
        wanted[torch.from_numpy(order)] = values
        return wanted

    def _hook(self, hook_name: str) -> CachedHook:
        if hook_name not in self.hooks:
            raise HookError(
                f"{self.path} holds no activations of {hook_name!r}; it holds {', '.join(self.hooks)}. "
                "Name one of these, or cache that hook too."
            )
        return self.hooks[hook_name]


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


def _open_hook(layout: Layout, group: str) -> CachedHook:
    return CachedHook(
        dtype=layout.dtype,
        activations=layout.read(f"{group}/activations"),
        norms=layout.read(f"{group}/norms"),
        mean=torch.from_numpy(layout.read(f"{group}/mean")),
        variance=torch.from_numpy(layout.read(f"{group}/variance")),
        median_norm=float(layout.read(f"{group}/median_norm")),
    )
