"""Stages: computed once, again when what they are made of changes, and never half."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae_persona.study.stages import Stages


class Counted:
    """A computation that returns `value` and counts how often it was asked."""

    def __init__(self, value: object) -> None:
        self.value = value
        self.n_calls = 0

    def __call__(self, folder: Path) -> object:
        self.n_calls += 1
        (folder / "beside.txt").write_text("kept")
        return self.value


def stages(out: Path, *, seed: int = 0, announce: Callable[[str, bool], None] = lambda _stage, _done: None) -> Stages:
    return Stages(out, seed, announce)


def test_a_stage_is_computed_once_and_then_read(tmp_path: Path) -> None:
    compute = Counted({"answer": 42})
    announced: list[tuple[str, bool]] = []
    for _ in range(2):
        run = stages(tmp_path, announce=lambda stage, done: announced.append((stage, done)))
        assert run.run("think", compute, config={"depth": 1}) == {"answer": 42}
        assert run.results == {"think": {"answer": 42}}
    assert compute.n_calls == 1
    assert announced == [("think", False), ("think", True)]
    assert (tmp_path / "think" / "beside.txt").read_text() == "kept"


@pytest.mark.parametrize(
    "change",
    [{"config": {"depth": 2}}, {"inputs": {"world": "other"}}, {"version": 2}, {"seed": 1}],
    ids=["config", "inputs", "version", "seed"],
)
def test_a_change_of_what_it_is_made_of_computes_it_anew(tmp_path: Path, change: dict[str, Any]) -> None:
    same = {"config": {"depth": 1}, "inputs": {"world": "one"}, "version": 1}
    stages(tmp_path).run("think", Counted("old"), **same)
    other = {**same, **change}
    assert stages(tmp_path, seed=other.pop("seed", 0)).run("think", Counted("new"), **other) == "new"


def test_a_change_travels_to_the_stages_after_it_and_no_further(tmp_path: Path) -> None:
    first, second, aside = Counted(1), Counted(2), Counted(3)
    for depth in (1, 2):
        run = stages(tmp_path)
        run.run("first", first, config={"depth": depth})
        run.run("second", second, config={}, after=("first",))
        run.run("aside", aside, config={})
    assert (first.n_calls, second.n_calls, aside.n_calls) == (2, 2, 1)


def test_a_skipped_stage_keeps_the_seconds_of_its_first_run(tmp_path: Path) -> None:
    first, again = stages(tmp_path), stages(tmp_path)
    first.run("think", Counted(1), config={})
    stored = tmp_path / "think" / "result.json"
    stored.write_text(stored.read_text().replace(f'"seconds": {first.seconds["think"]}', '"seconds": 123.5'))
    again.run("think", Counted(1), config={})
    assert again.seconds == {"think": 123.5}


def test_a_stage_that_fails_leaves_nothing_and_starts_over(tmp_path: Path) -> None:
    def fail(folder: Path) -> object:
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stages(tmp_path).run("think", fail, config={})
    assert list(tmp_path.iterdir()) == []
    assert stages(tmp_path).run("think", Counted("whole"), config={}) == "whole"


def test_a_stage_that_fails_anew_leaves_the_old_record(tmp_path: Path) -> None:
    def fail(_folder: Path) -> object:
        raise KeyboardInterrupt

    stages(tmp_path).run("think", Counted("old"), config={"depth": 1})
    with pytest.raises(KeyboardInterrupt):
        stages(tmp_path).run("think", fail, config={"depth": 2})
    untouched = Counted("again")
    assert stages(tmp_path).run("think", untouched, config={"depth": 1}) == "old"
    assert untouched.n_calls == 0
