"""Directions: of length one whatever they are made of, and controls that are like what they control for."""

import math
from typing import TYPE_CHECKING

import pytest
import torch

from sae_persona.errors import ConfigError, SAEError
from sae_persona.steering.directions import (
    Direction,
    _logistic,
    _loss,
    latent_direction,
    mean_difference,
    probe_direction,
    random_directions,
    random_latents,
)

if TYPE_CHECKING:
    from sae_lens import TopKSAE


def test_a_direction_has_length_one() -> None:
    assert Direction("d", "latent", torch.tensor([3.0, 4.0])).vector.tolist() == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize("vector", [[0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_a_vector_that_points_nowhere_is_refused(vector: list[float]) -> None:
    with pytest.raises(ConfigError, match="finite length > 0"):
        Direction("d", "latent", torch.tensor(vector))


def test_a_latents_direction_is_its_decoder_row(sae: "TopKSAE") -> None:
    direction = latent_direction(sae, 5)
    torch.testing.assert_close(direction.vector, sae.W_dec[5] / sae.W_dec[5].norm())
    assert (direction.name, direction.kind, direction.latents) == ("5", "latent", (5,))


def test_a_sets_members_weigh_alike_however_long_their_rows_are(sae: "TopKSAE") -> None:
    direction = latent_direction(sae, 2, 7)
    unit = [sae.W_dec[latent] / sae.W_dec[latent].norm() for latent in (2, 7)]
    torch.testing.assert_close(direction.vector @ unit[0], direction.vector @ unit[1])
    assert (direction.name, direction.kind) == ("2+7", "latent_set")


@pytest.mark.parametrize("latent", [-1, 12])
def test_a_latent_the_sae_lacks_is_refused(sae: "TopKSAE", latent: int) -> None:
    with pytest.raises(SAEError, match="latents are 0 to 11"):
        latent_direction(sae, latent)


def test_random_latents_are_as_frequent_and_none_that_is_excluded(sae: "TopKSAE") -> None:
    # Latent 0 fires on 10 %; 1 to 6 about as often, 7 to 10 hardly ever, 11 never.
    density = torch.tensor([0.1, 0.1, 0.11, 0.09, 0.1, 0.12, 0.08, 1e-6, 1e-6, 1e-6, 1e-6, 0.0])
    controls = random_latents(sae, density, 0, exclude=[1], n=1, seed=0)
    drawn = {random_latents(sae, density, 0, exclude=[1], n=1, seed=seed)[0].latents[0] for seed in range(30)}
    assert drawn == {2, 3, 4}  # the three nearest of those allowed: log 1.1, log 0.9 and 0
    assert controls[0].kind == "random_latent"


def test_random_latents_come_once_each_and_again_with_their_seed(sae: "TopKSAE") -> None:
    density = torch.full((12,), 0.1)
    first = [one.latents[0] for one in random_latents(sae, density, 0, exclude=[3], n=10, seed=4)]
    assert sorted(first) == [1, 2, 4, 5, 6, 7, 8, 9, 10, 11]
    assert first == [one.latents[0] for one in random_latents(sae, density, 0, exclude=[3], n=10, seed=4)]


def test_more_controls_than_living_latents_are_refused(sae: "TopKSAE") -> None:
    density = torch.tensor([0.1] * 6 + [0.0] * 6)
    with pytest.raises(SAEError, match="4 control latents were asked for, and only 3"):
        random_latents(sae, density, 0, exclude=[1, 2], n=4, seed=0)


def test_random_directions_have_no_preferred_direction() -> None:
    vectors = torch.stack([direction.vector for direction in random_directions(16, n=400, seed=0)])
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(400))
    assert vectors.mean(0).norm() < 0.1  # 1 / sqrt(400) = 0.05 expected
    assert not torch.equal(vectors, torch.stack([one.vector for one in random_directions(16, n=400, seed=1)]))


def test_the_mean_difference_points_from_aligned_to_misaligned() -> None:
    aligned, misaligned = torch.tensor([[0.0, 0.0], [0.0, 2.0]]), torch.tensor([[5.0, 1.0]])
    assert mean_difference(misaligned, aligned).vector.tolist() == [1.0, 0.0]


def test_a_probe_finds_the_coordinate_that_tells_the_classes_apart_though_another_varies_more() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400, 3, generator=generator) * torch.tensor([1.0, 100.0, 1.0])
    shift = torch.tensor([3.0, 0.0, 0.0])
    probe = probe_direction(noise[:200] + shift, noise[200:] - shift)
    assert probe.kind == "linear_probe"
    assert probe.vector[0] > 0.99
    assert torch.equal(probe.vector, probe_direction(noise[:200] + shift, noise[200:] - shift).vector)


def test_a_probe_solves_ridge_logistic_regression() -> None:
    generator = torch.Generator().manual_seed(1)
    z, y = torch.randn(30, 4, generator=generator, dtype=torch.double), torch.tensor([1.0, -1, -1] * 10).double()
    weights = _logistic(z, y, 0.1).requires_grad_()
    gradient = torch.autograd.grad(_loss(weights, z, y) + 0.05 * weights[:-1].square().sum(), weights)[0]
    assert gradient.abs().max() < 1e-6
    weights = weights.detach()
    margins = [float(label * (row @ weights[:-1] + weights[-1])) for row, label in zip(z, y, strict=True)]
    by_hand = [math.log1p(math.exp(-margin)) for margin in margins]
    misaligned, aligned = sum(by_hand[::3]) / 10, (sum(by_hand[1::3]) + sum(by_hand[2::3])) / 20
    assert float(_loss(weights, z, y)) == pytest.approx((misaligned + aligned) / 2)


def test_a_coordinate_without_variance_gets_no_weight() -> None:
    rows = torch.randn(20, 3, generator=torch.Generator().manual_seed(2))
    rows[:, 1] = 5.0
    assert probe_direction(rows[:10] + torch.tensor([1.0, 0, 0]), rows[10:]).vector[1] == 0


def test_a_probe_of_too_few_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match="4 aligned rows or more; got 3"):
        probe_direction(torch.randn(9, 2), torch.randn(3, 2))
