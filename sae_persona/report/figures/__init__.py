"""One function per figure of a report, each from a summary's records to a plotly figure."""

from sae_persona.report.figures.difference import difference_figure
from sae_persona.report.figures.evaluation import shares_figure
from sae_persona.report.figures.models import fve_figure, labels_figure, models_figure, ranking_figure
from sae_persona.report.figures.signatures import likeness_figure, signatures_figure
from sae_persona.report.figures.steering import dose_response_figure, repair_figure
from sae_persona.report.figures.watching import early_warning_figure, realign_figure

__all__ = [
    "difference_figure",
    "dose_response_figure",
    "early_warning_figure",
    "fve_figure",
    "labels_figure",
    "likeness_figure",
    "models_figure",
    "ranking_figure",
    "realign_figure",
    "repair_figure",
    "shares_figure",
    "signatures_figure",
]
