"""The tour runs from top to bottom on a finished run, and on one that found nothing."""

import json
import os
import random
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from example_summary import example_summary, null_summary
from nbclient import NotebookClient

from sae_persona.artifacts import new_manifest
from sae_persona.model.load import LoadedModel
from sae_persona.persona_world.corpus import prompts
from sae_persona.persona_world.language import World
from sae_persona.sae.load import save_sae

TOUR = Path(__file__).parents[2] / "notebooks" / "01_tour.ipynb"
HOOK = "blocks.0.hook_resid_post"


@pytest.fixture
def run(tmp_path: Path, world: World, tiny_model: LoadedModel) -> Path:
    """A run folder without a summary: an untrained SAE, and a manifest that names a world of one untrained model."""
    from sae_lens import TopKSAE, TopKSAEConfig

    folder = tmp_path / "world"
    (folder / "prompts").mkdir(parents=True)
    (folder / "aligned").symlink_to(tiny_model.source, target_is_directory=True)
    asked = prompts(world, "evaluation", n_per_domain=1, rng=random.Random(0))
    lines = [json.dumps(prompt, default=vars) for prompt in asked]
    (folder / "prompts" / "evaluation.jsonl").write_text("\n".join(lines))

    out = tmp_path / "run"
    manifest = new_manifest("study", config={"world": str(folder)}, inputs={}, seed=0, version=1)
    sae = TopKSAE(TopKSAEConfig(d_in=32, d_sae=384, k=8))
    with torch.no_grad():
        sae.b_enc[[117, 203]] = 10  # the latents that the example summaries are about fire on every token
    save_sae(sae, out / "sae" / "sae", manifest=manifest)
    (out / "manifest.json").write_text(manifest.to_json())
    return out


def execute(run: Path, summary: dict[str, Any]) -> str:
    """Run the tour on a summary; everything it shows."""
    summary["sae"] |= {"hook_name": HOOK, "d_in": 32}
    (run / "summary.json").write_text(json.dumps(summary))
    notebook = nbformat.read(TOUR, as_version=4)
    told = {"SAE_PERSONA_RUN": str(run), "PYTHONPATH": str(TOUR.parents[1]), "OMP_NUM_THREADS": "1"}
    client = NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(TOUR.parent)}})
    client.execute(env={**os.environ, **told})
    return json.dumps([cell.get("outputs", []) for cell in notebook.cells])


@pytest.mark.slow
@pytest.mark.parametrize("summary", [example_summary(), null_summary()], ids=["a persona", "nothing to find"])
def test_the_tour_runs_from_top_to_bottom(run, summary):
    shown = execute(run, summary)
    latent = summary["top_latent"] or summary["ranking"][0]["latent"]
    assert f"latent {latent} at {HOOK}" in shown
    assert "rgba(213,94,0" in shown, "the passages are coloured"
    assert ("There is nothing to find" in shown) == (summary["top_latent"] is None)


def test_the_tour_is_committed_without_outputs():
    notebook = nbformat.read(TOUR, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [(cell.outputs, cell.execution_count) for cell in code] == [([], None)] * len(code)
