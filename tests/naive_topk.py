"""A TopK or BatchTopK SAE in training, dense and in autograd: what the sparse step and the trainer are held against."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_persona.sae.step import Among, Weights


def losses(
    weights: Weights,
    x: Float[Tensor, "batch d_in"],
    *,
    k: int,
    dead: Bool[Tensor, " d_sae"],
    among: Among = "token",
    aux_tokens: int | None = None,
    select_in: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Bool[Tensor, " d_sae"]]:
    """`mse`, `aux` and which latents fired."""
    centred = x - weights.b_dec
    pre = centred @ weights.encoder.T + weights.b_enc
    rough = pre.detach()
    if select_in is not None:
        operands = (tensor.detach().to(select_in) for tensor in (weights.b_enc, centred, weights.encoder.T))
        rough = torch.addmm(*operands)
    if among == "token":
        gated = topk(pre, k, by=rough)
    else:
        gated = topk(pre.reshape(1, -1), k * len(x), by=rough.reshape(1, -1)).reshape(pre.shape)
    x_hat = gated @ weights.decoder + weights.b_dec
    mse = (x_hat - x).square().mean()
    aux = torch.zeros((), dtype=x.dtype)
    if dead.any():
        n_wanted, n_dead = max(x.shape[1] // 2, 1), int(dead.sum())
        left_over = (x - x_hat).detach()[:aux_tokens]
        asleep = rough[:aux_tokens].masked_fill(~dead, -torch.inf)
        explained = topk(pre[:aux_tokens], min(n_wanted, n_dead), by=asleep) @ weights.decoder
        aux = (explained - left_over).square().sum() / left_over.square().sum() * min(1, n_dead / n_wanted)
    return mse, aux, (gated > 0).any(0)


def topk(
    pre: Float[Tensor, "batch d_sae"], k: int, *, by: Float[Tensor, "batch d_sae"]
) -> Float[Tensor, "batch d_sae"]:
    """Each row's entries where `by` is among its `k` largest, if positive, and zeros."""
    latents = by.topk(k, sorted=False).indices
    values = pre.gather(-1, latents).relu() * (by.gather(-1, latents) > 0)
    return torch.zeros_like(pre).scatter(-1, latents, values)
