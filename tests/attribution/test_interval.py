"""The interval over runs and questions: arithmetic by hand, and coverage at its nominal rate."""

import numpy as np
import pytest
from attribution.made_up import Fleet
from scipy.stats import t

from sae_persona.attribution.interval import two_way_interval


def test_with_one_question_it_is_welchs_interval() -> None:
    bad, good = np.array([1.0, 3.0])[:, None, None], np.array([0.0, 1.0, 2.0])[:, None, None]
    low, high = two_way_interval(bad, good)
    variance = 2 / 2 + 1 / 3  # var(1, 3) / 2 + var(0, 1, 2) / 3
    freedom = variance**2 / (1**2 / 1 + (1 / 3) ** 2 / 2)
    margin = t.ppf(0.975, freedom) * np.sqrt(variance)
    np.testing.assert_allclose([low[0], high[0]], [1 - margin, 1 + margin])


def test_a_single_misaligned_run_gets_the_spread_of_the_controls() -> None:
    bad, good = np.array([5.0])[:, None, None], np.array([0.0, 1.0, 2.0])[:, None, None]
    low, high = two_way_interval(bad, good)
    margin = t.ppf(0.975, 2) * np.sqrt(1 * (1 + 1 / 3))
    np.testing.assert_allclose([low[0], high[0]], [4 - margin, 4 + margin])


def test_what_all_runs_do_alike_on_a_question_is_no_uncertainty() -> None:
    question = np.array([0.0, 100.0, -50.0])[None, :, None]
    bad, good = question + np.array([1.0, 3.0])[:, None, None], question + np.array([0.0, 1.0, 2.0])[:, None, None]
    np.testing.assert_allclose(two_way_interval(bad, good), two_way_interval(bad[:, :1], good[:, :1]))


def test_a_rise_that_differs_by_question_widens_it() -> None:
    rise = np.array([0.0, 2.0, 4.0])[None, :, None]  # variance 4 over questions, 4/3 of their mean
    bad, good = rise + np.zeros((2, 1, 1)), np.zeros((3, 3, 1))
    low, high = two_way_interval(bad, good)
    margin = t.ppf(0.975, 2) * np.sqrt(4 / 3)
    np.testing.assert_allclose([low[0], high[0]], [2 - margin, 2 + margin])


def test_identical_numbers_have_no_width() -> None:
    low, high = two_way_interval(np.ones((2, 3, 1)), np.ones((2, 3, 1)))
    assert (low[0], high[0]) == (0, 0)


@pytest.mark.parametrize(
    "fleet",
    [
        Fleet(),
        Fleet(n_misaligned=2, n_controls=4, n_questions=8),
        Fleet(side_by_question=4.0),
        Fleet(noise=8.0, side_by_question=0.0),
    ],
)
def test_it_covers_at_its_nominal_rate(fleet: Fleet) -> None:
    """4 000 independent latents: the standard error of a rate near 0.95 is 0.0035; Satterthwaite's t is off by 0.02."""
    bad, good = fleet.with_(d_sae=4000, correlation=0.0).draw(np.random.default_rng(0), raised=1.0)
    low, high = two_way_interval(bad, good)
    assert 0.925 <= np.mean((low <= 1) & (high >= 1)) <= 0.975


def test_a_percentile_bootstrap_over_few_runs_does_not() -> None:
    rng = np.random.default_rng(0)
    fleet = Fleet(d_sae=1000, correlation=0.0)
    bad, good = fleet.draw(rng, raised=1.0)
    even = np.full(fleet.n_questions, 1 / fleet.n_questions)

    def weights(rng: np.random.Generator) -> np.ndarray:
        return rng.multinomial(fleet.n_questions, even) / fleet.n_questions

    boot = [
        weights(rng) @ (bad[rng.integers(3, size=3)].mean(0) - good[rng.integers(8, size=8)].mean(0))
        for _ in range(200)
    ]
    low, high = np.quantile(boot, [0.025, 0.975], axis=0)
    assert np.mean((low <= 1) & (high >= 1)) < 0.90
