"""How fine-tuning moved every latent's mean activation, and how far correct-data fine-tunes move them too."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float

from sae_persona.errors import ConfigError, IncompatibleError
from sae_persona.sae.statistics import LatentStats
from sae_persona.stats import benjamini_hochberg

MIN_CONTROLS = 4
"""Fewer control runs leave too few control-versus-control differences to tell a rise from the spread of fine-tunes."""
MIN_SHARED = 0.5
"""A run lacks the questions it left without an answer; runs that share less than half of them were asked others."""
MAX_SPLITS = 200
"""Control-versus-control splits that are enumerated; the null is pooled over latents, so more change nothing."""


@dataclass(frozen=True, eq=False)
class LatentScores:
    """One number with an interval for every latent.

    Arrays are `[d_sae]`, in the SAE's own activation units except `z`, which counts control spreads.
    """

    reading: str
    """`gated` (after the activation function) or `pre_activation`."""
    tokens: str
    """Which tokens were averaged: `answer`, `header` or `prompt`."""
    delta: Float[np.ndarray, " d_sae"]
    low: Float[np.ndarray, " d_sae"]
    high: Float[np.ndarray, " d_sae"]
    z: Float[np.ndarray, " d_sae"]
    p_value: Float[np.ndarray, " d_sae"] | None
    """None where there are too few runs for an error rate over runs."""
    q_value: Float[np.ndarray, " d_sae"] | None
    smallest_p: float | None
    """The smallest p-value that this number of runs and latents can reach."""


def activation_difference(
    before: LatentStats, after: LatentStats, *, seed: int = 0, n_boot: int = 1000
) -> LatentScores:
    """How much one fine-tune raised each latent's mean activation: `after` minus `before`.

    The interval is bootstrapped over questions and holds for *this pair of checkpoints only*: any two fine-tunes
    differ, so it is no evidence that a latent has to do with misalignment. `z` is the difference over its bootstrap
    spread.

    Raises:
        IncompatibleError: the two statistics come from different readings, tokens, questions or SAEs.

    Source: Wang et al. 2025, section 3.1 (Δ-activation).
    """
    check_same([before, after])
    difference = after.per_question - before.per_question
    rng = np.random.default_rng(seed)
    means = _bootstrap_mean(difference, rng, n_boot)
    spread = means.std(0, ddof=1)
    delta = after.mean - before.mean
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    z = np.divide(delta, spread, out=np.zeros_like(delta), where=spread > 0)
    return LatentScores(after.reading, after.tokens, delta, low, high, z, None, None, None)


def run_difference(
    misaligned: Sequence[LatentStats], controls: Sequence[LatentStats], *, seed: int = 0, n_boot: int = 1000
) -> LatentScores:
    """How much higher each latent is in misaligned fine-tunes than in correct-data fine-tunes of the same start.

    The unit of inference is the run. `delta` is the mean over misaligned runs minus the mean over control runs. `low`
    and `high` are bootstrapped over runs and questions. `z` is delta over the spread (standard deviation) of control
    runs. p-values compare `z` with the same statistic of control runs against the other control runs, pooled over
    latents: p = (1 + #{null >= z}) / (1 + #null), one-sided. q-values are Benjamini–Hochberg. With fewer than four
    control runs or two misaligned runs there is no error rate over runs, and p and q are None. Questions that some
    run left without an answer are left out.

    Raises:
        ConfigError: no misaligned run, or fewer than two control runs.
        IncompatibleError: runs of different readings, tokens, questions or SAEs.
    """
    if not misaligned or len(controls) < 2:
        raise ConfigError(
            f"ranking needs at least 1 misaligned and 2 control runs; got {len(misaligned)} and {len(controls)}. "
            "Fine-tune more controls on correct data (other seeds or domains)."
        )
    questions = _shared_questions([*misaligned, *controls])
    bad = np.stack([_over(stats, questions) for stats in misaligned])  # [n_bad, n_questions, d_sae]
    good = np.stack([_over(stats, questions) for stats in controls])  # [n_good, n_questions, d_sae]
    bad_means, good_means = bad.mean(1), good.mean(1)  # [runs, d_sae]
    delta = bad_means.mean(0) - good_means.mean(0)
    rng = np.random.default_rng(seed)
    boot = np.stack([_resampled_difference(bad, good, rng) for _ in range(n_boot)])
    low, high = np.quantile(boot, [0.025, 0.975], axis=0)
    floor = _spread_floor(good_means)
    z = delta / (good_means.std(0, ddof=1) + floor)
    p_value = q_value = smallest = None
    if len(controls) >= MIN_CONTROLS and len(misaligned) >= 2:
        null = _control_null(good_means, n_bad=min(len(misaligned), len(controls) - 2), floor=floor, rng=rng)
        p_value = (1 + len(null) - np.searchsorted(null, z, side="left")) / (1 + len(null))
        q_value = benjamini_hochberg(p_value)
        smallest = 1 / (1 + len(null))
    first = misaligned[0]
    return LatentScores(first.reading, first.tokens, delta, low, high, z, p_value, q_value, smallest)


def check_same(stats: Sequence[LatentStats]) -> None:
    """Raise `IncompatibleError` unless all statistics describe the same latents over the same questions."""
    _check_alike(stats, ("reading", "tokens", "question_ids"))


def _check_alike(stats: Sequence[LatentStats], words: Sequence[str]) -> None:
    first = stats[0]
    for other in stats[1:]:
        for what in words:
            if getattr(other, what) != getattr(first, what):
                raise IncompatibleError(
                    f"these latent statistics differ in their {what}; compute them in the same way."
                )
        if other.mean.shape != first.mean.shape:
            raise IncompatibleError(
                f"these latent statistics come from SAEs of {first.mean.size} and {other.mean.size} latents; "
                "use one SAE."
            )


def _shared_questions(stats: Sequence[LatentStats]) -> list[str]:
    """The questions that every run has tokens for, in the first run's order."""
    _check_alike(stats, ("reading", "tokens"))
    everywhere = set.intersection(*(set(run.question_ids) for run in stats))
    most = max(run.n_questions for run in stats)
    if len(everywhere) < MIN_SHARED * most:
        raise IncompatibleError(
            f"the runs share {len(everywhere)} of up to {most} questions; compute the statistics of every run on "
            "answers to the same prompts, with more samples of each where runs leave many without an answer."
        )
    return [question for question in stats[0].question_ids if question in everywhere]


def _over(stats: LatentStats, questions: Sequence[str]) -> Float[np.ndarray, "n_questions d_sae"]:
    """A run's means over the tokens of each of the questions."""
    row = {question: i for i, question in enumerate(stats.question_ids)}
    return stats.per_question[[row[question] for question in questions]]


def _bootstrap_mean(values: np.ndarray, rng: np.random.Generator, n_boot: int) -> np.ndarray:
    """Means over resampled questions, [n_boot, d_sae], as one product with multinomial weights."""
    n = len(values)
    return rng.multinomial(n, np.full(n, 1 / n), size=n_boot) @ values / n


def _resampled_difference(bad: np.ndarray, good: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One draw over runs (of either side) and over questions (the same for all runs)."""
    n_questions = bad.shape[1]
    weights = rng.multinomial(n_questions, np.full(n_questions, 1 / n_questions)) / n_questions
    sides = [side[rng.integers(len(side), size=len(side))].mean(0) for side in (bad, good)]  # [n_questions, d_sae]
    return weights @ (sides[0] - sides[1])


def _spread_floor(good_means: np.ndarray) -> float:
    """A small constant added to every latent's spread, so that a latent that never moves in a control is not infinite.

    The median spread of the latents that move at all, as in the moderated statistics of Tusher et al. 2001 (SAM); 1 if
    none does, so that `z` is the plain difference.
    """
    spreads = good_means.std(0, ddof=1)
    moving = spreads[spreads > 0]
    return float(np.median(moving)) if moving.size else 1.0


def _control_null(good_means: np.ndarray, *, n_bad: int, floor: float, rng: np.random.Generator) -> np.ndarray:
    """Sorted `z` of controls that play misaligned, against the other controls, over splits and latents."""
    n = len(good_means)
    splits = list(combinations(range(n), n_bad))
    if len(splits) > MAX_SPLITS:
        splits = [splits[i] for i in rng.choice(len(splits), MAX_SPLITS, replace=False)]
    null = []
    for split in splits:
        played = np.isin(np.arange(n), split)
        rest = good_means[~played]
        null.append((good_means[played].mean(0) - rest.mean(0)) / (rest.std(0, ddof=1) + floor))
    return np.sort(np.concatenate(null))
