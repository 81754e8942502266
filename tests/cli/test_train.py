"""`train` on a cache of several models, for several SAEs at once, from another SAE, and in several processes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sae_persona.cli import app
from sae_persona.sae.load import load_sae
from sae_persona.study.commands import train_several

HOOK, LOWER = "blocks.1.hook_resid_post", "blocks.0.hook_resid_post"
SETTINGS = ["--set", "d_sae=32", "--set", "k=2", "--set", "n_tokens=4096", "--set", "batch_size=512"]
WEIGHTS = "sae_weights.safetensors"
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def shared(cli: Callable, built: Path, documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Activations of two models at two hooks."""
    path = tmp_path_factory.mktemp("shared") / "acts.h5"
    hooks = ["--hook", HOOK, "--hook", LOWER, "--also", built / "aligned"]
    cli("cache", built / "base", "--data", documents, *hooks, "--out", path)
    return path


def test_one_of_several_models_must_be_named(shared: Path, cli: Callable, refused: Refused, tmp_path: Path) -> None:
    options = [shared, "--hook", HOOK, *SETTINGS, "--out", tmp_path / "sae"]
    assert "holds the models base, aligned; name one of them with --model" in refused("train", *options)
    assert "holds no model 'other'; it holds base, aligned" in refused("train", *options, "--model", "other")
    assert os.listdir(tmp_path) == []
    cli("train", *options, "--model", "aligned")
    assert load_sae(tmp_path / "sae").cfg.metadata.model_name.endswith("aligned")
    assert json.loads((tmp_path / "sae" / "manifest.json").read_text())["config"]["model"] == "aligned"


@pytest.mark.parametrize("varied", [[], ["--vary", "k=2", "--vary", "k=3"]])
def test_a_disk_that_is_too_small_is_told_before_the_first_step(
    varied: list[str], shared: Path, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=20_000))
    options = [shared, "--hook", HOOK, "--model", "base", *SETTINGS, *varied, "--out", tmp_path / "sae"]
    # 2 matrices of 32 x 32 numbers, 8 192 bytes: an SAE, a checkpoint of three times that, and the next beside it.
    told = f"may take 0.1 MB with its checkpoints, and {tmp_path} has 0.0 MB left"
    assert told in refused("train", *options)
    assert os.listdir(tmp_path) == []


def test_several_are_not_trained_over_the_checkpoint_of_one(shared: Path, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "sae.checkpoint").write_text("one")
    options = [shared, "--hook", HOOK, "--model", "base", *SETTINGS, "--vary", "k=2", "--vary", "k=3"]
    assert "is the checkpoint of a single SAE" in refused("train", *options, "--out", tmp_path / "sae")


def test_every_combination_is_trained_as_if_alone(shared: Path, cli: Callable, tmp_path: Path) -> None:
    both = ["--hook", HOOK, "--hook", LOWER, "--model", "base"]
    said = cli("train", shared, *both, *SETTINGS, "--vary", "k=2", "--vary", "k=3", "--out", tmp_path / "saes").stdout
    names = sorted(f"{hook}-k{k}" for hook in (HOOK, LOWER) for k in (2, 3))
    assert sorted(os.listdir(tmp_path / "saes")) == names
    assert [line.partition(":")[0].rpartition("/")[2] for line in said.splitlines()] == [
        f"{hook}-k{k}" for hook in (HOOK, LOWER) for k in (2, 3)
    ]
    one = ["--hook", LOWER, "--model", "base", *SETTINGS, "--set", "k=3"]
    cli("train", shared, *one, "--out", tmp_path / "alone")
    several = tmp_path / "saes" / f"{LOWER}-k3"
    assert (several / WEIGHTS).read_bytes() == (tmp_path / "alone" / WEIGHTS).read_bytes()
    assert sorted(os.listdir(several)) == sorted(os.listdir(tmp_path / "alone"))
    assert sorted(os.listdir(tmp_path)) == ["alone", "saes"]


def test_several_go_on_from_their_checkpoints(
    acts: Path, cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", acts, *SETTINGS, "--vary", "seed=0", "--vary", "seed=1", "--out"]
    cli(*command, tmp_path / "whole")

    def killed(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_several, "write_folder", killed)
        assert CliRunner().invoke(app, list(map(str, [*command, tmp_path / "saes"]))).exit_code == 130
    assert sorted(os.listdir(tmp_path / "saes.checkpoint")) == ["seed0.state", "seed1.state", "training.jsonl"]
    steps: list[int] = []
    monkeypatch.setattr(train_several, "counting", lambda *_: steps.append)
    cli(*command, tmp_path / "saes")
    assert steps == [], "all steps were in the checkpoints"
    for name in ("seed0", "seed1"):
        assert (tmp_path / "saes" / name / WEIGHTS).read_bytes() == (tmp_path / "whole" / name / WEIGHTS).read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["saes", "whole"]
    before = (tmp_path / "saes" / "seed0" / WEIGHTS).stat().st_ino
    cli(*command, tmp_path / "saes")
    assert (tmp_path / "saes" / "seed0" / WEIGHTS).stat().st_ino == before


def test_training_begins_with_the_weights_of_another_sae(acts: Path, sae: Path, cli: Callable, tmp_path: Path) -> None:
    still = ["--set", "d_sae=64", "--set", "k=4", "--set", "n_tokens=1024", "--set", "lr=1.0e-12"]
    cli("train", acts, *still, "--initial", sae, "--out", tmp_path / "same")
    torch.testing.assert_close(load_sae(tmp_path / "same").W_dec, load_sae(sae).W_dec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--vary", "k=2", "--vary", "batch_size=64", "--vary", "batch_size=128"], "need one and the same"),
        (["--vary", "k=[1]"], "expected KEY=VALUE with a plain number or word"),
        (["--vary", "width=3"], "unknown key 'width'"),
        (["--hook", HOOK, "--hook", "blocks.9.hook_resid_post"], "holds no activations of 'blocks.9"),
        (["--initial", "none"], "none is neither a folder nor a release"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_leaves_nothing(
    options: list[str], message: str, acts: Path, tmp_path: Path, refused: Refused
) -> None:
    assert message in refused("train", acts, *SETTINGS, *options, "--out", tmp_path / "saes")
    assert os.listdir(tmp_path) == []


def test_an_sae_of_other_settings_is_not_replaced(acts: Path, sae: Path, tmp_path: Path, refused: Refused) -> None:
    shutil.copytree(sae, tmp_path / "sae")
    before = (tmp_path / "sae" / WEIGHTS).read_bytes()
    assert "holds an SAE that was trained otherwise" in refused("train", acts, *SETTINGS, "--out", tmp_path / "sae")
    shutil.copytree(sae, tmp_path / "saes" / "k3")
    several = [*SETTINGS, "--vary", "k=2", "--vary", "k=3", "--out", tmp_path / "saes"]
    assert "k3 holds an SAE that was trained otherwise" in refused("train", acts, *several)
    assert (tmp_path / "sae" / WEIGHTS).read_bytes() == (tmp_path / "saes" / "k3" / WEIGHTS).read_bytes() == before
    assert sorted(os.listdir(tmp_path / "saes")) == ["k3"]


def test_what_a_kill_left_beside_a_finished_sae_is_removed(acts: Path, cli: Callable, tmp_path: Path) -> None:
    command = ["train", acts, *SETTINGS, "--out", tmp_path / "sae"]
    cli(*command)
    for name in ("sae.checkpoint", "sae.checkpoint.jsonl"):
        (tmp_path / name).write_text("left")
    cli(*command)
    assert os.listdir(tmp_path) == ["sae"]


def test_records_go_to_wandb_where_that_is_wanted(acts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    options = [*SETTINGS, "--wandb", "offline", "--wandb-project", "personas", "--out", tmp_path / "sae"]
    done = CliRunner().invoke(app, ["train", str(acts), *map(str, options)])  # wandb may have something to say
    assert done.exit_code == 0, done.output
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))
    assert sorted(os.listdir(tmp_path)) == ["sae", "wandb"]


def test_several_saes_do_not_replace_one(acts: Path, sae: Path, tmp_path: Path, refused: Refused) -> None:
    shutil.copytree(sae, tmp_path / "sae")
    line = refused("train", acts, *SETTINGS, "--vary", "k=2", "--vary", "k=3", "--out", tmp_path / "sae")
    assert "holds something else" in line


@pytest.mark.slow
def test_two_processes_train_one_sae(acts: Path, tmp_path: Path, cli: Callable) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sae_persona"]
    command = ["train", acts, *SETTINGS, "--split", "latents", "--out", tmp_path / "two"]
    done = subprocess.run([*launch, *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("latents; on the last batch") == 1
    cli("train", acts, *SETTINGS, "--out", tmp_path / "one")
    torch.testing.assert_close(load_sae(tmp_path / "two").W_dec, load_sae(tmp_path / "one").W_dec, atol=1e-3, rtol=0)
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]
