"""Unit directions in the residual stream: of a latent, of a set of latents, at random, or a difference of means."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sae_persona.errors import ConfigError, SAEError
from sae_persona.sae.encode import unit_decoder

if TYPE_CHECKING:
    from sae_lens import SAE

DirectionKind = Literal["latent", "latent_set", "random_latent", "random_direction", "mean_difference"]


@dataclass(frozen=True, eq=False)
class Direction:
    """Where to push, of length one; how far is a strength, and belongs to the sweep."""

    name: str
    kind: DirectionKind
    vector: Float[Tensor, " d_model"]
    latents: tuple[int, ...] = ()
    """The latents whose decoder rows it is made of, if any."""

    def __post_init__(self) -> None:
        length = float(self.vector.norm())
        if not math.isfinite(length) or length == 0:
            raise ConfigError(f"direction {self.name!r} has length {length}; a direction needs a finite length > 0.")
        object.__setattr__(self, "vector", self.vector / length)


def latent_direction(sae: "SAE", *latents: int, kind: DirectionKind | None = None) -> Direction:
    """The decoder direction of one latent, or the sum of several latents' unit decoder directions.

    Decoder rows are normalised first, whatever the SAE's own norms are.

    Raises:
        SAEError: a latent is not one of the SAE's.
    """
    for latent in latents:
        if not 0 <= latent < sae.cfg.d_sae:
            raise SAEError(f"latent {latent} is not in this SAE, whose latents are 0 to {sae.cfg.d_sae - 1}.")
    rows = unit_decoder(sae)[list(latents)]
    name = "+".join(map(str, latents))
    return Direction(name, kind or ("latent" if len(latents) == 1 else "latent_set"), rows.sum(0), tuple(latents))


def random_latents(
    sae: "SAE", density: Float[Tensor, " d_sae"], like: int, *, exclude: Sequence[int], n: int, seed: int
) -> list[Direction]:
    """`n` latents that fire about as often as latent `like`, none of them in `exclude`.

    Drawn without replacement from the `3 n` living latents whose log firing density is nearest to that of `like`, so
    that a control is neither a dead latent nor one of the two that happen to be nearest.

    Raises:
        SAEError: the SAE has fewer than `n` living latents outside `exclude`.
    """
    distance = (density.clamp(min=1e-12).log() - density[like].clamp(min=1e-12).log()).abs()
    allowed = density > 0
    allowed[[*exclude, like]] = False
    if int(allowed.sum()) < n:
        raise SAEError(
            f"{n} control latents were asked for, and only {int(allowed.sum())} latents fire and are not shortlisted. "
            "Ask for fewer controls or train a wider SAE."
        )
    distance[~allowed] = torch.inf
    pool = distance.argsort()[: min(3 * n, int(allowed.sum()))]
    generator = torch.Generator().manual_seed(seed)
    chosen = pool[torch.randperm(len(pool), generator=generator)[:n]]
    return [latent_direction(sae, int(latent), kind="random_latent") for latent in chosen]


def random_directions(d_model: int, *, n: int, seed: int) -> list[Direction]:
    """`n` directions drawn uniformly from the sphere."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(n, d_model, generator=generator)
    return [Direction(str(i), "random_direction", vector) for i, vector in enumerate(vectors)]


def mean_difference(
    misaligned: Float[Tensor, "runs d_model"],
    aligned: Float[Tensor, "controls d_model"],
    *,
    name: str = "mean difference",
) -> Direction:
    """From the mean residual of the aligned runs to that of the misaligned ones."""
    return Direction(name, "mean_difference", misaligned.mean(0) - aligned.mean(0))
