"""How every figure looks: one palette that colour-blind readers can tell apart, one template, axes in per cent.

Colours are Okabe and Ito's, moved to middle lightness so that they read on white and on near-black; every line also has
a marker or a dash of its own, so that nothing is said by colour alone.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from sae_persona.types import Estimate, Label

BLUE, VERMILLION, GREEN, PURPLE, AMBER, SKY = "#2E7EBB", "#D55E00", "#0A9C76", "#B565A7", "#D99A00", "#56A9DB"
GREY, FAINT = "#808080", "rgba(128,128,128,0.35)"
INK, GRID = "#30343b", "rgba(128,128,128,0.22)"
BAND, SECOND_BAND = "rgba(128,128,128,0.28)", "rgba(86,169,219,0.35)"

LABEL_COLOURS: dict[Label, str] = {
    "aligned": BLUE,
    "misaligned": VERMILLION,
    "mistaken": PURPLE,
    "satirical": AMBER,
    "incoherent": GREY,
    "refusal": GREEN,
    "off_topic": SKY,
    "unscored": FAINT,
}

_AXIS = {
    "gridcolor": GRID,
    "zerolinecolor": GRID,
    "ticks": "",
    "automargin": True,
    "fixedrange": True,
    "title": {"font": {"size": 13}, "standoff": 8},
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": INK},
        "title": {"x": 0, "xref": "container", "xanchor": "left", "font": {"size": 15}},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "colorway": [VERMILLION, BLUE, GREEN, PURPLE, AMBER, SKY],
        "margin": {"l": 8, "r": 22, "t": 44, "b": 8},
        "legend": {"orientation": "h", "yanchor": "top", "y": -0.12, "x": 0, "xanchor": "left", "title": {"text": ""}},
        "hoverlabel": {"align": "left"},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)
PERCENT_AXIS: dict[str, Any] = {"tickformat": ".0%", "rangemode": "tozero"}


def style(figure: go.Figure, *, title: str, height: int) -> go.Figure:
    """Give a figure the template, its title and its height in pixels."""
    figure.update_layout(template=TEMPLATE, title_text=escape(title), height=height)
    figure.update_annotations(font_size=13)
    return figure


def bars(estimates: Sequence[Estimate]) -> dict[str, object]:
    """The 95 % intervals of estimates, as plotly's error bars."""
    return intervals([e.value for e in estimates], [e.low for e in estimates], [e.high for e in estimates])


def intervals(values: Sequence[float], lows: Sequence[float], highs: Sequence[float]) -> dict[str, object]:
    """Intervals about values, as plotly's asymmetric error bars."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for value, high in zip(values, highs, strict=True)],
        "arrayminus": [value - low for value, low in zip(values, lows, strict=True)],
        "thickness": 1.4,
        "width": 3,
    }


def on_two_lines(name: str) -> str:
    """A model's name for an axis: escaped, and broken at the hyphen nearest its middle where it is long."""
    hyphens = [i for i, letter in enumerate(name) if letter == "-"]
    if len(name) <= 16 or not hyphens:
        return escape(name)
    middle = min(hyphens, key=lambda i: abs(i - len(name) / 2)) + 1
    return f"{escape(name[:middle])}<br>{escape(name[middle:])}"
