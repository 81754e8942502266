"""What an SAE says about activations, the same for every architecture of SAELens.

Axes: `d_in` width of the residual stream, `d_sae` latents.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae_persona.data.tokens import Part, TokenBatch

if TYPE_CHECKING:
    from sae_lens import SAE

Reading = Literal["gated", "pre_activation"]
Selection = Literal["prompt", "header", "answer", "last"]
"""Which tokens: the parts of a conversation (see `Part`), or the last token of a row, whatever its part."""
_WITH_PRE_ACTIVATION = ("topk", "standard", "jumprelu")
"""Architectures in which one number per latent goes into the activation function. BatchTopK is saved as jumprelu."""
_BLOCK_ENTRIES = 2**24
"""Entries of the largest [tokens, d_sae] array that is held at once: 64 MB in float32."""


@torch.no_grad()
def readings(sae: "SAE", resid: Float[Tensor, "*axes d_in"]) -> dict[Reading, Float[Tensor, "*axes d_sae"]]:
    """Every latent's activation, by the way of reading it.

    `gated` is what the decoder gets. `pre_activation` is what the activation function gets, `(x - b_dec) W_enc + b_enc`
    in the SAE's own units, which also tells how near a silent latent is to firing; it is left out for architectures
    that have no such number.
    """
    if sae.cfg.architecture() not in _WITH_PRE_ACTIVATION:
        return {"gated": sae.encode(resid)}
    taken: list[Tensor] = []

    def take(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        taken.append(output)

    handle = sae.hook_sae_acts_pre.register_forward_hook(take)
    try:
        gated = sae.encode(resid)
    finally:
        handle.remove()
    pre_activation = taken[0]
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        pre_activation = pre_activation * sae.W_dec.norm(dim=-1)  # the units in which such an SAE compares latents
    return {"gated": gated, "pre_activation": pre_activation}


@torch.no_grad()
def unit_decoder(sae: "SAE") -> Float[Tensor, "d_sae d_in"]:
    """Each latent's direction in the residual stream, one long; a latent whose row is zero keeps zero."""
    rows = sae.W_dec.detach().float()
    return rows / rows.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)


def counted_tokens(
    batch: TokenBatch, resid: Float[Tensor, "batch seq d_in"], *, drop_first: int, max_norm: float | None
) -> Bool[Tensor, "batch seq"]:
    """True = a real token, not among the first `drop_first` of its row, and of a norm up to `max_norm`.

    The rule of `write_cache`, whose `norm_limit` is a multiple of the median norm: hand in
    `norm_limit * cache.median_norm(hook_name)`.
    """
    counts = batch.mask & (batch.position_ids >= drop_first)
    return counts if max_norm is None else counts & (resid.norm(dim=-1) <= max_norm)


def selected_tokens(batch: TokenBatch, selection: Selection) -> Bool[Tensor, "batch seq"]:
    """The real tokens of one part of the conversation, or the `last` of every row."""
    if selection == "last":
        return batch.mask & (batch.position_ids == batch.mask.sum(-1, keepdim=True) - 1)
    return batch.counts(Part[selection.upper()])


def blocks(n_tokens: int, d_sae: int) -> Iterator[slice]:
    """All tokens in blocks whose activations fit in memory, however wide the SAE."""
    size = max(_BLOCK_ENTRIES // d_sae, 1)
    return (slice(start, start + size) for start in range(0, n_tokens, size))
