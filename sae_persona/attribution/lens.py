"""Which tokens a latent's direction promotes and suppresses, were it added to the last residual stream (logit lens)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from jaxtyping import Float
from torch import Tensor

from sae_persona.attribution.contexts import token_texts
from sae_persona.attribution.neighbours import check_latents
from sae_persona.errors import IncompatibleError
from sae_persona.model.load import LoadedModel
from sae_persona.model.unembedding import folded_unembedding, token_cosines
from sae_persona.sae.encode import unit_decoder

if TYPE_CHECKING:
    import pandas as pd
    from sae_lens import SAE

Measure = Literal["cosine", "logit"]
"""`cosine` with a token's row of the unembedding; `logit`: their product, which favours tokens with long rows."""


@dataclass(frozen=True)
class LensToken:
    """A token, and how far the latent promotes it."""

    id: int
    text: str
    value: float
    """A cosine, from -1 to 1, or a change of the logit at a unit of the direction and of the final norm's scale."""


@dataclass(frozen=True)
class LogitLens:
    """What a latent writes, read through the final norm. It says nothing of what later blocks make of it."""

    latent: int
    measure: Measure
    promoted: tuple[LensToken, ...]
    """The most first."""
    suppressed: tuple[LensToken, ...]
    """The most first."""

    def top(self, n: int = 20) -> tuple[LensToken, ...]:
        """The `n` most promoted tokens."""
        return self.promoted[:n]

    def to_pandas(self) -> "pd.DataFrame":
        """Promoted and suppressed tokens side by side."""
        import pandas as pd

        return pd.DataFrame(
            {
                "promoted": [token.text for token in self.promoted],
                self.measure: [token.value for token in self.promoted],
                "suppressed": [token.text for token in self.suppressed],
                f"{self.measure} ": [token.value for token in self.suppressed],
            }
        )

    def _repr_html_(self) -> str:
        return self.to_pandas().to_html(index=False, float_format="%.3f")


def lens_values(
    model: LoadedModel, sae: "SAE", latents: Sequence[int], *, measure: Measure = "cosine"
) -> Float[Tensor, "latents vocab"]:
    """How far each latent promotes each token: decoder row against the unembedding with the final norm folded in.

    `cosine = <d, u> / (|d| |u|)`, `logit = <d, u> / |d|`, d the latent's decoder row (for a LayerNorm less its own
    mean, which that norm takes out) and u the token's row of `folded_unembedding`.

    Raises:
        SAEError: a latent is not one of the SAE's.
        IncompatibleError: the SAE is of another width than the model.
        ModelError: the model's final norm cannot be folded in.

    Source: nostalgebraist 2020 (logit lens), for directions as in Bricken et al. 2023.
    """
    check_latents(sae, latents)
    if sae.cfg.d_in != model.d_model:
        raise IncompatibleError(
            f"this SAE expects d_in={sae.cfg.d_in}; {model.source} has d_model={model.d_model}. "
            "Load an SAE trained on this model."
        )
    directions = unit_decoder(sae)[list(latents)]
    if measure == "cosine":
        return token_cosines(model, directions)
    unembedding = folded_unembedding(model)
    return directions.to(unembedding) @ unembedding.T


def logit_lens(model: LoadedModel, sae: "SAE", latent: int, *, n: int = 10, measure: Measure = "cosine") -> LogitLens:
    """The tokens that a latent promotes and suppresses most; errors are those of `lens_values`."""
    values = lens_values(model, sae, [latent], measure=measure)[0]
    n = min(n, len(values))

    def named(ids: Tensor) -> tuple[LensToken, ...]:
        return tuple(
            LensToken(i, token_texts([i], model.tokenizer)[0], float(values[i])) for i in map(int, ids.tolist())
        )

    return LogitLens(latent, measure, named(values.topk(n).indices), named((-values).topk(n).indices))
