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
from torch.nn import functional

from sae_persona.sae.ranks import ALONE, Ranks
from sae_persona.sae.sparse import ByLatent, Chosen, dots, joined, largest_of_batch, largest_of_each, weighted_rows

_BLOCK_ENTRIES = 2**22
"""Pre-activations that are computed at once on a CPU: 16 MB in float32."""

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
    most_dead: int | None = None,
    ranks: Ranks = ALONE,
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

    No more latents than `most_dead` may be dead; without it they are counted, for which a CPU waits for its GPU. It
    waits for nothing else here.

    With `ranks`, `x` and `weights` are this process's share, and the losses and gradients are those of the whole.
    """
    centred = x - weights.b_dec
    n_tokens = len(x) * (ranks.n if ranks.split == "tokens" else 1)
    n_wanted, n_dead, n_helpers = max(x.shape[1] // 2, 1), dead.sum(), 0
    if aux_coefficient:
        n_dead = ranks.sum(n_dead, over="latents")
        n_helpers = min(n_wanted, int(n_dead) if most_dead is None else most_dead)
    some = slice(None if aux_tokens is None else max(aux_tokens * len(x) // n_tokens, 1))
    chosen, helpers = _choose(
        weights,
        centred,
        k=k if among == "token" else k * n_tokens,
        among=among,
        dead=dead,
        n_helpers=n_helpers,
        helped=centred[some],
        dtype=select_in or x.dtype,
        ranks=ranks,
    )
    x_hat = ranks.sum(weighted_rows(chosen, weights.decoder), over="latents").add_(weights.b_dec)
    error = x_hat.sub_(x)  # [batch, d_in]
    grad_error = error * (2 / (n_tokens * x.shape[1]))
    gradients = _backward(chosen, grad_error, centred, weights, ranks)
    gradients.b_dec += grad_error.sum(0)

    aux = error.new_zeros(())
    if helpers is not None:
        scale = (n_dead.double() / n_wanted).clamp(max=1)
        e_hat = ranks.sum(weighted_rows(helpers, weights.decoder), over="latents")
        aux_error = e_hat.add_(error[some])  # e_hat - e, as e = -error
        power = ranks.sum(error[some].square().sum(), over="tokens").clamp(min=torch.finfo(error.dtype).tiny)
        aux = scale.to(x.dtype) * ranks.sum(aux_error.square().sum(), over="tokens") / power
        grad_aux = aux_error * ((2 * aux_coefficient * scale).to(x.dtype) * power.reciprocal())
        extra = _backward(helpers, grad_aux, centred[some], weights, ranks)
        for (_, gradient), (_, addition) in zip(gradients.named(), extra.named(), strict=True):
            gradient += addition
    for _, gradient in gradients.named():
        ranks.sum(gradient, over="tokens")

    fires = chosen.values > 0
    fired = torch.zeros_like(weights.b_enc).index_add_(0, chosen.latents, fires.to(x.dtype))
    n_fires = ranks.sum(ranks.sum(fires.sum(), over="tokens"), over="latents")
    smallest = chosen.values.where(fires, torch.inf).min() if len(fires) else error.new_full((), torch.inf)
    return StepResult(
        mse=ranks.sum(error.square().mean() * (len(x) / n_tokens), over="tokens"),
        aux=aux,
        l0=n_fires / n_tokens,
        fired=ranks.sum(fired, over="tokens") > 0,
        smallest=ranks.smallest(smallest),
        gradients=gradients,
    )


def _choose(
    weights: Weights,
    centred: Float[Tensor, "batch d_in"],
    *,
    k: int,
    among: Among,
    dead: Bool[Tensor, " d_sae"],
    n_helpers: int,
    helped: Float[Tensor, "some d_in"],
    dtype: torch.dtype,
    ranks: Ranks,
) -> tuple[Chosen, Chosen | None]:
    """What fires, and the dead latents that help with the first tokens, `helped`; None where none is asked for.

    The batch is encoded in blocks that stay in the processor's cache until the largest have been found: on one thread
    this takes hardly longer than the product alone, where going over all of [batch, d_sae] again takes a third more.
    """
    chosen, helpers = [], []
    in_one = among == "batch" or centred.device.type != "cpu"
    n_rows = len(centred) if in_one else max(_BLOCK_ENTRIES // len(weights.b_enc), 1)
    encoder, b_enc = weights.encoder.to(dtype).T, weights.b_enc.to(dtype)
    for start in range(0, len(centred), n_rows):
        pre = torch.addmm(b_enc, centred[start : start + n_rows].to(dtype), encoder)  # [rows, d_sae]
        chosen.append(largest_of_each(pre, min(k, pre.shape[1])) if among == "token" else largest_of_batch(pre, k))
        if n_helpers and (n_left := len(helped) - start) > 0:
            asleep = pre[:n_left].masked_fill_(~dead, -torch.inf)
            helpers.append(largest_of_each(asleep, min(n_helpers, pre.shape[1])))
    fires = _of_all_ranks(joined(chosen), k, among, ranks)
    helps = _of_all_ranks(joined(helpers), n_helpers, "token", ranks) if helpers else None
    if dtype != centred.dtype:
        fires = _exact(fires, weights, centred)
        helps = helps and _exact(helps, weights, helped)
    return fires, helps


def _of_all_ranks(chosen: Chosen, k: int, among: Among, ranks: Ranks) -> Chosen:
    """Those of a process's choices that are also among the largest of all processes."""
    if among == "token":
        if ranks.split != "latents":
            return chosen
        assert chosen.per_token is not None
        return chosen.only(ranks.among_largest(chosen.values.view(-1, chosen.per_token), k).flatten())
    if ranks.split is None:
        return chosen
    padded = functional.pad(chosen.values, (0, k - len(chosen.values)))
    return chosen.only(ranks.among_largest(padded, k)[: len(chosen.values)])


def _exact(chosen: Chosen, weights: Weights, centred: Float[Tensor, "batch d_in"]) -> Chosen:
    """The same pairs with the activations that the master weights give."""
    rough = replace(chosen, values=chosen.values.to(centred.dtype))
    exact = (dots(rough, centred, weights.encoder) + weights.b_enc[chosen.latents]).relu_()
    return replace(rough, values=exact * (rough.values > 0))


def _backward(
    chosen: Chosen,
    grad_out: Float[Tensor, "batch d_in"],
    centred: Float[Tensor, "batch d_in"],
    weights: Weights,
    ranks: Ranks,
) -> Weights:
    """Gradients through `f W_dec`, the activation function and the encoder, given the gradient of their output."""
    grad_pre = dots(chosen, grad_out, weights.decoder) * (chosen.values > 0)
    by_latent = ByLatent.of(chosen, len(weights.b_enc))
    grad_b_enc = torch.zeros_like(weights.b_enc).index_add_(0, chosen.latents, grad_pre)
    return Weights(
        encoder=by_latent.weighted_rows(centred, grad_pre),
        decoder=by_latent.weighted_rows(grad_out, chosen.values),
        b_enc=grad_b_enc,
        b_dec=ranks.sum(-grad_b_enc @ weights.encoder, over="latents"),
    )


@torch.no_grad()
def remove_parallel(gradient: Float[Tensor, "d_sae d_in"], rows: Float[Tensor, "d_sae d_in"]) -> None:
    """Take out of each row of `gradient` what points along that unit row, which would only change the row's length."""
    gradient.sub_((gradient * rows).sum(-1, keepdim=True) * rows)


@torch.no_grad()
def normalise_rows(matrix: Float[Tensor, "d_sae d_in"]) -> None:
    """Make every row one long, in place."""
    matrix.div_(matrix.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(matrix.dtype).tiny))
