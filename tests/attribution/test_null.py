"""What controls do to each other: counted by hand, and error rates in simulation."""

import numpy as np
import pytest
from attribution.made_up import Fleet

from sae_persona.attribution.difference import run_difference
from sae_persona.attribution.null import ControlNull, control_z, least_spread, spread_floor


def test_z_is_the_difference_over_the_spread_of_the_rest() -> None:
    played, rest = np.array([[4.0], [6.0]]), np.array([[1.0], [3.0]])
    assert control_z(played, rest, 0.5)[0] == pytest.approx((5 - 2) / (np.sqrt(2) + 0.5))


def test_the_floor_is_the_median_spread_of_latents_that_move() -> None:
    assert spread_floor(np.array([[0.0, 0.0, 0.0], [0.0, 2.0, 4.0]])) == pytest.approx(np.sqrt(2) * 1.5)
    assert spread_floor(np.zeros((3, 2))) == 1.0


def test_a_spread_of_no_more_than_rounding_is_neither_divided_by_nor_part_of_the_floor() -> None:
    """Root mean squares 5 and 100: spreads up to 5e-5 and 1e-3 are rounding."""
    least = least_spread(np.array([[9.0, 1e4], [41.0, 1e4]]))
    np.testing.assert_allclose(least, [5e-5, 1e-3])
    controls = np.array([[5.0, 100.0], [5.0 + 1e-6, 101.0]])
    floor = spread_floor(controls, least)
    assert floor == pytest.approx(np.sqrt(0.5))  # of the second latent alone
    assert spread_floor(controls[:, :1], least[:1]) == 1.0
    z = control_z(np.array([[5.0 + 3e-6, 102.0]]), controls, 0.0, least)
    np.testing.assert_allclose(z, [2.5e-6 / 5e-5, 1.5 / np.sqrt(0.5)], rtol=1e-6)


def test_every_split_is_in_the_null_and_its_extremes_are_kept() -> None:
    controls = np.array([[0.0, 1.0], [1.0, 5.0], [3.0, 2.0], [4.0, 7.0]])
    null = ControlNull.of(controls, n_played=2, floor=0.5, rng=np.random.default_rng(0))
    z = [
        control_z(controls[[i, j]], controls[[k for k in range(4) if k not in (i, j)]], 0.5)
        for i in range(4)
        for j in range(i + 1, 4)
    ]
    np.testing.assert_allclose(null.pooled, np.sort(np.concatenate(z)))
    least = np.array([2.0, 0.0])  # of the first latent, half of the spreads are below
    floored = ControlNull.of(controls, n_played=2, floor=0.5, least=least, rng=np.random.default_rng(0))
    z_floored = [
        control_z(controls[[i, j]], controls[[k for k in range(4) if k not in (i, j)]], 0.5, least)
        for i in range(4)
        for j in range(i + 1, 4)
    ]
    np.testing.assert_allclose(floored.pooled, np.sort(np.concatenate(z_floored)))
    assert not np.allclose(floored.pooled, null.pooled)
    np.testing.assert_allclose(null.highest, np.sort([one.max() for one in z]))
    np.testing.assert_allclose(null.lowest, np.sort([one.min() for one in z]))


def test_p_values_count_what_is_at_least_as_large_or_as_low() -> None:
    null = ControlNull(np.array([-3.0, -1.0, 1.0, 2.0]), np.array([1.0, 2.0]), np.array([-3.0, -1.0]))
    pooled, familywise = null.rises(np.array([1.5, 1.0, 9.0]))
    assert pooled.tolist() == [2 / 5, 3 / 5, 1 / 5]
    assert familywise.tolist() == [2 / 3, 1.0, 1 / 3]
    pooled, familywise = null.falls(np.array([-1.0, -9.0]))
    assert pooled.tolist() == [3 / 5, 1 / 5]
    assert familywise.tolist() == [1.0, 1 / 3]


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_error_rates_hold_where_misaligned_runs_vary_like_controls(correlation: float) -> None:
    """200 replicates, of 100 latents 10 raised: the rates may exceed 10 % and 5 % by two standard errors at most."""
    rng = np.random.default_rng(0)
    raised = np.r_[np.full(10, 8.0), np.zeros(90)]
    fleet = Fleet(d_sae=100, n_questions=3, correlation=correlation)
    false_share, any_false, found = [], [], []
    for _ in range(200):
        misaligned, controls = fleet.runs(rng, raised=raised)
        scores = run_difference(
            [run["gated", "answer"] for run in misaligned], [r["gated", "answer"] for r in controls]
        )
        assert scores.q_value is not None
        assert scores.familywise_p is not None
        called = scores.q_value <= 0.10
        false_share.append(called[10:].sum() / max(called.sum(), 1))
        found.append(called[:10].mean())
        any_false.append((scores.familywise_p[10:] <= 0.05).any())
    assert np.mean(false_share) <= 0.10 + 2 * np.std(false_share) / np.sqrt(200)
    assert np.mean(any_false) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)
    assert np.mean(found) > 0.9
