"""A causal screen: what every latent induces, and what it brings back in misaligned models."""

from collections.abc import Sequence

import plotly.graph_objects as go

from sae_persona.report.figures.design import BLUE, GREEN, GREY, VERMILLION, style
from sae_persona.report.words import counted
from sae_persona.steering.record import ScreenedLatent, ScreenFindings

_SERIES = {
    "induced": ("added", "misaligned", VERMILLION),
    "repaired": ("subtracted from misaligned models", "aligned", BLUE),
    "protected": ("added to misaligned models", "aligned", GREEN),
}
"""What is done, which answers it should raise, and its colour."""


def screen_figure(rows: Sequence[ScreenedLatent], findings: ScreenFindings) -> go.Figure:
    """Effects of every latent in the order of the screen; dotted lines are what the best control reaches."""
    figure = go.Figure()
    names = [str(row.latent) for row in rows]
    for i, (response, (done, raised, colour)) in enumerate(_SERIES.items()):
        if response not in findings.best_control:
            continue
        figure.add_bar(
            x=names,
            y=[getattr(row, response) for row in rows],
            name=f"{done}: rise of {raised} answers",
            legendrank=2 * i,
            marker_color=colour,
            customdata=[(row.role, getattr(row, f"{response}_at"), row.place or "none") for row in rows],
            hovertemplate="latent %{x} (%{customdata[0]}), place %{customdata[2]}: %{y:+.1%} at %{customdata[1]:+.3g}"
            "<extra></extra>",
        )
        if findings.n_controls:
            figure.add_hline(
                y=findings.best_control[response],
                line={"color": colour, "dash": "dot", "width": 2},
                name=f"{done}: best of {counted(findings.n_controls, 'control')}",
                showlegend=True,
                legendrank=2 * i + 1,
            )
    figure.add_hline(y=0, line={"color": GREY, "width": 1})
    figure.update_layout(barmode="group", legend={"orientation": "v", "y": -0.17})
    figure.update_xaxes(type="category", title_text="latent, strongest driver first")
    figure.update_yaxes(tickformat="+.0%", title_text="change of share")
    drivers, protectors = counted(len(findings.drivers), "driver"), counted(len(findings.protectors), "protector")
    beyond = f"beyond all {findings.n_controls} controls" if findings.n_controls else "with no control beside them"
    return style(figure, title=f"{drivers} and {protectors} among {counted(len(rows), 'latent')}, {beyond}", height=560)
