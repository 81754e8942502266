"""Steering: what doses of a latent, of a set and of the controls do to the aligned and to the misaligned models."""

from collections.abc import Callable, Mapping, Sequence
from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sae_persona.report.arms import induction, repair
from sae_persona.report.figures.design import (
    BAND,
    BLUE,
    GREY,
    INK,
    LABEL_COLOURS,
    PERCENT_AXIS,
    PURPLE,
    SECOND_BAND,
    VERMILLION,
    bars,
    style,
)
from sae_persona.report.summary import SteeringPoint, SteeringRecord
from sae_persona.report.words import counted, listed, percent, points, strength
from sae_persona.types import Estimate

Read = Callable[[SteeringPoint], Estimate | None]

_PANELS: dict[str, Read] = {
    "misaligned, open-ended": lambda point: point.misalignment,
    "misaligned, other domains": lambda point: point.other_domains,
    "incoherent, open-ended": lambda point: point.incoherence,
}


def dose_response_figure(steering: SteeringRecord, *, top_latent: int, top_set: Sequence[int] = ()) -> go.Figure:
    """Steering the aligned model: misalignment, carry-over and incoherence against strength, with every control.

    The bands reach from the least to the most that any random draw does, at every strength.
    """
    controls = steering.controls
    panels = {name: read for name, read in _PANELS.items() if any(read(point) is not None for point in steering.induce)}
    figure = make_subplots(
        rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.18 / len(panels), subplot_titles=list(panels)
    )
    for row, read in enumerate(panels.values(), start=1):
        add_band(figure, controls.random_latents, read, name="random latents", colour=BAND, row=row)
        add_band(figure, controls.random_directions, read, name="random directions", colour=SECOND_BAND, row=row)
        add_line(figure, controls.mean_difference, read, name="mean difference", colour=BLUE, dash="dash", row=row)
        add_line(figure, controls.linear_probe, read, name="linear probe", colour=BLUE, dash="dot", row=row)
        at_the_end = f"latent {top_latent} at the last hook"
        add_line(figure, controls.last_hook, read, name=at_the_end, colour=VERMILLION, dash="dot", row=row)
        together = f"set of {counted(len(top_set), 'latent')}" if top_set else "set"
        add_line(figure, steering.induce_set, read, name=together, colour=PURPLE, dash="dot", row=row)
        add_line(figure, steering.induce, read, name=f"latent {top_latent}", colour=VERMILLION, dash="solid", row=row)
    if steering.chosen.induce is not None:
        figure.add_vline(
            x=steering.chosen.induce,
            line={"color": GREY, "dash": "dot", "width": 1.5},
            name=f"strength chosen on selection prompts for latent {top_latent}",
        )
        figure.update_shapes({"showlegend": True}, selector=0)  # every panel has the line, and one name is enough
    figure.update_yaxes(**PERCENT_AXIS)
    figure.update_xaxes(title_text="strength, in median residual norms", row=len(panels), col=1)
    figure.update_layout(legend_y=-0.09)
    effect = induction(steering, of_set=False)
    title = "Dose and response on the aligned model"
    if effect is not None:
        title += (
            f": latent {top_latent} moves misalignment {points(effect.rise)} at {strength(effect.steered.strength)}"
        )
    return style(figure, title=title, height=120 + 220 * len(panels))


def repair_figure(steering: SteeringRecord) -> go.Figure:
    """What the misaligned models answer before and after the latent, or the set, is subtracted."""
    names = sorted({*steering.repair, *steering.repair_set})
    rows = {name: conditions for name in names if (conditions := _repair_rows(steering, name))}
    figure = make_subplots(
        rows=len(rows),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=min(0.12, 0.3 / len(rows)),
        subplot_titles=[escape(name) for name in rows],
    )
    for row, conditions in enumerate(rows.values(), start=1):
        shares = {condition: _shares(point) for condition, point in conditions.items()}
        for part, colour in _PARTS.items():
            figure.add_bar(
                x=[share[part] for share in shares.values()],
                y=list(shares),
                orientation="h",
                name=part,
                legendgroup=part,
                showlegend=row == 1,
                marker_color=colour,
                hovertemplate="%{y}: %{x:.1%} " + part + "<extra></extra>",
                row=row,
                col=1,
            )
        for of, is_from_right in (("aligned", False), ("misalignment", True)):
            _add_ends(figure, conditions, of=of, is_from_right=is_from_right, row=row)
    figure.update_layout(
        barmode="stack",
        bargap=0.25,
        scattermode="group",
        scattergap=0.5,
        legend={"traceorder": "normal"},
        legend_y=-0.13,
    )
    figure.update_xaxes(range=[0, 1], tickformat=".0%")
    figure.update_xaxes(title_text="share of all answers to open-ended prompts", row=len(rows), col=1)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    changes = [
        f"{percent(effect.unsteered.misalignment.value)} to {percent(effect.steered.misalignment.value)}"
        for name in rows
        if (effect := repair(steering, name, of_set=False)) is not None
    ]
    title = "Repair of the misaligned models" + (f": misaligned answers from {listed(changes)}" if changes else "")
    return style(figure, title=title, height=130 + 140 * len(rows))


_PARTS = {
    "aligned": LABEL_COLOURS["aligned"],
    "anything else": "rgba(217,154,0,0.75)",
    "incoherent": LABEL_COLOURS["incoherent"],
    "misaligned": LABEL_COLOURS["misaligned"],
}


def add_line(
    figure: go.Figure, arm: Sequence[SteeringPoint], read: Read, *, name: str, colour: str, dash: str, row: int
) -> None:
    """One arm's shares with their intervals against strength, in one panel; its legend stands in the first."""
    read_at = {point.strength: estimate for point in arm if (estimate := read(point)) is not None}
    doses = sorted(read_at)
    if doses:
        figure.add_scatter(
            x=doses,
            y=[read_at[dose].value for dose in doses],
            error_y=bars([read_at[dose] for dose in doses]),
            mode="lines+markers",
            cliponaxis=False,
            name=name,
            legendgroup=name,
            showlegend=row == 1,
            line={"color": colour, "dash": dash, "width": 2},
            marker={"symbol": _SYMBOLS[dash], "size": 8},
            hovertemplate="%{y:.1%} at %{x:+g}<extra>" + name + "</extra>",
            row=row,
            col=1,
        )


_SYMBOLS = {"solid": "circle", "dash": "square", "dot": "diamond", "dashdot": "triangle-up", "longdash": "cross"}


def add_band(figure: go.Figure, arm: Sequence[SteeringPoint], read: Read, *, name: str, colour: str, row: int) -> None:
    """From the least to the most of all draws at every strength, in one panel."""
    read_at: dict[float, list[float]] = {}
    for point in arm:
        if (estimate := read(point)) is not None:
            read_at.setdefault(point.strength, []).append(estimate.value)
    doses = sorted(read_at)
    if doses:
        n_draws = len({point.draw for point in arm if point.strength != 0})
        figure.add_scatter(
            x=[*doses, *reversed(doses)],
            y=[*(max(read_at[dose]) for dose in doses), *(min(read_at[dose]) for dose in reversed(doses))],
            mode="lines",
            fill="toself",
            fillcolor=colour,
            line={"color": colour, "width": 1},
            name=f"{n_draws} {name}",
            legendgroup=name,
            showlegend=row == 1,
            hoverinfo="skip",
            row=row,
            col=1,
        )


def _repair_rows(steering: SteeringRecord, model: str) -> dict[str, SteeringPoint]:
    """Conditions of one model and their points: unsteered, the latent, the set."""
    conditions: dict[str, SteeringPoint] = {}
    for name, of_set in (("latent", False), ("set", True)):
        effect = repair(steering, model, of_set=of_set)
        if effect is not None:
            conditions.setdefault("unsteered", effect.unsteered)
            conditions[f"{name} {strength(effect.steered.strength)}"] = effect.steered
    return conditions


def _shares(point: SteeringPoint) -> dict[str, float]:
    """The parts of one bar; what was not measured is counted under anything else."""
    aligned, incoherent = (0.0 if e is None else e.value for e in (point.aligned, point.incoherence))
    rest = max(0.0, 1 - aligned - incoherent - point.misalignment.value)
    return dict(zip(_PARTS, (aligned, rest, incoherent, point.misalignment.value), strict=True))


def _add_ends(
    figure: go.Figure, conditions: Mapping[str, SteeringPoint], *, of: str, is_from_right: bool, row: int
) -> None:
    """The interval of the aligned share at its right end (white), or of the misaligned share at its left end (dark)."""
    shares = {name: getattr(point, of) for name, point in conditions.items() if getattr(point, of) is not None}
    error = bars(list(shares.values()))
    if is_from_right:
        error["array"], error["arrayminus"] = error["arrayminus"], error["array"]
    figure.add_scatter(
        x=[1 - share.value if is_from_right else share.value for share in shares.values()],
        y=list(shares),
        error_x=error | {"color": INK if is_from_right else "white", "width": 4},
        mode="markers",
        marker={"size": 1, "opacity": 0},
        showlegend=False,
        hoverinfo="skip",
        row=row,
        col=1,
    )
