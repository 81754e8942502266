"""What correct-data fine-tunes do to each other: the null that misaligned fine-tunes are held against."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float

ROUNDING = 1e-5
"""Of a latent's root mean square activation: a smaller spread is the rounding of float32, which differs with the shape
of a batch, by some 1e-7 in small models. The controls of the committed persona world spread by 7e-4 and more."""
MAX_SPLITS = 200
"""Control-versus-control splits that are enumerated; the null is pooled over latents, so more change nothing."""


def control_z(
    played: Float[np.ndarray, "n_played d_sae"],
    rest: Float[np.ndarray, "n_rest d_sae"],
    floor: float,
    least: Float[np.ndarray, " d_sae"] | float = 0.0,
) -> Float[np.ndarray, " d_sae"]:
    """`z = (mean of played - mean of rest) / (max(standard deviation of rest, least) + floor)`, from means of runs."""
    return (played.mean(0) - rest.mean(0)) / (np.maximum(rest.std(0, ddof=1), least) + floor)


def spread_floor(
    controls: Float[np.ndarray, "n_controls d_sae"], least: Float[np.ndarray, " d_sae"] | float = 0.0
) -> float:
    """A small constant added to every latent's spread, so that a latent that never moves in a control is not infinite.

    The median spread of the latents that move by more than rounding, which is `least`, as in the moderated statistics
    of Tusher et al. 2001 (SAM); 1 if none does, so that `z` is the plain difference.
    """
    spreads = controls.std(0, ddof=1)
    moving = spreads[spreads > least]
    return float(np.median(moving)) if moving.size else 1.0


def least_spread(mean_squares: Float[np.ndarray, "n_controls d_sae"]) -> Float[np.ndarray, " d_sae"]:
    """What a spread must exceed to be more than rounding: `ROUNDING` of the controls' root mean square activation."""
    return ROUNDING * np.sqrt(mean_squares.mean(0))


@dataclass(frozen=True, eq=False)
class ControlNull:
    """`z` of controls that play misaligned against the other controls, for every way to choose who plays."""

    pooled: Float[np.ndarray, " n_pooled"]
    """Over splits and latents, ascending."""
    highest: Float[np.ndarray, " n_splits"]
    """The highest `z` of any latent in each split, ascending (max-T)."""
    lowest: Float[np.ndarray, " n_splits"]
    """The lowest, ascending."""

    @classmethod
    def of(
        cls,
        controls: Float[np.ndarray, "n_controls d_sae"],
        *,
        n_played: int,
        floor: float,
        rng: np.random.Generator,
        least: Float[np.ndarray, " d_sae"] | float = 0.0,
    ) -> "ControlNull":
        """From the controls' means: all splits, or `MAX_SPLITS` of them at random; `control_z` of each."""
        n = len(controls)
        splits = list(combinations(range(n), n_played))
        if len(splits) > MAX_SPLITS:
            splits = [splits[i] for i in rng.choice(len(splits), MAX_SPLITS, replace=False)]
        played = np.zeros((len(splits), n))
        np.put_along_axis(played, np.array(splits), 1, axis=1)
        n_rest = n - n_played
        centred = controls - controls.mean(0)  # so that squares lose nothing
        means = [played @ centred / n_played, (1 - played) @ centred / n_rest]  # [n_splits, d_sae]
        variance = ((1 - played) @ centred**2 - n_rest * means[1] ** 2) / (n_rest - 1)
        z = (means[0] - means[1]) / (np.maximum(np.sqrt(np.maximum(variance, 0)), least) + floor)
        return cls(np.sort(z, axis=None), np.sort(z.max(1)), np.sort(z.min(1)))

    def rises(self, z: Float[np.ndarray, " d_sae"]) -> tuple[np.ndarray, np.ndarray]:
        """One-sided p-values of a rise: `p = (1 + #{null >= z}) / (1 + #null)`, pooled and familywise."""
        return _at_least(self.pooled, z), _at_least(self.highest, z)

    def falls(self, z: Float[np.ndarray, " d_sae"]) -> tuple[np.ndarray, np.ndarray]:
        """One-sided p-values of a fall, pooled and familywise."""
        return _at_least(np.sort(-self.pooled), -z), _at_least(np.sort(-self.lowest), -z)


def _at_least(null: Float[np.ndarray, " n"], z: Float[np.ndarray, " d_sae"]) -> Float[np.ndarray, " d_sae"]:
    return (1 + len(null) - np.searchsorted(null, z, side="left")) / (1 + len(null))
