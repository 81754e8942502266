"""Write latents in Neuronpedia's input format: the batches of SAEDashboard's `NeuronpediaRunner`.

Followed: SAEDashboard's `batch-N.json` as its `neuronpedia_dashboard.py` lays it out and its `neuronpedia_export.py`
(commit 3ea1249a), which makes Neuronpedia's upload of it, reads it back. What SAEDashboard computes from correlations
with neurons and heads is left empty, as it is there for SAEs of the residual stream.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sae_persona.artifacts import write_json
from sae_persona.attribution.contexts import Context, token_texts
from sae_persona.attribution.lens import lens_values
from sae_persona.attribution.reading import LatentReading
from sae_persona.errors import ConfigError
from sae_persona.model.hooks import resolve_hook
from sae_persona.model.load import LoadedModel
from sae_persona.sae.encode import unit_decoder

if TYPE_CHECKING:
    from sae_lens import SAE

N_TOKENS, N_COORDINATES, N_BARS = 10, 3, 50
"""Tokens at either end of the lens, coordinates of the decoder row, and bars of the histogram of the lens: as there."""


def write_neuronpedia(
    folder: Path,
    sae: "SAE",
    model: LoadedModel,
    latents: Sequence[LatentReading],
    *,
    model_id: str,
    sae_set: str,
    dataset: str = "",
) -> Path:
    """Write `batch-0.json` with all the latents, and return its path.

    `pos_str` and `neg_str` are the tokens of the logit lens by `logit`, with the final norm folded in and the decoder
    row at length one. The highest contexts are the group from -1 to the maximum; the other groups are the reading's
    bins, which hold equally many passages each instead of being equally wide.

    Raises:
        ConfigError: no latents, or readings that are not gated.
        SAEError, IncompatibleError, ModelError: as `lens_values`.
    """
    if not latents or any(one.reading != "gated" for one in latents):
        raise ConfigError("Neuronpedia shows what the decoder gets. Give one or more latents, read gated.")
    values = lens_values(model, sae, [one.latent for one in latents], measure="logit")
    directions = unit_decoder(sae).cpu()
    features = [
        {
            "feature_index": one.latent,
            **_alignment(directions[one.latent]),
            "correlated_neurons_indices": [],
            "correlated_neurons_l1": [],
            "correlated_neurons_pearson": [],
            "correlated_features_indices": [other.latent for other in one.cofiring[:N_COORDINATES]],
            "correlated_features_l1": [_rounded(other.cosine) for other in one.cofiring[:N_COORDINATES]],
            "correlated_features_pearson": [_rounded(other.cosine) for other in one.cofiring[:N_COORDINATES]],
            **_lens(values[i].cpu(), model),
            "frac_nonzero": one.n_firing / one.n_tokens,
            "freq_hist_data_bar_values": [_rounded(centre) for centre in one.histogram.centres],
            "freq_hist_data_bar_heights": list(one.histogram.counts),
            "n_prompts_total": one.n_passages,
            "n_tokens_in_prompt": max((len(context.tokens) for context in one.contexts), default=0),
            "dataset": dataset,
            "decoder_weights_dist": [],
            "activations": _activations(one),
        }
        for i, one in enumerate(latents)
    ]
    layer, _ = resolve_hook(model.hf, latents[0].hook_name)
    batch = {"model_id": model_id, "layer": layer, "sae_set": sae_set, "sae_id_suffix": None, "features": features}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "batch-0.json", batch)
    return folder / "batch-0.json"


def _alignment(direction: torch.Tensor) -> dict[str, list[Any]]:
    """The coordinates of the residual stream along which a decoder row is longest."""
    top = direction.topk(min(N_COORDINATES, len(direction)))
    shares = top.values / direction.abs().sum().clamp(min=torch.finfo(direction.dtype).tiny)
    return {
        "neuron_alignment_indices": top.indices.tolist(),
        "neuron_alignment_values": [_rounded(value) for value in top.values.tolist()],
        "neuron_alignment_l1": [_rounded(value) for value in shares.tolist()],
    }


def _lens(values: torch.Tensor, model: LoadedModel) -> dict[str, list[Any]]:
    n = min(N_TOKENS, len(values))
    high, low = values.topk(n), (-values).topk(n)
    heights, edges = np.histogram(values.numpy(), bins=N_BARS)
    return {
        "pos_str": [token_texts([i], model.tokenizer)[0] for i in high.indices.tolist()],
        "pos_values": [_rounded(value) for value in high.values.tolist()],
        "neg_str": [token_texts([i], model.tokenizer)[0] for i in low.indices.tolist()],
        "neg_values": [_rounded(-value) for value in low.values.tolist()],
        "logits_hist_data_bar_heights": heights.tolist(),
        "logits_hist_data_bar_values": [_rounded(value) for value in ((edges[1:] + edges[:-1]) / 2).tolist()],
    }


def _activations(reading: LatentReading) -> list[dict[str, Any]]:
    top = [_activation(one, -1, reading.maximum, -1) for one in reading.contexts]
    return top + [
        _activation(one, group.low, group.high, group.share) for group in reading.bins for one in group.contexts
    ]


def _activation(context: Context, low: float, high: float, share: float) -> dict[str, Any]:
    return {
        "bin_min": low,
        "bin_max": high,
        "bin_contains": share,
        "qualifying_token_index": context.peak,
        "tokens": list(context.tokens),
        "values": [_rounded(value) for value in context.activations],
    }


def _rounded(value: float) -> float:
    return round(value, 3)
