"""How often an evaluation's 95 % intervals hold the truth, and how often models that are alike are called different.

Every row is a design: questions, answers to each, the share of hits, and how alike two answers to one question are. The
question's own shares are drawn from a Beta distribution with that mean and correlation, so the truth is known. `off`
columns are error rates, 0.05 by right: intervals of a difference that leave out 0 although both models answer alike on
average. The naive rival counts answers as independent; Korn and Graubard's is that of surveys, and its width is in
units of ours, in the mean.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy.special import betaincinv, stdtrit

from sae_persona.stats import Z, clustered_share, cohens_kappa, estimate_mean, paired_difference
from sae_persona.types import Estimate

N_REPLICATES, N_BOOT = 500, 500
SHAPES = ((8, 8), (20, 8), (60, 1), (60, 8), (45, 24))
"""Questions, and answers to each; the last is that of the models of a study."""
SHARES = (0.02, 0.3)
CORRELATIONS = (0.1, 0.4)
AGREEMENT = 0.7
"""Kappa of the judges: the second repeats the first on this share of the answers and guesses on the others."""
RESULTS = (
    "share interval",
    "share interval, naive",
    "share interval, Korn and Graubard",
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
    widths: dict[str, list[float]] = {"ours": [], "theirs": []}

    def note(name: str, *, hit: bool) -> None:
        found[name].append(hit)

    for _ in range(N_REPLICATES):
        own, turned = (own_shares(rng, n_questions, share, correlation).repeat(n_answers) for _ in range(2))
        first, again, other = (rng.random(len(questions)) < shares for shares in (own, own, turned))
        second = np.where(rng.random(len(questions)) < AGREEMENT, first, rng.random(len(questions)) < share)
        ours, theirs = clustered_share(first, questions, n_boot=N_BOOT), korn_graubard(first.reshape(-1, n_answers))
        widths["ours"].append(ours.high - ours.low)
        widths["theirs"].append(theirs[1] - theirs[0])
        note("share interval", hit=_holds(ours, share))
        note("share interval, Korn and Graubard", hit=theirs[0] <= share <= theirs[1])
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
    held = {name: float(np.mean(hits)) if hits else float("nan") for name, hits in found.items()}
    return {**held, "width, Korn and Graubard": float(np.mean(widths["theirs"]) / np.mean(widths["ours"]))}


def korn_graubard(hits: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a share, of hits `[questions, answers]`: Clopper and Pearson's for an effective size.

    `n_eff = n / deff * (t_(n-1) / t_(K-1))^2`, at most n, of K questions; deff is the variance of the share between
    questions over that of n independent answers, and 1 where all answers are alike.

    Source: Korn and Graubard 1998.
    """
    n_questions, n = len(hits), hits.size
    share = float(hits.mean())
    design_effect = 1.0
    if 0 < share < 1:
        between = ((hits.mean(1) - share) ** 2).sum() / (n_questions * (n_questions - 1))
        design_effect = between / (share * (1 - share) / (n - 1))
    n_eff = min(n, n / design_effect * (stdtrit(n - 1, 0.975) / stdtrit(n_questions - 1, 0.975)) ** 2)
    n_hits = share * n_eff
    low = float(betaincinv(n_hits, n_eff - n_hits + 1, 0.025)) if n_hits > 0 else 0.0
    high = float(betaincinv(n_hits + 1, n_eff - n_hits, 0.975)) if n_hits < n_eff else 1.0
    return low, high


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
