"""A list of steering points: the dose it is read at, its effect there, and what random draws reach."""

import pytest
from example_summary import point
from hypothesis import given
from hypothesis import strategies as st

from sae_persona.report.arms import Effect, baseline, control_rises, induction, repair
from sae_persona.report.summary import SteeringPoint, SteeringRecord

STILL, MILD, STRONG, WILD = (
    point(0.0, 0.01, 0.02, 0.9, 0.01),
    point(0.2, 0.2, 0.04, 0.7, 0.05),
    point(0.4, 0.5, 0.12, 0.3, 0.21),
    point(0.6, 0.7, 0.13, 0.1, 0.3),
)


def points(*records) -> list[SteeringPoint]:
    return [SteeringPoint.model_validate(record) for record in records]


def measured(*records) -> Effect | None:
    """The effect of an arm whose strength was not frozen."""
    return baseline(SteeringRecord.model_validate({"controls": {"mean_difference": records}}), "mean_difference")


def test_a_frozen_strength_is_read_even_where_another_is_stronger():
    steering = SteeringRecord.model_validate({"induce": [STILL, MILD, STRONG], "chosen": {"induce": 0.2}})
    effect = induction(steering, of_set=False)
    assert effect.steered.strength == 0.2
    assert effect.chosen_before
    assert effect.rise == pytest.approx(0.19)
    assert effect.carry_over == pytest.approx(0.04)


def test_without_one_the_strongest_dose_of_at_most_ten_points_more_incoherence_is_read():
    # 0.12 - 0.02 is just ten points; 0.13 - 0.02 is more.
    effect = measured(STILL, MILD, STRONG, WILD)
    assert effect.steered.strength == 0.4
    assert not effect.chosen_before
    assert effect.is_coherent


@given(st.data())
def test_ten_points_are_ten_points_of_any_count_of_answers(data: st.DataObject):
    added = data.draw(st.integers(1, 2000), label="a tenth of the answers")
    before = data.draw(st.integers(0, 9 * added - 1), label="incoherent, unsteered")

    def dose(strength: float, misaligned: float, more: int):
        return point(strength, misaligned, (before + more) / (10 * added), 0, 0)

    effect = measured(dose(0, 0, 0), dose(1, 0.2, added), dose(2, 0.3, added + 1))
    assert effect.steered.strength == 1
    assert effect.is_coherent
    assert measured(dose(0, 0, 0), dose(2, 0.3, added + 1)).is_coherent is False


def test_an_arm_that_is_never_coherent_is_read_at_its_strongest_and_says_so():
    effect = measured(STILL, WILD)
    assert effect.steered.strength == 0.6
    assert effect.is_coherent is False


def test_repair_is_read_where_misalignment_is_least():
    bad = [point(0.0, 0.9, 0.0, 0.05, 0.5), point(-0.3, 0.4, 0.0, 0.5, 0.2), point(-0.6, 0.1, 0.0, 0.8, 0.1)]
    steering = SteeringRecord.model_validate({"repair": {"m": bad}})
    assert repair(steering, "m", of_set=False).steered.strength == -0.6
    assert repair(steering, "m", of_set=True) is None
    assert repair(steering, "other", of_set=False) is None


def test_every_draw_counts_once_with_its_largest_movement_in_either_direction():
    arm = points(
        point(0.0, 0.05, 0, 0.9, 0, draw=0),
        point(0.2, 0.06, 0, 0.9, 0, draw=0),
        point(0.4, 0.09, 0, 0.9, 0, draw=0),
        point(0.0, 0.05, 0, 0.9, 0, draw=1),
        point(0.2, 0.06, 0, 0.9, 0, draw=1),
        point(0.4, 0.02, 0, 0.9, 0, draw=1),
    )
    assert control_rises(arm) == pytest.approx([0.04, -0.03])
    assert control_rises([]) == []


def test_draws_may_share_one_unsteered_point():
    arm = points(point(0.4, 0.09, 0, 0.9, 0, draw=0), point(0.0, 0.05, 0, 0.9, 0), point(0.4, 0.06, 0, 0.9, 0, draw=1))
    assert control_rises(arm) == pytest.approx([0.04, 0.01])


def test_what_was_not_measured_has_no_effect():
    assert measured() is None
    assert measured(STILL) is None
