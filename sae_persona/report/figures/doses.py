"""Doses of the command line: what every arm does at every strength, beside the controls, and what the answers are."""

from collections.abc import Callable, Mapping, Sequence
from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sae_persona.report.figures.design import (
    AMBER,
    BAND,
    BLUE,
    GREEN,
    LABEL_COLOURS,
    PERCENT_AXIS,
    PURPLE,
    SECOND_BAND,
    SKY,
    VERMILLION,
    style,
)
from sae_persona.report.figures.steering import Read, add_band, add_line
from sae_persona.report.summary import SteeringPoint
from sae_persona.report.words import points, strength
from sae_persona.steering.directions import DirectionKind
from sae_persona.steering.price import Price
from sae_persona.steering.record import CONTROLS, ArmFinding, SteeredDose
from sae_persona.types import LABELS, Label

Arms = Mapping[tuple[DirectionKind, str], Sequence[SteeredDose]]
"""Doses by arm: its kind and name."""
NAMES: Mapping[DirectionKind, str] = {
    "latent": "latent",
    "latent_set": "latents",
    "random_latent": "random latents",
    "random_direction": "random directions",
}
"""What a name is put behind; the other kinds are named by their directions."""
_BANDS = dict(zip(CONTROLS, (BAND, SECOND_BAND), strict=True))
_COLOURS = (VERMILLION, BLUE, GREEN, PURPLE, AMBER, SKY)
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
_PANELS: dict[str, Read] = {
    "misaligned": lambda point: point.misalignment,
    "aligned": lambda point: point.aligned,
    "incoherent": lambda point: point.incoherence,
    "misaligned, other domains": lambda point: point.other_domains,
}
_PRICES: dict[str, Callable[[Price], float]] = {
    "rise of the cross-entropy": lambda price: price.added,
    "KL divergence from the unsteered model": lambda price: price.kl,
}
MOST_ARMS = 12
"""Arms whose labels are drawn, each in a panel of its own."""


def by_arm(doses: Sequence[SteeredDose]) -> dict[tuple[DirectionKind, str], list[SteeredDose]]:
    """Doses by arm, in the order given."""
    arms: dict[tuple[DirectionKind, str], list[SteeredDose]] = {}
    for dose in doses:
        arms.setdefault((dose.arm, dose.name), []).append(dose)
    return arms


def arm_name(kind: DirectionKind, name: str) -> str:
    """How pages and axes call an arm."""
    return f"{NAMES[kind]} {name}" if kind in NAMES else name


def response_figure(arms: Arms, *, unit: str, first: ArmFinding) -> go.Figure:
    """Shares of all answers against strength for every arm; bands reach over all random draws of a kind."""
    panels = {name: read for name, read in _PANELS.items() if any(read(_point(dose)) for dose in _all(arms))}
    figure = make_subplots(
        rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.18 / len(panels), subplot_titles=list(panels)
    )
    tried = {arm: doses for arm, doses in arms.items() if arm[0] not in CONTROLS}
    for row, read in enumerate(panels.values(), start=1):
        for kind, colour in _BANDS.items():
            draws = [doses for (of, _), doses in arms.items() if of == kind]
            band = [_point(dose, draw) for draw, doses in enumerate(draws) for dose in _drawn(doses)]
            add_band(figure, band, read, name=NAMES[kind], colour=colour, row=row)
        for i, ((kind, name), doses) in enumerate(tried.items()):
            add_line(
                figure,
                [_point(dose) for dose in _drawn(doses)],
                read,
                name=escape(arm_name(kind, name)),
                colour=_COLOURS[i % len(_COLOURS)],
                dash=_DASHES[i % len(_DASHES)],
                row=row,
            )
    figure.update_yaxes(**PERCENT_AXIS)
    figure.update_xaxes(title_text=f"strength, {escape(unit)}", row=len(panels), col=1)
    figure.update_layout(legend_y=-0.09)
    name = arm_name(first.arm, first.name)
    found = (
        f"no dose of {name} leaves the model coherent"
        if first.strength is None
        else f"{name} moves misaligned answers {points(first.change.value)} at {strength(first.strength)}"
    )
    return style(figure, title=f"Dose and response: {found}", height=120 + 210 * len(panels))


def price_figure(arms: Arms, *, unit: str) -> go.Figure:
    """Cross-entropy and KL on benign text against strength; bands reach over all random draws of a kind."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.09, subplot_titles=list(_PRICES))
    tried = {arm: doses for arm, doses in arms.items() if arm[0] not in CONTROLS}
    for row, read in enumerate(_PRICES.values(), start=1):
        for kind, colour in _BANDS.items():
            draws = [_priced(doses, read) for (of, _), doses in arms.items() if of == kind]
            strengths = sorted({x for draw in draws for x in draw})
            at = [[draw[x] for draw in draws if x in draw] for x in strengths]
            if draws:
                figure.add_scatter(
                    x=[*strengths, *reversed(strengths)],
                    y=[*map(max, at), *map(min, reversed(at))],
                    mode="lines",
                    fill="toself",
                    fillcolor=colour,
                    line={"color": colour, "width": 1},
                    name=f"{len(draws)} {NAMES[kind]}",
                    legendgroup=kind,
                    showlegend=row == 1,
                    hoverinfo="skip",
                    row=row,
                    col=1,
                )
        for i, ((kind, name), doses) in enumerate(tried.items()):
            prices, called = _priced(doses, read), escape(arm_name(kind, name))
            figure.add_scatter(
                x=sorted(prices),
                y=[prices[x] for x in sorted(prices)],
                mode="lines+markers",
                name=called,
                legendgroup=called,
                showlegend=row == 1,
                line={"color": _COLOURS[i % len(_COLOURS)], "dash": _DASHES[i % len(_DASHES)], "width": 2},
                hovertemplate="%{y:.3f} nats at %{x:+g}<extra>" + called + "</extra>",
                row=row,
                col=1,
            )
    figure.update_xaxes(title_text=f"strength, {escape(unit)}", row=2, col=1)
    figure.update_yaxes(title_text="nats per token")
    figure.update_layout(legend_y=-0.12)
    n_tokens = max(dose.price.n_tokens for dose in _all(arms) if dose.price)
    return style(figure, title=f"What the doses cost on {n_tokens:,} tokens of benign text", height=520)


def _priced(doses: Sequence[SteeredDose], read: Callable[[Price], float]) -> dict[float, float]:
    """Of the doses of a curve that have a price, by strength in order."""
    return {dose.strength: read(dose.price) for dose in _drawn(doses) if dose.price}


def answers_figure(arms: Arms, *, unit: str) -> go.Figure:
    """What the answers are at every dose of an arm: shares of all labels, which sum to one."""
    tried = [(arm, doses) for arm, doses in arms.items() if arm[0] not in CONTROLS][:MOST_ARMS]
    figure = make_subplots(
        rows=len(tried),
        cols=1,
        vertical_spacing=min(0.12, 0.3 / len(tried)),
        subplot_titles=[escape(arm_name(*arm)) for arm, _ in tried],
    )
    given: list[Label] = [
        label for label in LABELS if any(label in dose.labels for _, doses in tried for dose in doses)
    ]
    for row, (_, doses) in enumerate(tried, start=1):
        names = ["unsteered" if dose.is_unsteered else strength(dose.strength) for dose in doses]
        for label in given:
            shares = [dose.labels.get(label) for dose in doses]
            figure.add_bar(
                x=names,
                y=[share.value if share else 0.0 for share in shares],
                customdata=[(share.low, share.high) if share else (0.0, 0.0) for share in shares],
                name=label.replace("_", " "),
                legendgroup=label,
                showlegend=row == 1,
                marker_color=LABEL_COLOURS[label],
                hovertemplate="%{x}: %{y:.1%} [%{customdata[0]:.1%}, %{customdata[1]:.1%}]<extra>"
                "%{fullData.name}</extra>",
                row=row,
                col=1,
            )
    figure.update_layout(
        barmode="stack", bargap=0.3, legend={"traceorder": "normal"}, legend_y=-0.13 / len(tried) ** 0.5
    )
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_xaxes(title_text=f"strength, {escape(unit)}", row=len(tried), col=1)
    figure.update_yaxes(range=[0, 1], tickformat=".0%")
    return style(figure, title="What the answers are at every dose", height=140 + 210 * len(tried))


def _all(arms: Arms) -> list[SteeredDose]:
    return [dose for doses in arms.values() for dose in doses]


def _drawn(doses: Sequence[SteeredDose]) -> list[SteeredDose]:
    """The doses of a curve; a clamped arm's begins with another 0 than the unsteered model's."""
    clamped = any(dose.edit == "clamp" for dose in doses)
    return [dose for dose in doses if not (clamped and dose.is_unsteered)]


def _point(dose: SteeredDose, draw: int | None = None) -> SteeringPoint:
    return SteeringPoint(
        strength=dose.strength,
        draw=draw,
        misalignment=dose.misalignment,
        incoherence=dose.incoherence,
        aligned=dose.aligned,
        other_domains=dose.other_domains,
    )
