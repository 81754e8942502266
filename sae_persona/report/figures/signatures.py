"""Which latents each fine-tune raised, and which fine-tunes are alike: two heat maps with like beside like."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from sae_persona.attribution.signatures import Signatures
from sae_persona.report.figures.design import BLUE, INK, VERMILLION, on_two_lines, style

N_LATENTS = 40
_PLAIN = "rgba(128,128,128,0.06)"
_SCALE = [[0, BLUE], [0.5, _PLAIN], [1, VERMILLION]]


def signatures_figure(found: Signatures, *, n: int = N_LATENTS) -> go.Figure:
    """Rise of the `n` latents in which the runs differ most, by run, as a share of the latent's own largest move."""
    runs = found.order
    latents = found.top(n)
    rises = found.of(runs).delta[:, [found.latents.index(latent) for latent in latents]].T  # [latents, runs]
    most = np.abs(rises).max(1, keepdims=True)
    shares = np.divide(rises, most, out=np.zeros_like(rises), where=most > 0)
    # The latents that the first runs raise come first, so that blocks of alike runs show as blocks.
    order = np.lexsort((-most[:, 0], np.abs(shares).argmax(1)))
    figure = go.Figure()
    figure.add_heatmap(
        z=shares[order],
        x=[_named(found, run) for run in runs],
        y=[str(latents[i]) for i in order],
        customdata=rises[order],
        zmin=-1,
        zmax=1,
        colorscale=_SCALE,
        colorbar={"title": {"text": "of its<br>largest move"}, "tickformat": ".0%", "thickness": 12},
        xgap=1,
        ygap=1,
        hovertemplate="latent %{y}, %{x}: %{customdata:+.4g} (%{z:+.0%} of its largest)<extra></extra>",
    )
    figure.update_xaxes(showgrid=False, tickangle=-40, type="category")
    figure.update_yaxes(showgrid=False, autorange="reversed", type="category", title_text="latent", dtick=1)
    what = f"{found.reading} on {found.tokens} tokens, {len(found.question_ids)} questions"
    title = f"Rise over the start of the {len(latents)} latents in which {len(runs)} fine-tunes differ most ({what})"
    return style(figure, title=title, height=190 + 17 * len(latents))


def likeness_figure(found: Signatures, groups: Sequence[Sequence[str]]) -> go.Figure:
    """Cosine of every two fine-tunes' signatures over all latents; lines part the groups."""
    runs = found.order
    cosines = found.of(runs).cosines
    names = [_named(found, run) for run in runs]
    figure = go.Figure()
    figure.add_heatmap(
        z=cosines,
        x=names,
        y=names,
        zmin=-1,
        zmax=1,
        colorscale=_SCALE,
        showscale=False,
        texttemplate="%{z:.2f}",
        textfont={"color": INK},
        hovertemplate="%{y} and %{x}: cosine %{z:.3f}<extra></extra>",
    )
    group_of = {run: i for i, group in enumerate(groups) for run in group}
    for i in range(1, len(runs)):
        if group_of[runs[i]] != group_of[runs[i - 1]]:
            line = {"color": INK, "width": 2}
            figure.add_vline(x=i - 0.5, line=line)
            figure.add_hline(y=i - 0.5, line=line)
    figure.update_xaxes(showgrid=False, tickangle=-40, type="category")
    figure.update_yaxes(showgrid=False, autorange="reversed", type="category")
    title = f"Cosine of the signatures of {len(runs)} fine-tunes over {len(found.latents)} latents"
    return style(figure, title=title, height=190 + 34 * len(runs))


def _named(found: Signatures, run: str) -> str:
    """A run for an axis; controls say so."""
    return f"{on_two_lines(run)}{' (control)' if run in found.controls else ''}"
