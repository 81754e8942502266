"""Run a study from end to end: every stage once, then the summary."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sae_persona.artifacts import MANIFEST, new_manifest, read_manifest, write_file, write_json
from sae_persona.data.files import write_jsonl
from sae_persona.errors import ArtifactError
from sae_persona.logs import Log, no_log
from sae_persona.sae.load import load_sae
from sae_persona.study.audition import audition, eligible, screened
from sae_persona.study.config import StudyConfig
from sae_persona.study.learn import cache_base, fve_by_model, learn_saes
from sae_persona.study.measure import measure_model
from sae_persona.study.stages import Stages
from sae_persona.study.subjects import Subjects
from sae_persona.study.summary import N_RANKED, summarise, top_tokens
from sae_persona.study.suspects import rank
from sae_persona.study.trial import screen, selection_bench, steer
from sae_persona.study.truth import reveal
from sae_persona.study.watch import realign, watch

if TYPE_CHECKING:
    from sae_lens import SAE

SUMMARY = "summary.json"
KIND = "study"
VERSION = 1


def run_study(
    config: StudyConfig,
    out: Path,
    *,
    announce: Callable[[str, bool], None] = lambda _stage, _done: None,
    log: Log = no_log,
) -> dict[str, Any]:
    """Run or resume the study in `out` and return its summary, which `out/summary.json` holds as well.

    The order is the rule of evidence: models are measured and latents ranked, audition and screen choose on selection
    prompts, then everything is frozen and measured on evaluation prompts; the planted truth is opened last.
    `announce` is told each stage and whether it is only read.

    Raises:
        ArtifactError: `out` holds another study.
        SaePersonaError: whatever is wrong with the world, the hook or the SAE.
    """
    subjects = Subjects.open(config.world)
    _claim(config, out)
    stages = Stages(out, config.seed, announce)
    world = {"world": subjects.fingerprint}
    hook = {"hook_name": config.hook_name, "drop_first": config.drop_first}
    sampling = config.sampling.model_dump(mode="json")

    stages.run("cache", lambda folder: cache_base(subjects, config, folder), config=hook, inputs=world)
    unit = stages.results["cache"]["median_norm"]
    trained = stages.run(
        "sae",
        lambda folder: learn_saes(subjects, config, out / "cache", folder, log=log),
        config={"saes": {name: one.model_dump(mode="json") for name, one in config.saes.items()}},
        inputs=world,
        after=("cache",),
        version=2,
    )
    stages.run("models", lambda folder: _measure_models(subjects, config, folder), config=sampling, inputs=world)
    saes = {name: load_sae(out / "sae" / name) for name in trained}
    ranked = stages.run(
        "rank",
        lambda folder: rank(subjects, config, saes, folder),
        config=config.ranking.model_dump(mode="json"),
        inputs=world,
        after=("sae",),
        version=6,
    )
    settings = {"steering": config.steering.model_dump(mode="json"), "sampling": sampling}
    auditioned = stages.run(
        "audition",
        lambda _: _audition(subjects, config, saes, trained, ranked, unit),
        config=settings,
        inputs=world,
        after=("rank",),
        version=2,
    )
    chosen, window = auditioned["sae"], auditioned["window"]
    sae, shortlist = saes[chosen], ranked[chosen]["shortlist"]
    stages.run(
        "sae_metrics",
        lambda _: fve_by_model(subjects, config, sae),
        config=hook,
        inputs=world,
        after=("audition",),
        version=3,
    )
    trial = {
        "shortlist": shortlist,
        "density": torch.tensor(trained[chosen]["metrics"]["density"]),
        "unit": unit,
        "ranking_folder": out / "rank",
    }
    first_look = screened(auditioned["first_look"][chosen][window])
    choice = stages.run(
        "screen",
        lambda _: screen(subjects, config, sae, window=window, first_look=first_look, **trial),
        config=settings,
        inputs=world,
        after=("audition",),
        version=5,
    )
    top = choice["top"]["latents"][0] if choice["top"] else None
    if top is not None:
        stages.run(
            "steer",
            lambda _: steer(subjects, config, sae, choice=choice, **trial),
            config=settings,
            inputs=world,
            after=("screen",),
            version=3,
        )
        stages.run(
            "monitor",
            lambda _: watch(subjects, config, sae, top),
            config={"monitor": config.monitor.model_dump(mode="json"), "sampling": sampling},
            inputs=world,
            after=("screen",),
            version=2,
        )
    stages.run(
        "realign",
        lambda _: realign(subjects, config, sae, top, stages.results.get("monitor", {}).get("tokens")),
        config={"realign": config.realign.model_dump(mode="json"), "sampling": sampling},
        inputs=world,
        after=("screen",) if top is None else ("screen", "monitor"),
        version=3,
    )
    stages.run(
        "truth",
        lambda _: reveal(subjects, config, sae, shortlist=shortlist, top=top),
        config=hook,
        inputs=world,
        after=("screen",),
        version=2,
    )
    shown = [row["latent"] for row in ranked[chosen]["rows"][:N_RANKED]]
    tokens = top_tokens(subjects.model("aligned"), sae, shown)
    summary = summarise(config, stages.results, stages.seconds, tokens)
    write_json(out / SUMMARY, summary)
    return summary


def _claim(config: StudyConfig, out: Path) -> None:
    """Make `out` this study's folder. The same study with other settings goes on in it; its changed stages run anew."""
    found = read_manifest(out) if out.exists() else None
    if found is None and out.exists() and any(out.iterdir()):
        raise ArtifactError(f"{out} is not empty and holds no study. Choose another --out.")
    if found is not None and (found.kind != KIND or found.config.get("study") != config.study):
        raise ArtifactError(
            f"{out} holds another {found.kind} ({found.config.get('study', 'unnamed')!r}), and this study is "
            f"{config.study!r}. Choose another --out."
        )
    out.mkdir(parents=True, exist_ok=True)
    manifest = new_manifest(KIND, config=config.model_dump(mode="json"), inputs={}, seed=config.seed, version=VERSION)
    with write_file(out / MANIFEST) as partial:
        partial.write_text(manifest.to_json(), encoding="utf-8")


def _audition(
    subjects: Subjects,
    config: StudyConfig,
    saes: Mapping[str, "SAE"],
    trained: Mapping[str, Any],
    ranked: Mapping[str, Any],
    unit: float,
) -> dict[str, Any]:
    """The dictionaries that describe the base well enough, by what their suspects do."""
    names = eligible({name: one["metrics"] for name, one in trained.items()})
    shortlists = {name: ranked[name]["shortlist"] for name in names}
    bench = selection_bench(subjects, config, unit)
    return audition(bench, subjects.model("aligned"), {name: saes[name] for name in names}, shortlists)


def _measure_models(subjects: Subjects, config: StudyConfig, folder: Path) -> dict[str, Any]:
    """Every model on the evaluation prompts; all answers with their judgements are kept in `answers.jsonl`."""
    groups = subjects.groups("evaluation")
    counts = {**config.sampling.model_dump(), "open_ended": config.sampling.models}
    entries: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for name, role in subjects.roles.items():
        domain = None if name in ("base", "aligned") else subjects.record(name)["domain"]
        entry, judgements = measure_model(
            subjects.model(name),
            groups,
            domain=domain,
            counts=counts,
            max_new_tokens=config.sampling.max_new_tokens,
            seed=config.seed,
        )
        entries[name] = {"role": role, **entry}
        rows += [{"model": name, **vars(judgement)} for judgement in judgements]
    write_jsonl(folder / "answers.jsonl", rows)
    return entries
