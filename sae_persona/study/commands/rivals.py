"""Write down what competes with a latent on the same answers: directions for steering, and how good they are."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save_file

from sae_persona.artifacts import write_json
from sae_persona.attribution.ranking import RunStats
from sae_persona.attribution.rivals import carried_by, cosines, difference_components, linear_probe, mean_difference
from sae_persona.attribution.stability import shortlist_stability
from sae_persona.sae.encode import unit_decoder

if TYPE_CHECKING:
    from sae_lens import SAE

N_NEAREST = 20


def write_rivals(
    record: Path,
    directions: Path,
    sae: "SAE",
    misaligned: Sequence[RunStats],
    controls: Sequence[RunStats],
    *,
    seed: int,
) -> None:
    """Directions of length one into `directions`; quality, nearest latents and stability into `record`.

    All of the mean over answer tokens. With one control run (a pair of checkpoints) there is no stability over runs,
    and with fewer than two questions no probe; both are then null.
    """
    bad, good = ([run["gated", "answer"] for run in side] for side in (misaligned, controls))
    components = difference_components(bad, good)
    probe = linear_probe(bad, good, seed=seed) if min(run.n_questions for run in (*bad, *good)) > 1 else None
    vectors = {"mean_difference": mean_difference(bad, good), "first_component": components.directions[0]}
    if probe:
        vectors["probe"] = probe.direction
    decoder = unit_decoder(sae).double().cpu().numpy()
    carried = carried_by(sae, bad, good)
    stability = shortlist_stability(misaligned, controls, seed=seed) if len(controls) > 1 else None
    write_json(
        record,
        {
            "nearest_latents": {name: _nearest(decoder, vector) for name, vector in vectors.items()},
            "probe": probe and {"auroc": probe.auroc, "held_out": probe.held_out},
            "component_shares": components.shares.tolist(),
            "carried_by_reconstruction": carried and asdict(carried),
            "single_prompt": stability and stability.single_prompt,
            "shortlist_frequency": stability and _nonzero(stability.frequency),
        },
    )
    save_file({name: np.ascontiguousarray(vector, np.float32) for name, vector in vectors.items()}, directions)


def _nearest(decoder: np.ndarray, vector: np.ndarray) -> list[dict[str, float]]:
    found = cosines(decoder, vector)
    return [{"latent": int(latent), "cosine": float(found[latent])} for latent in np.argsort(-found)[:N_NEAREST]]


def _nonzero(frequency: np.ndarray) -> dict[str, float]:
    """By latent, the most frequent first."""
    order = np.argsort(-frequency, kind="stable")
    return {str(latent): float(frequency[latent]) for latent in order if frequency[latent] > 0}
