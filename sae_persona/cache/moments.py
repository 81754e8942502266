"""Mean and variance of rows that come in blocks, without keeping the rows."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor


class Moments:
    """Count, mean and squared deviations per column, in float64.

    Blocks are merged by the formula of Chan, Golub & LeVeque 1979, which loses nothing where the mean is large beside
    the spread, as it is in residual streams.
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean: Float64[Tensor, " d"] = torch.zeros(0, dtype=torch.float64)
        self.squares: Float64[Tensor, " d"] = torch.zeros(0, dtype=torch.float64)
        """sum (x - mean)^2"""

    def add(self, block: Float[Tensor, "n d"]) -> None:
        """Take in the rows of a block; an empty block changes nothing."""
        if len(block) == 0:
            return
        block = block.double()
        mean = block.mean(0)
        squares = (block - mean).square().sum(0)
        if self.n == 0:
            self.n, self.mean, self.squares = len(block), mean, squares
            return
        n = self.n + len(block)
        gap = mean - self.mean
        self.mean = self.mean + gap * (len(block) / n)
        self.squares = self.squares + squares + gap.square() * (self.n * len(block) / n)
        self.n = n

    @property
    def variance(self) -> Float64[Tensor, " d"]:
        """Mean squared deviation from the mean: `sum (x - mean)^2 / n`."""
        return self.squares / max(self.n, 1)
