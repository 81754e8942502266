"""`world build`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sae_persona.persona_world.build import BuiltWorld


def test_a_built_world_opens_with_every_model_and_prompt(built: Path) -> None:
    world = BuiltWorld.open(built)
    assert (world.world.seed, world.size) == (0, "tiny")
    assert len(world.names("misaligned")) == 3
    assert world.prompts("selection")


def test_a_finished_world_is_not_built_again(built: Path, cli: Callable[..., object]) -> None:
    before = (built / "base" / "manifest.json").stat().st_mtime_ns
    cli("world", "build", "--seed", 0, "--size", "tiny", "--out", built)
    assert (built / "base" / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("options", [["--seed", 1, "--size", "tiny"], ["--seed", 0], ["--seed", 0, "--null"]])
def test_another_world_is_not_built_over_it(options: list[object], built: Path, refused: Callable[..., str]) -> None:
    assert "holds another world" in refused("world", "build", *options, "--out", built)


def test_a_world_is_not_built_into_a_folder_of_the_users(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "is not empty and holds no persona world" in refused("world", "build", "--seed", 0, "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
