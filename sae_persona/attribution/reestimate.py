"""The latent that came first looks better than it is; here its rise is measured anew, on what did not choose it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sae_persona.attribution.difference import MIN_CONTROLS, MIN_MISALIGNED, run_difference, shared_questions
from sae_persona.attribution.ranking import RunStats, rank_latents

MIN_QUESTIONS = 4
"""Two to rank on and two to measure on."""


@dataclass(frozen=True)
class Reestimate:
    """The rise of the latent that one half put first, as the other half sees it."""

    latent: int
    reading: str
    tokens: str
    chosen_on: float
    """Its rise on the half that put it first: too high on average (the winner's curse)."""
    delta: float
    """Its rise on the other half."""
    low: float
    high: float
    n_misaligned: int
    """Runs and questions of the half that measured."""
    n_controls: int
    n_questions: int


def reestimate_first(
    misaligned: Sequence[RunStats], controls: Sequence[RunStats], *, seed: int = 0
) -> Reestimate | None:
    """Rank on one half of the questions and of the runs of either side, measure the first latent on the other half.

    Questions alone are not enough: both halves would share the runs, and with them what luck put a latent first. The
    half that measures gets the odd run. It may have a single misaligned run, whose spread is then taken to be the
    controls' (`two_way_interval`). The latent may be another than the first of the whole ranking. None with fewer than
    two misaligned runs, four controls or four questions, which leave no halves.

    Raises:
        ConfigError, IncompatibleError: as `rank_latents`.
    """
    if len(misaligned) < MIN_MISALIGNED or len(controls) < MIN_CONTROLS:
        return None
    key = next(iter(misaligned[0]))
    questions = shared_questions([run[key] for run in (*misaligned, *controls) if key in run])
    if len(questions) < MIN_QUESTIONS:
        return None
    rng = np.random.default_rng(seed)
    halves = [_halves(len(group), rng) for group in (misaligned, controls, questions)]
    (bad_a, bad_b), (good_a, good_b), (asked_a, asked_b) = halves
    first = rank_latents(
        [misaligned[i] for i in bad_a],
        [controls[i] for i in good_a],
        questions=[questions[i] for i in asked_a],
        seed=seed,
    ).rows[0]
    reading = next(name for name in misaligned[0] if name == (first.reading, first.tokens))
    again = run_difference(
        [misaligned[i][reading] for i in bad_b],
        [controls[i][reading] for i in good_b],
        questions=[questions[i] for i in asked_b],
        seed=seed,
    )
    return Reestimate(
        latent=first.latent,
        reading=first.reading,
        tokens=first.tokens,
        chosen_on=first.delta_activation,
        delta=float(again.delta[first.latent]),
        low=float(again.low[first.latent]),
        high=float(again.high[first.latent]),
        n_misaligned=len(bad_b),
        n_controls=len(good_b),
        n_questions=len(asked_b),
    )


def _halves(n: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Two random halves of `range(n)`, the second one longer where n is odd."""
    order = rng.permutation(n).tolist()
    return order[: n // 2], order[n // 2 :]
