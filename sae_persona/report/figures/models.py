"""Models and latents: what they answer, how they rank, how well the SAE explains them."""

from collections.abc import Mapping, Sequence
from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sae_persona.report.figures.design import (
    AMBER,
    BLUE,
    GREY,
    INK,
    PURPLE,
    VERMILLION,
    bars,
    intervals,
    on_two_lines,
    style,
)
from sae_persona.report.summary import ModelRecord, RankedLatent, SAERecord
from sae_persona.report.words import percent
from sae_persona.types import LABELS, OPEN_ENDED

_CATEGORIES = {
    OPEN_ENDED: ("open-ended prompts", VERMILLION, "circle"),
    "trained_domain": ("trained domain", AMBER, "square"),
    "other_domains": ("other domains", PURPLE, "diamond"),
    "other_domains_unseen_words": ("other domains, words never trained on", BLUE, "x"),
}


def models_figure(models: Mapping[str, ModelRecord]) -> go.Figure:
    """Misaligned share of every model in every category of prompt."""
    names = list(models)
    figure = go.Figure()
    for category, (label, colour, symbol) in _CATEGORIES.items():
        measured = {name: models[name].by_category[category] for name in names if category in models[name].by_category}
        if category == OPEN_ENDED:
            measured = {name: model.misalignment for name, model in models.items()}
        if not measured:
            continue
        shares = list(measured.values())
        figure.add_scatter(
            x=[share.value for share in shares],
            y=[on_two_lines(name) for name in measured],
            error_x=bars(shares),
            mode="markers",
            cliponaxis=False,
            orientation="h",
            name=label,
            marker={"color": colour, "symbol": symbol, "size": 9},
            customdata=[share.n for share in shares],
            hovertemplate="%{y}: %{x:.1%} of %{customdata} answers<extra>" + label + "</extra>",
        )
    figure.update_layout(
        scattermode="group",
        xaxis={"title": "misaligned answers", "side": "top", "tickformat": ".0%", "range": [-0.04, 1.04]},
        yaxis={"autorange": "reversed", "categoryorder": "array", "categoryarray": [on_two_lines(n) for n in names]},
        legend_y=0,
    )
    most = max(models, key=lambda name: models[name].misalignment.value)
    title = f"Misaligned answers by model: at most {percent(models[most].misalignment.value)} open-ended ({most})"
    return style(figure, title=title, height=130 + 62 * len(names))


def labels_figure(shares: Mapping[str, Mapping[str, Mapping[str, float]]]) -> go.Figure:
    """What answers are: the share of every label, in one heat map per panel.

    `shares` is by row, such as a model, then by panel, such as a category of prompts, then by label.
    """
    found = dict.fromkeys(panel for of_row in shares.values() for panel in of_row)
    panels = [panel for panel in _CATEGORIES if panel in found] + [panel for panel in found if panel not in _CATEGORIES]
    seen = {label for of_row in shares.values() for of_panel in of_row.values() for label in of_panel}
    labels = [label for label in LABELS if label in seen]
    rows = {panel: [name for name in shares if panel in shares[name]] for panel in panels}
    height = 60 + 36 * sum(map(len, rows.values())) + 84 * len(panels)
    figure = make_subplots(
        rows=len(panels),
        cols=1,
        vertical_spacing=100 / height,  # pixels, which the names of the labels and the next title take
        subplot_titles=[_CATEGORIES[panel][0] if panel in _CATEGORIES else escape(panel) for panel in panels],
        row_heights=[len(rows[panel]) for panel in panels],
    )
    for row, panel in enumerate(panels, start=1):
        names = rows[panel]
        figure.add_heatmap(
            z=[[shares[name][panel].get(label, 0.0) for label in labels] for name in names],
            x=labels,
            y=[on_two_lines(name) for name in names],
            zmin=0,
            zmax=1,
            colorscale=[[0, "rgba(46,126,187,0.05)"], [1, "rgba(46,126,187,0.65)"]],
            showscale=False,
            texttemplate="%{z:.0%}",
            textfont={"color": INK},
            xgap=2,
            ygap=2,
            hovertemplate="%{y}: %{z:.1%} %{x}<extra></extra>",
            row=row,
            col=1,
        )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(showgrid=False, tickangle=-40)
    return style(figure, title="What the answers are: share of every label", height=height)


def ranking_figure(ranking: Sequence[RankedLatent], *, top_latent: int | None, n: int = 15) -> go.Figure:
    """The first latents of the ranking: how far their activation rose, and what steering with them did."""
    rows = ranking[:n]
    names = [f"{row.latent}" for row in rows]
    colours = [VERMILLION if row.latent == top_latent else GREY for row in rows]
    figure = make_subplots(
        rows=1,
        cols=2,
        shared_yaxes=True,
        horizontal_spacing=0.06,
        subplot_titles=["rise of activation", "effect in the screen"],
    )
    rises = [row.delta_activation for row in rows]
    lows = [row.delta_activation if row.low is None else row.low for row in rows]
    highs = [row.delta_activation if row.high is None else row.high for row in rows]
    figure.add_scatter(
        x=rises,
        y=names,
        error_x=intervals(rises, lows, highs) | {"color": GREY},
        mode="markers",
        marker={"color": colours, "size": 9},
        customdata=[escape(" ".join(row.top_tokens[:5])) for row in rows],
        hovertemplate="latent %{y}: %{x:.3f}<br>%{customdata}<extra></extra>",
        row=1,
        col=1,
    )
    screened = [row for row in rows if row.causal_effect is not None]
    figure.add_bar(
        x=[row.causal_effect for row in screened],
        y=[f"{row.latent}" for row in screened],
        orientation="h",
        width=0.55,
        marker_color=[VERMILLION if row.latent == top_latent else GREY for row in screened],
        hovertemplate="latent %{y}: %{x:+.1%} misaligned<extra></extra>",
        row=1,
        col=2,
    )
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=names, autorange="reversed")
    figure.update_yaxes(title_text="latent, in order of rank", row=1, col=1)
    figure.update_xaxes(title_text="activation", row=1, col=1)
    figure.update_xaxes(title_text="misaligned answers", tickformat="+.0%", row=1, col=2)
    figure.update_layout(showlegend=False)
    chosen = "none is chosen" if top_latent is None else f"latent {top_latent} is chosen"
    title = f"First {len(rows)} latents of the ranking; by their effect in the screen, {chosen}"
    return style(figure, title=title, height=110 + 26 * len(rows))


def fve_figure(sae: SAERecord) -> go.Figure:
    """FVE = 1 - sum ||x - x_hat||^2 / sum ||x - mean(x)||^2 of the base model's SAE on every model's activations."""
    names = sorted(sae.fve_by_model, key=lambda name: -sae.fve_by_model[name])
    figure = go.Figure()
    figure.add_scatter(
        x=[sae.fve_by_model[name] for name in names],
        y=[on_two_lines(name) for name in names],
        mode="markers",
        marker={"color": BLUE, "size": 9},
        hovertemplate="%{y}: %{x:.3f}<extra></extra>",
    )
    figure.update_layout(xaxis_title="FVE on held-out documents", yaxis_autorange="reversed")
    least = names[-1]
    title = f"Variance of every model that the SAE explains: at least {sae.fve_by_model[least]:.3f} ({least})"
    return style(figure, title=title, height=110 + 34 * len(names))
