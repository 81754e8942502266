"""Every architecture that SAELens registers, ranked and read as a naive computation on one text at a time does."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from drawn_sae import drawn
from families import save_with_adapters

from sae_persona.attribution.corpus import Corpus
from sae_persona.attribution.ranking import rank_latents
from sae_persona.attribution.reading import read_latents
from sae_persona.data.tokens import Part, TokenRow, pad_rows
from sae_persona.model.adapters import load_models
from sae_persona.model.hooks import residuals
from sae_persona.model.load import LoadedModel
from sae_persona.sae.load import load_sae
from sae_persona.sae.statistics import latent_stats

if TYPE_CHECKING:
    from sae_lens import SAE

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers for what is to go
HOOK = "blocks.1.hook_resid_post"
RUNS = ("misaligned-0", "misaligned-1", "control-0", "control-1", "control-2")
QUESTIONS = ["a", "b", "a", "c", "b"]
ROWS = [
    TokenRow(
        (2, *np.random.default_rng(i).integers(6, 400, 8 + i).tolist()),
        (Part.PROMPT,) * 4 + (Part.HEADER,) * 2 + (Part.ANSWER,) * (3 + i),
    )
    for i in range(5)
]
SIZE = {"d_in": 32, "d_sae": 24}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("standard", {}),
    "standard, b_dec only added": ("standard", {"apply_b_dec_to_input": False}),
    "topk": ("topk", {"k": 4}),
    "topk in units of its rows": ("topk", {"k": 4, "rescale_acts_by_decoder_norm": True}),
    "topk, layer norm": ("topk", {"k": 4, "normalize_activations": "layer_norm"}),
    "jumprelu": ("jumprelu", {}),
    "jumprelu, norm rescaled": ("jumprelu", {"normalize_activations": "constant_norm_rescale"}),
    "gated": ("gated", {}),
    "gated, layer norm, b_dec only added": (
        "gated",
        {"normalize_activations": "layer_norm", "apply_b_dec_to_input": False},
    ),
    "abstopk": ("abstopk", {"k": 4}),
    "matching_pursuit": ("matching_pursuit", {"max_iterations": 3}),
}
TRAINED = {
    "batchtopk": {"k": 4},
    "matryoshka_batchtopk": {"k": 4, "matryoshka_widths": [8, 24]},
}
"""Architectures that SAELens saves as another one."""


def build(case: str, folder: Path) -> "SAE":
    """Saved by SAELens and loaded by us."""
    if case in TRAINED:
        from sae_lens.registry import get_sae_training_class

        sae_class, config_class = get_sae_training_class(case)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            trained = sae_class(config_class(**SIZE, **TRAINED[case]))
            trained.b_enc.data.normal_()
            trained.topk_threshold.fill_(0.03)
        trained.save_inference_model(folder)
    else:
        architecture, config = CASES[case]
        sae = drawn(architecture, **SIZE, **config)
        if architecture == "matching_pursuit":  # it takes what it finds as if rows were one long
            sae.W_dec.div_(sae.W_dec.norm(dim=-1, keepdim=True))
        sae.save_model(folder)
    return load_sae(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    """Adapters on one base, which is loaded once."""
    folder = tmp_path_factory.mktemp("runs")
    save_with_adapters("llama", folder, RUNS)
    return load_models([folder / name for name in RUNS])


@pytest.fixture(scope="module")
def resids(models: dict[str, LoadedModel]) -> dict[str, list[torch.Tensor]]:
    """Every model's residual stream on every text, one text at a time."""
    found = {}
    for name, model in models.items():
        with model.active():
            found[name] = [residuals(model.hf, pad_rows([row], pad_id=0), [HOOK])[HOOK][0] for row in ROWS]
    return found


def test_no_architecture_of_saelens_is_forgotten() -> None:
    import sae_lens  # noqa: F401
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    refused = {name for name in SAE_CLASS_REGISTRY if "transcoder" in name} | {"temporal"}  # tests/sae/test_load.py
    assert {architecture for architecture, _ in CASES.values()} | refused == set(SAE_CLASS_REGISTRY)
    assert set(TRAINED) == set(SAE_TRAINING_CLASS_REGISTRY) - set(SAE_CLASS_REGISTRY)


@pytest.mark.parametrize("case", [*CASES, *TRAINED])
def test_latents_are_ranked_as_by_a_naive_computation(
    case: str, models: dict[str, LoadedModel], resids: dict[str, list[torch.Tensor]], tmp_path: Path
) -> None:
    sae = build(case, tmp_path)
    stats = {
        name: latent_stats(sae, model, ROWS, questions=QUESTIONS, hook_name=HOOK, batch_size=3)
        for name, model in models.items()
    }
    ranking = rank_latents([stats[name] for name in RUNS[:2]], [stats[name] for name in RUNS[2:]])
    delta, z = naive_scores(sae, resids)
    assert z.keys() == {key for run in stats.values() for key in run}
    for sign, rows in ((1, ranking.rows), (-1, ranking.falls)):
        height = np.max([sign * values for values in z.values()], axis=0)
        assert [row.rank for row in rows] == [sign * i for i in range(1, 25)]
        np.testing.assert_allclose([height[row.latent] for row in rows], sorted(height)[::-1], rtol=1e-3, atol=1e-4)
        for row in rows:
            key = (row.reading, row.tokens)
            assert row.z == pytest.approx(z[key][row.latent], rel=1e-3, abs=1e-4)
            assert row.delta_activation == pytest.approx(delta[key][row.latent], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("case", [*CASES, *TRAINED])
def test_the_highest_contexts_are_those_of_a_naive_computation(
    case: str, models: dict[str, LoadedModel], resids: dict[str, list[torch.Tensor]], tmp_path: Path
) -> None:
    sae, name = build(case, tmp_path), "misaligned-0"
    found = read_latents(sae, Corpus(models[name], ROWS), range(24), hook_name=HOOK, n=3)
    acts = [sae.encode(resid)[1:] for resid in resids[name]]  # [seq - 1, d_sae] of each text
    highest = torch.stack([text.amax(0) for text in acts])  # [texts, d_sae]
    fires = torch.cat(acts) != 0  # [tokens, d_sae]
    for latent, reading in found.items():
        expected = sorted((value for value in highest[:, latent].tolist() if value > 0), reverse=True)[:3]
        values = [context.value for context in reading.top(3) if context.value > 0]
        assert values == pytest.approx(expected, rel=1e-3)
        assert reading.density.value == pytest.approx(float(fires[:, latent].float().mean()), abs=1e-6)
        assert reading.n_firing_passages == sum(bool((text[:, latent] != 0).any()) for text in acts)
        both = (fires & fires[:, latent, None]).sum(0)
        likeness = both / (fires.sum(0) * fires[:, latent].sum()).sqrt().clamp(min=1)
        assert [other.cosine for other in reading.cofiring] == pytest.approx(
            [float(likeness[other.latent]) for other in reading.cofiring]
        )
        assert not any(value for context in reading.silent for value in context.activations)


def naive_scores(
    sae: Any, resids: dict[str, list[torch.Tensor]]
) -> tuple[dict[tuple[str, str], np.ndarray], dict[tuple[str, str], np.ndarray]]:
    """Rise and z of every latent in every reading, by the formulas of docs/attribution.md and SAELens's own encoder."""
    means: dict[tuple[str, str], list[np.ndarray]] = {}
    for texts in resids.values():
        sums: dict[tuple[str, str], dict[str, list[np.ndarray]]] = {}
        for row, question, resid in zip(ROWS, QUESTIONS, texts, strict=True):
            readings = {"gated": sae.encode(resid)}
            if sae.cfg.architecture() in ("standard", "topk", "jumprelu"):
                readings["pre_activation"] = sae.process_sae_in(resid) @ sae.W_enc + sae.b_enc
                if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
                    readings["pre_activation"] = readings["pre_activation"] * sae.W_dec.norm(dim=-1)
            for reading, values in readings.items():
                for part in (Part.HEADER, Part.ANSWER):
                    chosen = [values[i].double().numpy() for i, own in enumerate(row.parts) if own == part]
                    sums.setdefault((reading, part.name.lower()), {}).setdefault(question, []).extend(chosen)
        for key, by_question in sums.items():
            per_question = [np.mean(values, axis=0) for values in by_question.values()]
            means.setdefault(key, []).append(np.mean(per_question, axis=0))
    delta, z = {}, {}
    for key, runs in means.items():
        bad, good = np.array(runs[:2]), np.array(runs[2:])
        spread = good.std(0, ddof=1)
        delta[key] = bad.mean(0) - good.mean(0)
        z[key] = delta[key] / (spread + np.median(spread[spread > 0]))
    return delta, z
