"""Does another SAE, of another seed or never trained, rank the same features first?"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float

from sae_persona.attribution.ranking import LatentRanking
from sae_persona.attribution.stability import Match, match_latents


@dataclass(frozen=True)
class Counterpart(Match):
    """A latent of a shortlist, its match in another SAE, and where that stands in the other SAE's ranking."""

    other_rank: int
    """Its place among the rises of the other ranking; 1 is the clearest."""
    is_shared: bool
    """True = mutual, and on the other's shortlist."""


@dataclass(frozen=True)
class Agreement:
    """How far another SAE's ranking of the same answers agrees."""

    sae: str
    counterparts: tuple[Counterpart, ...]
    """Of every latent of the shortlist, in its order."""
    n_shared: int
    n_by_chance: float
    """What `n_shared` would be on average if the mutual counterparts stood anywhere in the other ranking."""
    median_cosine: float | None
    """Of the counterparts; None for an empty shortlist."""
    first_z: float
    """How clearly the other's first latent rose: from an untrained SAE, what a ranking finds without features."""


def compare_rankings(
    ranking: LatentRanking,
    other: LatentRanking,
    decoder: Float[np.ndarray, "d_sae d_in"],
    other_decoder: Float[np.ndarray, "d_other d_in_other"],
    *,
    name: str,
    shortlist: Sequence[int] | None = None,
) -> Agreement:
    """Look up each latent of the shortlist (by default the ranking's own) in another SAE's ranking of the same runs.

    Raises:
        IncompatibleError: the SAEs have other widths, or a latent is not one of the first SAE's.
    """
    rank_of = {row.latent: row.rank for row in other.rows}
    theirs = set(other.shortlist())
    found = tuple(
        Counterpart(**asdict(match), other_rank=rank_of[match.other], is_shared=match.mutual and match.other in theirs)
        for match in match_latents(
            decoder, other_decoder, ranking.shortlist() if shortlist is None else tuple(shortlist)
        )
    )
    return Agreement(
        sae=name,
        counterparts=found,
        n_shared=sum(one.is_shared for one in found),
        n_by_chance=sum(one.mutual for one in found) * len(theirs) / len(other.rows),
        median_cosine=float(np.median([one.cosine for one in found])) if found else None,
        first_z=other.rows[0].z,
    )
