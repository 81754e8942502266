"""Histograms of numbers whose largest is not known in advance, in constant memory and exact."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

N_BINS = 64
_SMALLEST = -40
"""Exponent of the narrowest bin, 2**-40: below the rounding of any activation."""


@dataclass(frozen=True)
class Histogram:
    """How many values above zero lie in `(i * width, (i + 1) * width]`, for each i from 0."""

    width: float
    counts: tuple[int, ...]

    @property
    def centres(self) -> tuple[float, ...]:
        """The middle of each bin."""
        return tuple((i + 0.5) * self.width for i in range(len(self.counts)))


class RunningHistograms:
    """One histogram a column of values above zero; a bin's width is a power of two and doubles as values outgrow it.

    Doubling adds neighbouring bins, so the result does not depend on the order in which values came.
    """

    def __init__(self, n_columns: int) -> None:
        self.exponents = np.full(n_columns, _SMALLEST)
        self.counts = np.zeros((n_columns, N_BINS), dtype=np.int64)

    def add(self, values: Float[np.ndarray, "n n_columns"]) -> None:
        """Count a block of values; those up to zero are left out."""
        for column in range(values.shape[1]):
            self._add(column, values[values[:, column] > 0, column].astype(np.float64))

    def histogram(self, column: int) -> Histogram:
        """The histogram of a column, up to its last bin that is not empty."""
        counts = self.counts[column]
        n_used = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
        return Histogram(float(2.0 ** self.exponents[column]), tuple(counts[:n_used].tolist()))

    def _add(self, column: int, values: Float[np.ndarray, " m"]) -> None:
        if not len(values):
            return
        while values.max() > N_BINS * 2.0 ** self.exponents[column]:
            halved: Int[np.ndarray, " half"] = self.counts[column].reshape(-1, 2).sum(1)
            self.counts[column] = np.pad(halved, (0, N_BINS // 2))
            self.exponents[column] += 1
        bins = np.ceil(values / 2.0 ** self.exponents[column]).astype(np.int64) - 1
        self.counts[column] += np.bincount(bins, minlength=N_BINS)
