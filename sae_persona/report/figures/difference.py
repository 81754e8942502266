"""Every latent of a ranking: how far it moved, and how clearly, with the first of both ends by name."""

import plotly.graph_objects as go

from sae_persona.attribution.ranking import LatentRanking
from sae_persona.report.figures.design import BLUE, GREY, VERMILLION, style

N_NAMED = 10


def difference_figure(ranking: LatentRanking, *, n_named: int = N_NAMED) -> go.Figure:
    """Δ-activation against z of every latent in the reading where it rose most clearly; both ends are named."""
    figure = go.Figure()
    ends = (
        ("all latents", ranking.rows, GREY, 5),
        ("clearest rises", ranking.top(n_named), VERMILLION, 10),
        ("clearest falls", ranking.bottom(n_named), BLUE, 10),
    )
    for name, rows, colour, size in ends:
        is_named = size > 5
        figure.add_scatter(
            x=[row.delta_activation for row in rows],
            y=[row.z for row in rows],
            mode="markers+text" if is_named else "markers",
            name=name,
            text=[str(row.latent) for row in rows] if is_named else None,
            textposition="top center",
            marker={"color": colour, "size": size, "opacity": 1.0 if is_named else 0.5},
            customdata=[(row.rank, row.latent, row.reading, row.tokens, row.low, row.high) for row in rows],
            hovertemplate=(
                "latent %{customdata[1]}, rank %{customdata[0]} (%{customdata[2]}, %{customdata[3]})<br>"
                "%{x:.4g} [%{customdata[4]:.4g}, %{customdata[5]:.4g}], z %{y:.2f}<extra></extra>"
            ),
        )
    spread = "control spreads" if ranking.n_controls else "its own spread over questions"
    figure.update_layout(xaxis_title="rise of the mean activation", yaxis_title=f"z: the same in {spread}")
    first = ranking.rows[0]
    title = f"Latent {first.latent} rose most clearly: by {first.delta_activation:.3g}; {ranking.note}"
    return style(figure, title=title, height=560)
