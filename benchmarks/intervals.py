"""How often an evaluation's 95 % intervals hold the truth, and how often models that are alike are called different.

Every row is a design: questions, answers to each, the share of hits, and how alike two answers to one question are. The
question's own shares are drawn from a Beta distribution with that mean and correlation, so the truth is known. `off`
columns are error rates, 0.05 by right: intervals of a difference that leave out 0 although both models answer alike on
average. The naive rival counts answers as independent.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from sae_persona.stats import Z, clustered_share, cohens_kappa, estimate_mean, paired_difference
from sae_persona.types import Estimate

N_REPLICATES, N_BOOT = 500, 500
SHAPES = ((8, 8), (20, 8), (60, 1), (60, 8))
SHARES = (0.02, 0.3)
CORRELATIONS = (0.1, 0.4)
AGREEMENT = 0.7
"""Kappa of the judges: the second repeats the first on this share of the answers and guesses on the others."""
RESULTS = (
    "share interval",
    "share interval, naive",
    "mean interval",
    "kappa interval",
    "off, same questions",
    "off, questions turn",
    "off, questions turn, naive",
)
"""Names apart from those of the design's columns, in the order of the table."""


def run() -> Iterator[Mapping[str, object]]:
    for n_questions, n_answers in SHAPES:
        for share in SHARES:
            for correlation in CORRELATIONS:
                yield {
                    "questions": n_questions,
                    "answers": n_answers,
                    "share": share,
                    "correlation": correlation,
                    **rates(n_questions, n_answers, share, correlation),
                }


def rates(n_questions: int, n_answers: int, share: float, correlation: float) -> dict[str, float]:
    """The shares of experiments in which each interval holds the truth, and in which each test errs."""
    rng = np.random.default_rng(0)
    questions = [f"{i}" for i in range(n_questions) for _ in range(n_answers)]
    found: dict[str, list[bool]] = {name: [] for name in RESULTS}

    def note(name: str, *, hit: bool) -> None:
        found[name].append(hit)

    for _ in range(N_REPLICATES):
        own, turned = (own_shares(rng, n_questions, share, correlation).repeat(n_answers) for _ in range(2))
        first, again, other = (rng.random(len(questions)) < shares for shares in (own, own, turned))
        second = np.where(rng.random(len(questions)) < AGREEMENT, first, rng.random(len(questions)) < share)
        note("share interval", hit=_holds(clustered_share(first, questions, n_boot=N_BOOT), share))
        note("share interval, naive", hit=abs(first.mean() - share) <= Z * _standard_error(first.mean(), len(first)))
        note("mean interval", hit=_holds(estimate_mean(first.astype(float), questions, n_boot=N_BOOT), share))
        kappa = cohens_kappa(_words(first), _words(second), questions, n_boot=N_BOOT)
        if kappa is not None:
            note("kappa interval", hit=_holds(kappa, AGREEMENT))
        same = paired_difference(again, first, questions, n_boot=N_BOOT)
        apart = paired_difference(other, first, questions, n_boot=N_BOOT)
        error = np.hypot(_standard_error(other.mean(), len(other)), _standard_error(first.mean(), len(first)))
        note("off, same questions", hit=not _holds(same, 0))
        note("off, questions turn", hit=not _holds(apart, 0))
        note("off, questions turn, naive", hit=abs(other.mean() - first.mean()) > Z * error)
    return {name: float(np.mean(hits)) if hits else float("nan") for name, hits in found.items()}


def own_shares(rng: np.random.Generator, n_questions: int, share: float, correlation: float) -> np.ndarray:
    """Every question's own share of hits: Beta with mean `share`; two answers to one correlate by `correlation`."""
    size = 1 / correlation - 1
    return rng.beta(share * size, (1 - share) * size, size=n_questions)


def _holds(estimate: Estimate, truth: float) -> bool:
    return estimate.low <= truth <= estimate.high


def _standard_error(share: float, n: int) -> float:
    return float(np.sqrt(share * (1 - share) / n))


def _words(hits: np.ndarray) -> Sequence[str]:
    return [str(hit) for hit in hits]
