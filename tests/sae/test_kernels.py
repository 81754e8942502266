"""The Triton kernels against the PyTorch that they replace: on a GPU, or in Triton's interpreter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_persona.sae import sparse
from sae_persona.sae.adam import BETAS, EPS, FusedAdam, TorchAdam, normalise_rows
from sae_persona.sae.ranks import ALONE
from sae_persona.sae.sparse import ByLatent, Chosen
from sae_persona.sae.step import Gradients, Term, Weights

pytest.importorskip("triton", reason="Triton is not installed")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def ragged(n_of_bag: list[int], n_rows: int) -> Chosen:
    """Bags of as many pairs as are given."""
    n_pairs = torch.tensor(n_of_bag, device=DEVICE)
    latents = torch.randint(n_rows, (int(n_pairs.sum()),), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    return Chosen(latents, drawn(len(latents), seed=2), n_pairs.cumsum(0) - n_pairs, None)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.sampled_from([1, 3, 8, 1100]))
def test_sums_and_dots_of_gathered_rows(n_of_bag: list[int], d_in: int) -> None:
    from sae_persona.sae import kernels

    chosen, matrix, rows = ragged(n_of_bag, 7), drawn(7, d_in), drawn(len(n_of_bag), d_in, seed=3)
    sums = kernels.weighted_rows(matrix, chosen.latents, chosen.values, chosen.first)
    dense = torch.zeros(len(n_of_bag), 7, device=DEVICE)
    dense.index_put_((chosen.tokens(), chosen.latents), chosen.values, accumulate=True)
    torch.testing.assert_close(sums, dense @ matrix, rtol=1e-4, atol=1e-4)
    products = kernels.dots(rows, matrix, chosen.tokens(), chosen.latents)
    torch.testing.assert_close(products, (rows @ matrix.T)[chosen.tokens(), chosen.latents], rtol=1e-4, atol=1e-4)


def gradients(weights: Weights, *, seed: int) -> Gradients:
    """Of a batch of 12 tokens, with an auxiliary loss on the first 5."""
    centred = drawn(12, weights.encoder.shape[1], seed=seed)
    terms = []
    for i, (n, k) in enumerate(((12, 3), (5, 7))):
        chosen = sparse.largest_of_each(centred[:n] @ weights.encoder.T, k)
        terms.append(Term(chosen, drawn(n * k, seed=seed + i), drawn(n, centred.shape[1], seed=seed + 10 + i)))
    b_enc, b_dec = (drawn(len(bias), seed=seed) for bias in (weights.b_enc, weights.b_dec))
    return Gradients(tuple(terms), centred, b_enc, b_dec, ALONE)


@pytest.mark.parametrize("d_in", [6, 300])
def test_the_fused_adam_takes_the_steps_of_pytorchs(d_in: int) -> None:
    decoder = drawn(31, d_in)
    normalise_rows(decoder)
    start = Weights(drawn(31, d_in, seed=1), decoder, drawn(31, seed=2), drawn(d_in, seed=3))
    plain, fused = (Weights(*(tensor.clone() for _, tensor in start.named())) for _ in range(2))
    adams = TorchAdam(plain), FusedAdam(fused)
    for step in range(4):
        batch = gradients(plain, seed=100 * step)
        for adam in adams:
            adam.set_lr(0.05)
            adam.step(batch)
        if step == 1:  # each goes on from what the other saved
            states = [{name: tensor.clone() for name, tensor in adam.state().items()} for adam in adams]
            assert states[0].keys() == states[1].keys()
            adams = TorchAdam(plain), FusedAdam(fused)
            for adam, state in zip(adams, reversed(states), strict=True):
                adam.restore(state)
    for (name, one), (_, other) in zip(plain.named(), fused.named(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
        assert (one - getattr(start, name)).abs().max() > 0.01
    torch.testing.assert_close(fused.decoder.norm(dim=-1), torch.ones(31, device=DEVICE))


def test_a_latent_that_nobody_chose_moves_by_its_moments() -> None:
    from sae_persona.sae import kernels

    weight, exp_avg, exp_avg_sq = drawn(2, 5), drawn(2, 5, seed=1), drawn(2, 5, seed=2).square()
    expected = weight.clone()
    torch_adam = torch.optim.Adam([expected], lr=0.1, betas=BETAS, eps=EPS)
    moments = {"step": torch.tensor(6.0), "exp_avg": exp_avg.clone(), "exp_avg_sq": exp_avg_sq.clone()}
    torch_adam.load_state_dict({"state": {0: moments}, "param_groups": torch_adam.state_dict()["param_groups"]})
    expected.grad = torch.zeros_like(expected)
    torch_adam.step()
    nobody = ByLatent.of(*(torch.zeros(0, dtype=torch.long, device=DEVICE),) * 2, 2)
    kernels.adam_of_weighted_rows(
        weight,
        exp_avg,
        exp_avg_sq,
        rows=drawn(3, 5),
        indices=nobody.tokens,
        weights=torch.zeros(0, device=DEVICE),
        first=nobody.first,
        rates=torch.tensor([0.1 / (1 - BETAS[0] ** 7), (1 - BETAS[1] ** 7) ** -0.5], device=DEVICE),
        betas=BETAS,
        eps=EPS,
        unit_rows=False,
    )
    torch.testing.assert_close(weight, expected)


@pytest.mark.parametrize(("width", "group"), [(8, 4), (192, 64), (1, 1), (8192, 8192)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maxima_of_groups(width: int, group: int, dtype: torch.dtype) -> None:
    from sae_persona.sae import kernels

    rows = drawn(5, width).to(dtype)
    assert torch.equal(kernels.group_maxima(rows, group), rows.view(5, -1, group).amax(-1))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_largest_are_found_by_groups(data: st.DataObject) -> None:
    width = data.draw(st.sampled_from([1, 7, 48, 256, 1000, 4096]))
    k = data.draw(st.integers(1, width))
    n_values = data.draw(st.sampled_from([2, 50, 10**6]))  # few values: ties
    rows = torch.randint(n_values, (3, width), generator=torch.Generator().manual_seed(k)).float().to(DEVICE)
    values, columns = sparse.largest_by_groups(rows, k)
    assert torch.equal(values.sort().values, rows.topk(k).values.sort().values)
    assert torch.equal(rows.gather(1, columns), values)
    assert all(len(set(row)) == k for row in columns.tolist())
