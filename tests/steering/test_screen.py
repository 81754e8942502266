"""The causal screen: best doses, controls to beat, and sets."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_persona.steering.directions import Direction
from sae_persona.steering.screen import (
    Screened,
    aimed_at,
    best_dose,
    best_for_all,
    choose,
    extensions,
    is_coherent,
    rises,
)
from sae_persona.steering.sweep import Dose
from sae_persona.types import Estimate

DIRECTION = Direction("7", "latent", torch.ones(4), (7,))


def share(value: float) -> Estimate:
    return Estimate(value, value, value, 100, 10, 0)


def dose(strength: float, target: float, incoherence: float = 0.0, carry_over: float | None = 0.0) -> Dose:
    measures = {"target": share(target), "incoherence": share(incoherence)}
    if carry_over is not None:
        measures["carry_over"] = share(carry_over)
    return Dose(DIRECTION, strength, measures)


def screened(latent: int, effect: float, carry_over: float | None = 0.1) -> Screened:
    return Screened((latent,), str(latent), 0.5, "all", effect, carry_over)


def test_the_best_dose_is_the_strongest_coherent_one() -> None:
    doses = [dose(0, 0.02, 0.05), dose(0.5, 0.40, 0.15, 0.2), dose(1.0, 0.90, 0.16, 0.3)]
    best = best_dose(doses, window="all")
    assert (best.strength, best.latents) == (0.5, (7,))
    assert abs(best.effect - 0.38) < 1e-12
    assert best.carry_over == pytest.approx(0.2)


def test_the_gate_counts_from_the_unsteered_rate() -> None:
    assert best_dose([dose(0, 0.0, 0.30), dose(1, 0.5, 0.39)], window="all").effect == 0.5


def test_several_models_share_the_strength_that_is_best_in_their_mean() -> None:
    # Means at 1, 2 and 3: effects 0.3, 0.4 and 0.5, added incoherence 0, 0.1 and 0.15.
    one = rises([dose(0, 0.1, 0.1, 0.0), dose(1, 0.7, 0.1, 0.1), dose(2, 0.3, 0.3, 0.2), dose(3, 0.5, 0.4)])
    two = rises([dose(0, 0.2, 0.0, 0.0), dose(1, 0.2, 0.0, 0.1), dose(2, 0.8, 0.0, 0.4), dose(3, 0.8, 0.0)])
    best = best_for_all(DIRECTION, [one, two], window="all")
    assert best.strength == 2
    assert (best.effect, best.carry_over) == (pytest.approx(0.4), pytest.approx(0.3))
    wild = rises([dose(0, 0.2, 0.0), dose(1, 0.1, 0.0), dose(2, 0.9, 0.9), dose(3, 0.9, 0.9)])
    assert best_for_all(DIRECTION, [wild, wild], window="all") == Screened((7,), "7", 0.0, "all", 0.0, 0.0)


@given(st.data())
def test_ten_points_more_of_any_count_of_answers_pass_and_one_answer_more_does_not(data: st.DataObject) -> None:
    added = data.draw(st.integers(1, 2000), label="a tenth of the answers")
    before = data.draw(st.integers(0, 9 * added - 1), label="incoherent, unsteered")
    still, exact, beyond = (
        dose(s, t, (before + k) / (10 * added)) for s, t, k in ((0, 0, 0), (1, 0.5, added), (2, 0.9, added + 1))
    )
    assert best_dose([still, exact, beyond], window="all").strength == 1


@given(st.lists(st.integers(0, 90), min_size=1, max_size=9))
def test_models_that_add_ten_points_each_are_coherent_in_the_mean(before: list[int]) -> None:
    rises = [(one + 10) / 100 - one / 100 for one in before]
    assert is_coherent(sum(rises) / len(rises))
    assert not is_coherent((sum(rises) + 0.01) / len(rises))


def test_the_gate_can_be_narrower() -> None:
    doses = [dose(0, 0.0), dose(0.5, 0.3, 0.06), dose(1, 0.6, 0.09)]
    assert best_dose(doses, window="all").strength == 1
    assert best_dose(doses, window="all", max_added_incoherence=0.07).strength == 0.5


def test_where_nothing_is_admissible_the_effect_is_nothing() -> None:
    best = best_dose([dose(0, 0.1), dose(1, 0.9, 0.5)], window="newest")
    assert (best.strength, best.effect, best.window) == (0.0, 0.0, "newest")


def test_the_choice_must_beat_every_control() -> None:
    singles = [screened(1, 0.3), screened(2, 0.5)]
    assert choose(singles, [], [screened(9, 0.4)]).top == singles[1]
    assert choose(singles, [], [screened(9, 0.5)]).top is None


def test_an_effect_that_carries_over_to_nothing_is_no_persona() -> None:
    switch, persona = screened(1, 0.9, carry_over=0.0), screened(2, 0.4)
    assert choose([switch, persona], [], []).top == persona


def test_without_other_prompts_a_carry_over_is_none_and_decides_nothing() -> None:
    doses = [dose(0, 0.02, carry_over=None), dose(0.5, 0.40, carry_over=None)]
    best, nothing = best_dose(doses, window="all"), best_dose(doses[:1], window="all")
    assert (best.effect, best.carry_over) == (pytest.approx(0.38), None)
    assert (nothing.effect, nothing.carry_over) == (0, None)
    assert choose([screened(1, 0.9, carry_over=None)], [], [screened(9, 0.4)]).top == screened(1, 0.9, carry_over=None)


def test_a_dose_carries_over_to_advice_and_to_nothing_else() -> None:
    opened = Dose(DIRECTION, 1.0, {"misalignment": share(0.4), "incoherence": share(0.1)})
    advised = Dose(DIRECTION, 1.0, {**opened.measures, "other_domains": share(0.2)})
    assert aimed_at(opened, "misalignment").measures == {"target": share(0.4), "incoherence": share(0.1)}
    assert aimed_at(advised, "misalignment").measures["carry_over"] == share(0.2)


def test_without_a_latent_there_is_no_set() -> None:
    assert choose([screened(1, 0.01)], [screened(2, 0.9)], [screened(3, 0.2)]).top_set is None


def test_a_set_is_extended_by_every_other_latent_in_turn() -> None:
    assert extensions((5,), [3, 5, 8]) == [(5, 3), (5, 8)]
    assert extensions((5, 8), [3, 5, 8]) == [(5, 8, 3)]
    assert extensions((5,), [5]) == []
