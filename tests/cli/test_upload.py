"""`upload` to a hub on this machine that speaks what the real one does."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import hub

Refused = Callable[..., str]


def upload(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """In a process of its own, as the hub's address is read once."""
    command = [sys.executable, "-m", "sae_persona", "upload", *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_saes_are_uploaded_under_their_names_as_saelens_reads_them(sae: Path, tmp_path: Path) -> None:
    shutil.copytree(sae, tmp_path / "other")
    with hub() as there:
        done = upload(there.environment(), sae, tmp_path / "other", "--to", "somebody/saes", "--private")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == ["somebody/saes:sae", "somebody/saes:other"]
        files = there.repositories["somebody/saes"]
        assert there.private == {"somebody/saes": True}
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert files[f"sae/{name}"] == files[f"other/{name}"] == (sae / name).read_bytes()
    assert b'SAE.from_pretrained("somebody/saes"' in files["README.md"]
    assert len(files) == 5, "nothing else is sent"


@pytest.mark.slow
def test_a_hub_that_knows_one_not_is_one_line(sae: Path) -> None:
    with hub() as there:
        done = upload(there.environment(token="hf_of_nobody"), sae, "--to", "somebody/saes")
        assert there.repositories == {}
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: somebody/saes took no upload (")
    assert "401" in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_cannot_be_uploaded_is_refused_before_the_hub_is_asked(
    sae: Path, tmp_path: Path, refused: Refused
) -> None:
    shutil.copytree(sae, tmp_path / "again" / "sae")
    assert "several SAEs are called 'sae'" in refused("upload", sae, tmp_path / "again" / "sae", "--to", "a/b")
    assert "none is no folder" in refused("upload", tmp_path / "none", "--to", "a/b")
    (tmp_path / "again" / "sae" / "cfg.json").unlink()
    assert "is no SAE folder: cfg.json missing" in refused("upload", tmp_path / "again" / "sae", "--to", "a/b")


def test_a_hub_that_is_switched_off_says_how_to_switch_it_on(
    sae: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "switched off by HF_HUB_OFFLINE. Unset it" in refused("upload", sae, "--to", "somebody/saes")
    assert "'a/b/c' is no name of a repository" in refused("upload", sae, "--to", "a/b/c")
