"""A run's report: one HTML file that needs no network, made from `summary.json` and the records beside it."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import plotly.graph_objects as go
from markupsafe import Markup

from sae_persona.artifacts import Manifest, read_manifest, write_file
from sae_persona.report import figures, words
from sae_persona.report.arms import Effect, baseline, control_rises, induction
from sae_persona.report.headline import headline
from sae_persona.report.notebook import chosen_as, show_contexts
from sae_persona.report.page import Drawing, drawing, first_of_every_label, render_page
from sae_persona.report.records import Answer, Context, Records, read_records
from sae_persona.report.summary import SUMMARY, Summary, read_summary
from sae_persona.report.verdicts import found_nothing, untested, verdicts

REPORT = "report.html"
N_LATENTS = 20
"""How many latents a report shows."""


def write_report(folder: Path | str) -> Path:
    """Write `report.html` beside the `summary.json` of a run folder; the page's path.

    Raises:
        ArtifactError: the folder holds no readable summary, or records or a manifest that cannot be read.
    """
    folder = Path(folder)
    page = render(read_summary(folder / SUMMARY), manifest=read_manifest(folder), records=read_records(folder))
    with write_file(folder / REPORT) as partial:
        partial.write_text(page, encoding="utf-8")
    return folder / REPORT


def render(summary: Summary, *, manifest: Manifest | None = None, records: Records | None = None) -> str:
    """The page as text. What the summary, the manifest and the records lack is said to be missing, never filled in."""
    records = records or Records()
    return render_page(
        "template.html.j2",
        filters={"strength": words.strength, "points": words.points, "median": median, "passages": _contexts},
        summary=summary,
        models=summary.models_of(),
        headline=headline(summary),
        verdicts=[verdict for verdict in verdicts(summary) if verdict.was_tested],
        untested=untested(verdicts(summary)),
        found_nothing=found_nothing(summary),
        latents=[(row, chosen_as(summary, row.latent)) for row in summary.ranking[:N_LATENTS]],
        effects=_effects(summary),
        controls=_controls(summary),
        drawings=_drawings(summary),
        manifest=manifest,
        contexts=records.contexts,
        answers=_examples(summary, records),
    )


def _drawings(summary: Summary) -> dict[str, Drawing]:
    """Every figure that the summary has the records for, by name."""
    drawn: dict[str, go.Figure] = {}
    if summary.models:
        drawn["models"] = figures.models_figure(summary.models_of())
    if any(model.labels for model in summary.models.values()):
        drawn["labels"] = figures.labels_figure({name: model.labels for name, model in summary.models_of().items()})
    if summary.sae is not None and summary.sae.fve_by_model:
        drawn["fve"] = figures.fve_figure(summary.sae)
    if summary.ranking:
        drawn["ranking"] = figures.ranking_figure(summary.ranking, top_latent=summary.top_latent)
    steering = summary.steering
    if steering is not None and summary.top_latent is not None and steering.induce:
        drawn["dose_response"] = figures.dose_response_figure(
            steering, top_latent=summary.top_latent, top_set=summary.top_set
        )
    if steering is not None and any([*steering.repair.values(), *steering.repair_set.values()]):
        drawn["repair"] = figures.repair_figure(steering)
    if summary.monitor is not None and summary.monitor.mixture:
        drawn["early_warning"] = figures.early_warning_figure(summary.monitor)
    if summary.realign is not None and (summary.realign.in_domain or summary.realign.out_of_domain):
        drawn["realign"] = figures.realign_figure(summary.realign)
    return {name: drawing(name, figure) for name, figure in drawn.items()}


def _effects(summary: Summary) -> dict[str, Effect]:
    """The arms that should do something to the aligned model, at the strength they are reported at."""
    if summary.steering is None:
        return {}
    effects = {
        f"latent {summary.top_latent}": induction(summary.steering, of_set=False),
        f"set {', '.join(map(str, summary.top_set))}": induction(summary.steering, of_set=True),
        "mean difference": baseline(summary.steering, "mean_difference"),
        "linear probe": baseline(summary.steering, "linear_probe"),
        f"latent {summary.top_latent} at the last hook": baseline(summary.steering, "last_hook"),
    }
    return {name: effect for name, effect in effects.items() if effect is not None}


def _controls(summary: Summary) -> dict[str, list[float]]:
    """How far every draw of the random arms moves misalignment, either way."""
    if summary.steering is None:
        return {}
    controls = summary.steering.controls
    rises = {
        "random latents": control_rises(controls.random_latents),
        "random directions": control_rises(controls.random_directions),
    }
    return {name: [abs(rise) for rise in arm] for name, arm in rises.items() if arm}


def _examples(summary: Summary, records: Records) -> dict[str, list[Answer]]:
    """A few answers of every label that a model was given, by model."""
    return {
        model: first_of_every_label(records.answers[model]) for model in summary.models_of() if model in records.answers
    }


def _contexts(contexts: Sequence[Context]) -> Markup:
    return Markup(show_contexts([(context.tokens, context.activations) for context in contexts]).html)  # noqa: S704 - escaped
