"""Cache the base model, train the SAE on it, and measure it on every model."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_persona.artifacts import new_manifest
from sae_persona.cache.reader import ActivationCache
from sae_persona.cache.writer import write_cache
from sae_persona.data.tokens import TokenRow, text_row
from sae_persona.logs import Log
from sae_persona.model.load import LoadedModel
from sae_persona.sae.load import save_sae
from sae_persona.sae.metrics import reconstruction_metrics
from sae_persona.sae.train import train_sae
from sae_persona.study.config import StudyConfig
from sae_persona.study.subjects import Subjects

if TYPE_CHECKING:
    from sae_lens import SAE

CACHE, SAE_FOLDER = "base.h5", "sae"
SKIP = 3
"""Of the held-out documents, models other than the base are measured on every third."""


def text_rows(subjects: Subjects, model: LoadedModel, part: str) -> list[TokenRow]:
    """The pre-training documents `train` or `heldout` as tokens."""
    return [text_row(text, model.tokenizer) for text in subjects.world.documents(part)]


def cache_base(subjects: Subjects, config: StudyConfig, folder: Path) -> dict[str, Any]:
    """Write the base model's residual stream on the training documents."""
    model = subjects.model("base")
    cache = write_cache(
        model,
        text_rows(subjects, model, "train"),
        folder / CACHE,
        hook_names=[config.hook_name],
        drop_first=config.drop_first,
    )
    return {"n_tokens": cache.n_counted, "median_norm": cache.median_norm(config.hook_name)}


def learn_sae(config: StudyConfig, cache_folder: Path, folder: Path, *, log: Log) -> dict[str, Any]:
    """Train the SAE on the cache and save it in SAELens's format."""
    cache = ActivationCache.open(cache_folder / CACHE)
    sae = train_sae(cache, config.hook_name, config.sae, log=log)
    manifest = new_manifest(
        "sae",
        config={"hook_name": config.hook_name, **config.sae.model_dump(mode="json")},
        inputs={"cache": cache.manifest.fingerprint},
        seed=config.sae.seed,
        version=1,
    )
    save_sae(sae, folder / SAE_FOLDER, manifest=manifest)
    return {
        "hook_name": config.hook_name,
        "d_in": sae.cfg.d_in,
        "d_sae": sae.cfg.d_sae,
        "k": config.sae.k,
        "n_tokens": config.sae.n_tokens,
    }


def measure_sae(subjects: Subjects, config: StudyConfig, sae: "SAE") -> dict[str, Any]:
    """Reconstruction on held-out documents: all of it on the base, on every other model the FVE on a third of them."""
    base = subjects.model("base")
    rows = text_rows(subjects, base, "heldout")
    metrics = reconstruction_metrics(sae, base, rows, hook_name=config.hook_name, drop_first=config.drop_first)
    fve = {"base": metrics.fve}
    for name in subjects.roles:
        if name != "base":
            model = subjects.model(name)
            fve[name] = reconstruction_metrics(
                sae, model, rows[::SKIP], hook_name=config.hook_name, drop_first=config.drop_first, splice=False
            ).fve
    return {"metrics": asdict(metrics), "fve_by_model": fve}
