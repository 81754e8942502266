"""Progress by increments, and records that are read back."""

from pathlib import Path

import pytest

from sae_persona.artifacts import fingerprint, write_json
from sae_persona.errors import ArtifactError
from sae_persona.study.commands.shared import Sampling, counting, fingerprint_of, read_record, write_csv


def test_increments_are_told_as_totals() -> None:
    told: list[tuple[str, int, int]] = []
    advance = counting(lambda *state: told.append(state), "sampling", 5)
    advance(2)
    advance(3)
    assert told == [("sampling", 2, 5), ("sampling", 5, 5)]


def test_a_record_comes_back_and_another_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", Sampling(2, 16, 7))
    assert read_record(tmp_path / "x.json", Sampling) == Sampling(2, 16, 7)
    write_json(tmp_path / "x.json", {"n_samples": "many"})
    with pytest.raises(ArtifactError, match=r"x\.json: n_samples: Input should be a valid integer"):
        read_record(tmp_path / "x.json", Sampling)


def test_a_table_joins_lists_in_a_cell(tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", [{"latent": 3, "top_tokens": ("harm", "help")}, {"latent": 5, "top_tokens": ()}])
    assert (tmp_path / "x.csv").read_text() == "latent,top_tokens\n3,harm help\n5,\n"


def test_a_folder_counts_with_its_bytes_and_a_release_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("weights")
    assert fingerprint_of(str(tmp_path)) == fingerprint(tmp_path)
    assert fingerprint_of("release:id") == fingerprint("release:id")
