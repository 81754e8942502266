"""The study of planted personas: worlds are what they say, clear personas are found, none where none is."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parents[1] / "benchmarks" / "planted.py"


@pytest.fixture(scope="module")
def planted():
    spec = importlib.util.spec_from_file_location("planted_study", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_stated_rise_is_the_mean_of_what_runs_show(planted):
    world, rng = planted.PlantedWorld.draw(100), np.random.default_rng(0)
    drawn = [planted.fleet(world, rng, rise=4.0, n_misaligned=3, n_controls=8) for _ in range(60)]
    for tokens in ("answer", "header"):
        sides = [
            np.mean([np.mean([run["gated", tokens].mean for run in side], 0) for side in sides], 0)
            for sides in ([one.misaligned for one in drawn], [one.controls for one in drawn])
        ]
        found = (sides[0] - sides[1]) / world.scale
        expected = 4.0 * world.rise(tokens) / world.scale
        # A mean over 60 fleets of three runs that differ by 1 to 3 control spreads.
        np.testing.assert_allclose(found[world.persona > 0], expected[world.persona > 0], atol=0.6)
        assert abs((found - expected).mean()) < 0.05


def test_a_clear_persona_is_found_and_its_cause_chosen(planted):
    told = planted.told_by_worlds((100, 101), 3, rise=8.0, n_misaligned=3, n_controls=8)
    assert told.hits["default: on shortlist; rank"] == [True] * 6
    for how in ("20 random latents, any p", "200 random latents, p <= 0.05"):
        assert sum(told.hits[f"a cause is chosen, {how}"]) >= 5
        assert not any(told.hits[f"another latent is chosen, {how}"])


def test_where_nothing_rose_nothing_is_called_or_chosen_and_no_pairs_are_made_up(planted):
    told = planted.told_by_worlds((100, 101), 3, rise=0.0, n_misaligned=3, n_controls=8)
    assert not any(told.hits["a cause is chosen, 20 random latents, p <= 0.05"])
    assert not any(told.hits["another latent is chosen, 20 random latents, p <= 0.05"])
    assert not any(told.hits["q <= 0.10: any false"])
    assert told.cell("attribution: on shortlist; rank") == "–"
    assert np.median(told.ranks["default: on shortlist; rank"]) > 60, "by luck the better of two stands at a third"
