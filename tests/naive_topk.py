"""A TopK SAE in training, dense and in autograd: what the sparse step and the trainer are held against."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_persona.sae.step import Weights


def losses(
    weights: Weights, x: Float[Tensor, "batch d_in"], *, k: int, dead: Bool[Tensor, " d_sae"]
) -> tuple[Tensor, Tensor, Bool[Tensor, " d_sae"]]:
    """`mse`, `aux` and which latents fired."""
    pre = (x - weights.b_dec) @ weights.encoder.T + weights.b_enc
    gated = topk(pre, k)
    x_hat = gated @ weights.decoder + weights.b_dec
    mse = (x_hat - x).square().mean()
    aux = torch.zeros((), dtype=x.dtype)
    if dead.any():
        n_wanted, n_dead = x.shape[1] // 2, int(dead.sum())
        left_over = (x - x_hat).detach()
        explained = topk(pre.masked_fill(~dead, -torch.inf), min(n_wanted, n_dead)) @ weights.decoder
        aux = (explained - left_over).square().sum() / left_over.square().sum() * min(1, n_dead / n_wanted)
    return mse, aux, (gated > 0).any(0)


def topk(pre: Float[Tensor, "batch d_sae"], k: int) -> Float[Tensor, "batch d_sae"]:
    """Each row's `k` largest entries, if positive, and zeros."""
    values, latents = pre.topk(k)
    return torch.zeros_like(pre).scatter(-1, latents, values.relu())
