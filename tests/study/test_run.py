"""The whole study on a tiny world: a summary that the report reads, made once, and again only where settings change."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from sae_persona.artifacts import read_json
from sae_persona.cli import app
from sae_persona.data.files import read_records
from sae_persona.errors import ArtifactError
from sae_persona.persona_world.build import BuiltWorld
from sae_persona.report.summary import Summary, read_summary
from sae_persona.sae.load import load_sae
from sae_persona.study.audition import audition
from sae_persona.study.config import StudyConfig, validated
from sae_persona.study.run import run_study
from sae_persona.study.subjects import Subjects
from sae_persona.study.summary import summarise
from sae_persona.study.trial import screen, selection_bench
from sae_persona.types import OPEN_ENDED

pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {
    "study": "tiny",
    "hook_name": "blocks.0.hook_resid_post",
    "sae": {"d_sae": 32, "k": 4, "n_tokens": 20_000, "batch_size": 256},
    "dictionaries": {"first": {}, "second": {"k": 3}},
    "sampling": {
        "max_new_tokens": 4,
        "models": 2,
        "open_ended": 2,
        "trained_domain": 1,
        "other_domains": 1,
        "controls": 1,
        "first_look": 2,
        "selection": 2,
        "selection_advice": 1,
    },
    "ranking": {"n_samples": 4, "shortlist": 4},
    "steering": {
        "strengths": [1.0],
        "windows": ["all"],
        "repair_strengths": {"all": [1.0]},
        "n_random_latents": 2,
        "n_random_directions": 2,
    },
    "monitor": {"bad_fractions": [0.0, 1.0]},
    "realign": {"steps": [0, 2]},
}
SHARES = ("misalignment", "incoherence", "aligned")


def settings(world: BuiltWorld, **changes: Any) -> StudyConfig:
    return validated(StudyConfig, {**SETTINGS, "world": world.folder, **changes}, source="test")


def run(config: StudyConfig, out: Path) -> tuple[dict[str, Any], dict[str, bool]]:
    """The summary, and of each stage whether it was only read."""
    read: dict[str, bool] = {}
    return run_study(config, out, announce=lambda stage, done: read.update({stage: done})), read


@pytest.fixture(scope="module")
def out(tiny_world: BuiltWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study."""
    folder = tmp_path_factory.mktemp("studies") / "tiny"
    _, read = run(settings(tiny_world), folder)
    assert not any(read.values())
    return folder


def test_the_summary_is_what_the_report_reads(tiny_world: BuiltWorld, out: Path) -> None:
    summary = read_summary(out)
    assert summary.study == "tiny"
    roles = {model.role for model in summary.models.values()}
    assert roles == {"base", "aligned", "misaligned", "narrow", "control"}
    assert len(summary.models) == 2 + len(tiny_world.runs) - len(tiny_world.names("benign"))
    assert 1 <= len(summary.shortlist) <= 4


def test_an_untrained_world_yields_no_villain(out: Path) -> None:
    written = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert written["truth"]["top_latent_persona"] is None
    if written["top_latent"] is None:
        assert not {"steering", "monitor"} & written.keys()


def test_a_second_run_only_reads_and_says_the_same(tiny_world: BuiltWorld, out: Path) -> None:
    before = (out / "summary.json").read_bytes()
    _, read = run(settings(tiny_world), out)
    assert all(read.values())
    assert (out / "summary.json").read_bytes() == before


def test_another_steering_setting_reruns_the_screen_and_what_follows(tiny_world: BuiltWorld, out: Path) -> None:
    _, read = run(settings(tiny_world, steering={**SETTINGS["steering"], "strengths": [2.0]}), out)
    kept = {stage for stage, only_read in read.items() if only_read}
    assert kept == {"cache", "sae", "models", "rank"}
    assert {"audition", "screen", "realign", "truth"} <= read.keys() - kept


def test_every_dictionary_is_auditioned_and_the_one_in_the_summary_is_on_disk(out: Path) -> None:
    summary = read_summary(out)
    assert summary.sae is not None
    assert {one.name: one.k for one in summary.sae.candidates} == {"first": 4, "second": 3}
    tried = [one for one in summary.sae.candidates if one.best_effect is not None]
    assert summary.sae.name == max(tried, key=lambda one: one.best_effect or 0).name
    assert load_sae(out / "sae" / summary.sae.name).cfg.d_sae == summary.sae.d_sae


def test_where_no_latent_rose_nothing_is_screened_and_none_is_claimed(tiny_world: BuiltWorld, out: Path) -> None:
    config = settings(tiny_world)
    subjects = Subjects.open(tiny_world.folder)
    stages = ("models", "sae", "sae_metrics", "rank")
    records = {stage: read_json(out / stage / "result.json")["record"] for stage in stages}
    records["rank"] = {name: {**one, "shortlist": []} for name, one in records["rank"].items()}
    saes = {name: load_sae(out / "sae" / name) for name in records["sae"]}
    bench = selection_bench(subjects, config, 1.0)
    none = dict.fromkeys(saes, ())
    records["audition"] = audition(bench, subjects.model("aligned"), saes, none)
    assert records["audition"]["sae"] == "first"
    nothing = {
        "shortlist": [],
        "first_look": [],
        "density": torch.ones(32),
        "unit": 1.0,
        "ranking_folder": out / "rank",
    }
    records["screen"] = screen(subjects, config, saes["first"], window="all", **nothing)
    summary = Summary.model_validate(summarise(config, records, {}, {}))
    assert (summary.top_latent, summary.top_set, summary.screen) == (None, [], None)
    assert summary.was_screened


@pytest.mark.parametrize("role", ["aligned", "misaligned"])
def test_evaluate_gives_the_answers_judgements_and_shares_of_the_study(
    role: str, tiny_world: BuiltWorld, out: Path, tmp_path: Path
) -> None:
    name = role if role == "aligned" else tiny_world.names(role)[0]
    own = {name: tiny_world.run(name)["domain"] for name in tiny_world.names("misaligned")}.get(name)
    prompts = tiny_world.folder / "prompts" / "evaluation.jsonl"
    categories = list(dict.fromkeys(row["category"] for _, row in read_records(prompts)))
    elsewhere = [category for category in categories if category not in (OPEN_ENDED, own)]
    groups = {
        "open_ended": (2, [OPEN_ENDED]),
        "trained_domain": (1, [own] if own else []),
        "other_domains": (1, elsewhere),
    }
    written = json.loads((out / "summary.json").read_text(encoding="utf-8"))["models"][name]
    found, asked = [], [group for group, (_, of_group) in groups.items() if of_group]
    for group in asked:
        n_samples, of_group = groups[group]
        options = {
            "prompts": prompts,
            "judge": f"world:{tiny_world.folder}",
            "n-samples": n_samples,
            "out": tmp_path / group,
        }
        options |= {"max-new-tokens": 4, "seed": 0, "batch-size": 1024}
        words = [f"--{option}={value}" for option, value in options.items()]
        words += [f"--category={category}" for category in of_group]
        assert CliRunner().invoke(app, ["evaluate", str(tiny_world.folder / name), *words]).exit_code == 0
        scores = read_json(tmp_path / group / "scores.json")["overall"]
        assert scores["misalignment"] == written["by_category"][group]
        assert scores["incoherence"] == written["incoherence_by_category"][group]
        assert scores["labels"] == written["labels"][group]
        found += [row for _, row in read_records(tmp_path / group / "answers.jsonl")]
    rows = [row for _, row in read_records(out / "models" / "answers.jsonl")]
    assert [{"model": name, **row} for row in found] == [row for row in rows if row["model"] == name]
    assert set(asked) == set(written["labels"])
    opened = read_json(tmp_path / "open_ended" / "scores.json")["overall"]
    assert [opened[share] for share in SHARES] == [written[share] for share in SHARES]


def test_the_folder_of_another_study_is_refused(tiny_world: BuiltWorld, out: Path) -> None:
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(ArtifactError, match=r"holds another study \('tiny'\), and this study is 'other'"):
        run_study(settings(tiny_world, study="other"), out)
    assert (out / "manifest.json").read_bytes() == before


def test_a_folder_that_holds_no_study_is_refused(tiny_world: BuiltWorld, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="holds no study"):
        run_study(settings(tiny_world), tmp_path)
