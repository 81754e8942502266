"""Stability: a planted latent is always found, one of many equals is not."""

import numpy as np
import pytest
from attribution.made_up import Fleet, stats_of

from sae_persona.attribution.stability import Match, match_latents, shortlist_stability
from sae_persona.errors import ConfigError, IncompatibleError


def test_a_clear_rise_is_on_every_shortlist_and_chance_on_few() -> None:
    raised = np.zeros(60)
    raised[7] = 20.0
    found = shortlist_stability(*Fleet().runs(np.random.default_rng(0), raised=raised), n=2, n_resamples=40)
    assert found.frequency[7] == 1
    assert np.sort(found.frequency)[-2] < 0.6
    assert found.frequency.sum() == pytest.approx(2)
    assert found.single_prompt is not None
    assert 0.5 <= found.single_prompt < 1  # the first of the two always, the second at times


def test_where_nothing_rose_there_is_no_shortlist_to_find_again() -> None:
    misaligned, controls = Fleet(d_sae=3, noise=0.1).runs(np.random.default_rng(0), raised=-9.0)
    found = shortlist_stability(misaligned, controls, n_resamples=3)
    assert (found.frequency.max(), found.single_prompt) == (0, None)


def test_what_differs_by_rounding_is_not_on_the_shortlist_before_what_rose() -> None:
    """Latent 0 rises by 5 of its spreads, the two others by 50 of theirs, which are a billionth of their activation."""
    rng = np.random.default_rng(0)

    def runs(n: int, rise: np.ndarray) -> list:
        spread = np.array([1.0, 1e-9, 1e-9])
        levels = 1 + spread * rng.normal(size=(n, 3)) + rise
        return [{("gated", "answer"): stats_of(np.tile(level, (4, 1)))} for level in levels]

    found = shortlist_stability(runs(3, np.array([5, 5e-8, 5e-8])), runs(8, np.zeros(3)), n=1, n_resamples=20)
    assert found.frequency.tolist() == [1, 0, 0]


def test_too_few_runs_are_refused() -> None:
    misaligned, controls = Fleet().runs(np.random.default_rng(0))
    with pytest.raises(ConfigError, match="got 3 and 1"):
        shortlist_stability(misaligned, controls[:1])


def test_latents_are_matched_by_the_direction_they_write() -> None:
    decoder = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    other = np.array([[0.0, 5.0], [1.0, 0.1]])
    close = 1 / np.sqrt(1.01)
    assert match_latents(decoder, other, [0, 1]) == [
        Match(0, 1, pytest.approx(close), mutual=True),
        Match(1, 0, 1.0, mutual=True),
    ]
    (third,) = match_latents(decoder, other, [2])
    assert (third.other, third.mutual) == (1, False)
    assert len(match_latents(decoder, other)) == 3


def test_saes_of_other_widths_and_unknown_latents_are_refused() -> None:
    with pytest.raises(IncompatibleError, match="write 2 and 3 numbers"):
        match_latents(np.eye(2), np.eye(3))
    with pytest.raises(IncompatibleError, match="are 0 to 1; 7 is none"):
        match_latents(np.eye(2), np.eye(2), [7])
