"""One training step of a TopK or BatchTopK SAE with sparse gradients, in plain PyTorch.

A latent that does not fire has no gradient, so nothing of size [batch, d_sae] is computed backwards: the decoder and
both weight gradients are weighted sums of gathered rows, and only the encoder's forward product is dense. Gradients are
written out by hand; `tests/sae/test_step.py` holds the same step in autograd.

Axes: `batch` tokens, `d_in` width, `d_sae` latents. Both matrices are kept with one latent per row, so that rows can be
gathered.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_persona.sae.sparse import ByLatent, Chosen, dots, largest_of_batch, largest_of_each, weighted_rows

Among = Literal["token", "batch"]
"""Where the latents that fire are chosen: `k` in each token (TopK), or `k * batch` in the whole batch (BatchTopK)."""


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
    smallest: Float[Tensor, ""]
    """The smallest activation above zero; infinite where nothing fires."""
    gradients: Weights


@torch.no_grad()
def topk_step(
    weights: Weights,
    x: Float[Tensor, "batch d_in"],
    *,
    k: int,
    dead: Bool[Tensor, " d_sae"],
    aux_coefficient: float,
    among: Among = "token",
    aux_tokens: int | None = None,
    select_in: torch.dtype | None = None,
) -> StepResult:
    """Losses and gradients of `mse + aux_coefficient * aux` for one batch.

    `f = TopK(relu((x - b_dec) W_enc + b_enc))`, `x_hat = f W_dec + b_dec`, `mse = mean (x_hat - x)^2` over tokens and
    coordinates.

    `aux` (AuxK of Gao et al. 2024) lets the dead latents explain what the living ones left over: `e = x - x_hat`,
    detached, is reconstructed by each token's `d_in / 2` highest dead latents without `b_dec`, which `e` no longer
    contains; `aux = sum (e_hat - e)^2 / sum e^2`, scaled down in proportion where fewer latents than that are dead. It
    is measured on the first `aux_tokens` of the batch, or on all.

    With `select_in`, the encoder's dense product is taken in that dtype and serves only to choose; the activations of
    what was chosen, and so all losses and gradients, are computed exactly.
    """
    centred = x - weights.b_dec
    pre = _pre_activations(weights, centred, select_in or x.dtype)  # [batch, d_sae]
    chosen = largest_of_each(pre, k) if among == "token" else largest_of_batch(pre, k * len(x))
    if pre.dtype != x.dtype:
        chosen = _exact(chosen, weights, centred)
    error = weighted_rows(chosen, weights.decoder).add_(weights.b_dec).sub_(x)  # [batch, d_in], x_hat - x
    grad_error = error * (2 / error.numel())
    gradients = _backward(chosen, grad_error, centred, weights)
    gradients.b_dec += grad_error.sum(0)

    aux = error.new_zeros(())
    n_wanted = max(x.shape[1] // 2, 1)
    if aux_coefficient and (n_dead := int(dead.sum())):
        scale = min(n_dead / n_wanted, 1.0)
        some = slice(aux_tokens)
        helpers = largest_of_each(pre[some].masked_fill_(~dead, -torch.inf), min(n_wanted, n_dead))
        if pre.dtype != x.dtype:
            helpers = _exact(helpers, weights, centred[some])
        aux_error = weighted_rows(helpers, weights.decoder).add_(error[some])  # e_hat - e, as e = -error
        power = error[some].square().sum().clamp(min=torch.finfo(error.dtype).tiny)
        aux = scale * aux_error.square().sum() / power
        extra = _backward(helpers, aux_error * (2 * scale * aux_coefficient / power), centred[some], weights)
        for (_, gradient), (_, addition) in zip(gradients.named(), extra.named(), strict=True):
            gradient += addition

    fires = chosen.values > 0
    fired = torch.zeros_like(dead)
    fired[chosen.latents[fires]] = True
    return StepResult(
        mse=error.square().mean(),
        aux=aux,
        l0=fires.sum() / len(x),
        fired=fired,
        smallest=chosen.values.where(fires, torch.inf).min() if len(fires) else error.new_tensor(torch.inf),
        gradients=gradients,
    )


def _pre_activations(
    weights: Weights, centred: Float[Tensor, "batch d_in"], dtype: torch.dtype
) -> Float[Tensor, "batch d_sae"]:
    return torch.addmm(weights.b_enc.to(dtype), centred.to(dtype), weights.encoder.to(dtype).T)


def _exact(chosen: Chosen, weights: Weights, centred: Float[Tensor, "batch d_in"]) -> Chosen:
    """The same pairs with the activations that the master weights give."""
    chosen = replace(chosen, values=chosen.values.to(centred.dtype))
    return replace(chosen, values=(dots(chosen, centred, weights.encoder) + weights.b_enc[chosen.latents]).relu_())


def _backward(
    chosen: Chosen, grad_out: Float[Tensor, "batch d_in"], centred: Float[Tensor, "batch d_in"], weights: Weights
) -> Weights:
    """Gradients through `f W_dec`, the activation function and the encoder, given the gradient of their output."""
    grad_pre = dots(chosen, grad_out, weights.decoder) * (chosen.values > 0)
    by_latent = ByLatent.of(chosen, len(weights.b_enc))
    grad_b_enc = torch.zeros_like(weights.b_enc).index_add_(0, chosen.latents, grad_pre)
    return Weights(
        encoder=by_latent.weighted_rows(centred, grad_pre),
        decoder=by_latent.weighted_rows(grad_out, chosen.values),
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
