"""Arithmetic of evidence: shares and means with intervals over questions, AUROC, false discovery rates.

Answers to one question resemble each other, so the question is the cluster of every interval. Axes: `n` answers.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import stdtrit

from sae_persona.errors import DataError
from sae_persona.types import Estimate

Z = 1.959963984540054
"""The standard normal's 97.5 % point."""
PRIOR_CORRELATION = 0.1
"""How alike two answers to one question are taken to be before the data say so.

Where (almost) all answers fall on one side, no data can tell: 200 answers without a hit may be 200 independent ones, or
20 questions of which each always gives the same answer. 0.1 keeps 20 questions of ten answers at a coverage of 0.92 or
more for true correlations up to 0.3 (tests/test_stats.py simulates it), and still lets 45 questions of ten answers
without a hit bound a share by 2 %.
"""
PRIOR_HITS = 3
"""Weight of that belief, in answers on the rarer side: with 3 of them, belief and estimate count alike."""

ROUNDING = 1e-9
"""By how much a computed share may miss a limit and still count as on it.

In floating point 0.4 - 0.3 is more than 0.1. Sums and differences of a few shares are off by some 1e-16, and two that
differ at all differ by 1e-7 or more where no share is of more than a million answers (a limit in tenths included).
"""


def at_most(value: float, limit: float) -> bool:
    """Whether a share, or a change of one, is at most `limit`; one that is off by `ROUNDING` is on the limit."""
    return value <= limit + ROUNDING


def clustered_share(
    hits: Bool[np.ndarray, " n"],
    questions: Sequence[str],
    *,
    n_unscored: int = 0,
    seed: int = 0,
    n_boot: int = 2000,
) -> Estimate:
    """The share of hits among all answers, with a 95 % interval over questions.

    `value = sum(hits) / n`; unscored answers are among the n and are no hits. The interval is the wider of two:

    - the percentile bootstrap that draws whole questions, which is too narrow for few questions and has no width at all
      for shares of 0 and 1;
    - Wilson's interval for `n_eff = n / (1 + (m - 1) rho) * (z / t)^2` independent answers, where m is the number of
      answers per question (weighted by itself), t the 97.5 % point of Student's t with `n_questions - 1` degrees of
      freedom, and rho the correlation of answers to one question: estimated from the variance between questions and
      drawn towards `PRIOR_CORRELATION` where hits (or misses) are too few to estimate it. A single question says
      nothing of others and counts as one answer.

    Simulated (`python -m benchmarks intervals`), it holds the truth in about 94 % of experiments or more, but where a
    few questions hold all hits, or all misses: the share of the rarer side times the number of questions is below about
    2.5 and the correlation 0.4 or more. There it does in as few as 76 %: in 92 % (60 questions of 8 answers) and 89 %
    (45 of 24) at a share of 0.02 and a correlation of 0.4, in 82 and 76 % at 0.7; with 8 questions of 24 answers at a
    share of 0.1 in 89 and 77 %. It is nearly always too low there (for rare misses too high): those questions were
    hardly drawn, and without hits nothing tells that answers are alike. Korn and Graubard's interval is no way out: 90
    and 88 % in the first two cases. Numbers of answers that differ much between questions (4, 8 and 24 by turns, or 1,
    2 and 30) leave 90 to 93 % at a share of 0.3.

    Raises:
        DataError: there are no answers, or not one question per answer.
    """
    hits_of, answers_of = _per_question(hits.astype(float), questions)
    value = float(hits_of.sum() / answers_of.sum())
    bounds = wilson(value, _effective_size(hits_of, answers_of))
    boot = _bootstrap(hits_of, answers_of, seed=seed, n_boot=n_boot)
    return Estimate(
        value=value,
        low=min(value, max(0.0, min(bounds[0], boot[0]))),
        high=max(value, min(1.0, max(bounds[1], boot[1]))),
        n=len(hits),
        n_questions=len(answers_of),
        n_unscored=n_unscored,
    )


def paired_difference(
    after: Bool[np.ndarray, " n"],
    before: Bool[np.ndarray, " n"],
    questions: Sequence[str],
    *,
    seed: int = 0,
    n_boot: int = 2000,
) -> Estimate:
    """The share of hits after minus before, where both hold the same prompts and samples in the same order.

    The difference is `share(became a hit) - share(ceased to be one)`. The interval is the wider of two:

    - each share's `clustered_share` interval, combined as `low = value - sqrt((up - up_low)^2 + (down_high - down)^2)`
      and likewise above, which keeps its width where nothing changed. It takes the two shares for uncorrelated. Where
      some questions rise and others fall they are not: the more of a question's answers became hits, the fewer ceased
      to be, and the variance of the difference exceeds the sum of theirs by twice that covariance;
    - `value ± t SE` of the answers' own differences, clustered by question (as in `estimate_mean`), which holds the
      covariance, but has no width where all questions move alike.

    It is conservative where both sides have the same question's shares, and finds less than Student's t over questions:
    a rise by 5 points from 10 % (60 questions of 8 answers) in 62 % of experiments, t in 81 %. Numbers of answers that
    differ much between questions raise its error rate to 0.07 to 0.09 (`python -m benchmarks intervals`).

    Raises:
        DataError: there are no answers, or not one question per answer.

    Source: Zou and Donner 2008 (MOVER, for uncorrelated estimates); Student's t over clusters as in `estimate_mean`.
    """
    up = clustered_share(after & ~before, questions, seed=seed, n_boot=n_boot)
    down = clustered_share(before & ~after, questions, seed=seed, n_boot=n_boot)
    value = up.value - down.value
    low = value - float(np.hypot(up.value - up.low, down.high - down.value))
    high = value + float(np.hypot(up.high - up.value, down.value - down.low))
    if up.n_questions > 1:
        margin = _student_margin(*_per_question(after.astype(float) - before, questions))
        low, high = min(low, value - margin), max(high, value + margin)
    return Estimate(
        value=value,
        low=max(-1.0, low),
        high=min(1.0, high),
        n=up.n,
        n_questions=up.n_questions,
        n_unscored=0,
    )


def estimate_mean(
    values: Float[np.ndarray, " n"], questions: Sequence[str], *, seed: int = 0, n_boot: int = 2000
) -> Estimate:
    """The mean over answers, with a 95 % interval over questions.

    The interval is the wider of the percentile bootstrap that draws whole questions and `value ± t SE`, where
    `SE^2 = K / (K - 1) * sum_q (sum of q's values - value * n_q)^2 / n^2` over K questions and t has K - 1 degrees of
    freedom. It has no width where every question has the same mean.

    Raises:
        DataError: there are no answers, not one question per answer, or a single question: nothing then tells how
            questions differ.
    """
    sums, sizes = _per_question(values.astype(float), questions)
    n, n_questions = float(sizes.sum()), len(sizes)
    if n_questions < 2:
        raise DataError("a mean's interval over questions needs at least 2 questions, and there is 1. Add questions.")
    value = float(sums.sum() / n)
    margin = _student_margin(sums, sizes)
    boot = _bootstrap(sums, sizes, seed=seed, n_boot=n_boot)
    return Estimate(
        value=value,
        low=min(value - margin, boot[0]),
        high=max(value + margin, boot[1]),
        n=len(values),
        n_questions=n_questions,
        n_unscored=0,
    )


def cohens_kappa(
    first: Sequence[str], second: Sequence[str], questions: Sequence[str], *, seed: int = 0, n_boot: int = 2000
) -> Estimate | None:
    """How far two raters of the same answers agree beyond chance, with a 95 % interval over questions.

    `kappa = (p_o - p_e) / (1 - p_e)`, where p_o is the share of answers on which they agree and p_e the sum over labels
    of the product of their shares. 1 is full agreement, 0 what their shares give by chance. None where each gives
    one label to all answers, the same or another: no rater varies, and nothing can agree beyond chance.

    The interval is the wider of `kappa ± t SE`, the jackknife over K questions with t of K - 1 degrees of freedom, and
    that of p_o (`clustered_share`) with p_e held fixed, which keeps its width where they agree on every answer.

    Raises:
        DataError: there are no answers, or not one label of each rater and one question per answer.

    Source: Cohen 1960.
    """
    if len(first) != len(second):
        raise DataError(f"agreement is about the same answers: there are {len(first)} and {len(second)} labels.")
    agree = np.array([one == other for one, other in zip(first, second, strict=True)], dtype=bool)
    share = clustered_share(agree, questions, seed=seed, n_boot=n_boot)
    names, coded = np.unique(np.asarray([*first, *second]), return_inverse=True)
    if len(set(first)) == len(set(second)) == 1:
        return None
    _, question = np.unique(np.asarray(questions), return_inverse=True)
    tables = np.zeros((question.max() + 1, len(names), len(names)))
    np.add.at(tables, (question, coded[: len(first)], coded[len(first) :]), 1)
    whole = tables.sum(0)
    value, chance = _kappa(whole)
    low, high = ((bound - chance) / (1 - chance) for bound in (share.low, share.high))
    n_questions = len(tables)
    if n_questions > 1:
        without = np.array([_kappa(whole - table)[0] for table in tables])
        spread = (n_questions - 1) / n_questions * ((without - without.mean()) ** 2).sum()
        margin = float(stdtrit(n_questions - 1, 0.975) * np.sqrt(spread))
        low, high = min(low, value - margin), max(high, value + margin)
    return Estimate(
        value=value,
        low=max(-1.0, min(low, value)),
        high=min(1.0, max(high, value)),
        n=len(agree),
        n_questions=n_questions,
        n_unscored=0,
    )


def auroc(scores: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]) -> float:
    """The chance that a random positive scores higher than a random negative, a tie counting half.

    `AUROC = (sum of the positives' mid-ranks - n_pos (n_pos + 1) / 2) / (n_pos n_neg)`.

    Raises:
        DataError: all labels are alike, or a score is not a number.
    """
    n_pos = int(labels.sum())
    n_neg = len(labels) - n_pos
    if not n_pos or not n_neg:
        raise DataError(f"an AUROC needs both labels, and there are {n_pos} positive and {n_neg} negative ones.")
    if np.isnan(scores).any():
        raise DataError(f"{int(np.isnan(scores).sum())} of {len(scores)} scores are not numbers, so they have no rank.")
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    mid_ranks = np.cumsum(sizes) - (sizes - 1) / 2
    return float((mid_ranks[group][labels].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))


def benjamini_hochberg(p_values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The q-value of each p-value: the smallest false discovery rate at which it is still called a discovery.

    `q_(i) = min over j >= i of min(1, p_(j) n / j)`, the p-values in ascending order.

    Raises:
        DataError: a value outside 0 to 1.

    Source: Benjamini and Hochberg 1995.
    """
    if not ((p_values >= 0) & (p_values <= 1)).all():
        raise DataError("p-values lie between 0 and 1, and at least one of these does not.")
    order = np.argsort(p_values)
    n = len(p_values)
    stepped = p_values[order] * n / np.arange(1, n + 1)
    q_values = np.empty(n)
    q_values[order] = np.minimum(1.0, np.minimum.accumulate(stepped[::-1])[::-1])
    return q_values


def _per_question(
    values: Float[np.ndarray, " n"], questions: Sequence[str]
) -> tuple[Float[np.ndarray, " questions"], Float[np.ndarray, " questions"]]:
    """Sum of the values and number of answers of each question."""
    if len(values) != len(questions):
        raise DataError(
            f"every answer needs its question: there are {len(values)} answers, {len(questions)} questions."
        )
    if not len(values):
        raise DataError("there is no answer to take a share or mean of. Check the prompts and the category.")
    _, question = np.unique(np.asarray(questions), return_inverse=True)
    return np.bincount(question, weights=values), np.bincount(question).astype(float)


def _kappa(table: Float[np.ndarray, "label label"]) -> tuple[float, float]:
    """Kappa and the agreement by chance; full agreement where all answers left have one label of both."""
    shares = table / table.sum()
    chance = float(shares.sum(0) @ shares.sum(1))
    return (1.0 if chance == 1 else float((np.trace(shares) - chance) / (1 - chance))), chance


def _ratio_variance(sums: Float[np.ndarray, " questions"], sizes: Float[np.ndarray, " questions"]) -> float:
    """The variance of `sum(sums) / sum(sizes)` over draws of questions, linearised."""
    n_questions, n = len(sizes), sizes.sum()
    residuals = sums - sums.sum() / n * sizes
    return float(n_questions / (n_questions - 1) * (residuals**2).sum() / n**2)


def _student_margin(sums: Float[np.ndarray, " questions"], sizes: Float[np.ndarray, " questions"]) -> float:
    """Half the 95 % interval of `sum(sums) / sum(sizes)` over at least 2 questions, by Student's t."""
    return float(stdtrit(len(sizes) - 1, 0.975) * np.sqrt(_ratio_variance(sums, sizes)))


def _effective_size(hits_of: Float[np.ndarray, " questions"], answers_of: Float[np.ndarray, " questions"]) -> float:
    """How many independent answers the answers are worth; see `clustered_share`."""
    n, n_questions = answers_of.sum(), len(answers_of)
    if n_questions == 1:
        return 1.0
    share = hits_of.sum() / n
    per_question = (answers_of**2).sum() / n
    n_rare = min(hits_of.sum(), n - hits_of.sum())
    correlation = PRIOR_CORRELATION
    if n_rare and per_question > 1:
        design_effect = _ratio_variance(hits_of, answers_of) / (share * (1 - share) / n)
        estimated = np.clip((design_effect - 1) / (per_question - 1), 0, 1)
        correlation = (PRIOR_HITS * PRIOR_CORRELATION + n_rare * estimated) / (PRIOR_HITS + n_rare)
    few_questions = (Z / stdtrit(n_questions - 1, 0.975)) ** 2
    return float(n / (1 + (per_question - 1) * correlation) * few_questions)


def wilson(share: float, n: float) -> tuple[float, float]:
    """The 95 % interval of a share of `n` independent answers. Source: Wilson 1927."""
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    margin = Z / (1 + Z**2 / n) * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return float(middle - margin), float(middle + margin)


def _bootstrap(
    sums: Float[np.ndarray, " questions"], sizes: Float[np.ndarray, " questions"], *, seed: int, n_boot: int
) -> tuple[float, float]:
    """The middle 95 % of `sum(sums) / sum(sizes)` over draws of as many questions, with replacement."""
    draws = _draws(len(sums), seed, n_boot)
    low, high = np.quantile((draws @ sums) / (draws @ sizes), [0.025, 0.975])
    return float(low), float(high)


@lru_cache(maxsize=8)
def _draws(n_questions: int, seed: int, n_boot: int) -> Float[np.ndarray, "draws questions"]:
    """How often each draw takes each question; a study asks for the same draws thousands of times."""
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(n_questions, np.full(n_questions, 1 / n_questions), size=n_boot).astype(float)
    draws.flags.writeable = False
    return draws
