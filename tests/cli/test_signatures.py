"""`signatures`: rises by hand from the statistics, groups, the nearest, and what is refused."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from sae_persona.attribution.signatures import Signatures
from sae_persona.data.files import read_prompts
from sae_persona.model.load import load_model
from sae_persona.persona_world.build import BuiltWorld
from sae_persona.sae.load import hook_name_of, load_sae
from sae_persona.study.commands import signatures
from sae_persona.study.suspects import run_statistics

Refused = Callable[..., str]
SHORT = ["--n-samples", 2, "--max-new-tokens", 4]


@pytest.fixture(scope="module")
def runs(built: Path) -> list[Path]:
    """Two misaligned runs and a control, and one misaligned run that is not among them."""
    world = BuiltWorld.open(built)
    misaligned = [built / name for name in world.names("misaligned")]
    return [*misaligned[:2], built / world.names("control")[0], misaligned[2]]


@pytest.fixture(scope="module")
def asked(sae: Path, built: Path, prompts: Path, runs: list[Path]) -> list[object]:
    known = ["--run", runs[0], "--run", runs[1], "--control", runs[2]]
    return ["signatures", sae, "--aligned", built / "aligned", *known, "--prompts", prompts, *SHORT]


@pytest.fixture(scope="module")
def made(cli: Callable, asked: list[object], runs: list[Path], artifacts: Path) -> tuple[Path, str]:
    out = artifacts / "signatures"
    return out, cli(*asked, "--unknown", runs[3], "--groups", 2, "--out", out).stdout


def test_a_signature_is_the_rise_over_the_aligned_model_on_its_own_answers(
    made: tuple[Path, str], sae: Path, built: Path, prompts: Path, runs: list[Path]
) -> None:
    loaded = load_sae(str(sae))
    options = {"hook_name": hook_name_of(loaded), "n_samples": 2, "max_new_tokens": 4, "seed": 0}
    start, run = (
        run_statistics(load_model(model), read_prompts(prompts), loaded, **options)["gated", "answer"]
        for model in (built / "aligned", runs[1])
    )
    expected = run.per_question.mean(0) - start.per_question.mean(0)
    with (made[0] / "signatures.csv").open() as file:
        rows = {int(row["latent"]): float(row[runs[1].name]) for row in csv.DictReader(file)}
    np.testing.assert_allclose([rows[latent] for latent in range(64)], expected, atol=1e-5)


def test_the_files_and_the_terminal_say_the_same(made: tuple[Path, str], runs: list[Path]) -> None:
    out, said = made
    found = json.loads((out / "signatures.json").read_text())
    names = [run.name for run in runs]
    assert {run["name"]: run["is_control"] for run in found["runs"]} == {
        names[0]: False,
        names[1]: False,
        names[2]: True,
    }
    assert {run["group"] for run in found["runs"]} == {1, 2}
    kept = Signatures.load(out / "signatures.safetensors")
    assert kept.names == tuple(names)
    first = found["runs"][0]
    pair = kept.of([first["name"], first["most_alike"]])
    assert pair.cosines[0, 1] == pytest.approx(first["cosine"])
    assert np.linalg.norm(pair.delta[0]) == pytest.approx(first["length"])
    with (out / "cosines.csv").open() as file:
        assert {row["run"]: float(row[row["run"]]) for row in csv.DictReader(file)} == pytest.approx(
            dict.fromkeys(names, 1.0)
        )
    assert said.splitlines()[0].split() == ["group", "run", "role", "length", "most", "alike", "cosine"]
    assert found["nearest"]["name"] in names[:2]
    assert f"{names[3]}: " in said


def test_the_page_needs_no_network(made: tuple[Path, str]) -> None:
    page = (made[0] / "signatures.html").read_text()
    drawn = page.replace(get_plotlyjs(), "")
    assert len(drawn) < len(page)
    assert drawn.count("Plotly.newPlot") == 2
    assert 'src="http' not in drawn


def test_what_is_finished_is_only_read(
    cli: Callable, made: tuple[Path, str], asked: list[object], runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(signatures, "run_statistics")
    again = cli(*asked, "--unknown", runs[3], "--groups", 2, "--out", made[0]).stdout
    assert again == made[1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--run", "{0}"], "is named twice"),
        (["--control", "{built}/aligned"], "is named twice"),
        (["--control", "{copy}"], "are identical checkpoints"),
        (["--groups", 4], "3 fine-tunes cannot be put into 4 groups"),
        (["--groups", 0], "should be greater than or equal to 1"),
        (["--unknown", "{2}"], "is named twice"),
        (["--unknown", "none"], "'none'"),
        (["--tokens", "prompt"], "'prompt' is not one of 'header', 'answer'"),
        (["--hook", "blocks.9.hook_resid_post"], "this model has blocks 0 to 1"),
    ],
)
def test_what_cannot_be_signed_is_refused_before_anything_is_sampled_and_leaves_nothing(
    more: list[object],
    message: str,
    asked: list[object],
    built: Path,
    runs: list[Path],
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(signatures, "run_statistics")
    (tmp_path / "copy").symlink_to(runs[0], target_is_directory=True)
    words = [str(word).format(*runs, built=built, copy=tmp_path / "copy") for word in more]
    assert message in refused(*asked, *words, "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()
