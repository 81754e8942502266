"""The page of a causal screen: one HTML file that needs no network."""

from collections.abc import Sequence

from sae_persona.artifacts import Manifest
from sae_persona.report.figures.screen import screen_figure
from sae_persona.report.page import drawing, render_page
from sae_persona.report.words import counted, listed, points
from sae_persona.steering.record import MIN_EFFECT, ScreenedLatent, ScreenFindings


def render_screen(rows: Sequence[ScreenedLatent], findings: ScreenFindings, *, manifest: Manifest) -> str:
    """The page as text."""
    return render_page(
        "screen.html.j2",
        filters={"dose": lambda strength: f"{strength:+.3g}", "points": points},
        title=f"Causal screen of {counted(len(rows), 'latent')}",
        sentences=sentences(findings),
        rows=rows,
        responses=tuple(findings.best_control),
        drawing=drawing("effects", screen_figure(rows, findings)),
        manifest=manifest,
    )


def sentences(findings: ScreenFindings) -> list[str]:
    """What the screen comes to, a sentence each."""
    told = [f"Drivers, which raise misaligned answers when they are added: {_named(findings.drivers)}."]
    if "protected" in findings.best_control:
        told.append(
            "Protectors, which bring aligned answers back when they are added to misaligned models: "
            f"{_named(findings.protectors)}."
        )
    least = f"{100 * MIN_EFFECT:g} points"
    if findings.n_controls:
        told.append(f"What counts is more than any of {counted(findings.n_controls, 'control')} does, and {least}.")
    else:
        told.append(f"No controls were drawn, so nothing says what any direction of this length does; {least} count.")
    return [*told, *findings.notes]


def _named(latents: Sequence[int]) -> str:
    return listed([str(latent) for latent in latents]) or "none"
