"""`run` and `report`."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from example_summary import example_summary

Refused = Callable[..., str]
SMALL = {
    "sae": {"d_sae": 64, "k": 4, "n_tokens": 4096},
    "hook_name": "blocks.1.hook_resid_post",
    "sampling": {
        "max_new_tokens": 4,
        "open_ended": 1,
        "trained_domain": 1,
        "other_domains": 1,
        "controls": 1,
        "selection": 1,
        "selection_advice": 1,
    },
    "ranking": {"n_samples": 1, "shortlist": 2},
    "steering": {"strengths": [0.5], "windows": ["all"], "n_random_latents": 2, "n_random_directions": 2},
    "monitor": {"bad_fractions": [1.0]},
    "realign": {"steps": [0, 1]},
}


@pytest.fixture
def study(tmp_path: Path, built: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps({"study": "tiny", "world": str(built), **SMALL}))  # JSON is YAML
    return path


@pytest.mark.slow
def test_a_study_runs_from_a_file_to_a_report_and_resumes(study: Path, tmp_path: Path, cli: Callable) -> None:
    said = cli("run", study, "--set", "ranking.n_samples=2", "--seed", 5, "--out", tmp_path / "run").stdout
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["study"], summary["seed"]) == ("tiny", 5)
    assert said.splitlines()[-2:] == [str(tmp_path / "run" / "summary.json"), str(tmp_path / "run" / "report.html")]
    assert "tiny, seed 5:" in said
    before = {path: path.stat().st_ino for path in (tmp_path / "run").glob("*/result.json")}
    cli("run", study, "--set", "ranking.n_samples=2", "--seed", 5, "--out", tmp_path / "run")
    assert {path: path.stat().st_ino for path in (tmp_path / "run").glob("*/result.json")} == before
    assert cli("inspect", tmp_path / "run").stdout.startswith(f"{tmp_path / 'run'}: study, whole")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "sae.kk=3"], "unknown key 'sae.kk' (known here: architecture, d_sae, k"),
        (["--set", "sampling.open_ended=none"], "sampling.open_ended: Input should be a valid integer"),
        (["--set", "steering.strengths=[a]"], "steering.strengths.0: Input should be a valid number"),
        (["--set", "world=runs/none"], "runs/none is no persona world"),
        (["--set", "hook_name=blocks.9.hook_resid_post"], "asks for block 9; this model has blocks 0 to 1"),
    ],
)
def test_a_study_that_cannot_be_meant_is_refused(
    options: list[str], message: str, study: Path, tmp_path: Path, refused: Refused
) -> None:
    assert message in refused("run", study, *options, "--out", tmp_path / "run")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("study: [", "study.yaml is not YAML"),
        ("- a\n", "study.yaml holds list; expected a mapping"),
        ("study: x\n", "study.yaml: world: Field required"),
    ],
)
def test_a_file_that_is_no_study_is_refused(text: str, message: str, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "study.yaml").write_text(text)
    assert message in refused("run", tmp_path / "study.yaml", "--out", tmp_path / "run")
    assert os.listdir(tmp_path) == ["study.yaml"]


def test_a_folder_that_holds_another_study_is_refused(study: Path, sae: Path, tmp_path: Path, refused: Refused) -> None:
    assert "holds another sae" in refused("run", study, "--out", sae)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    assert "is not empty and holds no study" in refused("run", study, "--out", tmp_path / "run")


def test_a_report_is_written_from_a_summary_alone(tmp_path: Path, cli: Callable) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(example_summary()))
    assert cli("report", tmp_path).stdout == f"{tmp_path / 'report.html'}\n"
    assert "<html" in (tmp_path / "report.html").read_text()


def test_a_report_of_nothing_is_refused(tmp_path: Path, refused: Refused) -> None:
    assert "summary.json does not exist" in refused("report", tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    assert "states no schema" in refused("report", tmp_path)
    assert os.listdir(tmp_path) == ["summary.json"]
