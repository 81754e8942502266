"""The sparse step against the same step in plain autograd, and what it does at the edges."""

from typing import Any

import naive_topk
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Bool, Float
from torch import Tensor

from sae_persona.sae import sparse, step
from sae_persona.sae.adam import normalise_rows, remove_parallel
from sae_persona.sae.step import Among, StepResult, Weights, topk_step

COEFFICIENT = 1 / 32


def weights(d_in: int, d_sae: int, *, seed: int = 0) -> Weights:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Weights(draw(d_sae, d_in), draw(d_sae, d_in), draw(d_sae), draw(d_in))


def tokens(n: int, d_in: int, *, seed: int = 1) -> Float[Tensor, "n d_in"]:
    return torch.randn(n, d_in, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_agree(
    w: Weights, x: Float[Tensor, "batch d_in"], *, k: int, dead: Bool[Tensor, " d_sae"], **how: Any
) -> StepResult:
    naive = Weights(*(tensor.clone().requires_grad_() for _, tensor in w.named()))
    mse, aux, fired = naive_topk.losses(naive, x, k=k, dead=dead, **how)
    (mse + COEFFICIENT * aux).backward()
    result = topk_step(w, x, k=k, dead=dead, aux_coefficient=COEFFICIENT, **how)
    torch.testing.assert_close(result.mse, mse.detach())
    torch.testing.assert_close(result.aux, aux.detach())
    assert torch.equal(result.fired, fired)
    for (name, gradient), (_, tensor) in zip(result.gradients.dense().named(), naive.named(), strict=True):
        expected = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        torch.testing.assert_close(gradient, expected, msg=lambda text, name=name: f"{name}: {text}")
    return result


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_losses_and_all_gradients_are_those_of_autograd(data: st.DataObject) -> None:
    d_in, d_sae = data.draw(st.integers(1, 9)), data.draw(st.sampled_from([*range(1, 21), 32, 48]))
    k = data.draw(st.integers(1, d_sae))
    dead = torch.tensor(data.draw(st.lists(st.booleans(), min_size=d_sae, max_size=d_sae)))
    seed = data.draw(st.integers(0, 999))
    n = data.draw(st.sampled_from([1, 5, 300]))
    among = data.draw(st.sampled_from(["token", "batch"]))
    aux_tokens = data.draw(st.sampled_from([None, 1, 4, 1000]))
    assert_agree(
        weights(d_in, d_sae, seed=seed),
        tokens(n, d_in, seed=seed + 1),
        k=k,
        dead=dead,
        among=among,
        aux_tokens=aux_tokens,
    )


@pytest.mark.parametrize("among", ["token", "batch"])
@pytest.mark.parametrize("n_dead", [0, 20])
def test_a_dictionary_too_large_for_the_cache_goes_another_way_to_the_same_gradients(
    monkeypatch: pytest.MonkeyPatch, among: Among, n_dead: int
) -> None:
    monkeypatch.setattr(sparse, "_CACHED_ENTRIES", 0)
    monkeypatch.setattr(step, "_BLOCK_ENTRIES", 32 * 20)  # 70 tokens in blocks of 20
    result = assert_agree(
        weights(6, 32), tokens(70, 6), k=3, dead=torch.arange(32) < n_dead, among=among, aux_tokens=30
    )
    assert result.l0 > 2


@pytest.mark.parametrize("among", ["token", "batch"])
def test_in_float32_they_agree_to_its_rounding(among: Among) -> None:
    w = Weights(*(tensor.float() for _, tensor in weights(8, 64).named()))
    assert_agree(w, tokens(100, 8).float(), k=4, dead=torch.arange(64) % 2 == 0, among=among)


def test_selecting_in_bfloat16_leaves_values_and_gradients_exact() -> None:
    w = Weights(*(tensor.float() for _, tensor in weights(16, 64).named()))
    x, dead = tokens(200, 16).float(), torch.arange(64) % 3 == 0
    rough = assert_agree(w, x, k=4, dead=dead, select_in=torch.bfloat16)
    exact = topk_step(w, x, k=4, dead=dead, aux_coefficient=COEFFICIENT)
    # Other latents are chosen only where two are as near as bfloat16 can tell, 1 part in 256.
    assert rough.mse != exact.mse
    assert float(rough.mse) == pytest.approx(float(exact.mse), rel=0.01)
    of_batch = [
        float(topk_step(w, x, k=4, dead=dead, aux_coefficient=COEFFICIENT, among="batch", select_in=dtype).mse)
        for dtype in (torch.bfloat16, torch.float32)
    ]
    assert of_batch[0] == pytest.approx(of_batch[1], rel=0.01)


def test_a_batch_shares_its_latents_out_by_need() -> None:
    w = Weights(torch.eye(3), torch.eye(3), torch.zeros(3), torch.zeros(3))
    x = torch.tensor([[5.0, 4.0, 3.0], [1.0, 0.5, 0.25], [-1.0, -1.0, -1.0]])
    result = topk_step(w, x, k=1, dead=torch.zeros(3, dtype=torch.bool), aux_coefficient=0, among="batch")
    # Three in all, and the first token has the three largest.
    assert result.l0 == 1
    assert result.smallest == 3
    assert result.mse == pytest.approx((1 + 0.5**2 + 0.25**2 + 3) / 9)
    everything = topk_step(w, x, k=3, dead=torch.zeros(3, dtype=torch.bool), aux_coefficient=0, among="batch")
    assert everything.l0 == 2  # what is not above zero does not fire
    silent = topk_step(w, -x[:1], k=1, dead=torch.zeros(3, dtype=torch.bool), aux_coefficient=0, among="batch")
    assert (silent.l0, silent.smallest) == (0, torch.inf)


@pytest.mark.parametrize("n_dead", [0, 1, 12])
@pytest.mark.parametrize("among", ["token", "batch"])
def test_they_agree_with_none_one_and_all_latents_dead(n_dead: int, among: Among) -> None:
    assert_agree(weights(6, 12), tokens(7, 6), k=3, dead=torch.arange(12) < n_dead, among=among)


def test_one_latent_by_hand() -> None:
    w = Weights(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([1.0]), torch.zeros(2))
    result = topk_step(w, torch.tensor([[2.0, 1.0]]), k=1, dead=torch.tensor([False]), aux_coefficient=0)
    # f = 2 + 1 = 3; x_hat = (0, 3); error = (-2, 2); mse = (4 + 4) / 2.
    assert result.mse == 4
    assert result.l0 == 1
    # d mse / d x_hat = error; times f for the decoder; along the decoder row, 2, for the activation.
    assert result.gradients.dense().decoder.tolist() == [[-6, 6]]
    assert result.gradients.b_enc.tolist() == [2]
    assert result.gradients.dense().encoder.tolist() == [[4, 2]]
    # Directly through x_hat, and through the encoder, which sees x - b_dec.
    assert result.gradients.b_dec.tolist() == [-2 - 2, 2]


def test_the_auxiliary_loss_does_not_count_b_dec_twice() -> None:
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    b_dec = torch.tensor([5.0, -7.0, 0.0])
    w = Weights(rows.clone(), rows, torch.tensor([3.0, 0.0]), b_dec)
    x = b_dec + torch.tensor([[0.0, 0.0, 2.0]])
    result = topk_step(w, x, k=1, dead=torch.tensor([False, True]), aux_coefficient=1)
    # The living latent fires with 3, so (-3, 0, 2) is left over; the dead one explains the 2.
    assert result.mse == pytest.approx((3**2 + 2**2) / 3)
    assert result.aux == pytest.approx(3**2 / (3**2 + 2**2))


def test_latents_that_do_not_fire_have_no_gradient_and_are_not_counted() -> None:
    w = weights(4, 6)
    w.b_enc -= 1000
    w.b_enc[2] += 2000
    result = topk_step(w, tokens(5, 4), k=3, dead=torch.zeros(6, dtype=torch.bool), aux_coefficient=0)
    assert result.l0 == 1
    assert result.fired.tolist() == [False, False, True, False, False, False]
    for gradient in (result.gradients.dense().encoder, result.gradients.dense().decoder):
        assert gradient.abs().sum(-1).nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize("among", ["token", "batch"])
@pytest.mark.parametrize("d_sae", [5, 32])
def test_ties_leave_k_latents_in_place(among: Among, d_sae: int) -> None:
    w = Weights(torch.ones(d_sae, 2), torch.eye(d_sae, 2), torch.zeros(d_sae), torch.zeros(2))
    nobody = torch.zeros(d_sae, dtype=torch.bool)
    assert topk_step(w, torch.ones(3, 2), k=2, dead=nobody, aux_coefficient=0, among=among).l0 == 2


def test_a_perfect_reconstruction_leaves_no_loss_and_no_division_by_zero() -> None:
    w = Weights(torch.eye(3), torch.eye(3), torch.zeros(3), torch.zeros(3))
    dead = torch.tensor([False, False, True])
    result = topk_step(w, torch.tensor([[1.0, 2.0, 0.0]]), k=3, dead=dead, aux_coefficient=COEFFICIENT)
    assert result.mse == result.aux == 0
    assert all(torch.isfinite(gradient).all() for _, gradient in result.gradients.dense().named())


def test_rows_are_one_long_and_keep_their_direction() -> None:
    matrix = torch.tensor([[3.0, 4.0], [0.0, -2.0]])
    normalise_rows(matrix)
    torch.testing.assert_close(matrix, torch.tensor([[0.6, 0.8], [0.0, -1.0]]))


def test_what_is_left_of_a_gradient_is_across_its_row() -> None:
    gradient = torch.tensor([[5.0, 5.0]])
    remove_parallel(gradient, torch.tensor([[0.6, 0.8]]))
    # 5 * 0.6 + 5 * 0.8 = 7 along the row: (5, 5) - 7 * (0.6, 0.8).
    torch.testing.assert_close(gradient, torch.tensor([[0.8, -0.6]]))
