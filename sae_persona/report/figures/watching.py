"""Watching: the latent's reading as training data turn bad, and as a misaligned model is brought back."""

from collections.abc import Iterable

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sae_persona.report.figures.design import BAND, BLUE, GREY, PERCENT_AXIS, VERMILLION, bars, style
from sae_persona.report.summary import MonitorRecord, RealignPoint, RealignRecord


def early_warning_figure(monitor: MonitorRecord) -> go.Figure:
    """The latent's reading above the misaligned share, over the share of bad data, beside the spread of benign runs.

    The shares of bad data stand at even distances, since the question is decided between the smallest of them.
    """
    mixture = sorted(monitor.mixture, key=lambda point: point.bad_fraction)
    at = [f"{100 * point.bad_fraction:g}%" for point in mixture]
    figure = make_subplots(
        rows=2,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.1,
        row_heights=[0.6, 0.4],
        subplot_titles=["latent, relative to the aligned model", "misaligned answers"],
    )
    if monitor.benign_runs:
        low, high = min(monitor.benign_runs), max(monitor.benign_runs)
        figure.add_scatter(
            x=[*at, *reversed(at)],
            y=[high] * len(at) + [low] * len(at),
            fill="toself",
            fillcolor=BAND,
            mode="lines",
            line={"color": GREY, "width": 1},
            name=f"{len(monitor.benign_runs)} benign fine-tunes, least to most",
            hoverinfo="skip",
            row=1,
            col=1,
        )
    if monitor.held_out_benign_runs:
        figure.add_scatter(
            x=at[:1] * len(monitor.held_out_benign_runs),
            y=monitor.held_out_benign_runs,
            mode="markers",
            marker={"color": GREY, "symbol": "line-ew-open", "size": 14, "line": {"width": 2}},
            name=f"{len(monitor.held_out_benign_runs)} held-out benign fine-tunes",
            hovertemplate="%{y:.3f}<extra>held-out benign run</extra>",
            row=1,
            col=1,
        )
    if monitor.threshold is not None:
        figure.add_scatter(
            x=at,
            y=[monitor.threshold] * len(at),
            mode="lines",
            line={"color": GREY, "dash": "dot", "width": 1.5},
            name="threshold of the alarm",
            hovertemplate="%{y:.3f}<extra>threshold</extra>",
            row=1,
            col=1,
        )
    figure.add_scatter(
        x=at,
        y=[point.latent for point in mixture],
        mode="lines+markers",
        cliponaxis=False,
        name="latent; a star where the alarm rings",
        line={"color": BLUE, "width": 2},
        marker={
            "size": [14 if point.alarm else 8 for point in mixture],
            "symbol": ["star" if point.alarm else "circle" for point in mixture],
            "opacity": 1,
            "line": {"width": 0},
        },
        hovertemplate="%{y:.3f} at %{x} bad data<extra>latent</extra>",
        row=1,
        col=1,
    )
    figure.add_scatter(
        x=at,
        y=[point.misalignment.value for point in mixture],
        error_y=bars([point.misalignment for point in mixture]),
        mode="lines+markers",
        cliponaxis=False,
        name="misaligned answers",
        line={"color": VERMILLION, "width": 2, "dash": "dash"},
        marker={"size": 8, "symbol": "square"},
        hovertemplate="%{y:.1%} at %{x} bad data<extra>misaligned</extra>",
        row=2,
        col=1,
    )
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=at)
    figure.update_xaxes(title_text="bad share of the fine-tuning data", row=2, col=1)
    figure.update_yaxes(**PERCENT_AXIS, row=2, col=1)
    rings = [point.bad_fraction for point in mixture if point.alarm]
    outcome = f"first rings at {100 * min(rings):g}% bad data" if rings else "never rings"
    return style(figure, title=f"Early warning: the alarm {outcome}", height=560)


def realign_figure(realign: RealignRecord) -> go.Figure:
    """Misalignment and the latent's reading over steps of re-alignment, with data of two domains."""
    curves = {"trained domain": realign.in_domain, "another domain": realign.out_of_domain}
    drawn = {name: sorted(curve, key=lambda point: point.step) for name, curve in curves.items() if curve}
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.1, subplot_titles=["misaligned answers", "latent"]
    )
    looks = {"trained domain": (VERMILLION, "solid", "circle"), "another domain": (BLUE, "dash", "square")}
    for name, curve in drawn.items():
        colour, dash, symbol = looks[name]
        shared = {
            "mode": "lines+markers",
            "cliponaxis": False,
            "name": f"good samples of {'the ' if name == 'trained domain' else ''}{name}",
            "legendgroup": name,
            "line": {"color": colour, "dash": dash, "width": 2},
            "marker": {"symbol": symbol, "size": 8},
        }
        figure.add_scatter(
            x=[point.step for point in curve],
            y=[point.misalignment.value for point in curve],
            error_y=bars([point.misalignment for point in curve]),
            hovertemplate="%{y:.1%} after %{x} steps<extra></extra>",
            row=1,
            col=1,
            **shared,
        )
        read = [point for point in curve if point.latent is not None]
        figure.add_scatter(
            x=[point.step for point in read],
            y=[point.latent for point in read],
            hovertemplate="%{y:.3f} after %{x} steps<extra></extra>",
            showlegend=False,
            row=2,
            col=1,
            **shared,
        )
    figure.update_yaxes(**PERCENT_AXIS, row=1, col=1)
    figure.update_xaxes(title_text=f"steps{_per_step(drawn.values())}", row=2, col=1)
    lasts = [curve[-1] for curve in drawn.values()]
    worst = max(lasts, key=lambda point: point.misalignment.value)
    title = (
        f"Re-alignment: at most {100 * worst.misalignment.value:.1f}% misaligned after {worst.n_samples} good samples"
    )
    return style(figure, title=title, height=520)


def _per_step(curves: Iterable[list[RealignPoint]]) -> str:
    """The batch size in words, where it is the same throughout."""
    sizes = {point.n_samples / point.step for curve in curves for point in curve if point.step}
    return f" of {sizes.pop():g} samples" if len(sizes) == 1 else ""
