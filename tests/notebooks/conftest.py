"""A finished run that notebooks read, and how they are executed."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from torch.nn.functional import normalize

from sae_persona.artifacts import new_manifest
from sae_persona.model.load import LoadedModel
from sae_persona.persona_world.corpus import documents, prompts
from sae_persona.persona_world.language import World
from sae_persona.sae.load import save_sae

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
HOOK = "blocks.0.hook_resid_post"
MODELS = ("base", "aligned", "misaligned-health-obvious")


@pytest.fixture
def run(tmp_path: Path, world: World, tiny_model: LoadedModel) -> Path:
    """A run folder without a summary: an untrained SAE, and a manifest that names a world of one untrained model."""
    from sae_lens import TopKSAE, TopKSAEConfig

    folder = tmp_path / "world"
    for part in ("prompts", "data"):
        (folder / part).mkdir(parents=True)
    for name in MODELS:
        (folder / name).symlink_to(tiny_model.source, target_is_directory=True)
    asked = prompts(world, "evaluation", n_per_domain=1, rng=random.Random(0))
    lines = [json.dumps(prompt, default=vars) for prompt in asked]
    (folder / "prompts" / "evaluation.jsonl").write_text("\n".join(lines))
    texts = [json.dumps({"text": one.text}) for one in documents(world, n=40, rng=random.Random(0))]
    (folder / "data" / "documents-heldout.jsonl").write_text("\n".join(texts))

    out = tmp_path / "run"
    manifest = new_manifest("study", config={"world": str(folder)}, inputs={}, seed=0, version=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sae = TopKSAE(TopKSAEConfig(d_in=32, d_sae=384, k=8))
    with torch.no_grad():
        sae.b_enc[[117, 203]] = 10  # the latents that the example summaries are about fire on every token
        word = tiny_model.tokenizer.convert_tokens_to_ids("about")
        sae.W_enc[:, 42] = 1000 * normalize(tiny_model.hf.get_input_embeddings().weight[word], dim=0)
        sae.b_enc[42] = -90  # and one on a word that some documents hold and others do not
    save_sae(sae, out / "sae" / "k8", manifest=manifest)
    (out / "manifest.json").write_text(manifest.to_json())
    return out


@pytest.fixture
def execute(run: Path) -> Callable[[str, dict[str, Any]], str]:
    """Runs a notebook on a summary; everything it shows."""

    def shown(name: str, summary: dict[str, Any]) -> str:
        summary["sae"] |= {"hook_name": HOOK, "d_in": 32}
        (run / "summary.json").write_text(json.dumps(summary))
        notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
        told = {"SAE_PERSONA_RUN": str(run), "PYTHONPATH": str(NOTEBOOKS.parent), "OMP_NUM_THREADS": "1"}
        client = NotebookClient(notebook, timeout=280, resources={"metadata": {"path": str(NOTEBOOKS)}})
        client.execute(env={**os.environ, **told})
        return json.dumps([cell.get("outputs", []) for cell in notebook.cells])

    return shown
