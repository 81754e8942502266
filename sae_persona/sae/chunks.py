"""What an SAE says about a block of tokens, in pieces: a chunk of latents at a time.

The encoder's product is most of the work, and whatever is done to its result while that still lies in the processor's
cache costs little. Pieces are only good until the next one is asked for.

Axes: `n` tokens of one block, `c` latents of one chunk, `k` latents that fire, `d_in` width, `d_sae` latents.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_persona.sae.encode import Reading
from sae_persona.sae.sparse import largest_by_groups

if TYPE_CHECKING:
    from sae_lens import SAE

N_TOKENS = 256
"""Tokens of a block: with fewer, reading the encoder's weights takes longer than multiplying them. 1 kB per latent."""
_N_LATENTS = 1024
"""Latents of a chunk on a CPU: 1 MB with the block's tokens."""


@dataclass(frozen=True, eq=False)
class Dense:
    """One reading of some neighbouring latents on every token."""

    reading: Reading
    latents: slice
    values: Float[Tensor, "n c"]


@dataclass(frozen=True, eq=False)
class Sparse:
    """The gated reading of all latents, of which all but `k` of every token are zero."""

    latents: Int[Tensor, "n k"]
    values: Float[Tensor, "n k"]
    """At least zero."""

    @property
    def reading(self) -> Reading:
        """Only what passed the activation function is sparse."""
        return "gated"


Piece = Dense | Sparse


class Encoder:
    """The encoder of one SAE, for reading tokens block by block.

    TopK, standard and JumpReLU encoders (BatchTopK and Matryoshka are saved as JumpReLU) are computed here, a chunk of
    latents at a time; every other architecture by SAELens, all latents at once.
    """

    def __init__(self, sae: "SAE") -> None:
        self.sae: Any = sae
        self.d_sae = sae.cfg.d_sae
        self.kind = sae.cfg.architecture()
        self._rescaled = (
            self.sae.W_dec.norm(dim=-1) if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False) else None
        )

    @torch.no_grad()
    def pieces(self, resid: Float[Tensor, "n d_in"]) -> Iterator[Piece]:
        """Every reading of every latent on these tokens, as `readings` defines them, once."""
        if self.kind not in ("topk", "standard", "jumprelu"):
            yield Dense("gated", slice(0, self.d_sae), self.sae.encode(resid).float())
            return
        x = self.sae.process_sae_in(resid)
        width = min(_N_LATENTS, self.d_sae) if x.device.type == "cpu" else self.d_sae
        # TopK has to see all latents of a token before it knows which of them fire.
        whole = torch.empty(len(x), self.d_sae, device=x.device) if self.kind == "topk" else None
        chunk = torch.empty(len(x), width, device=x.device)
        for start in range(0, self.d_sae, width):
            latents = slice(start, min(start + width, self.d_sae))
            pre = chunk[:, : latents.stop - start] if whole is None else whole[:, latents]
            self._multiply(x, latents, out=pre)
            yield Dense("pre_activation", latents, pre)
            if whole is None:
                yield Dense("gated", latents, self._gated(pre, latents))
        if whole is not None:
            yield largest(whole, self.sae.cfg.k)

    def _multiply(self, x: Float[Tensor, "n d_in"], latents: slice, *, out: Float[Tensor, "n c"]) -> None:
        encoder, bias = self.sae.W_enc[:, latents], self.sae.b_enc[latents]
        if x.dtype == out.dtype:
            torch.addmm(bias, x, encoder, out=out)
        else:
            out.copy_(torch.addmm(bias, x, encoder))
        if self._rescaled is not None:
            out *= self._rescaled[latents]

    def _gated(self, pre: Float[Tensor, "n c"], latents: slice) -> Float[Tensor, "n c"]:
        gated = self.sae.activation_fn(pre)
        if self.kind == "jumprelu":
            # A comparison is written as 0 and 1 here, as summing or multiplying truth values takes five times longer.
            gated = gated * torch.gt(pre, self.sae.threshold[latents], out=torch.empty_like(pre))
        return gated


def largest(pre: Float[Tensor, "n d_sae"], k: int) -> Sparse:
    """Each token's `k` largest entries, those below zero as zeros."""
    values, latents = largest_by_groups(pre, min(k, pre.shape[1]))
    return Sparse(latents, values.relu_())
