"""The rows of a ranking as `rank` writes them, in the order of its method."""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from sae_persona.attribution.counterparts import Agreement
from sae_persona.attribution.ranking import LatentRanking, RankedLatent
from sae_persona.attribution.reestimate import Reestimate
from sae_persona.model.load import LoadedModel
from sae_persona.study.commands.attribute import Attributed, AttributionFindings
from sae_persona.study.summary import N_RANKED, top_tokens

if TYPE_CHECKING:
    from sae_lens import SAE

Method = Literal["activation", "attribution"]
"""What latents are sorted by.

`activation`: how clearly their mean activation rose (Wang et al. 2025, section 3.1). `attribution`: how much more they
do for answers that show the behaviour than for answers that do not (`gradient_attribution`).
"""


@dataclass(frozen=True)
class NamedLatent(RankedLatent):
    """A row of a ranking, with the tokens that the latent's direction writes and what attribution says of it.

    `low`, `high`, `z`, `q_value` and `familywise_p` are of `delta_activation`, whatever latents are sorted by.
    """

    top_tokens: tuple[str, ...] = ()
    """The most promoted by logit lens in the aligned model; empty beyond the first rows."""
    delta_attribution: float | None = None
    """Mean over misaligned models, in nats per token of the answer; None by the method `activation`."""
    attribution_low: float | None = None
    attribution_high: float | None = None
    """95 % interval of `delta_attribution`: over models, or over the questions of a single one."""
    exact_attribution: float | None = None
    """The same by exact ablation, of the first latents."""

    @property
    def moved(self) -> float:
        """What the ranking's method says: above 0 for what rose, or drives the behaviour."""
        return self.delta_activation if self.delta_attribution is None else self.delta_attribution


@dataclass(frozen=True)
class Findings:
    """What holds for a ranking as a whole."""

    method: Method
    n_misaligned: int
    n_controls: int
    """0: the ranking says something about this pair of checkpoints only, and has no q-values."""
    smallest_p: float | None
    """The smallest p-value that so many runs could have reached; None where there are too few for any."""
    shortlist: tuple[int, ...]
    """What a causal screen should try."""
    note: str = ""
    """What these runs can and cannot say."""
    first: Reestimate | None = None
    """The clearest rise, measured anew on runs and questions that did not choose it; None with too few of either."""
    attribution: AttributionFindings | None = None
    """None by the method `activation`."""
    against: tuple[Agreement, ...] = ()
    """What other SAEs' rankings of the same answers say of the shortlist."""


def ends_of(ranking: LatentRanking, attributed: Attributed | None) -> tuple[list[NamedLatent], list[NamedLatent]]:
    """Rises and falls in the order of the method."""
    rises, falls = ([NamedLatent(**asdict(row)) for row in rows] for rows in (ranking.rows, ranking.falls))
    if attributed is None:
        return rises, falls
    pooled = attributed.pooled
    found = []
    for sign, rows in ((1, rises), (-1, falls)):
        row_of = {row.latent: row for row in rows}
        found.append(
            [
                replace(
                    row_of[latent],
                    rank=sign * place,
                    delta_attribution=float(pooled.delta[latent]),
                    attribution_low=float(pooled.low[latent]),
                    attribution_high=float(pooled.high[latent]),
                    exact_attribution=attributed.exact.get(latent),
                )
                for place, latent in enumerate(np.argsort(-sign * pooled.delta, kind="stable").tolist(), start=1)
            ]
        )
    return found[0], found[1]


def named(
    rises: list[NamedLatent], falls: list[NamedLatent], aligned: LoadedModel, sae: "SAE"
) -> tuple[list[NamedLatent], list[NamedLatent]]:
    """Both ends, the first of either with their tokens."""
    first = {row.latent for rows in (rises, falls) for row in rows[:N_RANKED]}
    names = top_tokens(aligned, sae, sorted(first))

    def with_tokens(rows: list[NamedLatent]) -> list[NamedLatent]:
        tokens = [tuple(names[str(row.latent)]) for row in rows[:N_RANKED]]
        return [replace(row, top_tokens=of_row) for row, of_row in zip(rows, tokens, strict=False)] + rows[N_RANKED:]

    return with_tokens(rises), with_tokens(falls)
