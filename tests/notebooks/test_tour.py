"""The tour runs from top to bottom on a finished run, and on one that found nothing."""

from pathlib import Path

import nbformat
import pytest
from example_summary import example_summary, null_summary

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@pytest.mark.slow
@pytest.mark.parametrize("summary", [example_summary(), null_summary()], ids=["a persona", "nothing to find"])
def test_the_tour_runs_from_top_to_bottom(execute, summary):
    shown = execute("01_tour.ipynb", summary)
    latent = summary["top_latent"] or summary["ranking"][0]["latent"]
    assert f"latent {latent} at {summary['sae']['hook_name']}" in shown
    assert "rgba(213,94,0" in shown, "the passages are coloured"
    assert ("There is nothing to find" in shown) == (summary["top_latent"] is None)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [(cell.outputs, cell.execution_count) for cell in code] == [([], None)] * len(code)
