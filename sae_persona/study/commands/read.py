"""Read latents of an SAE on a corpus: contexts, lens, neighbours, and where asked for an explanation and exports."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sae_persona.artifacts import fingerprint, new_manifest, write_folder, write_json
from sae_persona.attribution.contexts import Context
from sae_persona.attribution.contrast import contrast
from sae_persona.attribution.corpus import CachedCorpus, Corpus, TokensRead
from sae_persona.attribution.delphi import write_delphi
from sae_persona.attribution.explanation import detection_score, exam, explain_latent
from sae_persona.attribution.lens import logit_lens
from sae_persona.attribution.neighbours import check_latents, nearest_latents
from sae_persona.attribution.neuronpedia import write_neuronpedia
from sae_persona.attribution.page import LatentCard, page
from sae_persona.attribution.reading import LatentReading, read_latents
from sae_persona.cache.reader import ActivationCache
from sae_persona.data.files import write_jsonl
from sae_persona.errors import ConfigError, IncompatibleError
from sae_persona.model.load import LoadedModel, load_model
from sae_persona.sae.encode import Reading
from sae_persona.sae.load import check_fits, check_tokens, hook_name_of, load_sae
from sae_persona.study.clients import build_client
from sae_persona.study.commands.cache import plan_cache
from sae_persona.study.commands.shared import Progress, counting, fingerprint_of, no_progress

if TYPE_CHECKING:
    from sae_lens import SAE

VERSION = 2
"""Raised when the same inputs would give another folder."""
PAGE, CONTEXTS, CARDS = "contexts.html", "contexts.jsonl", "latents.json"
EXPORTS = ("neuronpedia", "delphi")


@dataclass(frozen=True)
class ReadConfig:
    """How latents are read."""

    tokens: TokensRead = "all"
    reading: Reading = "gated"
    n: int = 20
    """Highest contexts of each latent."""
    width: int = 32
    """Tokens of a context."""
    context: int = 256
    """Longer documents are cut into pieces."""
    n_documents: int | None = None
    seed: int = 0


def read_on_corpus(
    sae_source: str,
    *,
    model_source: str,
    latents: Sequence[int],
    data: str,
    against: str | None = None,
    out: Path,
    config: ReadConfig,
    hook_name: str | None = None,
    explain: str | None = None,
    exports: Sequence[str] = (),
    device: str = "cpu",
    batch_size: int = 64,
    progress: Progress = no_progress,
) -> list[LatentCard]:
    """Write `contexts.html`, `contexts.jsonl`, `latents.json` and the exports, and return a card for each latent.

    Raises:
        SAEError, ModelError, DataError, CacheFileError: something named is not there or not what it should be.
        HookError, IncompatibleError: the SAE, the model and the data do not belong together.
        ConfigError: an export that these data cannot give.
        JudgeError: the client cannot be built or does not answer.
        ArtifactError: `out` holds something else, or cannot be written.
    """
    if unknown := [name for name in exports if name not in EXPORTS]:
        raise ConfigError(f"export {unknown[0]!r} is none of {', '.join(EXPORTS)}. Name one of these.")
    if "delphi" in exports and data.endswith(".h5"):
        raise ConfigError("Delphi needs whole rows of tokens, read by the model. Give --data as text, not as a cache.")
    sae = load_sae(sae_source, device=device)
    check_latents(sae, latents)
    hook_name = hook_name_of(sae, asked=hook_name)
    model = load_model(model_source, device=device)
    check_fits(sae, model, hook_name)
    check_tokens(sae, model)
    client = build_client(explain, device=device) if explain else None
    options = {"explain": explain, "exports": list(exports), "latents": list(latents), "hook_name": hook_name}
    sources = {"data": data, **({"against": against} if against else {})}
    manifest = new_manifest(
        "reading",
        config={**asdict(config), **options},
        inputs={
            "sae": fingerprint_of(sae_source),
            "model": model.fingerprint,
            **{name: fingerprint(Path(path) if Path(path).exists() else path) for name, path in sources.items()},
        },
        seed=config.seed,
        version=VERSION,
    )
    with write_folder(out, manifest) as folder:
        found = {
            name: _read(sae, model, source, latents, hook_name, config, batch_size, progress)
            for name, source in sources.items()
        }
        cards = []
        for latent in dict.fromkeys(latents):
            reading = found["data"][latent]
            explanation = score = None
            if client is not None and reading.firing:
                test = exam(reading, seed=config.seed)
                explanation = explain_latent(client, test)
                if explanation.text is not None:
                    score = detection_score(client, explanation.text, test, seed=config.seed)
            cards.append(
                LatentCard(
                    reading,
                    logit_lens(model, sae, latent),
                    nearest_latents(sae, latent),
                    contrast(reading, found["against"][latent]) if against else None,
                    explanation,
                    score,
                )
            )
        names = (Path(data).name, Path(against or "").name)
        html = page(cards, title=f"{Path(sae_source).name} on {names[0]}, {hook_name}", names=names)
        (folder / PAGE).write_text(html, encoding="utf-8")
        write_jsonl(folder / CONTEXTS, _records(found))
        write_json(folder / CARDS, [_summary(card) for card in cards])
        if "neuronpedia" in exports:
            readings = [card.reading for card in cards]
            write_neuronpedia(
                folder / "neuronpedia", sae, model, readings, model_id=model.source, sae_set=sae_source, dataset=data
            )
        if "delphi" in exports:
            corpus = _corpus(model, data, hook_name, config, batch_size)
            assert isinstance(corpus, Corpus)
            write_delphi(folder / "delphi", sae, corpus, latents, hook_name=hook_name, dataset=data)
    return cards


def _read(
    sae: "SAE",
    model: LoadedModel,
    data: str,
    latents: Sequence[int],
    hook_name: str,
    config: ReadConfig,
    batch_size: int,
    progress: Progress,
) -> dict[int, LatentReading]:
    corpus = _corpus(model, data, hook_name, config, batch_size)
    n_tokens = corpus.cache.n_tokens if isinstance(corpus, CachedCorpus) else corpus.rows.n_tokens  # pyright: ignore
    return read_latents(
        sae,
        corpus,
        latents,
        hook_name=hook_name,
        reading=config.reading,
        n=config.n,
        width=config.width,
        seed=config.seed,
        progress=counting(progress, f"reading {Path(data).name}", n_tokens),
    )


def _corpus(
    model: LoadedModel, data: str, hook_name: str, config: ReadConfig, batch_size: int
) -> Corpus | CachedCorpus:
    if not data.endswith(".h5"):
        plan = plan_cache(
            {"": model},
            data,
            hook_names=[hook_name],
            dtype="float32",
            context=config.context,
            n_documents=config.n_documents,
        )
        return Corpus(model, plan.rows, config.tokens, batch_size=batch_size)
    cache = ActivationCache.open(data)
    ours = fingerprint([model.tokenizer.get_vocab(), model.tokenizer.chat_template])
    if cache.manifest.inputs.get("tokenizer", ours) != ours:
        raise IncompatibleError(
            f"{data} was made with the tokenizer of another model ({cache.model}) than {model.source}. Name that model."
        )
    return CachedCorpus(cache, model.tokenizer, config.tokens)


def _records(found: Mapping[str, Mapping[int, LatentReading]]) -> Iterator[dict[str, object]]:
    for text, readings in found.items():
        for reading in readings.values():
            groups: dict[str, Sequence[Context]] = {"top": reading.contexts}
            groups |= {f"bin {i}": group.contexts for i, group in enumerate(reading.bins)}
            for group, contexts in {**groups, "silent": reading.silent[: len(reading.contexts)]}.items():
                for one in contexts:
                    yield {"latent": reading.latent, "text": text, "group": group, **asdict(one)}


def _summary(card: LatentCard) -> dict[str, object]:
    """Everything but the contexts, which have their own file."""
    heavy = ("contexts", "bins", "firing", "silent")
    reading = {name: value for name, value in vars(card.reading).items() if name not in heavy}
    found = card.contrast
    return {
        **reading,
        "lens": card.lens,
        "nearest": card.nearest,
        "contrast": None if found is None else {"density": found.density, "mean": found.mean},
        "explanation": card.explanation,
        "score": card.score,
    }
