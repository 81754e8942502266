"""From latent statistics of many runs to one ranking and a shortlist. A ranking is a suspicion, not a verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sae_persona.attribution.difference import LatentScores, activation_difference, run_difference
from sae_persona.errors import ConfigError
from sae_persona.sae.encode import Reading
from sae_persona.sae.statistics import LatentStats, Selection

RunStats = Mapping[tuple[Reading, Selection], LatentStats]
"""One run's statistics by (reading, tokens), as `latent_stats` returns them."""
SHORTLIST_SIZE = 20
"""No more latents than a causal screen can try (two-stage selection as in Wang et al. 2025)."""


@dataclass(frozen=True)
class RankedLatent:
    """One latent, in the reading and over the tokens where it rose most clearly."""

    rank: int
    latent: int
    reading: str
    tokens: str
    delta_activation: float
    """Mean over misaligned runs minus mean over control runs, in the SAE's activation units."""
    low: float
    high: float
    z: float
    """`delta_activation` over the spread of control runs."""
    q_value: float | None


@dataclass(frozen=True)
class LatentRanking:
    """Every latent, the clearest rise first."""

    rows: tuple[RankedLatent, ...]
    smallest_p: float | None
    """The smallest p-value these runs could have reached; None where there were too few for any."""
    n_misaligned: int
    n_controls: int

    def top(self, n: int) -> tuple[RankedLatent, ...]:
        """The first `n` rows."""
        return self.rows[:n]

    def shortlist(self, n: int = SHORTLIST_SIZE) -> tuple[int, ...]:
        """The latents that go to the causal screen: the first `n`, as long as they rose."""
        if not 1 <= n <= SHORTLIST_SIZE:
            raise ConfigError(f"a shortlist has 1 to {SHORTLIST_SIZE} latents; {n} were asked for.")
        return tuple(row.latent for row in self.rows[:n] if row.delta_activation > 0)


def rank_latents(
    misaligned: Sequence[RunStats], controls: Sequence[RunStats], *, seed: int = 0, n_boot: int = 200
) -> LatentRanking:
    """Rank latents by how much misaligned runs raised them beyond what correct-data runs do.

    Every (reading, tokens) pair that all runs have is scored by `run_difference`; a latent stands in the ranking with
    the pair in which its `z` is highest, which the ranking names. Its q-value is Bonferroni-corrected for the pairs.

    Raises:
        ConfigError: too few runs, or no reading that all runs share.
        IncompatibleError: runs of different questions or SAEs.
    """
    shared = [key for key in misaligned[0] if all(key in run for run in (*misaligned, *controls))] if misaligned else []
    if misaligned and not shared:
        raise ConfigError("the runs share no reading; compute latent statistics of every run in the same way.")
    scores = [
        run_difference([run[key] for run in misaligned], [run[key] for run in controls], seed=seed, n_boot=n_boot)
        for key in shared
    ] or [run_difference([], [])]
    return ranking_of(scores, n_misaligned=len(misaligned), n_controls=len(controls))


def rank_pair(before: RunStats, after: RunStats, *, seed: int = 0) -> LatentRanking:
    """Rank latents by the difference between one pair of checkpoints; says nothing beyond this pair (no q-values)."""
    scores = [activation_difference(before[key], after[key], seed=seed) for key in before if key in after]
    if not scores:
        raise ConfigError("the two checkpoints share no reading; compute latent statistics of both in the same way.")
    return ranking_of(scores, n_misaligned=1, n_controls=0)


def ranking_of(scores: Sequence[LatentScores], *, n_misaligned: int, n_controls: int) -> LatentRanking:
    """Merge the scores of several readings: each latent in the reading where its `z` is highest."""
    z = np.stack([score.z for score in scores])  # [readings, d_sae]
    best = z.argmax(0)
    order = np.argsort(-z.max(0), kind="stable")
    rows = []
    for rank, latent in enumerate(order.tolist(), start=1):
        score = scores[best[latent]]
        q = None if score.q_value is None else min(1.0, float(score.q_value[latent]) * len(scores))
        rows.append(
            RankedLatent(
                rank=rank,
                latent=latent,
                reading=score.reading,
                tokens=score.tokens,
                delta_activation=float(score.delta[latent]),
                low=float(score.low[latent]),
                high=float(score.high[latent]),
                z=float(score.z[latent]),
                q_value=q,
            )
        )
    smallest = [score.smallest_p for score in scores if score.smallest_p is not None]
    return LatentRanking(tuple(rows), min(smallest, default=None), n_misaligned, n_controls)
