"""How often latents fire and how high they read on average, with intervals over passages, from running sums."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import stdtrit

from sae_persona.stats import wilson
from sae_persona.types import Estimate


@dataclass
class _Sums:
    """Over passages: of a sum, of its square, and of its product with the passage's number of tokens."""

    sums: Float[np.ndarray, " latents"]
    squares: Float[np.ndarray, " latents"]
    products: Float[np.ndarray, " latents"]

    @classmethod
    def empty(cls, n: int) -> "_Sums":
        return cls(np.zeros(n), np.zeros(n), np.zeros(n))

    def add(self, of_passage: Float[np.ndarray, "passages latents"], sizes: Float[np.ndarray, " passages"]) -> None:
        self.sums += of_passage.sum(0)
        self.squares += (of_passage**2).sum(0)
        self.products += sizes @ of_passage


class RunningRatios:
    """Share of firing tokens and mean reading, in constant memory. Passages without a counted token are no clusters."""

    def __init__(self, n_latents: int) -> None:
        self.firing, self.values = _Sums.empty(n_latents), _Sums.empty(n_latents)
        self.n_tokens, self.n_passages, self._sizes_squared = 0, 0, 0.0

    def add(
        self,
        values: Float[np.ndarray, "n latents"],
        fires: Bool[np.ndarray, "n latents"],
        counts: Bool[np.ndarray, " n"],
        starts: Int[np.ndarray, " passages"],
    ) -> None:
        """Add a block; `values` are 0, and nothing fires, where a token does not count."""
        sizes = np.add.reduceat(counts.astype(np.float64), starts)
        self.firing.add(np.add.reduceat(fires.astype(np.float64), starts, axis=0), sizes)
        self.values.add(np.add.reduceat(values.astype(np.float64), starts, axis=0), sizes)
        self.n_tokens += int(counts.sum())
        self.n_passages += int((sizes > 0).sum())
        self._sizes_squared += float((sizes**2).sum())

    def density(self, latent: int) -> Estimate:
        """Share of tokens on which a latent fires, with a 95 % interval.

        Wilson's interval for as many independent tokens as the passages are worth, `share (1 - share) / SE^2` with the
        SE of `_standard_error`; where no or every token fires, nothing tells how alike a passage's tokens are, and a
        passage counts as one.
        """
        share = self.firing.sums[latent] / self.n_tokens
        error = self._standard_error(self.firing, latent)
        settled = not 0 < share < 1 or self.n_passages < 2
        worth = self.n_passages if settled else share * (1 - share) / max(error**2, 1e-300)
        low, high = wilson(float(share), float(min(max(worth, 1.0), self.n_tokens)))
        return self._estimate(float(share), max(0.0, min(low, share)), min(1.0, max(high, share)))

    def mean(self, latent: int) -> Estimate | None:
        """Mean reading over tokens, `value ± t SE` with t of `n_passages - 1` degrees of freedom."""
        if self.n_passages < 2:
            return None
        value = float(self.values.sums[latent] / self.n_tokens)
        margin = float(stdtrit(self.n_passages - 1, 0.975)) * self._standard_error(self.values, latent)
        return self._estimate(value, value - margin, value + margin)

    def _standard_error(self, of: _Sums, latent: int) -> float:
        """Of the ratio `R = sum_i s_i / sum_i n_i` over passages i of n_i tokens.

        `SE^2 = K / (K - 1) * sum_i (s_i - R n_i)^2 / N^2` over K passages and N tokens; 0 for a single passage.
        """
        k = self.n_passages
        if k < 2:
            return 0.0
        ratio = of.sums[latent] / self.n_tokens
        rest = of.squares[latent] - 2 * ratio * of.products[latent] + ratio**2 * self._sizes_squared
        return float(np.sqrt(k / (k - 1) * max(rest, 0.0)) / self.n_tokens)

    def _estimate(self, value: float, low: float, high: float) -> Estimate:
        return Estimate(
            float(value), float(low), float(high), n=self.n_tokens, n_questions=self.n_passages, n_unscored=0
        )
