"""The alarm: a prediction bound that keeps its stated rate."""

import numpy as np
import pytest

from sae_persona.errors import ConfigError
from sae_persona.monitor.alarm import calibrate


def test_the_threshold_is_the_prediction_bound_of_a_normal_sample() -> None:
    alarm = calibrate([1.0, 2.0, 3.0, 4.0], rate=0.05)
    # mean 2.5, spread 1.29099, t(3, 0.95) = 2.35336, sqrt(1 + 1/4) = 1.11803
    assert alarm.threshold == pytest.approx(2.5 + 2.35336 * 1.29099 * 1.11803, abs=1e-4)
    assert alarm.rings(6.0)
    assert not alarm.rings(4.0)


def test_it_rings_for_further_benign_runs_at_the_stated_rate() -> None:
    rng = np.random.default_rng(0)
    rings = [calibrate(rng.normal(size=8).tolist(), rate=0.05).rings(rng.normal()) for _ in range(4000)]
    assert 0.04 < np.mean(rings) < 0.06  # binomial spread of 4 000 draws: 0.0034


def test_what_has_hardly_risen_is_no_warning() -> None:
    fallen = [-4.0, -3.9, -4.1, -4.0]
    assert calibrate(fallen).threshold == 0.0, "a reading below the start's rings nowhere"
    assert calibrate(fallen, least=0.5).threshold == 0.5
    assert calibrate([1.0, 2.0, 3.0, 4.0], least=0.5) == calibrate([1.0, 2.0, 3.0, 4.0]), "the larger bound holds"


def test_separation_is_in_spreads_of_the_benign_runs() -> None:
    alarm = calibrate([1.0, 2.0, 3.0, 4.0])  # mean 2.5, spread 1.29099
    assert alarm.separation([5.0, 6.0]) == pytest.approx(3.0 / 1.29099, rel=1e-5)
    assert alarm.separation([0.0, 0.0]) == pytest.approx(-2.5 / 1.29099, rel=1e-5)
    assert calibrate([1.0] * 4).separation([2.0]) == float("inf")


@pytest.mark.parametrize("benign", [[], [0.1, 0.2, 0.3], [0.1, 0.2, 0.3, float("nan")]])
def test_too_few_or_broken_readings_are_refused(benign: list[float]) -> None:
    with pytest.raises(ConfigError, match="at least 4 benign"):
        calibrate(benign)
