"""What all pages share: one HTML file that needs no network, figures among the text, numbers with their intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from sae_persona.report import words
from sae_persona.types import LABELS, Estimate, Label

N_ANSWERS = 2
"""How many answers of every label a page shows."""


@dataclass(frozen=True)
class Drawing:
    """A figure as HTML; its title stands above it, where it can wrap."""

    title: Markup
    body: Markup


class _Labelled(Protocol):
    @property
    def label(self) -> Label: ...


Answered = TypeVar("Answered", bound=_Labelled)


def render_page(template: str, *, filters: Mapping[str, Callable[..., object]], **values: object) -> str:
    """The page that a template makes of values; whatever is no markup is escaped."""
    environment = Environment(
        loader=PackageLoader("sae_persona", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        estimate=_estimate,
        percent=lambda share: words.NOT_RUN if share is None else words.percent(share),
        number=lambda value: words.NOT_RUN if value is None else f"{value:,.3f}".rstrip("0").rstrip("."),
        **filters,
    )
    plotly = Markup(get_plotlyjs())  # noqa: S704 - plotly's own code
    return environment.get_template(template).render(plotly=plotly, **values)


def drawing(name: str, figure: go.Figure) -> Drawing:
    """A figure as a page holds it, under an id made of its name."""
    title = Markup(figure.to_dict()["layout"]["title"]["text"])  # noqa: S704 - figures escape their titles
    figure.update_layout(title_text="", margin_t=30)
    body = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=f"figure-{name}",
        default_width="100%",
        config={"displayModeBar": False, "responsive": True},
    )
    return Drawing(title, Markup(body))  # noqa: S704 - plotly escapes what it writes into its script


def first_of_every_label(answers: Sequence[Answered]) -> list[Answered]:
    """The first `N_ANSWERS` answers of every label, in the labels' order."""
    return [one for label in LABELS for one in [one for one in answers if one.label == label][:N_ANSWERS]]


def _estimate(estimate: Estimate | None) -> Markup:
    if estimate is None:
        return Markup.escape(words.NOT_RUN)
    share, interval = words.with_interval(estimate).split(" ", maxsplit=1)
    return Markup("{} <small>{}</small>").format(share, interval)
