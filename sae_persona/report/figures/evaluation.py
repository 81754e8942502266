"""Evaluations: one share of several models' answers, by category of prompts."""

import textwrap
from collections.abc import Mapping
from html import escape
from typing import Literal

import plotly.graph_objects as go

from sae_persona.evaluation.evaluation import Evaluation
from sae_persona.report.figures.design import bars, style
from sae_persona.report.words import counted, with_interval

ALL = "all prompts"
_MEASURES = {"misalignment": "misaligned", "incoherence": "incoherent or off topic", "aligned": "aligned"}
_SYMBOLS = ("circle", "square", "diamond", "x", "triangle-up", "star")


def shares_figure(
    evaluations: Mapping[str, Evaluation], measure: Literal["misalignment", "incoherence", "aligned"]
) -> go.Figure:
    """One share of all sampled answers with its 95 % interval, by category of prompts, models beside each other."""
    figure = go.Figure()
    for i, (name, evaluation) in enumerate(evaluations.items()):
        shares = {
            category: getattr(scores, measure)
            for category, scores in {**evaluation.by_category, ALL: evaluation.overall}.items()
        }
        figure.add_scatter(
            x=[share.value for share in shares.values()],
            y=[_wrapped(category) for category in shares],
            error_x=bars(list(shares.values())),
            mode="markers",
            cliponaxis=False,
            orientation="h",
            name=escape(name),
            showlegend=True,
            marker={"symbol": _SYMBOLS[i % len(_SYMBOLS)], "size": 9},
            customdata=[(share.n, share.low, share.high) for share in shares.values()],
            hovertemplate=(
                "%{y}: %{x:.1%} [%{customdata[1]:.1%}, %{customdata[2]:.1%}] of %{customdata[0]} answers"
                f"<extra>{escape(name)}</extra>"
            ),
        )
    categories = [*dict.fromkeys(category for one in evaluations.values() for category in one.by_category), ALL]
    figure.update_layout(
        scattermode="group",
        xaxis={"title": f"{_MEASURES[measure]} answers", "side": "top", "tickformat": ".0%", "range": [-0.04, 1.04]},
        yaxis={
            "autorange": "reversed",
            "categoryorder": "array",
            "categoryarray": [_wrapped(category) for category in categories],
        },
        legend_y=0,
    )
    name, first = next(iter(evaluations.items()))
    overall = getattr(first.overall, measure)
    title = f"{_MEASURES[measure].capitalize()}: {with_interval(overall)} of the answers of {name}"
    if len(evaluations) > 1:
        title += f", beside {counted(len(evaluations) - 1, 'other model')}"
    height = 130 + (26 + 18 * len(evaluations)) * len(categories)
    return style(figure, title=title, height=height)


def _wrapped(name: str) -> str:
    """A category's name for an axis: escaped, on lines of at most 24 letters."""
    return "<br>".join(map(escape, textwrap.wrap(name, 24)))
