"""Views for notebooks: the ranking as a data frame, and passages coloured by a latent's activation."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup

from sae_persona.errors import DataError
from sae_persona.report.summary import Summary

_COLUMNS = [
    "rank",
    "latent",
    "delta_activation",
    "low",
    "high",
    "q_value",
    "delta_attribution",
    "causal_effect",
    "top_tokens",
]
_SPAN = Markup('<span title="{:.3g}" style="background:rgba(213,94,0,{:.2f});border-radius:3px">{}</span>')
_LINE = Markup('<div style="margin:.35em 0;line-height:1.7;overflow-wrap:anywhere">{}</div>')


@dataclass(frozen=True)
class Html:
    """HTML that a notebook shows as such."""

    html: str

    def _repr_html_(self) -> str:
        return self.html


def latent_table(summary: Summary, n: int = 20) -> pd.DataFrame:
    """The first `n` rows of the ranking, and whether a latent is `top`, in the `set`, or on the `shortlist`."""
    rows = [row.model_dump(include=set(_COLUMNS)) for row in summary.ranking[:n]]
    table = pd.DataFrame(rows, columns=pd.Index(_COLUMNS))
    table["top_tokens"] = [" ".join(tokens) for tokens in table["top_tokens"]]
    table["chosen"] = [chosen_as(summary, latent) for latent in table["latent"]]
    return table.set_index("rank")


def chosen_as(summary: Summary, latent: int) -> str:
    """How far a latent got: `top`, `set`, `shortlist`, or nothing."""
    if latent == summary.top_latent:
        return "top"
    if latent in summary.top_set:
        return "set"
    return "shortlist" if latent in summary.shortlist else ""


def show_contexts(contexts: Sequence[tuple[Sequence[str], Sequence[float]]]) -> Html:
    """Passages with every token shaded by its activation; the darkest is the largest of all passages.

    Each passage is its tokens and as many activations. Tokens that carry their own spaces are joined as they are,
    others with a space between them.

    Raises:
        DataError: a passage has more or fewer activations than tokens.
    """
    most = max((value for _, activations in contexts for value in activations), default=0.0)
    lines = []
    for i, (tokens, activations) in enumerate(contexts):
        if len(tokens) != len(activations):
            raise DataError(
                f"passage {i} has {len(tokens)} tokens and {len(activations)} activations. Give one for every token."
            )
        between = Markup("") if any(token[:1].isspace() for token in tokens[1:]) else Markup(" ")
        spans = [
            _SPAN.format(value, 0.85 * max(value, 0.0) / most, token) if value > 0 else Markup.escape(token)
            for token, value in zip(tokens, activations, strict=True)
        ]
        lines.append(_LINE.format(between.join(spans)))
    return Html(str(Markup("").join(lines)))
