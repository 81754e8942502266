"""Say what a file or folder is, and verify that it is whole."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from sae_persona.artifacts import Manifest, fingerprint, read_json, read_manifest
from sae_persona.cache.moments import Moments
from sae_persona.cache.reader import ActivationCache
from sae_persona.cache.statistics import not_finite
from sae_persona.data.files import read_jsonl
from sae_persona.data.packed import PackedRows
from sae_persona.errors import ArtifactError, CacheFileError, ModelError, SAEError
from sae_persona.model.load import ADAPTER_CONFIG, load_model
from sae_persona.persona_world.build import BuiltWorld
from sae_persona.report.summary import SUMMARY, read_summary
from sae_persona.sae.load import CONFIG, WEIGHTS, load_sae
from sae_persona.steering.record import ScreenedLatent, ScreenFindings
from sae_persona.study.commands import evaluate, rank, screen, steer
from sae_persona.study.commands.ranked import Findings, NamedLatent
from sae_persona.study.commands.shared import read_record
from sae_persona.study.learn import CACHE
from sae_persona.study.stages import RESULT

BLOCK_TOKENS = 8192
"""Tokens of a cache whose norms are computed again at once."""
Facts = dict[str, object]


@dataclass(frozen=True)
class Inspection:
    """What a path holds."""

    kind: str
    facts: Mapping[str, object]


def inspect_path(path: Path) -> Inspection:
    """Recognise a cache, SAE, model, ranking, steering, screen, evaluation, world or study, and read all of it.

    Raises:
        SaePersonaError: it is none of these, or not whole.
    """
    if path.is_file():
        return Inspection("activation cache", _cache(path))
    if not path.is_dir():
        raise ArtifactError(f"{path} does not exist. Check the path.")
    manifest = read_manifest(path)
    kind, read = _reader(path, manifest)
    return Inspection(kind, {**read(path), **(_origin(manifest) if manifest else {})})


def _reader(path: Path, manifest: Manifest | None) -> tuple[str, Callable[[Path], Facts]]:
    """What a folder holds, and the function that reads it."""
    names = {file.name for file in path.iterdir()}
    stated = manifest.kind if manifest else ""
    if "world.json" in names:
        return "persona world", _world
    if names & {CONFIG, WEIGHTS}:
        return "SAE", _sae
    if stated == "study" or SUMMARY in names:
        return "study", _study
    if stated == "model" or names & {"config.json", ADAPTER_CONFIG}:
        return "model", _model
    readers = {"ranking": _ranking, "steering": _steering, "screen": _screen, "evaluation": _evaluation}
    if stated in readers:
        return stated, readers[stated]
    if stated.startswith("study-"):
        return f"stage {stated.removeprefix('study-')} of a study", _stage
    found = ", ".join(sorted(names)[:6]) or "nothing"
    raise ArtifactError(
        f"{path} is no cache, SAE, model, ranking, steering, evaluation, world or study (it holds: {found})."
    )


def _origin(manifest: Manifest) -> Facts:
    return {"made": f"{manifest.created}, seed {manifest.seed}", "fingerprint": manifest.fingerprint[:12]}


def _cache(path: Path) -> Facts:
    cache = ActivationCache.open(path)
    if int(cache.counts.sum()) != cache.n_counted:
        raise CacheFileError(
            f"{path} is damaged: its mask counts other tokens than it says. Delete it and cache again."
        )
    if not cache.n_counted:
        raise CacheFileError(
            f"{path} is damaged: none of its {cache.n_tokens:,} tokens counts. Delete it and cache again."
        )
    _check_tokens(cache)
    for name in cache.hooks:
        _check_hook(cache, name)
    hooks = [f"{name} ({cache.d_in(name)} wide, median norm {cache.median_norm(name):.4g})" for name in cache.hooks]
    norms = [hook.norms for hook in cache.hooks.values()]
    n_bad, places = not_finite(cache.document_ids, cache.positions, norms)
    shards = cache.manifest.config.get("n_shards")
    return {
        "model": "; ".join(f"{name}: {source}" for name, source in cache.models.items()) or cache.model,
        "hooks": ", ".join(hooks),
        "tokens": f"{cache.n_tokens:,}, of which {cache.n_counted:,} count",
        **({"not finite": f"{n_bad:,} tokens, first {'; '.join(places)}"} if n_bad else {}),
        "documents": f"{len(np.unique(cache.document_ids)):,}",
        "left out": _filters(cache.manifest.config),
        "precision": cache.dtype,
        **({"shards": shards} if shards else {}),
        **_origin(cache.manifest),
    }


def _filters(config: Mapping[str, object]) -> str:
    """Which tokens do not count; caches that were not written from a model say nothing of it."""
    limit = config.get("norm_limit")
    norms = f", norms over {limit} medians" if limit is not None else ""
    return f"the first {config.get('drop_first', 0)} of a document{norms}"


def _check_tokens(cache: ActivationCache) -> None:
    """Raise unless the tokens are those whose fingerprint was stored with them; a shard has a part of them only.

    In the file rows stand in order of length, and rows of one length as in the data: of a document that was cut, the
    longer pieces came first.
    """
    if "shard" in cache.manifest.config:
        return
    starts = np.flatnonzero(cache.positions == 0)
    whole = len(starts) > 0 and starts[0] == 0
    if whole:
        lengths = np.diff(starts, append=cache.n_tokens)
        documents = cache.document_ids[starts]
        order = np.lexsort((np.arange(len(starts)), -lengths, documents))
        tokens = np.concatenate([np.arange(int(lengths[i])) + starts[i] for i in order])
        rows = PackedRows(cache.token_ids[tokens], cache.parts[tokens], lengths[order], documents[order])
        expected = np.arange(cache.n_tokens) - np.repeat(starts, lengths)
        whole = (
            np.array_equal(cache.positions, expected)
            and np.array_equal(cache.document_ids, np.repeat(documents, lengths))
            and rows.fingerprint == cache.manifest.inputs.get("rows")
        )
    if not whole:
        raise CacheFileError(
            f"{cache.path} is damaged: its tokens, parts, positions or documents are not those that were cached. "
            "Delete it and cache again."
        )


def _check_hook(cache: ActivationCache, name: str) -> None:
    """Raise unless the activations have the norms, the mean, the variance and the median norm stored with them."""
    hook, moments = cache.hooks[name], Moments()
    for start in range(0, cache.n_tokens, BLOCK_TOKENS):
        block = slice(start, start + BLOCK_TOKENS)
        stored = hook.rows.block(start, start + BLOCK_TOKENS)
        # Rounding aside: the norms were computed in batches of other sizes.
        if not np.allclose(stored.float().norm(dim=-1).numpy(), hook.norms[block], rtol=1e-4, equal_nan=True):
            raise CacheFileError(
                f"{cache.path} is damaged: from token {start} on, activations at {name} have not the norms that were "
                "stored with them. Delete it and cache again."
            )
        moments.add(stored[torch.from_numpy(cache.counts[block])])
        hook.rows.release(block.start, block.stop)
    same_median = np.isclose(np.median(hook.norms[cache.counts]), hook.median_norm)
    # Blocks of other sizes were merged, which costs digits where a variance is small beside its mean.
    close = (torch.allclose(moments.mean, hook.mean), torch.allclose(moments.variance, hook.variance, rtol=1e-4))
    if not (same_median and all(close)):
        raise CacheFileError(
            f"{cache.path} is damaged: its statistics at {name} are not those of the tokens that count. "
            "Delete it and cache again."
        )


def _sae(path: Path) -> Facts:
    sae = load_sae(path)
    broken = [name for name, weights in sae.state_dict().items() if not weights.isfinite().all()]
    if broken:
        raise SAEError(f"{path}: {', '.join(broken)} hold numbers that are not finite. Train the SAE again.")
    metadata = sae.cfg.metadata
    return {
        "architecture": sae.cfg.architecture(),
        "widths": f"d_in {sae.cfg.d_in}, {sae.cfg.d_sae:,} latents",
        "hook": metadata.hook_name or "not stated",
        "model": metadata.model_name or "not stated",
    }


def _model(path: Path) -> Facts:
    model = load_model(path)
    broken = [name for name, weights in model.hf.state_dict().items() if not weights.isfinite().all()]
    if broken:
        raise ModelError(f"{path}: {broken[0]} holds numbers that are not finite. Save the model again.")
    return {
        "architecture": type(model.hf).__name__ + (" with an adapter" if (path / ADAPTER_CONFIG).is_file() else ""),
        "widths": f"{model.n_layers} blocks, d_model {model.d_model}",
    }


def _ranking(path: Path) -> Facts:
    rows, findings = read_jsonl(path / rank.ROWS, NamedLatent), read_record(path / rank.FINDINGS, Findings)
    if sorted(row.latent for row in rows) != list(range(len(rows))):
        raise ArtifactError(f"{path / rank.ROWS} does not hold every latent once. Delete the folder and rank again.")
    return {
        "latents": f"{len(rows):,}, first {rows[0].latent}",
        "runs": f"{findings.n_misaligned} misaligned, {findings.n_controls} control",
        "shortlist": ", ".join(map(str, findings.shortlist)) or "empty",
    }


def _steering(path: Path) -> Facts:
    doses, answers = read_jsonl(path / steer.DOSES, steer.SteeredDose), read_jsonl(path / steer.ANSWERS, dict)
    return {
        "latents": "; ".join(dict.fromkeys("+".join(map(str, dose.latents)) for dose in doses)),
        "strengths": ", ".join(f"{strength:g}" for strength in dict.fromkeys(dose.strength for dose in doses)),
        "answers": f"{len(answers):,}",
    }


def _screen(path: Path) -> Facts:
    rows = read_jsonl(path / screen.ROWS, ScreenedLatent)
    findings = read_record(path / screen.FINDINGS, ScreenFindings)
    return {
        "latents": f"{len(rows):,}, beside {findings.n_controls} controls",
        "drivers": ", ".join(map(str, findings.drivers)) or "none",
        "protectors": ", ".join(map(str, findings.protectors)) or "none",
    }


def _evaluation(path: Path) -> Facts:
    scores, answers = (
        read_record(path / evaluate.SCORES, evaluate.Evaluation),
        read_jsonl(path / evaluate.ANSWERS, dict),
    )
    if len(answers) != scores.overall.misalignment.n:
        raise ArtifactError(
            f"{path / evaluate.ANSWERS} holds {len(answers)} answers, and {scores.overall.misalignment.n} were scored. "
            "Delete the folder and evaluate again."
        )
    return {"answers": f"{len(answers):,}", "categories": ", ".join(scores.by_category)}


def _world(path: Path) -> Facts:
    built = BuiltWorld.open(path)
    prompts = {split: built.prompts(split) for split in ("selection", "evaluation")}
    for asked in prompts.values():
        built.judge.judge(asked, [])  # raises at a question of another world
    documents = {part: built.documents(part) for part in ("train", "heldout")}
    alignment = path / "data" / "alignment.jsonl"  # by far the largest file: worlds may be handed on without it
    sources = {"base": path / "base", **({"data": alignment} if alignment.is_file() else {})}
    _check_made_of(path / "aligned", sources)
    for run in built.runs:
        data = path / "data" / f"{run['name']}.jsonl"
        _check_made_of(path / run["name"], {"aligned": path / "aligned", "data": data})
        _check_weights(path / run["name"])
    return {
        "world": f"seed {built.world.seed}, {built.size}{', null' if built.world.null else ''}",
        "models": f"base, aligned, {', '.join(run['name'] for run in built.runs)}",
        "prompts": ", ".join(f"{len(asked)} for {split}" for split, asked in prompts.items()),
        "documents": ", ".join(f"{len(texts):,} {part}" for part, texts in documents.items()),
    }


def _study(path: Path) -> Facts:
    if not (path / SUMMARY).is_file():
        raise ArtifactError(f"the study in {path} has no {SUMMARY} yet. Run the same study again; it goes on.")
    summary = read_summary(path)
    stages = {stage.name: manifest for stage in path.iterdir() if (manifest := _stage_manifest(stage))}
    for name, manifest in stages.items():
        _stage(path / name)
        for other, stated in manifest.inputs.items():
            if other in stages and stages[other].fingerprint != stated:
                raise ArtifactError(
                    f"stage {name} of {path} was made from another {other} than is there now. Run the study again."
                )
    if (path / "cache" / CACHE).exists():
        _cache(path / "cache" / CACHE)
    for config in (path / "sae").glob(f"*/{CONFIG}"):
        _sae(config.parent)
    return {
        "study": f"{summary.study}, seed {summary.seed}",
        "stages": ", ".join(summary.seconds) or "none",
        "top latent": "none" if summary.top_latent is None else summary.top_latent,
    }


def _stage(path: Path) -> Facts:
    result = read_json(path / RESULT)
    if not isinstance(result, dict) or "record" not in result:
        raise ArtifactError(f"{path / RESULT} holds no record. Delete {path} and run the study again.")
    return {"seconds": result.get("seconds", "not stated")}


def _stage_manifest(path: Path) -> Manifest | None:
    manifest = read_manifest(path) if path.is_dir() else None
    return manifest if manifest and manifest.kind.startswith("study-") else None


def _check_made_of(path: Path, inputs: Mapping[str, Path]) -> None:
    """Raise unless what an artifact was made of is still what it was."""
    manifest = read_manifest(path)
    if manifest is None:
        raise ArtifactError(f"{path} has no manifest. Delete it and run the command that makes it again.")
    for name, source in inputs.items():
        if manifest.inputs.get(name) != fingerprint(source):
            raise ArtifactError(
                f"{source} is not what {path} was made from: one of them was changed or damaged. "
                f"Delete {path} and run the command that makes it again."
            )


def _check_weights(path: Path) -> None:
    for file in path.glob("*.safetensors"):
        try:
            with safe_open(file, framework="pt") as weights:
                whole = all(weights.get_tensor(name).isfinite().all() for name in weights.keys())  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"{file} cannot be read ({error}). Delete {path} and make it again.") from error
        if not whole:
            raise ArtifactError(f"{file} holds numbers that are not finite. Delete {path} and make it again.")
