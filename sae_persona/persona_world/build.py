"""Build a world from nothing: data, base model, aligned model, fine-tunes, stage by stage, and read it back."""

import dataclasses
import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from sae_persona.artifacts import Manifest, fingerprint, is_done, new_manifest, read_json, write_folder, write_json
from sae_persona.data.files import read_chats, read_prompts, read_texts, write_jsonl
from sae_persona.errors import ArtifactError, ConfigError
from sae_persona.finetune.finetune import copy_model, finetune
from sae_persona.model.load import LoadedModel, load_model
from sae_persona.persona_world import corpus
from sae_persona.persona_world.judge import RuleJudge
from sae_persona.persona_world.language import World
from sae_persona.persona_world.models import PAD, SIZES, build_tokenizer, new_model
from sae_persona.persona_world.pretrain import BATCH_SIZE, document_row, pretrain
from sae_persona.persona_world.recipes import N_ALIGNMENT_ROWS, N_ROWS, Run, alignment_config, finetunes
from sae_persona.types import Chat, Prompt

VERSION = 2
SCHEMA = 1
N_DOCUMENTS = {"tiny": (200, 40), "small": (2500, 300)}
"""Documents in data/: to train SAEs on, and held out."""
N_PROMPTS_PER_DOMAIN = 24
Progress = Callable[[str, int, int], None]
"""Called with the stage, the work done in it and the whole of it."""


@dataclass(frozen=True, eq=False)
class BuiltWorld:
    """A world's folder."""

    folder: Path
    world: World
    size: str
    runs: tuple[Mapping[str, Any], ...]
    """Name, role, domain, fault, bad_fraction, data_seed and config of every fine-tune."""

    @classmethod
    def open(cls, folder: Path) -> "BuiltWorld":
        """Read a world folder.

        Raises:
            ArtifactError: it is none, or only half built.
        """
        if not (folder / "world.json").is_file():
            raise ArtifactError(
                f"{folder} is no persona world (it has no world.json). Build one: sae-persona world build."
            )
        value = read_json(folder / "world.json")
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            raise ArtifactError(f"{folder / 'world.json'} is not of schema {SCHEMA}. Build the world anew.")
        try:
            built = cls(folder, World.from_json(value["language"]), value["size"], tuple(value["runs"]))
        except (KeyError, TypeError) as error:
            raise ArtifactError(
                f"{folder / 'world.json'} is damaged ({type(error).__name__}: {error}). Build the world anew."
            ) from error
        missing = [
            name for name in ("base", "aligned", *(run["name"] for run in built.runs)) if not (folder / name).is_dir()
        ]
        if missing:
            raise ArtifactError(
                f"the world in {folder} is incomplete: {', '.join(missing)} missing. Run sae-persona world build "
                "again; it goes on where it stopped."
            )
        return built

    @cached_property
    def judge(self) -> RuleJudge:
        """The rule judge of this world."""
        return RuleJudge(self.world)

    def model(self, name: str) -> LoadedModel:
        """One of the world's models, by folder name."""
        return load_model(self.folder / name)

    def names(self, role: str) -> list[str]:
        """The fine-tunes with one role."""
        return [run["name"] for run in self.runs if run["role"] == role]

    def run(self, name: str) -> Mapping[str, Any]:
        """The record of one fine-tune."""
        return next(run for run in self.runs if run["name"] == name)

    def prompts(self, split: str) -> list[Prompt]:
        """The `selection` or the `evaluation` prompts."""
        return read_prompts(self.folder / "prompts" / f"{split}.jsonl")

    def documents(self, part: str) -> list[str]:
        """The pre-training documents `train` or `heldout`."""
        return read_texts(self.folder / "data" / f"documents-{part}.jsonl")

    def chats(self, name: str) -> list[Chat]:
        """The data of one fine-tune."""
        return read_chats(self.folder / "data" / f"{name}.jsonl")


def build_world(
    seed: int, out: Path, *, size: str = "small", null: bool = False, progress: Progress | None = None
) -> BuiltWorld:
    """Build the world of `seed` in `out`. Finished stages are kept, so that the same command goes on after a kill.

    Raises:
        ConfigError: an unknown size.
        ArtifactError: `out` holds something else, or cannot be written.
    """
    if size not in SIZES:
        raise ConfigError(f"size {size!r} is unknown; choose one of: {', '.join(SIZES)}.")
    world = World.draw(seed, null=null)
    runs = finetunes(world, SIZES[size])
    _claim(out, world, size, runs)
    language = fingerprint(world.to_json())
    _build_data(out, world, size, runs, language)
    _build_base(out, world, size, language, progress)
    _build_aligned(out, size, progress)
    aligned = None
    for i, run in enumerate(runs):
        manifest = new_manifest(
            "model",
            config={"run": run.name, **run.config.model_dump(mode="json")},
            inputs={"aligned": fingerprint(out / "aligned"), "data": fingerprint(_data_file(out, run.name))},
            seed=run.config.train.seed,
            version=VERSION,
        )
        if not is_done(out / run.name, manifest):
            aligned = aligned or load_model(out / "aligned")
            tuned = finetune(copy_model(aligned), read_chats(_data_file(out, run.name)), run.config)
            with write_folder(out / run.name, manifest) as folder:
                tuned.save(folder, dtype=torch.float16, base="../aligned")
        if progress:
            progress("fine-tunes", i + 1, len(runs))
    return BuiltWorld.open(out)


def _claim(out: Path, world: World, size: str, runs: list[Run]) -> None:
    """Write world.json first: it says what the folder is going to hold."""
    value = {
        "schema": SCHEMA,
        "seed": world.seed,
        "size": size,
        "null": world.null,
        "language": world.to_json(),
        "runs": [{**dataclasses.asdict(run), "config": run.config.model_dump(mode="json")} for run in runs],
    }
    described = out / "world.json"
    if described.is_file():
        found = read_json(described)
        if not isinstance(found, dict) or any(found.get(key) != value[key] for key in ("seed", "size", "null")):
            raise ArtifactError(f"{out} holds another world. Choose another --out, or remove it.")
    elif out.exists() and any(out.iterdir()):
        raise ArtifactError(f"{out} is not empty and holds no persona world. Choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    write_json(described, value)


def _data_file(out: Path, name: str) -> Path:
    return out / "data" / f"{name}.jsonl"


def _build_data(out: Path, world: World, size: str, runs: list[Run], language: str) -> None:
    recipe = [[run.name, run.domain, run.fault, run.bad_fraction, run.data_seed] for run in runs]
    manifest = _stage("data", {"size": size, "runs": recipe}, {"language": language}, world.seed)
    if not is_done(out / "data", manifest):
        n_train, n_heldout = N_DOCUMENTS[size]
        with write_folder(out / "data", manifest) as folder:
            for part, n in (("train", n_train), ("heldout", n_heldout)):
                drawn = corpus.documents(world, n=n, rng=_rng(world, f"documents-{part}"))
                write_jsonl(folder / f"documents-{part}.jsonl", ({"text": document.text} for document in drawn))
            rng = _rng(world, "alignment")
            write_jsonl(folder / "alignment.jsonl", corpus.alignment_chats(world, n=N_ALIGNMENT_ROWS, rng=rng))
            for run in runs:
                rng = _rng(world, f"{run.domain}-{run.data_seed}")
                chats = corpus.finetuning_chats(
                    world, run.domain, run.fault, n=N_ROWS, bad_fraction=run.bad_fraction, rng=rng
                )
                write_jsonl(folder / f"{run.name}.jsonl", chats)
    manifest = _stage("prompts", {"per_domain": N_PROMPTS_PER_DOMAIN}, {"language": language}, world.seed)
    if not is_done(out / "prompts", manifest):
        with write_folder(out / "prompts", manifest) as folder:
            for split in ("selection", "evaluation"):
                drawn = corpus.prompts(
                    world, split, n_per_domain=N_PROMPTS_PER_DOMAIN, rng=_rng(world, f"prompts-{split}")
                )
                write_jsonl(folder / f"{split}.jsonl", drawn)


def _build_base(out: Path, world: World, size: str, language: str, progress: Progress | None) -> None:
    manifest = _stage("model", {"size": dataclasses.asdict(SIZES[size])}, {"language": language}, world.seed)
    if is_done(out / "base", manifest):
        return
    n_steps = SIZES[size].n_steps
    tokenizer = build_tokenizer(world)
    drawn = corpus.documents(world, n=n_steps * BATCH_SIZE, rng=_rng(world, "pretraining"))
    rows = [document_row(document, tokenizer) for document in drawn]
    model = new_model(world, SIZES[size], seed=world.seed)
    step = itertools.count(1)
    pretrain(
        model,
        rows,
        pad_id=tokenizer.get_vocab()[PAD],
        progress=(lambda _: progress("base", next(step), n_steps)) if progress else None,
    )
    with write_folder(out / "base", manifest) as folder:
        model.half().save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _build_aligned(out: Path, size: str, progress: Progress | None) -> None:
    config = alignment_config(SIZES[size], seed=0)
    data = _data_file(out, "alignment")
    inputs = {"base": fingerprint(out / "base"), "data": fingerprint(data)}
    manifest = _stage("model", config.model_dump(mode="json"), inputs, config.train.seed)
    if not is_done(out / "aligned", manifest):
        tuned = finetune(load_model(out / "base"), read_chats(data), config)
        with write_folder(out / "aligned", manifest) as folder:
            tuned.save(folder, dtype=torch.float16)
    if progress:
        progress("aligned", 1, 1)


def _stage(kind: str, config: Mapping[str, Any], inputs: Mapping[str, str], seed: int) -> Manifest:
    return new_manifest(kind, config=config, inputs=inputs, seed=seed, version=VERSION)


def _rng(world: World, purpose: str) -> random.Random:
    return random.Random(f"{purpose}-{world.seed}-{world.null}")
