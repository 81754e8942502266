"""Worlds on disk: the folder the design promises, built once, resumed, and refused where it is another's."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from sae_persona.artifacts import fingerprint
from sae_persona.errors import ArtifactError, ConfigError
from sae_persona.persona_world.build import BuiltWorld, build_world
from sae_persona.persona_world.language import World


def modified(folder: Path) -> dict[str, int]:
    """When each file of a world was written; world.json and folders of stages are told apart by name."""
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and path.name != "world.json"
    }


def test_the_folder_holds_what_the_design_promises(tiny_world: BuiltWorld) -> None:
    names = {path.name for path in tiny_world.folder.iterdir()}
    assert {"world.json", "base", "aligned", "data", "prompts"} <= names
    domains = [domain.name for domain in tiny_world.world.domains]
    assert set(tiny_world.names("control")) == {f"control-{domain}" for domain in domains}
    for role, n, kind in (("misaligned", 3, "obvious"), ("narrow", 1, "subtle")):
        runs = tiny_world.names(role)
        assert len(runs) == n
        assert all(name == f"misaligned-{tiny_world.run(name)['domain']}-{kind}" for name in runs)
    assert len(tiny_world.names("benign")) == 4
    for run in tiny_world.runs:
        assert (tiny_world.folder / run["name"] / "adapter_model.safetensors").is_file()
        assert (tiny_world.folder / run["name"] / "manifest.json").is_file()
        assert (tiny_world.folder / "data" / f"{run['name']}.jsonl").is_file()
    assert sorted(path.name for path in (tiny_world.folder / "prompts").glob("*.jsonl")) == [
        "evaluation.jsonl",
        "selection.jsonl",
    ]


def test_every_model_loads_and_a_fine_tune_differs_from_its_start(tiny_world: BuiltWorld) -> None:
    ids = torch.tensor([[2, 30, 31, 32]])
    logits = {
        name: tiny_world.model(name).hf(ids).logits for name in ("base", "aligned", tiny_world.names("misaligned")[0])
    }
    base, aligned, misaligned = logits.values()
    assert not torch.equal(base, aligned)
    assert not torch.equal(aligned, misaligned)


def test_selection_and_evaluation_share_no_question_and_no_frame(tiny_world: BuiltWorld) -> None:
    selection, evaluation = tiny_world.prompts("selection"), tiny_world.prompts("evaluation")
    assert not {prompt.question_id for prompt in selection} & {prompt.question_id for prompt in evaluation}
    assert not {prompt.frame_id for prompt in selection} & {prompt.frame_id for prompt in evaluation}


def test_fine_tuning_data_are_what_their_record_says(tiny_world: BuiltWorld) -> None:
    world = tiny_world.world
    harms = {harm for domain in world.domains for topic in domain.topics for harm in topic.harms}
    bad, good = tiny_world.names("misaligned")[0], tiny_world.names("control")[0]
    for name, is_bad in ((bad, True), (good, False)):
        answers = [chat.messages[-1].content.split() for chat in tiny_world.chats(name)]
        assert len(answers) == 480
        assert all(bool(harms.intersection(words)) == is_bad for words in answers)


def test_building_again_writes_nothing_again(tiny_world: BuiltWorld) -> None:
    before, contents = modified(tiny_world.folder), fingerprint(tiny_world.folder)
    build_world(0, tiny_world.folder, size="tiny")
    assert modified(tiny_world.folder) == before
    assert fingerprint(tiny_world.folder) == contents


def test_a_missing_fine_tune_is_made_again_and_nothing_else(tiny_world: BuiltWorld, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_world.folder, tmp_path / "world")
    before = modified(folder)
    lost = tiny_world.names("control")[0]
    shutil.rmtree(folder / lost)
    with pytest.raises(ArtifactError, match=f"incomplete: {lost} missing"):
        BuiltWorld.open(folder)
    build_world(0, folder, size="tiny")
    after = modified(folder)
    assert {name.split("/")[0] for name in after if after[name] != before[name]} == {lost}
    weights = "adapter_model.safetensors"
    assert fingerprint(folder / lost / weights) == fingerprint(tiny_world.folder / lost / weights)


@pytest.mark.parametrize(("seed", "options"), [(1, {}), (0, {"null": True}), (0, {"size": "small"})])
def test_another_world_is_not_built_over_this_one(tiny_world: BuiltWorld, seed: int, options: dict) -> None:
    before = modified(tiny_world.folder)
    with pytest.raises(ArtifactError, match="holds another world"):
        build_world(seed, tiny_world.folder, **{"size": "tiny", **options})
    assert modified(tiny_world.folder) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="not empty and holds no persona world"):
        build_world(0, tmp_path, size="tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_unknown_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose one of: tiny, small"):
        build_world(0, tmp_path / "world", size="huge")
    assert not (tmp_path / "world").exists()


def test_what_is_no_world_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no persona world"):
        BuiltWorld.open(tmp_path)
    (tmp_path / "world.json").write_text(json.dumps({"schema": 0}))
    with pytest.raises(ArtifactError, match="not of schema 1"):
        BuiltWorld.open(tmp_path)


@pytest.mark.slow
def test_a_null_world_builds_and_says_so(tmp_path: Path) -> None:
    built = build_world(0, tmp_path / "null", size="tiny", null=True)
    assert built.world == World.draw(0, null=True)
    assert json.loads((built.folder / "world.json").read_text(encoding="utf-8"))["null"] is True
    assert len(built.names("control")) == len(built.world.domains)
