"""Records reach the places they are sent to."""

import json
import os
from pathlib import Path

import pytest

from sae_persona.errors import ArtifactError, ConfigError
from sae_persona.logs import JsonlLog, WandbLog, fan_out, no_log


def test_records_are_lines_that_are_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "log.jsonl"
    with JsonlLog(path) as log:
        log({"step": 1, "losses/overall_loss": 0.5})
        assert json.loads(path.read_text()) == {"step": 1, "losses/overall_loss": 0.5}
        log({"step": 2})
    assert len(path.read_text().splitlines()) == 2


def test_a_log_goes_on_where_an_earlier_run_stopped(tmp_path: Path) -> None:
    for step in (1, 2):
        with JsonlLog(tmp_path / "log.jsonl") as log:
            log({"step": step})
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_diverged_loss_is_still_json(tmp_path: Path) -> None:
    with JsonlLog(tmp_path / "log.jsonl") as log:
        log({"loss": float("nan"), "norm": float("-inf")})
    assert (tmp_path / "log.jsonl").read_text() == '{"loss": "nan", "norm": "-inf"}\n'


def test_a_log_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be written: Is a directory"):
        JsonlLog(tmp_path)


def test_fan_out_hands_every_record_to_every_log() -> None:
    first: list[object] = []
    second: list[object] = []
    log = fan_out(first.append, no_log, second.append)
    log({"step": 1})
    assert first == second == [{"step": 1}]


@pytest.fixture
def no_wandb_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, no settings and no cache of the user's."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


@pytest.mark.slow
@pytest.mark.usefixtures("no_wandb_account")
def test_wandb_works_offline_without_a_key(tmp_path: Path) -> None:
    with WandbLog("personas", {"k": 8}, folder=tmp_path) as log:
        log({"losses/overall_loss": 0.5})
        assert log.run.summary["losses/overall_loss"] == 0.5
        assert log.run.config["k"] == 8
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))


@pytest.mark.usefixtures("no_wandb_account")
def test_wandb_disabled_leaves_nothing(tmp_path: Path) -> None:
    with WandbLog("personas", {}, mode="disabled", folder=tmp_path) as log:
        log({"step": 1})
    assert not (tmp_path / "wandb").exists()


@pytest.mark.usefixtures("no_wandb_account")
def test_wandb_online_without_a_key_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"wandb cannot start in mode 'online': .*use mode 'offline'"):
        WandbLog("personas", {}, mode="online", folder=tmp_path)


def test_a_line_that_a_full_disk_tore_is_taken_off(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "los')
    with JsonlLog(path) as log:
        log({"step": 2})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
