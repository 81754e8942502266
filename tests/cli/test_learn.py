"""`cache`, `train` and `finetune`."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
from typer.testing import CliRunner

from sae_persona.cache.reader import ActivationCache
from sae_persona.cli import app
from sae_persona.model.load import load_model
from sae_persona.sae.load import load_sae
from sae_persona.study.commands import finetune, train

HOOK = "blocks.1.hook_resid_post"
Refused = Callable[..., str]


def test_the_plan_of_a_cache_tells_its_size(built: Path, documents: Path, tmp_path: Path, cli: Callable) -> None:
    options = ["--hook", HOOK, "--hook", "blocks.0.hook_resid_post", "--dtype", "bfloat16"]
    said = cli("cache", built / "base", "--data", documents, *options, "--out", tmp_path / "a.h5").stdout
    planned = re.search(r"plan: 20 documents, ([\d,]+) tokens, 2 hooks of width 32 in bfloat16: ([\d.]+) MB", said)
    assert planned is not None
    assert ActivationCache.open(tmp_path / "a.h5").n_tokens == int(planned[1].replace(",", ""))
    # The layout of an HDF5 file takes some kilobytes beside the arrays.
    assert float(planned[2]) == pytest.approx((tmp_path / "a.h5").stat().st_size / 1e6, abs=0.1)


def test_chats_can_be_cached_too(built: Path, tmp_path: Path, cli: Callable) -> None:
    (tmp_path / "chats.jsonl").write_text((built / "data" / "alignment.jsonl").read_text().splitlines()[0])
    cli("cache", built / "aligned", "--data", tmp_path / "chats.jsonl", "--hook", HOOK, "--out", tmp_path / "a.h5")
    assert 2 in ActivationCache.open(tmp_path / "a.h5").parts, "an answer's tokens are told apart"


def test_documents_longer_than_the_context_are_cut(built: Path, documents: Path, tmp_path: Path, cli: Callable) -> None:
    cli("cache", built / "base", "--data", documents, "--hook", HOOK, "--context", 16, "--out", tmp_path / "a.h5")
    assert ActivationCache.open(tmp_path / "a.h5").positions.max() == 15


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--hook": "blocks.1.hook_resid_pst"}, "is not a hook of this model; nearest: 'blocks.1.hook_resid_post'"),
        ({"--hook": "blocks.7.hook_resid_post"}, "asks for block 7; this model has blocks 0 to 1"),
        ({"--data": "none.jsonl"}, "none.jsonl cannot be read: No such file or directory"),
        ({"model": "models/none"}, "'models/none' is no folder here"),
        ({"--device": "gpu"}, "'gpu' is no device"),
        ({"--out": "{folder}"}, "is a folder"),
        ({"--batch-size": 0}, "Input should be greater than or equal to 1"),
    ],
)
def test_a_cache_that_cannot_be_made_is_refused_and_leaves_nothing(
    change: dict[str, str], message: str, built: Path, documents: Path, tmp_path: Path, refused: Refused
) -> None:
    options = {"--data": documents, "--hook": HOOK, "--out": tmp_path / "a.h5"} | change
    options = {name: str(value).format(folder=tmp_path) for name, value in options.items()}
    model = options.pop("model", built / "base")
    assert message in refused("cache", model, *(word for pair in options.items() for word in pair))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ('{"text": "a"}\n{"text": \n', "line 2: not JSON"),
        ('{"text": "a"}\n{"prompt": "a"}\n', "line 2: no text"),
        ('{"messages": [{"role": "user"}]}\n', "line 1: messages.0.content: Field required"),
    ],
)
def test_malformed_data_are_named_by_line(
    text: str, message: str, built: Path, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "data.jsonl").write_text(text)
    options = ["--data", tmp_path / "data.jsonl", "--hook", HOOK, "--out", tmp_path / "a.h5"]
    assert message in refused("cache", built / "base", *options)
    assert os.listdir(tmp_path) == ["data.jsonl"]


def test_a_cache_of_other_data_is_not_overwritten(acts: Path, built: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "data.jsonl").write_text('{"text": "who are you ?"}\n')
    before = acts.read_bytes()
    line = refused("cache", built / "base", "--data", tmp_path / "data.jsonl", "--hook", HOOK, "--out", acts)
    assert "was made otherwise: another rows. Choose another --out" in line
    assert acts.read_bytes() == before


def test_a_trained_sae_is_saelenss_and_knows_its_hook(sae: Path) -> None:
    trained = load_sae(sae)
    assert (trained.cfg.d_sae, trained.cfg.d_in, trained.cfg.metadata.hook_name) == (64, 32, HOOK)
    assert sorted(os.listdir(sae)) == ["cfg.json", "manifest.json", "sae_weights.safetensors", "training.jsonl"]


def test_training_again_reads_what_is_there_and_other_settings_need_another_folder(
    acts: Path, sae: Path, tmp_path: Path, cli: Callable, refused: Callable[..., str]
) -> None:
    shutil.copytree(sae, tmp_path / "sae")
    first = (tmp_path / "sae" / "cfg.json").stat().st_ino
    same = ["--set", "d_sae=64", "--set", "k=4", "--set", "n_tokens=4096"]
    cli("train", acts, *same, "--out", tmp_path / "sae")
    assert (tmp_path / "sae" / "cfg.json").stat().st_ino == first
    (tmp_path / "sae.yaml").write_text("d_sae: 32\nk: 4\nn_tokens: 2048\n")
    other = ["train", acts, "--config", tmp_path / "sae.yaml", "--set", "k=2", "--seed", 7, "--out"]
    assert "holds an SAE that was trained otherwise" in refused(*other, tmp_path / "sae")
    assert (tmp_path / "sae" / "cfg.json").stat().st_ino == first
    cli(*other, tmp_path / "other")
    manifest = json.loads((tmp_path / "other" / "manifest.json").read_text())
    assert (manifest["seed"], manifest["config"]["d_sae"], manifest["config"]["k"]) == (7, 32, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "d_hidden=4"], "unknown key 'd_hidden' (known here: architecture, d_sae, k"),
        (["--set", "k=0"], "k: Input should be greater than 0, got 0"),
        (["--set", "d_sae"], "is not of the form key=value"),
        (["--config", "none.yaml"], "none.yaml cannot be read: No such file or directory"),
        (
            ["--hook", "blocks.0.hook_resid_post"],
            "holds no activations of 'blocks.0.hook_resid_post'; it holds blocks.1",
        ),
        (["--device", "meta"], "device 'meta' was asked for"),
    ],
)
def test_a_training_that_cannot_be_meant_is_refused(
    options: list[str], message: str, acts: Path, tmp_path: Path, refused: Refused
) -> None:
    assert message in refused("train", acts, *options, "--out", tmp_path / "sae")
    assert os.listdir(tmp_path) == []


def test_a_cache_of_several_hooks_needs_one_to_be_named(
    built: Path, documents: Path, tmp_path: Path, cli: Callable, refused: Refused
) -> None:
    hooks = ["--hook", HOOK, "--hook", "blocks.0.hook_resid_post"]
    cli("cache", built / "base", "--data", documents, *hooks, "--out", tmp_path / "a.h5")
    assert "name one of them with --hook" in refused("train", tmp_path / "a.h5", "--out", tmp_path / "sae")


def test_a_missing_or_damaged_cache_is_refused(acts: Path, tmp_path: Path, refused: Refused) -> None:
    assert "does not exist" in refused("train", tmp_path / "none.h5", "--out", tmp_path / "sae")
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(acts.read_bytes()[:1000])
    assert "truncated, damaged or of another format" in refused("train", damaged, "--out", tmp_path / "sae")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    assert "something else" in refused("train", tmp_path / "other.h5", "--out", tmp_path / "sae")


def test_a_folder_that_holds_something_else_is_not_replaced(
    acts: Path, built: Path, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "is not ours to replace" in refused("train", acts, "--out", tmp_path)
    shutil.copytree(built / "aligned", tmp_path / "model")
    assert "holds a model, and a sae is to be written there" in refused("train", acts, "--out", tmp_path / "model")


def test_a_killed_training_goes_on_from_its_checkpoint(
    acts: Path, tmp_path: Path, cli: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["--set", "d_sae=32", "--set", "k=2", "--set", "n_tokens=4096", "--set", "batch_size=1024"]
    cli("train", acts, *settings, "--out", tmp_path / "whole")

    def killed(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sae_lens.TopKSAE.save_model", killed)
        result = CliRunner().invoke(app, ["train", str(acts), *settings, "--out", str(tmp_path / "sae")])
        assert result.exit_code == 130
    assert sorted(os.listdir(tmp_path)) == ["sae.checkpoint", "sae.checkpoint.jsonl", "whole"]
    steps: list[int] = []
    monkeypatch.setattr(train, "counting", lambda *_: steps.append)
    cli("train", acts, *settings, "--out", tmp_path / "sae")
    assert steps == [], "all four steps were in the checkpoint"
    resumed, whole = tmp_path / "sae", tmp_path / "whole"
    weights = "sae_weights.safetensors"
    assert (resumed / weights).read_bytes() == (whole / weights).read_bytes()
    assert untimed(resumed / "training.jsonl") == untimed(whole / "training.jsonl")
    assert sorted(os.listdir(tmp_path)) == ["sae", "whole"]


def untimed(log: Path) -> list[dict]:
    """Records without how fast the training went."""
    timings = {"details/tokens_per_second", "details/seconds_left"}
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert all(timings <= record.keys() for record in records)
    return [{key: value for key, value in record.items() if key not in timings} for record in records]


def test_a_training_that_diverges_is_refused_and_leaves_nothing(acts: Path, tmp_path: Path, refused: Refused) -> None:
    settings = ["--set", "d_sae=32", "--set", "k=2", "--set", "n_tokens=4096", "--set", "lr=1.0e+38"]
    assert "the loss is not finite" in refused("train", acts, *settings, "--out", tmp_path / "sae")
    assert os.listdir(tmp_path) == []


def chats(built: Path, path: Path) -> Path:
    path.write_text("".join((built / "data" / "alignment.jsonl").read_text().splitlines(keepends=True)[:8]))
    return path


def test_an_adapter_is_saved_with_the_way_to_its_base(built: Path, tmp_path: Path, cli: Callable) -> None:
    settings = ["--lora", "--set", "lora.rank=2", "--set", "train.n_steps=2", "--set", "train.batch_size=2"]
    data = chats(built, tmp_path / "chats.jsonl")
    said = cli(
        "finetune", built / "aligned", "--data", data, *settings, "--seed", 3, "--out", tmp_path / "tuned"
    ).stdout
    assert "2 steps, loss" in said
    assert load_model(tmp_path / "tuned").d_model == 32
    assert not (tmp_path / "tuned" / "model.safetensors").exists()
    assert json.loads((tmp_path / "tuned" / "manifest.json").read_text())["seed"] == 3


def test_without_lora_the_whole_model_is_saved(built: Path, tmp_path: Path, cli: Callable) -> None:
    settings = ["--set", "train.n_steps=1", "--set", "train.batch_size=2"]
    data = chats(built, tmp_path / "chats.jsonl")
    cli("finetune", built / "aligned", "--data", data, *settings, "--out", tmp_path / "tuned")
    assert (tmp_path / "tuned" / "model.safetensors").exists()
    before = (tmp_path / "tuned" / "model.safetensors").stat().st_ino
    cli("finetune", built / "aligned", "--data", data, *settings, "--out", tmp_path / "tuned")
    assert (tmp_path / "tuned" / "model.safetensors").stat().st_ino == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "lora.rnk=2"], "unknown key 'lora.rnk' (known here: rank, alpha"),
        (["--set", "steps=2"], "unknown key 'steps' (known here: train, lora)"),
        (["--lora", "--set", "lora.target_modules=[nowhere]"], "this LoRA configuration fits no module of the model"),
    ],
)
def test_a_fine_tune_that_cannot_be_meant_is_refused(
    options: list[str], message: str, built: Path, tmp_path: Path, refused: Refused
) -> None:
    data = built / "data" / "alignment.jsonl"
    assert message in refused("finetune", built / "aligned", "--data", data, *options, "--out", tmp_path / "tuned")
    assert os.listdir(tmp_path) == []


def test_a_chat_that_the_model_cannot_read_whole_is_refused(built: Path, tmp_path: Path, refused: Refused) -> None:
    turns = [{"role": "user", "content": "who " * 300}, {"role": "assistant", "content": "i am"}]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": turns}))
    line = refused("finetune", built / "aligned", "--data", tmp_path / "chats.jsonl", "--out", tmp_path / "tuned")
    assert "a chat has 306 tokens, and the model reads 256" in line
    assert os.listdir(tmp_path) == ["chats.jsonl"]


def test_a_model_is_not_replaced_by_its_own_fine_tune(built: Path, refused: Refused) -> None:
    data = built / "data" / "alignment.jsonl"
    assert "is the model to start from" in refused("finetune", built / "base", "--data", data, "--out", built / "base")


def test_no_adapter_is_put_on_an_adapter(built: Path, tmp_path: Path, refused: Refused) -> None:
    adapter = next(path for path in built.iterdir() if path.name.startswith("control-"))
    line = refused("finetune", adapter, "--data", built / "data" / "alignment.jsonl", "--lora", "--out", tmp_path / "x")
    assert "is an adapter already" in line


def test_a_disk_that_fills_up_leaves_nothing_half_written(
    built: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune, "write_jsonl", lambda *_: Path("/dev/full").write_bytes(b"x"))
    data = chats(built, tmp_path / "chats.jsonl")
    settings = ["--set", "train.n_steps=1", "--set", "train.batch_size=1"]
    line = refused("finetune", built / "aligned", "--data", data, *settings, "--out", tmp_path / "tuned")
    assert "disk full while writing" in line
    assert os.listdir(tmp_path) == ["chats.jsonl"]
