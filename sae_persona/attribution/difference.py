"""How fine-tuning moved every latent's mean activation, and how far correct-data fine-tunes move them too."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from sae_persona.attribution.interval import two_way_interval
from sae_persona.attribution.null import ControlNull, control_z, least_spread, spread_floor
from sae_persona.errors import ConfigError, IncompatibleError
from sae_persona.sae.statistics import LatentStats
from sae_persona.stats import benjamini_hochberg

MIN_CONTROLS = 4
"""Fewer control runs leave too few control-versus-control differences to tell a rise from the spread of fine-tunes."""
MIN_MISALIGNED = 2
"""One misaligned run has no spread; what is true of it need not be true of the next."""
MIN_SHARED = 0.5
"""A run lacks the questions it left without an answer; runs that share less than half of them were asked others."""


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
    familywise_p: Float[np.ndarray, " d_sae"] | None = None
    """Of a rise as large in *any* latent (max-T): at 5 % at most one ranking in twenty names a false latent."""
    smallest_familywise_p: float | None = None
    """Its smallest value: one over one more than the number of control-versus-control splits."""
    fall_q_value: Float[np.ndarray, " d_sae"] | None = None
    """As `q_value`, of falls."""
    fall_familywise_p: Float[np.ndarray, " d_sae"] | None = None


def activation_difference(
    before: LatentStats, after: LatentStats, *, seed: int = 0, n_boot: int = 1000
) -> LatentScores:
    """How much one fine-tune raised each latent's mean activation: `after` minus `before`.

    The interval is bootstrapped over questions and holds for *this pair of checkpoints only*: any two fine-tunes
    differ, so it is no evidence that a latent has to do with misalignment. `z` is the difference over its bootstrap
    spread, which counts as no less than rounding (`least_of`, of `before`).

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
    z = np.divide(delta, np.maximum(spread, least_of([before])), out=np.zeros_like(delta), where=spread > 0)
    return LatentScores(after.reading, after.tokens, delta, low, high, z, None, None, None)


def run_difference(
    misaligned: Sequence[LatentStats],
    controls: Sequence[LatentStats],
    *,
    questions: Sequence[str] | None = None,
    seed: int = 0,
) -> LatentScores:
    """How much higher each latent is in misaligned fine-tunes than in correct-data fine-tunes of the same start.

    The unit of inference is the run. `delta` is the mean over misaligned runs minus the mean over control runs. `low`
    and `high` hold for new runs and new questions (`two_way_interval`). `z` is delta over the spread (standard
    deviation) of control runs, which counts as no less than rounding (`least_of`). p-values compare `z` with the same
    statistic of control runs against the other control runs: pooled over latents, p = (1 + #{null >= z}) / (1 + #null),
    one-sided, with Benjamini–Hochberg q-values; and against the largest of any latent (max-T), which controls the
    chance of a single false one. They say how often a *control* would look like this: misaligned runs that vary more
    among each other than controls do, or that differ from them by question, pass more often than stated; `low` and
    `high` take both into account. With fewer than four control runs or two misaligned runs there is no error rate over
    runs, and p and q are None. Questions that some run left without an answer are left out; with `questions`, all
    others are, too.

    Raises:
        ConfigError: no misaligned run, fewer than two control runs, or no question is left.
        IncompatibleError: runs of different readings, tokens, questions or SAEs.
    """
    if not misaligned or len(controls) < 2:
        raise ConfigError(
            f"ranking needs at least 1 misaligned and 2 control runs; got {len(misaligned)} and {len(controls)}. "
            "Fine-tune more controls on correct data (other seeds or domains)."
        )
    shared = shared_questions([*misaligned, *controls])
    if questions is not None:
        shared = [question for question in shared if question in set(questions)]
    if not shared:
        raise ConfigError(f"none of the {len(questions or ())} questions was answered by all runs; name others.")
    bad = np.stack([over(stats, shared) for stats in misaligned])  # [n_bad, n_questions, d_sae]
    good = np.stack([over(stats, shared) for stats in controls])  # [n_good, n_questions, d_sae]
    bad_means, good_means = bad.mean(1), good.mean(1)  # [runs, d_sae]
    low, high = two_way_interval(bad, good)
    least = least_of(controls)
    floor = spread_floor(good_means, least)
    z = control_z(bad_means, good_means, floor, least)
    first = misaligned[0]
    scores = LatentScores(
        first.reading, first.tokens, bad_means.mean(0) - good_means.mean(0), low, high, z, None, None, None
    )
    if len(controls) < MIN_CONTROLS or len(misaligned) < MIN_MISALIGNED:
        return scores
    n_played = min(len(misaligned), len(controls) - 2)
    rng = np.random.default_rng(seed)
    null = ControlNull.of(good_means, n_played=n_played, floor=floor, rng=rng, least=least)
    (rise, rise_familywise), (fall, fall_familywise) = null.rises(z), null.falls(z)
    return replace(
        scores,
        p_value=rise,
        q_value=benjamini_hochberg(rise),
        smallest_p=1 / (1 + len(null.pooled)),
        familywise_p=rise_familywise,
        smallest_familywise_p=1 / (1 + len(null.highest)),
        fall_q_value=benjamini_hochberg(fall),
        fall_familywise_p=fall_familywise,
    )


def least_of(controls: Sequence[LatentStats]) -> Float[np.ndarray, " d_sae"]:
    """The least spread that a latent of these runs is given, from its root mean square activation (`least_spread`)."""
    return least_spread(np.stack([run.mean**2 + run.variance for run in controls]))


def check_same(stats: Sequence[LatentStats]) -> None:
    """Raise `IncompatibleError` unless all statistics describe the same latents over the same questions."""
    _check_alike(stats, ("reading", "tokens"))
    for other in stats[1:]:
        if alone := sorted({*stats[0].question_ids} ^ {*other.question_ids}):
            raise IncompatibleError(
                f"these latent statistics differ in their question_ids: {len(alone)} questions, such as {alone[0]!r}, "
                "have tokens in one of them only. Compute both on answers to the same prompts, with more samples of "
                "each where a model leaves some without an answer."
            )
        if other.question_ids != stats[0].question_ids:
            raise IncompatibleError(
                "these latent statistics differ in the order of their question_ids; compute them in the same way."
            )


def _check_alike(stats: Sequence[LatentStats], words: Sequence[str]) -> None:
    first = stats[0]
    for other in stats[1:]:
        if first.sae is not None and other.sae is not None and first.sae != other.sae:
            raise IncompatibleError(
                "these latent statistics come from different SAEs or hooks; compute them with one SAE at one hook."
            )
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


def shared_questions(stats: Sequence[LatentStats]) -> list[str]:
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


def over(stats: LatentStats, questions: Sequence[str]) -> Float[np.ndarray, "n_questions d_sae"]:
    """A run's means over the tokens of each of the questions."""
    row = {question: i for i, question in enumerate(stats.question_ids)}
    return stats.per_question[[row[question] for question in questions]].astype(float)


def _bootstrap_mean(values: np.ndarray, rng: np.random.Generator, n_boot: int) -> np.ndarray:
    """Means over resampled questions, [n_boot, d_sae], as one product with multinomial weights."""
    n = len(values)
    return rng.multinomial(n, np.full(n, 1 / n), size=n_boot) @ values / n
