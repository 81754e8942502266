"""Attributions of several models: worked out by hand, and refused where they are of different kinds."""

from collections.abc import Sequence

import numpy as np
import pytest

from sae_persona.attribution.gradient import LatentAttribution
from sae_persona.attribution.pooled import pool_attributions
from sae_persona.errors import ConfigError, IncompatibleError


def attribution(delta: Sequence[float], *, n_steps: int = 1, n_questions: int = 2) -> LatentAttribution:
    """One pair a question, whose deltas lie 1 below and above the mean."""
    mean = np.array(delta)
    around = np.linspace(-1, 1, n_questions)[:, None]
    return LatentAttribution(
        tokens=("header",),
        n_steps=n_steps,
        delta=mean,
        shown=mean,
        absent=np.zeros(len(mean)),
        question_ids=tuple(f"q{i}" for i in range(n_questions)),
        per_question=(mean + around).astype(np.float32),
        pairs_per_question=np.ones(n_questions, dtype=np.int64),
        loss_shown=1.0,
        loss_absent=1.0,
        resid_mean=np.zeros(4),
    )


def test_the_interval_of_two_runs_is_students() -> None:
    """Deltas 1 and 3: mean 2, standard error 1, and t with one degree of freedom is 12.706."""
    pooled = pool_attributions([attribution([1.0, 5.0]), attribution([3.0, 5.0])])
    np.testing.assert_allclose(pooled.delta, [2, 5])
    np.testing.assert_allclose(pooled.low, [2 - 12.7062, 5], atol=1e-4)
    np.testing.assert_allclose(pooled.high, [2 + 12.7062, 5], atol=1e-4)
    assert pooled.n_runs == 2


def test_one_run_has_the_interval_over_its_questions() -> None:
    one = attribution([2.0], n_questions=5)
    pooled, (low, high) = pool_attributions([one], seed=3), one.interval(seed=3)
    np.testing.assert_array_equal((pooled.low, pooled.high), (low, high))
    assert 1 < low[0] < 2 < high[0] < 3


def test_intervals_of_runs_cover_at_their_rate() -> None:
    rng = np.random.default_rng(0)
    held = []
    for _ in range(50):
        pooled = pool_attributions([attribution(rng.normal(size=200)) for _ in range(3)])
        held.append(((pooled.low <= 0) & (pooled.high >= 0)).mean())
    assert np.mean(held) == pytest.approx(0.95, abs=0.01)  # of 10 000 intervals: a standard error of 0.002


def test_attributions_of_different_kinds_are_refused() -> None:
    with pytest.raises(IncompatibleError, match=r"1 latents, header, 1 steps; 1 latents, header, 4 steps"):
        pool_attributions([attribution([1.0]), attribution([1.0], n_steps=4)])
    with pytest.raises(ConfigError, match="no attributions to pool"):
        pool_attributions([])
