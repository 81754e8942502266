"""Put the records of all stages into `summary.json`, schema 1. What did not run is left out; nothing is filled in."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sae_persona.attribution.lens import lens_values
from sae_persona.model.load import LoadedModel
from sae_persona.study.config import StudyConfig

if TYPE_CHECKING:
    from sae_lens import SAE

SCHEMA = 1
N_RANKED = 50
"""Rows of the ranking that the summary shows."""


def top_tokens(model: LoadedModel, sae: "SAE", latents: list[int], *, n: int = 8) -> dict[str, list[str]]:
    """The tokens that each latent's direction promotes most, by cosine through the final norm (`lens_values`)."""
    nearest = lens_values(model, sae, latents).topk(min(n, len(model.tokenizer)), dim=-1).indices
    named = [[str(model.tokenizer.convert_ids_to_tokens(i)) for i in ids] for ids in nearest.tolist()]
    return dict(zip(map(str, latents), named, strict=True))


def summarise(config: StudyConfig, records: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, Any]:
    """The summary of the stages that ran."""
    summary: dict[str, Any] = {
        "schema": SCHEMA,
        "study": config.study,
        "seed": config.seed,
        "models": records["models"],
        "sae": _sae(records),
        "ranking": _ranking(records),
        "shortlist": records["rank"]["shortlist"],
        "top_latent": None,
        "top_set": [],
    }
    choice = records["screen"]
    if choice["top"]:
        summary["top_latent"] = choice["top"]["latents"][0]
        summary["top_set"] = list((choice["top_set"] or choice["top"])["latents"])
    if choice["finalists"]:
        summary["screen"] = {
            "window": choice["window"],
            "best_control": choice["best_control"],
            "best_latent": max(one["effect"] for one in choice["finalists"]),
        }
    for stage, key in (("steer", "steering"), ("monitor", "monitor"), ("realign", "realign"), ("truth", "truth")):
        if stage in records:
            summary[key] = records[stage]
    summary["seconds"] = dict(seconds)
    return summary


def _sae(records: Mapping[str, Any]) -> dict[str, Any]:
    metrics = records["sae_metrics"]["metrics"]
    return {
        **records["sae"],
        **{key: metrics[key] for key in ("l0", "fve", "ce_recovered", "dead_fraction")},
        "fve_by_model": records["sae_metrics"]["fve_by_model"],
    }


def _ranking(records: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The first rows, with the effect each latent had in the screen (at the window the screen chose)."""
    choice = records["screen"]
    looks = [*choice["first_look"].get(choice.get("window"), []), *choice["finalists"]]
    effects = {one["latents"][0]: one["effect"] for one in looks}
    tokens = records["rank"]["top_tokens"]
    return [
        {
            "rank": row["rank"],
            "latent": row["latent"],
            "reading": row["reading"],
            "tokens": row["tokens"],
            "delta_activation": row["delta_activation"],
            "low": row["low"],
            "high": row["high"],
            "z": row["z"],
            "q_value": row["q_value"],
            "delta_attribution": None,
            "causal_effect": effects.get(row["latent"]),
            "top_tokens": tokens.get(str(row["latent"]), []),
        }
        for row in records["rank"]["rows"][:N_RANKED]
    ]
