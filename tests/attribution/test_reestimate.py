"""The first latent, measured on what did not choose it."""

import numpy as np
import pytest
from attribution.made_up import Fleet

from sae_persona.attribution.ranking import rank_latents
from sae_persona.attribution.reestimate import reestimate_first


def test_the_first_latent_is_covered_by_its_new_interval_and_not_by_its_old_one() -> None:
    """No latent is raised: whichever comes first truly rises by 0. The standard error of 0.95 over 200 is 0.015."""
    rng = np.random.default_rng(0)
    naive, anew, looked, measured = [], [], [], []
    for _ in range(200):
        misaligned, controls = Fleet(n_questions=4, d_sae=30).runs(rng)
        first = rank_latents(misaligned, controls).rows[0]
        naive.append(first.low <= 0 <= first.high)
        again = reestimate_first(misaligned, controls)
        assert again is not None
        anew.append(again.low <= 0 <= again.high)
        looked.append(again.chosen_on)
        measured.append(again.delta)
    assert 0.91 <= np.mean(anew) <= 0.99
    assert np.mean(naive) < 0.85
    assert np.mean(looked) > 0.8
    assert abs(np.mean(measured)) < 3 * np.std(measured) / np.sqrt(200)


def test_a_planted_latent_is_found_and_its_rise_measured() -> None:
    raised = np.zeros(60)
    raised[7] = 20.0
    misaligned, controls = Fleet(n_misaligned=4).runs(np.random.default_rng(0), raised=raised)
    again = reestimate_first(misaligned, controls)
    assert again is not None
    assert (again.latent, again.n_misaligned, again.n_controls, again.n_questions) == (7, 2, 4, 6)
    assert again.low < 20 < again.high


@pytest.mark.parametrize("fleet", [Fleet(n_misaligned=1), Fleet(n_controls=3), Fleet(n_questions=3)])
def test_too_few_runs_or_questions_leave_no_halves(fleet: Fleet) -> None:
    assert reestimate_first(*fleet.runs(np.random.default_rng(0))) is None
