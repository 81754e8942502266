"""Which latents resemble a latent: by the direction they write, by the direction they read, or by when they fire."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sae_persona.errors import SAEError

if TYPE_CHECKING:
    from sae_lens import SAE


@dataclass(frozen=True)
class Neighbour:
    """Another latent, and how alike it is: a cosine, from -1 to 1."""

    latent: int
    cosine: float


def nearest_latents(
    sae: "SAE", latent: int, n: int = 10, *, by: Literal["decoder", "encoder"] = "decoder"
) -> tuple[Neighbour, ...]:
    """The latents whose direction is nearest to that of `latent`, by cosine, the nearest first.

    `decoder`: what they write into the residual stream; `encoder`: what they look for in it.

    Raises:
        SAEError: the latent is not one of the SAE's, or the SAE has no encoder matrix.
    """
    check_latents(sae, [latent])
    if by == "encoder" and not isinstance(getattr(sae, "W_enc", None), Tensor):
        raise SAEError(f"an SAE of architecture {sae.cfg.architecture()!r} has no encoder matrix. Compare decoders.")
    rows = (sae.W_dec if by == "decoder" else sae.W_enc.T).detach().float()
    unit = rows / rows.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    return strongest(unit @ unit[latent], n, exclude=latent)


def strongest(
    cosines: Float[Tensor, " d_sae"], n: int, *, exclude: int, above: float = -torch.inf
) -> tuple[Neighbour, ...]:
    """The `n` largest that are `above` a bound, the smaller index first where two are equal."""
    order = cosines.argsort(descending=True, stable=True).tolist()
    named = [Neighbour(i, float(cosines[i])) for i in order[: n + 1] if i != exclude and cosines[i] > above]
    return tuple(named[:n])


def check_latents(sae: "SAE", latents: Sequence[int]) -> None:
    """Raise `SAEError` unless the SAE has all of these latents."""
    for latent in latents:
        if not 0 <= latent < sae.cfg.d_sae:
            raise SAEError(f"latent {latent} is not in this SAE, whose latents are 0 to {sae.cfg.d_sae - 1}.")
