"""What was paid for is found again."""

import json
from pathlib import Path

import pytest

from sae_persona.errors import ArtifactError
from sae_persona.evaluation.kept import KeptReplies, Reply

KEY = KeptReplies.key("a judge", "a question", "an answer")


@pytest.mark.parametrize("reply", [Reply("4"), Reply(""), Reply(None, "refused: no")])
def test_a_reply_is_found_again_by_another_process(tmp_path: Path, reply: Reply) -> None:
    KeptReplies(tmp_path / "new" / "folder").put(KEY, reply, {"question": "an umlaut: ü"})
    assert KeptReplies(tmp_path / "new" / "folder").get(KEY) == reply


def test_nothing_is_found_under_another_name(tmp_path: Path) -> None:
    kept = KeptReplies(tmp_path)
    kept.put(KEY, Reply("4"), {})
    assert kept.get(KeptReplies.key("another judge", "a question", "an answer")) is None
    assert KeptReplies.key("ab", "c") != KeptReplies.key("a", "bc")


@pytest.mark.parametrize("damage", ["", '{"key": "', "[]", "{}", '{"reply": 4, "reason": null}', "\xff"])
def test_a_damaged_file_is_as_good_as_none_and_is_replaced(tmp_path: Path, damage: str) -> None:
    kept = KeptReplies(tmp_path)
    kept.put(KEY, Reply("4"), {})
    file = next(tmp_path.rglob("*.json"))
    file.write_text(damage, encoding="latin-1")
    assert kept.get(KEY) is None
    kept.put(KEY, Reply("5"), {})
    assert kept.get(KEY) == Reply("5")


def test_a_file_under_a_wrong_name_is_not_believed(tmp_path: Path) -> None:
    kept = KeptReplies(tmp_path)
    kept.put(KEY, Reply("4"), {})
    file = next(tmp_path.rglob("*.json"))
    file.write_text(json.dumps({**json.loads(file.read_text()), "key": "0" * 64}))
    assert kept.get(KEY) is None


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be made"):
        KeptReplies(tmp_path / "file" / "x").put(KEY, Reply("4"), {})
