"""One training step of a TopK or BatchTopK SAE with sparse gradients.

A latent that does not fire has no gradient, so nothing of size [batch, d_sae] is computed backwards: the decoder and
both weight gradients are weighted sums of gathered rows, and only the encoder's forward product is dense. Gradients are
written out by hand, those of the matrices as sums that an optimiser may take as it goes; `tests/naive_topk.py` is the
same step in autograd.

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
class Term:
    """What one loss says about both matrices: gradients that are sums over the pairs that it chose."""

    chosen: Chosen
    grad_pre: Float[Tensor, " nnz"]
    """Of the chosen pre-activations."""
    grad_out: Float[Tensor, "some d_in"]
    """Of what the decoder makes of the chosen activations, for the first tokens of the batch or for all."""


@dataclass(frozen=True, eq=False)
class Gradients:
    """Gradients of one batch: of the biases, and of the matrices what they are the sums of."""

    terms: tuple[Term, ...]
    centred: Float[Tensor, "batch d_in"]
    """What the encoder was given."""
    b_enc: Float[Tensor, " d_sae"]
    b_dec: Float[Tensor, " d_in"]
    ranks: Ranks

    def dense(self) -> Weights:
        """Every gradient as a tensor; with ranks, their sum, so that each process has to ask."""
        encoder, decoder = self._of(self.terms[0])
        for term in self.terms[1:]:
            for total, more in zip((encoder, decoder), self._of(term), strict=True):
                total += more
        for matrix in (encoder, decoder):
            self.ranks.sum(matrix, over="tokens")
        return Weights(encoder, decoder, self.b_enc, self.b_dec)

    def _of(self, term: Term) -> tuple[Float[Tensor, "d_sae d_in"], Float[Tensor, "d_sae d_in"]]:
        by_latent = ByLatent.of(term.chosen.latents, term.chosen.tokens(), len(self.b_enc))
        centred = self.centred[: len(term.grad_out)]
        return (
            by_latent.weighted_rows(centred, term.grad_pre),
            by_latent.weighted_rows(term.grad_out, term.chosen.values),
        )


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
    gradients: Gradients


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
    main, grad_b_enc, grad_b_dec = _backward(chosen, grad_error, weights, ranks)
    terms = [main]
    grad_b_dec += grad_error.sum(0)

    aux = error.new_zeros(())
    if helpers is not None:
        scale = (n_dead.double() / n_wanted).clamp(max=1)
        e_hat = ranks.sum(weighted_rows(helpers, weights.decoder), over="latents")
        aux_error = e_hat.add_(error[some])  # e_hat - e, as e = -error
        power = ranks.sum(error[some].square().sum(), over="tokens").clamp(min=torch.finfo(error.dtype).tiny)
        aux = scale.to(x.dtype) * ranks.sum(aux_error.square().sum(), over="tokens") / power
        grad_aux = aux_error * ((2 * aux_coefficient * scale).to(x.dtype) * power.reciprocal())
        extra, more_b_enc, more_b_dec = _backward(helpers, grad_aux, weights, ranks)
        terms.append(extra)
        grad_b_enc += more_b_enc
        grad_b_dec += more_b_dec
    for gradient in (grad_b_enc, grad_b_dec):
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
        gradients=Gradients(tuple(terms), centred, grad_b_enc, grad_b_dec, ranks),
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
    chosen: Chosen, grad_out: Float[Tensor, "some d_in"], weights: Weights, ranks: Ranks
) -> tuple[Term, Float[Tensor, " d_sae"], Float[Tensor, " d_in"]]:
    """What the gradient of `f W_dec` says about the matrices and, through the encoder, about `b_enc` and `b_dec`."""
    grad_pre = dots(chosen, grad_out, weights.decoder) * (chosen.values > 0)
    grad_b_enc = torch.zeros_like(weights.b_enc).index_add_(0, chosen.latents, grad_pre)
    grad_b_dec = ranks.sum(-grad_b_enc @ weights.encoder, over="latents")
    return Term(chosen, grad_pre, grad_out), grad_b_enc, grad_b_dec
