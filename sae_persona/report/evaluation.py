"""The page of an evaluation: shares by category, several models beside each other, how far the judges agree."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from sae_persona.artifacts import Manifest
from sae_persona.errors import DataError
from sae_persona.evaluation.compare import Agreement
from sae_persona.evaluation.evaluation import Evaluation
from sae_persona.report import figures, words
from sae_persona.report.figures.evaluation import ALL
from sae_persona.report.page import drawing, first_of_every_label, render_page
from sae_persona.types import LABELS, Judgement


def evaluation_page(
    evaluations: Mapping[str, Evaluation], *, answers: Sequence[Judgement] = (), manifest: Manifest | None = None
) -> str:
    """One HTML page that needs no network, about the first of the evaluations, the others beside it, by name.

    `answers` are the first one's, of which a few are shown; `manifest` is its folder's.

    Raises:
        DataError: there is no evaluation.
    """
    if not evaluations:
        raise DataError("a page needs at least one evaluation, and there is none.")
    name, first = next(iter(evaluations.items()))
    drawn: dict[str, go.Figure] = {
        "misalignment": figures.shares_figure(evaluations, "misalignment"),
        "incoherence": figures.shares_figure(evaluations, "incoherence"),
        "labels": figures.labels_figure(_labels(evaluations)),
    }
    return render_page(
        "evaluation.html.j2",
        filters={"kappa": words.with_kappa, "point_interval": words.points_with_interval},
        name=name,
        evaluation=first,
        evaluations=evaluations,
        categories=[*dict.fromkeys(category for one in evaluations.values() for category in one.by_category)],
        agreements=_agreements(first),
        labels=[label for label in LABELS if first.agreement and _was_given(label, first.agreement)],
        drawings={name: drawing(name, figure) for name, figure in drawn.items()},
        answers=first_of_every_label(answers),
        manifest=manifest,
    )


def _labels(evaluations: Mapping[str, Evaluation]) -> dict[str, dict[str, Mapping[str, float]]]:
    """Shares of labels by category, then by model."""
    shares: dict[str, dict[str, Mapping[str, float]]] = {}
    for name, evaluation in evaluations.items():
        for category, scores in {**evaluation.by_category, ALL: evaluation.overall}.items():
            shares.setdefault(category, {})[name] = {str(label): share for label, share in scores.labels.items()}
    return shares


def _agreements(evaluation: Evaluation) -> dict[str, Agreement]:
    """How far two judges agree, by category; nothing without a second judge."""
    if evaluation.agreement is None:
        return {}
    return {**evaluation.agreement_by_category, ALL: evaluation.agreement}


def _was_given(label: str, agreement: Agreement) -> bool:
    return label in agreement.labels or any(label in row for row in agreement.labels.values())
