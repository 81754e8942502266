"""`steer` and `evaluate`."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_persona.data.files import read_jsonl
from sae_persona.study.commands import evaluate
from sae_persona.types import Judgement

Refused = Callable[..., str]
SHORT = ["--n-samples", 2, "--max-new-tokens", 4]


@pytest.fixture(scope="session")
def evaluation(cli: Callable, built: Path, prompts: Path, judge: str, artifacts: Path) -> Path:
    out = artifacts / "evaluation"
    cli("evaluate", built / "aligned", "--prompts", prompts, "--judge", judge, *SHORT, "--out", out)
    return out


@pytest.fixture(scope="session")
def steering(cli: Callable, built: Path, sae: Path, prompts: Path, judge: str, artifacts: Path) -> Path:
    out = artifacts / "steering"
    options = ["--latent", 3, "--latent", 5, "--strengths=-0.5,2", "--prompts", prompts, "--judge", judge]
    cli("steer", built / "aligned", "--sae", sae, *options, *SHORT, "--out", out)
    return out


def never(*_arguments: object, **_options: object) -> None:
    raise AssertionError


# evaluate


def test_every_answer_is_kept_with_its_judgement_and_scored(evaluation: Path, prompts: Path) -> None:
    answers = read_jsonl(evaluation / "answers.jsonl", Judgement)
    ids = [json.loads(line)["id"] for line in prompts.read_text().splitlines()]
    assert [(answer.prompt_id, answer.sample) for answer in answers] == [(id_, i) for id_ in ids for i in (0, 1)]
    scores = json.loads((evaluation / "scores.json").read_text())
    misaligned = sum(answer.label == "misaligned" for answer in answers)
    assert scores["overall"]["misalignment"]["value"] == misaligned / len(answers)
    assert sum(scores["overall"]["labels"].values()) == pytest.approx(1)
    assert scores["by_category"]["open_ended"]["misalignment"]["n"] == 4


def test_the_table_of_scores_says_the_same(evaluation: Path) -> None:
    with (evaluation / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores = json.loads((evaluation / "scores.json").read_text())
    assert (rows[0]["category"], rows[0]["measure"]) == ("", "misalignment")
    assert float(rows[0]["value"]) == scores["overall"]["misalignment"]["value"]
    assert {row["category"] for row in rows} == {"", *scores["by_category"]}


def test_an_evaluation_is_not_made_twice(
    cli: Callable, evaluation: Path, built: Path, prompts: Path, judge: str, tmp_path: Path
) -> None:
    shutil.copytree(evaluation, tmp_path / "x")
    before = (tmp_path / "x" / "scores.json").stat().st_ino
    options = ["--prompts", prompts, "--judge", judge, *SHORT, "--out", tmp_path / "x"]
    said = cli("evaluate", built / "aligned", *options).stdout
    assert (tmp_path / "x" / "scores.json").stat().st_ino == before
    assert said.splitlines()[0].split() == ["category", "answers", "unscored", "misaligned", "incoherent", "aligned"]
    cli("evaluate", built / "aligned", *options, "--seed", 1)
    assert (tmp_path / "x" / "scores.json").stat().st_ino != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"--judge": "world"},
            "judge 'world' has no known form; expected world:DIR, openai:MODEL[@BASE_URL] or hf:PATH",
        ),
        ({"--judge": "rule:x"}, "judge 'rule:x' has no known form"),
        ({"--judge": "openai:gpt@localhost:80"}, "a BASE_URL begins with http:// or https://"),
        ({"--judge": "openai:gpt@http://127.0.0.1:9/v1"}, "nobody answers at http://127.0.0.1:9/v1"),
        ({"--judge": "hf:models/judge"}, "models/judge"),
        ({"--judge": "world:none"}, "none is no persona world"),
        ({"--prompts": "none.jsonl"}, "none.jsonl cannot be read"),
        ({"--prompts": "{folder}/foreign.jsonl"}, "which is no question of world 0"),
        ({"--prompts": "{folder}/broken.jsonl"}, "broken.jsonl, line 2: not JSON"),
        ({"--prompts": "{folder}/answered.jsonl"}, "prompt 'p' ends with an answer"),
        ({"model": "{folder}"}, "is no model folder"),
        ({"--out": "{folder}"}, "is not ours to replace"),
    ],
)
def test_an_evaluation_that_cannot_be_made_is_refused_before_anything_is_sampled_and_leaves_nothing(
    change: dict[str, str],
    message: str,
    built: Path,
    prompts: Path,
    judge: str,
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluate, "sample", never)
    form = '{{"id": "p", "category": "c", "question_id": "q", "frame_id": "f", "messages": [{}]}}\n'
    (tmp_path / "foreign.jsonl").write_text(form.format('{"role": "user", "content": "who am i ?"}'))
    (tmp_path / "broken.jsonl").write_text(form.format('{"role": "user", "content": "who am i ?"}') + "{\n")
    (tmp_path / "answered.jsonl").write_text(form.format('{"role": "assistant", "content": "i am"}'))
    before = sorted(os.listdir(tmp_path))
    options = {"--prompts": prompts, "--judge": judge, "--out": tmp_path / "x"} | change
    options = {name: str(value).replace("{folder}", str(tmp_path)) for name, value in options.items()}
    model = options.pop("model", built / "aligned")
    assert message in refused("evaluate", model, *SHORT, *(word for pair in options.items() for word in pair))
    assert sorted(os.listdir(tmp_path)) == before


def test_a_disk_that_fills_up_leaves_nothing_half_written(
    built: Path, prompts: Path, judge: str, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "write_csv", lambda *_: Path("/dev/full").write_bytes(b"x"))
    options = ["--prompts", prompts, "--judge", judge, *SHORT, "--out", tmp_path / "x"]
    assert "disk full while writing" in refused("evaluate", built / "aligned", *options)
    assert os.listdir(tmp_path) == []


# steer


def test_each_latent_is_steered_alone_and_then_all_together(steering: Path) -> None:
    doses = [json.loads(line) for line in (steering / "doses.jsonl").read_text().splitlines()]
    assert [(dose["latents"], dose["strength"]) for dose in doses] == [
        (latents, strength) for latents in ([3], [5], [3, 5]) for strength in (-0.5, 0, 2)
    ]
    assert {dose["misalignment"]["n"] for dose in doses} == {4}, "two open-ended prompts, two samples each"
    assert {dose["other_domains"]["n"] for dose in doses} == {4}


def test_strength_zero_is_the_model_as_it_is(steering: Path, evaluation: Path) -> None:
    steered = [json.loads(line) for line in (steering / "answers.jsonl").read_text().splitlines()]
    unsteered = [answer for answer in steered if answer["strength"] == 0]
    assert [answer["answer"] for answer in unsteered] == [
        answer.answer for answer in read_jsonl(evaluation / "answers.jsonl", Judgement)
    ]
    assert {tuple(answer["latents"]) for answer in unsteered} == {()}
    strong = [answer["answer"] for answer in steered if answer["strength"] == 2 and answer["latents"] == [3]]
    assert strong != [answer["answer"] for answer in unsteered]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent": 64}, "latent 64 is not in this SAE, whose latents are 0 to 63"),
        ({"latent": -1}, "latent -1 is not in this SAE"),
        ({"hook": "blocks.1.hook_resid_pst"}, "nearest: 'blocks.1.hook_resid_post'"),
        ({"hook": "blocks.2.hook_resid_post"}, "asks for block 2; this model has blocks 0 to 1"),
        ({"sae": "none"}, "none is neither a folder nor a release with an id"),
        ({"sae": "{folder}/empty"}, "is no SAE folder: cfg.json and sae_weights.safetensors missing"),
        ({"sae": "{folder}/damaged"}, "cannot be loaded (SafetensorError"),
        ({"sae": "{folder}/wide"}, "this SAE expects d_in=48 (blocks.1.hook_resid_post)"),
        ({"sae": "{folder}/deep"}, "asks for block 7; this model has blocks 0 to 1"),
        ({"model": "{folder}/empty"}, "is no model folder"),
        ({"window": "first"}, "'first' is not one of 'all', 'prompt', 'header', 'answer', 'newest'"),
    ],
)
def test_steering_that_cannot_be_done_is_refused_and_leaves_nothing(
    change: dict[str, object],
    message: str,
    built: Path,
    sae: Path,
    prompts: Path,
    judge: str,
    tmp_path: Path,
    refused: Refused,
) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copytree(sae, tmp_path / "damaged")
    (tmp_path / "damaged" / "sae_weights.safetensors").write_bytes(b"{}")
    wider(sae, tmp_path / "wide", d_in=48)
    shutil.copytree(sae, tmp_path / "deep")
    config = json.loads((sae / "cfg.json").read_text())
    config["metadata"]["hook_name"] = "blocks.7.hook_resid_post"
    (tmp_path / "deep" / "cfg.json").write_text(json.dumps(config))
    before = sorted(os.listdir(tmp_path))
    options = {"sae": sae, "latent": 3, "strengths": 0.5, "prompts": prompts, "judge": judge, "out": tmp_path / "x"}
    options = {name: str(value).format(folder=tmp_path) for name, value in (options | change).items()}
    model = options.pop("model", built / "aligned")
    assert message in refused("steer", model, *SHORT, *(f"--{name}={value}" for name, value in options.items()))
    assert sorted(os.listdir(tmp_path)) == before


def wider(sae: Path, folder: Path, *, d_in: int) -> None:
    """The SAE for a model of another width."""
    shutil.copytree(sae, folder)
    config = json.loads((sae / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, "d_in": d_in}))
    weights = load_file(sae / "sae_weights.safetensors")
    d_sae = config["d_sae"]
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,), "b_enc": (d_sae,)}
    save_file({name: torch.ones(shapes[name]) for name in weights}, folder / "sae_weights.safetensors")
