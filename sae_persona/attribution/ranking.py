"""From latent statistics of many runs to one ranking and a shortlist. A ranking is a suspicion, not a verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from sae_persona.attribution.difference import (
    MIN_CONTROLS,
    MIN_MISALIGNED,
    LatentScores,
    activation_difference,
    run_difference,
)
from sae_persona.errors import ConfigError
from sae_persona.sae.encode import Reading
from sae_persona.sae.statistics import LatentStats, Selection

if TYPE_CHECKING:
    import pandas as pd

RunStats = Mapping[tuple[Reading, Selection], LatentStats]
"""One run's statistics by (reading, tokens), as `latent_stats` returns them."""
SHORTLIST_SIZE = 20
"""No more latents than a causal screen can try (two-stage selection as in Wang et al. 2025)."""


@dataclass(frozen=True)
class RankedLatent:
    """One latent, in the reading and over the tokens where it moved most clearly."""

    rank: int
    """1 is the clearest rise. In the list of falls -1 is the clearest fall."""
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
    familywise_p: float | None = None
    """The chance that correct-data runs raise *any* latent so far (max-T); None where there are too few runs."""


@dataclass(frozen=True)
class LatentRanking:
    """Every latent, the clearest rise first; and once more, the clearest fall first."""

    rows: tuple[RankedLatent, ...]
    smallest_p: float | None
    """The smallest p-value these runs could have reached; None where there were too few for any."""
    n_misaligned: int
    n_controls: int
    falls: tuple[RankedLatent, ...] = ()
    """Every latent in the reading where it fell most clearly, ranks -1, -2, ..."""
    smallest_familywise_p: float | None = None

    def top(self, n: int) -> tuple[RankedLatent, ...]:
        """The `n` clearest rises."""
        return self.rows[:n]

    def bottom(self, n: int) -> tuple[RankedLatent, ...]:
        """The `n` clearest falls."""
        return self.falls[:n]

    def shortlist(self, n: int = SHORTLIST_SIZE) -> tuple[int, ...]:
        """The latents that go to the causal screen: the first `n`, as long as they rose."""
        check_size(n)
        return tuple(row.latent for row in self.rows[:n] if row.delta_activation > 0)

    @property
    def note(self) -> str:
        """What these runs can and cannot say, in one line."""
        if not self.n_controls:
            return "this pair of checkpoints only: any two fine-tunes differ, so there are no q-values"
        if self.smallest_p is None or self.smallest_familywise_p is None:
            return (
                f"no q-values: they need {MIN_CONTROLS} controls and {MIN_MISALIGNED} misaligned models, and there are "
                f"{self.n_controls} and {self.n_misaligned}"
            )
        return (
            f"the smallest p-value that these runs can reach is {self.smallest_p:.2g}, over all latents at once "
            f"{self.smallest_familywise_p:.2g}"
        )

    def to_pandas(self) -> "pd.DataFrame":
        """Both ends as one table, the rises first, by signed rank."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in (*self.rows, *self.falls)]).set_index("rank")


def check_size(n: int) -> None:
    """Raise `ConfigError` unless a causal screen can try `n` latents."""
    if not 1 <= n <= SHORTLIST_SIZE:
        raise ConfigError(f"a shortlist has 1 to {SHORTLIST_SIZE} latents; {n} were asked for.")


def rank_latents(
    misaligned: Sequence[RunStats],
    controls: Sequence[RunStats],
    *,
    questions: Sequence[str] | None = None,
    seed: int = 0,
) -> LatentRanking:
    """Rank latents by how much misaligned runs raised them beyond what correct-data runs do.

    Every (reading, tokens) pair that all runs have is scored by `run_difference`; a latent stands in the ranking with
    the pair in which its `z` is highest (among the falls: lowest), which the ranking names. Its q-value is
    Bonferroni-corrected for the pairs. With `questions`, all others are left out.

    Raises:
        ConfigError: too few runs, no reading that all runs share, or two runs that are one and the same.
        IncompatibleError: runs of different questions or SAEs.
    """
    scores = run_scores(misaligned, controls, questions=questions, seed=seed)
    return ranking_of(scores, n_misaligned=len(misaligned), n_controls=len(controls))


def run_scores(
    misaligned: Sequence[RunStats],
    controls: Sequence[RunStats],
    *,
    questions: Sequence[str] | None = None,
    seed: int = 0,
) -> list[LatentScores]:
    """`run_difference` of every reading that all runs share; raises as `rank_latents` does."""
    if not misaligned:
        return [run_difference([], [])]
    shared = [key for key in misaligned[0] if all(key in run for run in (*misaligned, *controls))]
    if not shared:
        raise ConfigError("the runs share no reading; compute latent statistics of every run in the same way.")
    _check_distinct([*misaligned, *controls])
    return [
        run_difference([run[key] for run in misaligned], [run[key] for run in controls], questions=questions, seed=seed)
        for key in shared
    ]


def rank_pair(before: RunStats, after: RunStats, *, seed: int = 0) -> LatentRanking:
    """Rank latents by the difference between one pair of checkpoints; says nothing beyond this pair (no q-values).

    Raises:
        ConfigError: the two share no reading, or are one and the same.
        IncompatibleError: statistics of different questions or SAEs.
    """
    shared = [key for key in before if key in after]
    if not shared:
        raise ConfigError("the two checkpoints share no reading; compute latent statistics of both in the same way.")
    _check_distinct([before, after], first="the aligned model")
    scores = [activation_difference(before[key], after[key], seed=seed) for key in shared]
    return ranking_of(scores, n_misaligned=1, n_controls=0)


def ranking_of(scores: Sequence[LatentScores], *, n_misaligned: int, n_controls: int) -> LatentRanking:
    """Merge the scores of several readings: each latent in the reading where its `z` is highest."""
    z = np.stack([score.z for score in scores])  # [readings, d_sae]
    rises = [(score.q_value, score.familywise_p) for score in scores]
    falls = [(score.fall_q_value, score.fall_familywise_p) for score in scores]
    return LatentRanking(
        rows=tuple(_rows(scores, z, rises, sign=1)),
        smallest_p=_smallest([score.smallest_p for score in scores]),
        n_misaligned=n_misaligned,
        n_controls=n_controls,
        falls=tuple(_rows(scores, -z, falls, sign=-1)),
        smallest_familywise_p=_smallest([score.smallest_familywise_p for score in scores]),
    )


def _rows(
    scores: Sequence[LatentScores],
    height: Float[np.ndarray, "readings d_sae"],
    errors: Sequence[tuple[np.ndarray | None, np.ndarray | None]],
    *,
    sign: int,
) -> list[RankedLatent]:
    best = height.argmax(0)
    rows = []
    for rank, latent in enumerate(np.argsort(-height.max(0), kind="stable").tolist(), start=1):
        score, (q, familywise) = scores[best[latent]], errors[best[latent]]
        rows.append(
            RankedLatent(
                rank=sign * rank,
                latent=latent,
                reading=score.reading,
                tokens=score.tokens,
                delta_activation=float(score.delta[latent]),
                low=float(score.low[latent]),
                high=float(score.high[latent]),
                z=float(score.z[latent]),
                q_value=None if q is None else min(1.0, float(q[latent]) * len(scores)),
                familywise_p=None if familywise is None else min(1.0, float(familywise[latent]) * len(scores)),
            )
        )
    return rows


def _smallest(values: Sequence[float | None]) -> float | None:
    return min((value for value in values if value is not None), default=None)


def _check_distinct(runs: Sequence[RunStats], *, first: str = "misaligned") -> None:
    """Raise where two runs have the same numbers in all their readings: one checkpoint under two names."""
    for (i, one), (j, other) in combinations(enumerate(runs, start=1), 2):
        if one.keys() == other.keys() and all(
            np.array_equal(one[key].per_question, other[key].per_question) for key in one
        ):
            raise ConfigError(
                f"runs {i} and {j} of {len(runs)} ({first} first) have identical statistics: identical checkpoints "
                "differ in nothing, so they are not ranked. Name every run once, and only under one role."
            )
