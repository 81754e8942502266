"""One training step of a TopK SAE with sparse gradients, in plain PyTorch.

A latent that does not fire has no gradient, so nothing of size [batch, d_sae] is computed backwards: the decoder and
both weight gradients are weighted sums of gathered rows (`embedding_bag`), and only the encoder's forward product is
dense. Gradients are written out by hand; `tests/sae/test_step.py` holds the same step in autograd.

Axes: `batch` tokens, `k` chosen latents of a token, `nnz = batch * k`, `d_in` width, `d_sae` latents. Both matrices are
kept with one latent per row, so that rows can be gathered.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

_GATHER_ROWS = 256
"""Tokens whose chosen decoder rows are gathered at once: few enough to stay in the processor's cache."""


@dataclass(eq=False)
class Weights:
    """The parameters in training, or a gradient for each of them."""

    encoder: Float[Tensor, "d_sae d_in"]
    """`W_enc` transposed."""
    decoder: Float[Tensor, "d_sae d_in"]
    """`W_dec`."""
    b_enc: Float[Tensor, " d_sae"]
    b_dec: Float[Tensor, " d_in"]

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor with its name."""
        return ((field.name, getattr(self, field.name)) for field in fields(self))


@dataclass(frozen=True, eq=False)
class StepResult:
    """Losses of one batch and what they say about every parameter."""

    mse: Float[Tensor, ""]
    aux: Float[Tensor, ""]
    """The auxiliary loss before its coefficient; zero where no latent is dead."""
    l0: Float[Tensor, ""]
    fired: Bool[Tensor, " d_sae"]
    gradients: Weights


@dataclass(frozen=True, eq=False)
class _Sparse:
    """Activations of each token's chosen latents."""

    latents: Int[Tensor, "batch k"]
    values: Float[Tensor, "batch k"]


@torch.no_grad()
def topk_step(
    weights: Weights, x: Float[Tensor, "batch d_in"], *, k: int, dead: Bool[Tensor, " d_sae"], aux_coefficient: float
) -> StepResult:
    """Losses and gradients of `mse + aux_coefficient * aux` for one batch.

    `f = TopK(relu((x - b_dec) W_enc + b_enc))`, `x_hat = f W_dec + b_dec`, `mse = mean (x_hat - x)^2` over tokens and
    coordinates.

    `aux` (AuxK of Gao et al. 2024) lets the dead latents explain what the living ones left over: `e = x - x_hat`,
    detached, is reconstructed by each token's `d_in / 2` highest dead latents without `b_dec`, which `e` no longer
    contains; `aux = sum (e_hat - e)^2 / sum e^2`, scaled down in proportion where fewer latents than that are dead.
    """
    centred = x - weights.b_dec
    pre = torch.addmm(weights.b_enc, centred, weights.encoder.T)  # [batch, d_sae]
    chosen = _topk(pre, k)
    error = _decode(chosen, weights.decoder).add_(weights.b_dec).sub_(x)  # [batch, d_in], x_hat - x
    grad_error = error * (2 / error.numel())
    gradients = _backward(chosen, grad_error, centred, weights)
    gradients.b_dec += grad_error.sum(0)

    aux = error.new_zeros(())
    n_wanted = max(x.shape[1] // 2, 1)
    if aux_coefficient and (n_dead := int(dead.sum())):
        scale = min(n_dead / n_wanted, 1.0)
        helpers = _topk(pre.masked_fill_(~dead, -torch.inf), min(n_wanted, n_dead))
        aux_error = _decode(helpers, weights.decoder).add_(error)  # e_hat - e, as e = -error
        power = error.square().sum().clamp(min=torch.finfo(error.dtype).tiny)
        aux = scale * aux_error.square().sum() / power
        extra = _backward(helpers, aux_error * (2 * scale * aux_coefficient / power), centred, weights)
        for (_, gradient), (_, addition) in zip(gradients.named(), extra.named(), strict=True):
            gradient += addition

    fired = torch.zeros_like(dead)
    fired[chosen.latents[chosen.values > 0]] = True
    return StepResult(
        mse=error.square().mean(),
        aux=aux,
        l0=(chosen.values > 0).sum() / len(x),
        fired=fired,
        gradients=gradients,
    )


def _topk(pre: Float[Tensor, "batch d_sae"], k: int) -> _Sparse:
    values, latents = pre.topk(k, dim=-1, sorted=False)
    return _Sparse(latents, values.relu_())


def _decode(chosen: _Sparse, decoder: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "batch d_in"]:
    return functional.embedding_bag(chosen.latents, decoder, per_sample_weights=chosen.values, mode="sum")


def _backward(
    chosen: _Sparse, grad_out: Float[Tensor, "batch d_in"], centred: Float[Tensor, "batch d_in"], weights: Weights
) -> Weights:
    """Gradients through `f W_dec`, the activation function and the encoder, given the gradient of their output."""
    batch, k = chosen.latents.shape
    grad_pre = torch.empty_like(chosen.values)
    for rows in torch.arange(batch, device=grad_out.device).split(_GATHER_ROWS):
        gathered = functional.embedding(chosen.latents[rows], weights.decoder)  # [rows, k, d_in]
        grad_pre[rows] = (gathered @ grad_out[rows].unsqueeze(-1)).squeeze(-1)
    grad_pre *= chosen.values > 0

    # The same nnz entries latent by latent: `token[first[j] : first[j + 1]]` are the tokens that chose latent j.
    by_latent = chosen.latents.flatten().argsort(stable=True)  # [nnz]
    token = by_latent // k
    n_latents = len(weights.b_enc)
    n_chosen = chosen.latents.flatten().bincount(minlength=n_latents)
    first = n_chosen.cumsum(0) - n_chosen

    def summed(rows: Float[Tensor, "batch d_in"], factors: Float[Tensor, "batch k"]) -> Float[Tensor, "d_sae d_in"]:
        sorted_factors = factors.flatten()[by_latent]
        return functional.embedding_bag(token, rows, offsets=first, per_sample_weights=sorted_factors, mode="sum")

    grad_b_enc = torch.zeros_like(weights.b_enc).index_add_(0, chosen.latents.flatten(), grad_pre.flatten())
    return Weights(
        encoder=summed(centred, grad_pre),
        decoder=summed(grad_out, chosen.values),
        b_enc=grad_b_enc,
        b_dec=-grad_b_enc @ weights.encoder,
    )


@torch.no_grad()
def remove_parallel(gradient: Float[Tensor, "d_sae d_in"], rows: Float[Tensor, "d_sae d_in"]) -> None:
    """Take out of each row of `gradient` what points along that unit row, which would only change the row's length."""
    gradient.sub_((gradient * rows).sum(-1, keepdim=True) * rows)


@torch.no_grad()
def normalise_rows(matrix: Float[Tensor, "d_sae d_in"]) -> None:
    """Make every row one long, in place."""
    matrix.div_(matrix.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(matrix.dtype).tiny))
