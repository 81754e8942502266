"""The stored activations at one hook, in one file or in several, read row by row through maps of the files."""

import mmap
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_persona.cache.layout import STORED_AS, Place

_WILL_NEED, _DONT_NEED = getattr(mmap, "MADV_WILLNEED", None), getattr(mmap, "MADV_DONTNEED", None)
"""None where the system takes no advice on maps."""


@dataclass(frozen=True, eq=False)
class StoredRows:
    """`[n_rows, d_in]` on disk, in as many places as there are files, one after the other."""

    dtype: str
    places: tuple[Place, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows, and their width."""
        return int(self._ends[-1]), self.places[0].shape[1]

    def block(self, start: int, stop: int) -> Float[Tensor, "n d_in"]:
        """A run of rows, in the precision they are stored in."""
        return self.take(np.arange(start, min(stop, self.shape[0])))

    def take(self, rows: Int[np.ndarray, " n"]) -> Float[Tensor, "n d_in"]:
        """Rows in the order asked for, in the precision they are stored in."""
        taken = np.empty((len(rows), self.shape[1]), self.places[0].dtype)
        if len(self.places) == 1:
            # With mode="clip" numpy copies straight into `out`; all rows are known to exist.
            np.take(self._arrays[0], rows, axis=0, out=taken, mode="clip")
        else:
            where = np.searchsorted(self._ends, rows, side="right")
            for i, array in enumerate(self._arrays):
                mine = np.flatnonzero(where == i)
                taken[mine] = array[rows[mine] - self._starts[i]]
        return torch.from_numpy(taken).view(STORED_AS[self.dtype][0])

    def fetch(self, start: int, stop: int) -> None:
        """Ask the system to read a run of rows from the disk, without waiting for it."""
        self._advise(_WILL_NEED, start, stop)

    def release(self, start: int, stop: int) -> None:
        """Let go of the memory behind a run of rows; reading them again is allowed."""
        self._advise(_DONT_NEED, start, stop)

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([place.shape[0] for place in self.places])

    @cached_property
    def _starts(self) -> np.ndarray:
        return self._ends - [place.shape[0] for place in self.places]

    @cached_property
    def _maps(self) -> list[mmap.mmap]:
        """The files, mapped read-only: such memory can be taken back by the system at any time."""
        maps = []
        for place in self.places:
            with place.path.open("rb") as file:
                maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return maps

    @cached_property
    def _arrays(self) -> list[np.ndarray]:
        return [
            np.ndarray(place.shape, place.dtype, mapped, place.offset)
            for place, mapped in zip(self.places, self._maps, strict=True)
        ]

    def _advise(self, advice: int | None, start: int, stop: int) -> None:
        if advice is None:
            return
        for place, mapped, first in zip(self.places, self._maps, self._starts, strict=True):
            low, high = max(start - int(first), 0), min(stop - int(first), place.shape[0])
            if low < high:
                begin = place.offset + low * place.row_bytes
                page = begin - begin % mmap.PAGESIZE
                mapped.madvise(advice, page, begin - page + (high - low) * place.row_bytes)
