"""Put the records of all stages into `summary.json`, schema 1. What did not run is left out; nothing is filled in."""

from collections.abc import Mapping, Sequence
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


def summarise(
    config: StudyConfig, records: Mapping[str, Any], seconds: Mapping[str, float], tokens: Mapping[str, list[str]]
) -> dict[str, Any]:
    """The summary of the stages that ran; `tokens` are the `top_tokens` of the latents it shows."""
    ranked = records["rank"][records["audition"]["sae"]]
    summary: dict[str, Any] = {
        "schema": SCHEMA,
        "study": config.study,
        "seed": config.seed,
        "models": records["models"],
        "sae": _sae(records),
        "ranking": _ranking(ranked["rows"], records, tokens),
        "shortlist": ranked["shortlist"],
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
    """The chosen dictionary, with the audition of all."""
    audition = records["audition"]
    name = audition["sae"]
    facts = {key: value for key, value in records["sae"][name].items() if key != "metrics"}
    metrics = records["sae"][name]["metrics"]
    return {
        "name": name,
        **facts,
        **{key: metrics[key] for key in ("l0", "fve", "ce_recovered", "dead_fraction")},
        "fve_by_model": {"base": metrics["fve"], **records["sae_metrics"]},
        "candidates": [_candidate(name, one, audition["first_look"]) for name, one in records["sae"].items()],
    }


def _candidate(name: str, record: Mapping[str, Any], looks: Mapping[str, Any]) -> dict[str, Any]:
    """One dictionary and its strongest latent in the audition; no effect where it was not tried."""
    effects = [one["effect"] for screened in looks.get(name, {}).values() for one in screened]
    return {
        "name": name,
        **{key: record[key] for key in ("d_sae", "k")},
        **{key: record["metrics"][key] for key in ("fve", "dead_fraction")},
        "best_effect": max(effects, default=None),
    }


def _ranking(
    rows: Sequence[Mapping[str, Any]], records: Mapping[str, Any], tokens: Mapping[str, list[str]]
) -> list[dict[str, Any]]:
    """The first rows, with the effect each latent had on selection prompts (at the window that was chosen)."""
    audition = records["audition"]
    looks = [*audition["first_look"][audition["sae"]][audition["window"]], *records["screen"]["finalists"]]
    effects = {one["latents"][0]: one["effect"] for one in looks}
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
        for row in rows[:N_RANKED]
    ]
