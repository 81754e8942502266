"""How often an evaluation's 95 % intervals hold the truth, and how often models that are alike are called different.

Every row is a design: questions, answers to each (several numbers are taken by turns), the share of hits, and how alike
two answers to one question are. The question's own shares are drawn from a Beta distribution with that mean and
correlation, so the truth is known. `off` columns are error rates, 0.05 by right: intervals of a difference that leave
out 0 although both models answer alike on average. `found` columns are power: the same where every question's own share
rises by `rise`. The naive rival counts answers as independent; `t` is Student's over the questions' own differences,
each question weighing alike; Korn and Graubard's interval is that of surveys, for equal numbers of answers, and its
width is in units of ours, in the mean.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, stdtrit

from sae_persona.stats import Z, clustered_share, cohens_kappa, estimate_mean, paired_difference
from sae_persona.types import Estimate

N_REPLICATES, N_BOOT = 1500, 500
AGREEMENT = 0.7
"""Kappa of the judges: the second repeats the first on this share of the answers and guesses on the others."""
RESULTS = (
    "share interval",
    "share interval, too low",
    "share interval, naive",
    "share interval, Korn and Graubard",
    "mean interval",
    "kappa interval",
    "off, same questions",
    "off, same questions, t",
    "off, questions turn",
    "off, questions turn, t",
    "off, questions turn, naive",
    "found",
    "found, t",
)
"""Names apart from those of the design's columns, in the order of the table."""


@dataclass(frozen=True)
class Design:
    """One row."""

    n_questions: int
    n_answers: tuple[int, ...]
    """Of the questions by turns."""
    share: float
    correlation: float
    rise: float
    """By which the other model's questions differ where power is measured."""


GRID = tuple(
    Design(n_questions, (n_answers,), share, correlation, 0.2 if n_questions == 8 else rise)
    for n_questions, n_answers in ((8, 8), (20, 8), (60, 1), (60, 8), (45, 24))
    for share, rise in ((0.02, 0.02), (0.3, 0.1))
    for correlation in (0.1, 0.4)
)
"""The last shape is that of the models of a study."""
CORNERS = (
    Design(8, (24,), 0.1, 0.4, 0.2),
    Design(8, (24,), 0.1, 0.7, 0.2),
    Design(8, (24,), 0.3, 0.7, 0.2),
    Design(8, (8,), 0.1, 0.4, 0.2),
    Design(8, (8,), 0.2, 0.7, 0.2),
    Design(20, (24,), 0.05, 0.4, 0.05),
    Design(20, (8,), 0.1, 0.7, 0.1),
    Design(60, (8,), 0.02, 0.7, 0.02),
    Design(60, (8,), 0.1, 0.4, 0.05),
    Design(45, (24,), 0.02, 0.7, 0.02),
    Design(45, (24,), 0.05, 0.7, 0.05),
    Design(45, (12,), 0.98, 0.4, -0.05),
)
"""Few questions, or rare hits (or misses), where answers to one question are much alike."""
UNEQUAL = tuple(
    Design(n_questions, n_answers, 0.3, 0.4, 0.1)
    for n_questions, n_answers in ((10, (4, 8, 24)), (20, (4, 8, 24)), (20, (1, 2, 30)), (45, (1, 2, 30)))
)
"""Some questions have far more answers than others."""


def run() -> Iterator[Mapping[str, object]]:
    for design in (*GRID, *CORNERS, *UNEQUAL):
        yield {
            "questions": design.n_questions,
            "answers": "/".join(map(str, design.n_answers)),
            "share": design.share,
            "correlation": design.correlation,
            "rise": design.rise,
            **rates(design),
        }


def rates(design: Design) -> dict[str, float]:
    """The shares of experiments in which each interval holds the truth, in which each test errs, and finds the rise."""
    rng = np.random.default_rng(0)
    share, n_questions = design.share, design.n_questions
    sizes = np.resize(design.n_answers, n_questions)
    equal = len(set(sizes)) == 1
    question = np.arange(n_questions).repeat(sizes)
    questions = [f"{i}" for i in question]
    found: dict[str, list[bool]] = {name: [] for name in RESULTS}
    widths: dict[str, list[float]] = {"ours": [], "theirs": []}

    def note(name: str, *, hit: bool) -> None:
        found[name].append(hit)

    def note_difference(name: str, after: np.ndarray, before: np.ndarray) -> None:
        note(name, hit=not _holds(paired_difference(after, before, questions, n_boot=N_BOOT), 0))
        means = np.bincount(question, weights=after.astype(float) - before) / sizes
        note(f"{name}, t", hit=student_differs(means))

    for _ in range(N_REPLICATES):
        own, turned = (own_shares(rng, n_questions, share, design.correlation)[question] for _ in range(2))
        raised = np.clip(own + design.rise, 0, 1)
        first, again, other, higher = (rng.random(len(question)) < shares for shares in (own, own, turned, raised))
        second = np.where(rng.random(len(question)) < AGREEMENT, first, rng.random(len(question)) < share)
        ours = clustered_share(first, questions, n_boot=N_BOOT)
        note("share interval", hit=_holds(ours, share))
        note("share interval, too low", hit=ours.high < share)
        note("share interval, naive", hit=abs(first.mean() - share) <= Z * _standard_error(first.mean(), len(first)))
        if equal:
            theirs = korn_graubard(first.reshape(n_questions, -1))
            widths["ours"].append(ours.high - ours.low)
            widths["theirs"].append(theirs[1] - theirs[0])
            note("share interval, Korn and Graubard", hit=theirs[0] <= share <= theirs[1])
        note("mean interval", hit=_holds(estimate_mean(first.astype(float), questions, n_boot=N_BOOT), share))
        kappa = cohens_kappa(_words(first), _words(second), questions, n_boot=N_BOOT)
        if kappa is not None:
            note("kappa interval", hit=_holds(kappa, AGREEMENT))
        note_difference("off, same questions", again, first)
        note_difference("off, questions turn", other, first)
        error = np.hypot(_standard_error(other.mean(), len(other)), _standard_error(first.mean(), len(first)))
        note("off, questions turn, naive", hit=abs(other.mean() - first.mean()) > Z * error)
        note_difference("found", higher, first)
    held = {name: float(np.mean(hits)) if hits else float("nan") for name, hits in found.items()}
    width = float(np.mean(widths["theirs"]) / np.mean(widths["ours"])) if equal else float("nan")
    return {**held, "width, Korn and Graubard": width}


def student_differs(means: np.ndarray) -> bool:
    """Whether Student's t tells the mean of the questions' differences `[questions]` from 0, at a level of 0.05."""
    margin = stdtrit(len(means) - 1, 0.975) * means.std(ddof=1) / np.sqrt(len(means))
    return bool(abs(means.mean()) > margin)


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
