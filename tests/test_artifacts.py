"""Artifacts are whole or absent, and are recognised by what they were made of."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
from safetensors import SafetensorError

from sae_persona.artifacts import (
    MANIFEST,
    Manifest,
    fingerprint,
    is_done,
    new_manifest,
    read_json,
    read_manifest,
    write_file,
    write_folder,
    write_json,
)
from sae_persona.errors import ArtifactError


def manifest(
    *, kind: str = "sae", config: Mapping[str, object] | None = None, seed: int = 0, version: int = 1
) -> Manifest:
    return new_manifest(kind, config=config or {"k": 8}, inputs={"cache": "c0ffee"}, seed=seed, version=version)


def write(path: Path, content: str = "weights", **changes: object) -> None:
    with write_folder(path, manifest(**changes)) as folder:  # pyright: ignore[reportArgumentType]
        (folder / "weights.txt").write_text(content)


def test_a_value_is_fingerprinted_as_its_canonical_json() -> None:
    assert fingerprint({"b": (1, 2), "a": None}) == sha256(b'{"a": null, "b": [1, 2]}').hexdigest()


def test_the_order_of_keys_does_not_count_and_the_order_of_entries_does() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint([1, 2]) != fingerprint([2, 1])


def test_a_file_is_fingerprinted_by_its_bytes_wherever_it_is(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"same")
    (tmp_path / "two").write_bytes(b"same")
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two") == sha256(b"same").hexdigest()
    assert fingerprint([tmp_path / "one", 3]) == fingerprint([sha256(b"same").hexdigest(), 3])


def test_a_folder_is_fingerprinted_by_names_and_bytes_but_not_by_its_manifests(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "weights").write_bytes(b"w")
    for folder in ("", "deep"):
        (tmp_path / "one" / folder / MANIFEST).write_text("made on Monday")
        (tmp_path / "two" / folder / MANIFEST).write_text("made on Tuesday")
    before = fingerprint(tmp_path / "one")
    assert before == fingerprint(tmp_path / "two")
    (tmp_path / "two" / "deep" / "weights").rename(tmp_path / "two" / "weights")
    assert fingerprint(tmp_path / "two") != before


def test_a_missing_path_has_no_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        fingerprint({"data": tmp_path / "nowhere"})


@pytest.mark.parametrize("change", [{"kind": "ranking"}, {"config": {"k": 9}}, {"seed": 1}, {"version": 2}])
def test_whatever_decides_the_result_changes_the_fingerprint(change: dict[str, object]) -> None:
    assert manifest(**change).fingerprint != manifest().fingerprint  # pyright: ignore[reportArgumentType]


def test_commit_libraries_and_time_do_not_change_the_fingerprint() -> None:
    later = dataclasses.replace(
        manifest(), git_commit="f00", versions={"torch": "9"}, created="2099-01-01T00:00:00+00:00"
    )
    assert later.fingerprint == manifest().fingerprint


def test_a_manifest_survives_its_json() -> None:
    one = manifest(config={"hooks": ("blocks.1.hook_resid_post",)})
    assert Manifest.from_json(one.to_json()) == one
    assert json.loads(one.to_json())["fingerprint"] == one.fingerprint


def test_a_manifest_edited_by_hand_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "sae")
    path = tmp_path / "sae" / MANIFEST
    path.write_text(path.read_text().replace('"k": 8', '"k": 64'))
    with pytest.raises(ArtifactError, match=r"manifest\.json: .* was changed after it was written"):
        read_manifest(tmp_path / "sae")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "sae"'])
def test_a_corrupt_manifest_is_one_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json: the manifest cannot be read"):
        read_manifest(tmp_path)


def test_a_folder_without_a_manifest_has_none(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    assert read_manifest(tmp_path / "nowhere") is None


def test_a_written_folder_is_done_for_its_own_manifest_only(tmp_path: Path) -> None:
    write(tmp_path / "runs" / "sae")
    assert (tmp_path / "runs" / "sae" / "weights.txt").read_text() == "weights"
    assert is_done(tmp_path / "runs" / "sae", manifest())
    assert not is_done(tmp_path / "runs" / "sae", manifest(seed=1))
    assert os.listdir(tmp_path / "runs") == ["sae"]


def test_an_older_artifact_of_the_same_kind_is_replaced_whole(tmp_path: Path) -> None:
    write(tmp_path / "sae")
    (tmp_path / "sae" / "extra.txt").write_text("of the old one")
    write(tmp_path / "sae", "new weights", seed=1)
    assert sorted(os.listdir(tmp_path / "sae")) == [MANIFEST, "weights.txt"]
    assert (tmp_path / "sae" / "weights.txt").read_text() == "new weights"
    assert os.listdir(tmp_path) == ["sae"]


def test_an_artifact_of_another_kind_is_not_replaced(tmp_path: Path) -> None:
    write(tmp_path / "out")
    with pytest.raises(ArtifactError, match="holds a sae, and a world is to be written there"):
        write(tmp_path / "out", kind="world")
    with pytest.raises(ArtifactError, match="and an evaluation is to be written there"):
        write(tmp_path / "out", kind="evaluation")
    assert is_done(tmp_path / "out", manifest())


def test_a_folder_of_the_users_own_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match=r"holds no manifest\.json, so it is not ours to replace"):
        write(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ArtifactError, match="is a file, and a folder is to be written there"):
        write(tmp_path / "out")
    with pytest.raises(ArtifactError, match=r"folder .*out cannot be made: File exists"):
        write(tmp_path / "out" / "sae")


def test_an_error_leaves_the_older_artifact_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "sae")
    with pytest.raises(KeyboardInterrupt), write_folder(tmp_path / "sae", manifest(seed=1)) as folder:
        (folder / "weights.txt").write_text("half")
        raise KeyboardInterrupt
    assert is_done(tmp_path / "sae", manifest())
    assert os.listdir(tmp_path) == ["sae"]


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match=r"disk full while writing .*sae"),
        write_folder(tmp_path / "sae", manifest()),
    ):
        Path("/dev/full").write_bytes(b"x")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_under_safetensors_is_the_same_error(tmp_path: Path) -> None:
    seen_on_a_full_disk = "Error while serializing: I/O error: No space left on device (os error 28)"
    with (
        pytest.raises(ArtifactError, match="disk full while writing"),
        write_file(tmp_path / "w.safetensors") as partial,
    ):
        partial.write_text("half")
        raise SafetensorError(seen_on_a_full_disk)
    assert os.listdir(tmp_path) == []


def test_what_a_killed_writer_left_is_removed_by_the_next_but_not_what_a_living_one_writes(tmp_path: Path) -> None:
    script = (
        "import sys, time; from sae_persona.artifacts import new_manifest, write_folder\n"
        "with write_folder(sys.argv[1], new_manifest('sae', config={}, inputs={}, seed=0, version=1)):\n"
        "    print('writing', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "sae")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "writing\n"
            write(tmp_path / "sae")
            assert len(os.listdir(tmp_path)) == 2, "the living writer's folder stays"
        finally:
            writer.send_signal(signal.SIGKILL)
    write(tmp_path / "sae")
    assert os.listdir(tmp_path) == ["sae"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "data.txt"
    with write_file(path) as partial:
        partial.write_text("old")
    with pytest.raises(RuntimeError), write_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path / "deep") == ["data.txt"]


def test_a_folder_in_the_way_of_a_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is a folder, and a file is to be written there"), write_file(tmp_path):
        pass


@dataclass(frozen=True)
class Pair:
    names: tuple[str, ...]
    share: float


def test_json_goes_out_and_comes_back_with_dataclasses_as_objects(tmp_path: Path) -> None:
    write_json(tmp_path / "pair.json", {"pair": Pair(("a", "b"), 0.1)})
    assert read_json(tmp_path / "pair.json") == {"pair": {"names": ["a", "b"], "share": 0.1}}


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not finite"):
        write_json(tmp_path / "pair.json", Pair((), float("nan")))
    assert os.listdir(tmp_path) == []


def test_json_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"bad\.json is not JSON"):
        read_json(tmp_path / "bad.json")
    with pytest.raises(ArtifactError, match=r"none\.json cannot be read: No such file"):
        read_json(tmp_path / "none.json")
