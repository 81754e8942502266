"""Mean and variance of rows that come in blocks, without keeping the rows."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float64
from torch import Tensor


def _nothing() -> Tensor:
    return torch.zeros(0, dtype=torch.float64)


@dataclass(eq=False)
class Moments:
    """Count, mean and squared deviations per column, in float64.

    Blocks are merged by the formula of Chan, Golub & LeVeque 1979, which loses nothing where the mean is large beside
    the spread, as it is in residual streams.
    """

    n: int = 0
    mean: Float64[Tensor, " d"] = field(default_factory=_nothing)
    squares: Float64[Tensor, " d"] = field(default_factory=_nothing)
    """sum (x - mean)^2"""

    @classmethod
    def of(cls, block: Float[Tensor, "n d"]) -> "Moments":
        """The moments of the rows of one block."""
        if len(block) == 0:
            return cls()
        block = block.double()
        mean = block.mean(0)
        return cls(len(block), mean, (block - mean).square().sum(0))

    def add(self, block: Float[Tensor, "n d"]) -> None:
        """Take in the rows of a block; an empty block changes nothing."""
        self.merge(Moments.of(block))

    def merge(self, other: "Moments") -> None:
        """Take in the rows behind other moments, of which none have to be there."""
        if other.n == 0:
            return
        if self.n == 0:
            self.n, self.mean, self.squares = other.n, other.mean, other.squares
            return
        n = self.n + other.n
        gap = other.mean - self.mean
        self.mean = self.mean + gap * (other.n / n)
        self.squares = self.squares + other.squares + gap.square() * (self.n * other.n / n)
        self.n = n

    @property
    def variance(self) -> Float64[Tensor, " d"]:
        """Mean squared deviation from the mean: `sum (x - mean)^2 / n`."""
        return self.squares / max(self.n, 1)
