"""What all pages share: templates with their filters, and figures as HTML."""

from dataclasses import dataclass

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sae_persona.report import words
from sae_persona.types import Estimate


@dataclass(frozen=True)
class Drawing:
    """A figure as HTML; its title stands above it, where it can wrap."""

    title: Markup
    body: Markup


def environment() -> Environment:
    """The templates of this package, with filters for numbers; every text is escaped."""
    pages = Environment(
        loader=PackageLoader("sae_persona", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(
        estimate=_estimate,
        percent=lambda share: words.NOT_RUN if share is None else words.percent(share),
        number=lambda value: words.NOT_RUN if value is None else f"{value:,.3f}".rstrip("0").rstrip("."),
        strength=words.strength,
        points=words.points,
    )
    return pages


def drawing(name: str, figure: go.Figure) -> Drawing:
    """A figure for a page that holds plotly itself; `name` is unique on the page."""
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


def _estimate(estimate: Estimate | None) -> Markup:
    if estimate is None:
        return Markup.escape(words.NOT_RUN)
    share, interval = words.with_interval(estimate).split(" ", maxsplit=1)
    return Markup("{} <small>{}</small>").format(share, interval)
