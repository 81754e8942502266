"""Rivals of a latent: directions that can be checked by hand, and honest tests of them."""

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from attribution.made_up import stats_of

from sae_persona.attribution.rivals import (
    carried_by,
    cosines,
    difference_components,
    linear_probe,
    mean_difference,
    untrained_sae,
)
from sae_persona.errors import ConfigError, IncompatibleError
from sae_persona.sae.statistics import LatentStats

if TYPE_CHECKING:
    from sae_lens import TopKSAE


def of_resid(*per_question: list[float]) -> LatentStats:
    """Statistics with these mean residuals by question."""
    return stats_of(np.zeros((len(per_question), 2)), resid=np.array(per_question))


def sides(rng: np.random.Generator, shift: float) -> tuple[list[LatentStats], list[LatentStats]]:
    """Four runs of either side over six questions, the misaligned ones shifted along the first axis."""

    def run(along: float) -> LatentStats:
        level = rng.normal(size=5) + np.eye(5)[0] * along
        return stats_of(np.zeros((6, 2)), resid=level + 0.3 * rng.normal(size=(6, 5)))

    return [run(shift) for _ in range(4)], [run(0) for _ in range(4)]


def test_the_mean_difference_points_from_controls_to_misaligned_runs() -> None:
    bad, good = [of_resid([4.0, 4.0]), of_resid([2.0, 4.0])], [of_resid([0.0, 0.0])]
    np.testing.assert_allclose(mean_difference(bad, good), np.array([3.0, 4.0]) / 5)


def test_sides_that_do_not_differ_have_no_direction() -> None:
    same = [of_resid([1.0, 2.0])]
    with pytest.raises(IncompatibleError, match="do not differ"):
        mean_difference(same, same)
    with pytest.raises(IncompatibleError, match="no difference to split"):
        difference_components(same, same)
    with pytest.raises(ConfigError, match="got 0 and 1"):
        mean_difference([], same)


def test_a_probe_finds_the_shift_and_is_tested_on_other_runs_and_questions() -> None:
    probe = linear_probe(*sides(np.random.default_rng(0), 6.0))
    assert probe.direction[0] > 0.8
    assert np.linalg.norm(probe.direction) == pytest.approx(1)
    assert probe.auroc > 0.95
    assert probe.held_out == "runs and questions"


def test_a_probe_of_runs_that_only_differ_from_one_another_is_at_chance() -> None:
    """Tested on the runs it was fitted on it would be near 1: every run has its own level."""
    found = [linear_probe(*sides(np.random.default_rng(seed), 0.0)).auroc for seed in range(12)]
    assert abs(np.mean(found) - 0.5) < 0.2  # one probe spreads by about 0.25


def test_with_one_run_a_side_a_probe_says_that_only_questions_were_held_out() -> None:
    bad, good = sides(np.random.default_rng(0), 6.0)
    assert linear_probe(bad[:1], good).held_out == "questions"


def test_a_probe_needs_questions_to_hold_out_and_residuals_to_read() -> None:
    with pytest.raises(ConfigError, match="1 question is not enough"):
        linear_probe([of_resid([1.0, 0.0])], [of_resid([0.0, 0.0])])
    bare = stats_of(np.zeros((2, 2)))
    object.__setattr__(bare, "resid_per_question", None)
    with pytest.raises(ConfigError, match="no residuals by question"):
        linear_probe([bare], [bare])


def test_components_are_those_of_uncentred_differences_the_first_along_the_mean() -> None:
    bad, good = (
        [of_resid([3.0, 0.0], [3.0, 1.0]), of_resid([3.0, 0.0], [3.0, -1.0])],
        [of_resid([0.0, 0.0], [0.0, 0.0])],
    )
    found = difference_components(bad, good)
    np.testing.assert_allclose(found.directions[0], [1, 0], atol=1e-12)
    np.testing.assert_allclose(found.shares, [36 / 38, 2 / 38])


def test_cosines_are_zero_for_a_row_of_length_zero() -> None:
    decoder = np.array([[3.0, 4.0], [0.0, 0.0], [-2.0, 0.0]])
    np.testing.assert_allclose(cosines(decoder, np.array([2.0, 0.0])), [0.6, 0, -1])
    with pytest.raises(IncompatibleError, match="a decoder row has 2 numbers and the direction 3"):
        cosines(decoder, np.ones(3))


def saelens_topk() -> "TopKSAE":
    """Latents 0 and 1 write the first two axes of three; nothing writes the third."""
    from sae_lens import TopKSAE, TopKSAEConfig

    sae = TopKSAE(TopKSAEConfig(d_in=3, d_sae=2, k=1))
    with torch.no_grad():
        sae.W_dec.copy_(torch.eye(3)[:2])
        sae.W_enc.copy_(torch.eye(3)[:, :2])
        sae.b_dec.fill_(0.5)
    return sae.requires_grad_(False)


def test_what_the_reconstruction_lacks_of_the_difference_is_error() -> None:
    """The runs differ by (3, 0, 4); the latents carry (3, 0, 0) of it."""
    bad = [stats_of(np.array([[3.0, 0.0]]), resid=np.array([[3.0, 0.0, 4.0]]))]
    good = [stats_of(np.zeros((1, 2)), resid=np.zeros((1, 3)))]
    found = carried_by(saelens_topk(), bad, good)
    assert found is not None
    assert found.share == pytest.approx(9 / 25)
    assert found.error_share == pytest.approx(16 / 25)
    assert found.cosine == pytest.approx(3 / 5)


def test_an_untrained_sae_has_the_shape_and_nothing_else_of_the_trained_one() -> None:
    sae = saelens_topk()
    random = untrained_sae(sae, seed=1)
    torch.testing.assert_close(random.W_dec.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(random.W_enc, random.W_dec.T)
    torch.testing.assert_close(random.b_dec, sae.b_dec)
    assert (random.cfg.d_sae, random.cfg.architecture()) == (2, "topk")
    assert torch.equal(sae.W_dec, torch.eye(3)[:2])
    assert torch.equal(untrained_sae(sae, seed=1).W_dec, random.W_dec)
