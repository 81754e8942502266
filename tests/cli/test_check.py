"""`inspect` and `doctor`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

Refused = Callable[..., str]


@pytest.mark.parametrize("artifact", ["acts.h5", "sae", "world", "world/base"])
def test_inspect_says_what_an_artifact_is(
    artifact: str, acts: Path, sae: Path, built: Path, artifacts: Path, cli: Callable
) -> None:
    kinds = {"acts.h5": "activation cache", "sae": "SAE", "world": "persona world", "world/base": "model"}
    said = cli("inspect", artifacts / artifact).stdout
    assert said.startswith(f"{artifacts / artifact}: {kinds[artifact]}, whole\n")


def test_inspect_lists_what_matters_of_a_cache(acts: Path, cli: Callable) -> None:
    said = cli("inspect", acts).stdout
    assert "blocks.1.hook_resid_post (32 wide, median norm" in said
    assert "float32" in said


def test_what_is_damaged_or_nothing_of_ours_is_refused(acts: Path, sae: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "acts.h5").write_bytes(acts.read_bytes()[:-100])
    assert "truncated, damaged or of another format" in refused("inspect", tmp_path / "acts.h5")
    shutil.copytree(sae, tmp_path / "sae")
    (tmp_path / "sae" / "manifest.json").write_text("{")
    assert "manifest.json: the manifest cannot be read" in refused("inspect", tmp_path / "sae")
    assert "does not exist" in refused("inspect", tmp_path / "none")
    assert "is no cache, SAE, model, ranking" in refused("inspect", tmp_path)


def test_a_fit_model_passes_every_check(built: Path, sae: Path, cli: Callable) -> None:
    said = cli("doctor", built / "aligned", "--sae", sae).stdout
    assert [line[:5] for line in said.splitlines()] == ["ok   "] * 6
    assert "loads: LlamaForCausalLM" in said
    assert "blocks.0.hook_resid_pre, blocks.0.hook_resid_post, blocks.1" in said
    assert "SAE: topk, d_in 32, 64 latents, fits at blocks.1.hook_resid_post" in said


def test_an_sae_that_does_not_fit_fails_its_check_alone(
    built: Path, sae: Path, tmp_path: Path, refused: Refused
) -> None:
    shutil.copytree(sae, tmp_path / "sae")
    config = json.loads((sae / "cfg.json").read_text())
    config["metadata"]["hook_name"] = "blocks.7.hook_resid_post"
    (tmp_path / "sae" / "cfg.json").write_text(json.dumps(config))
    assert refused("doctor", built / "aligned", "--sae", tmp_path / "sae").endswith("failed 1 of 6 checks: SAE.")


def test_a_model_that_does_not_load_is_the_only_check(tmp_path: Path, refused: Refused) -> None:
    assert refused("doctor", tmp_path).endswith("failed 1 of 1 checks: loads.")


def test_a_world_may_be_handed_on_without_the_data_that_aligned_it(built: Path, tmp_path: Path, cli: Callable) -> None:
    shutil.copytree(built, tmp_path / "world")
    (tmp_path / "world" / "data" / "alignment.jsonl").unlink()
    assert "persona world, whole" in cli("inspect", tmp_path / "world").stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("base/model.safetensors", "base is not what"),
        ("data/alignment.jsonl", "alignment.jsonl is not what"),
        ("prompts/evaluation.jsonl", "evaluation.jsonl, line 1: not JSON"),
        ("world.json", "world.json is not JSON"),
        ("world.json/language", "world.json is damaged (KeyError: 'language')"),
        ("control-law/adapter_model.safetensors", "adapter_model.safetensors cannot be read"),
        ("control-law/manifest.json", "the manifest cannot be read"),
    ],
)
def test_a_damaged_world_is_found(name: str, message: str, built: Path, tmp_path: Path, refused: Refused) -> None:
    shutil.copytree(built, tmp_path / "world")
    if name == "world.json/language":
        (tmp_path / "world" / "world.json").write_text('{"schema": 1}')
    else:
        (tmp_path / "world" / name).write_text("damaged")
    assert message in refused("inspect", tmp_path / "world")
