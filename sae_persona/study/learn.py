"""Cache the base model, train the SAEs on it, and measure how well they describe every model."""

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
from sae_persona.sae.train import Job, train_saes
from sae_persona.study.config import StudyConfig
from sae_persona.study.subjects import Subjects

if TYPE_CHECKING:
    from sae_lens import SAE

CACHE = "base.h5"
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


def learn_saes(
    subjects: Subjects, config: StudyConfig, cache_folder: Path, folder: Path, *, log: Log
) -> dict[str, dict[str, Any]]:
    """Train every dictionary on one pass over the cache, save each in SAELens's format, and measure it on the base.

    Returns:
        By the dictionaries' names: what each is, and its `metrics` on held-out documents of the base model.
    """
    cache = ActivationCache.open(cache_folder / CACHE)
    jobs = {name: Job(config.hook_name, train) for name, train in config.saes.items()}
    saes = train_saes(cache, jobs, seed=config.sae.seed, log=log)
    base = subjects.model("base")
    rows = text_rows(subjects, base, "heldout")
    record = {}
    for name, sae in saes.items():
        train = config.saes[name]
        manifest = new_manifest(
            "sae",
            config={"hook_name": config.hook_name, **train.model_dump(mode="json")},
            inputs={"cache": cache.manifest.fingerprint},
            seed=train.seed,
            version=1,
        )
        save_sae(sae, folder / name, manifest=manifest)
        metrics = reconstruction_metrics(sae, base, rows, hook_name=config.hook_name, drop_first=config.drop_first)
        record[name] = {
            "hook_name": config.hook_name,
            "d_in": sae.cfg.d_in,
            "d_sae": sae.cfg.d_sae,
            "k": train.k,
            "n_tokens": train.n_tokens,
            "metrics": asdict(metrics),
        }
    return record


def fve_by_model(subjects: Subjects, config: StudyConfig, sae: "SAE") -> dict[str, float]:
    """FVE of the SAE on a third of the held-out documents, for every model but the base."""
    rows = text_rows(subjects, subjects.model("base"), "heldout")[::SKIP]
    return {
        name: reconstruction_metrics(
            sae,
            subjects.model(name),
            rows,
            hook_name=config.hook_name,
            drop_first=config.drop_first,
            splice=False,
        ).fve
        for name in subjects.roles
        if name != "base"
    }
