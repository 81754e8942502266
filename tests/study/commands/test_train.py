"""One process at a time trains into a folder."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from sae_persona.artifacts import only_writer
from sae_persona.cache.writer import write_cache
from sae_persona.data.tokens import text_row
from sae_persona.errors import ArtifactError
from sae_persona.model.load import LoadedModel
from sae_persona.sae.train import TrainConfig
from sae_persona.study.commands.train import Start, train_on_cache
from sae_persona.study.commands.train_several import train_several_on_cache

HOOK = "blocks.0.hook_resid_post"
FIRST = TrainConfig(d_sae=32, k=8, n_tokens=100 * 64, batch_size=64)
SECOND = FIRST.model_copy(update={"k": 2})
OTHER = "is being written by another process. Wait for it to end."


@pytest.fixture(scope="module")
def start(tiny_model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Start:
    """A small cache."""
    rows = [text_row("money " * n, tiny_model.tokenizer) for n in range(8, 40)]
    path = tmp_path_factory.mktemp("cache") / "acts.h5"
    write_cache(tiny_model, rows, path, hook_names=[HOOK])
    return Start(path)


def test_a_second_training_into_a_folder_is_refused_and_leaves_the_first_as_it_was(
    start: Start, tmp_path: Path
) -> None:
    out, refused = tmp_path / "sae", []

    def second(_record: Mapping[str, object]) -> None:
        with pytest.raises(ArtifactError, match=f"sae {OTHER}"):
            train_on_cache(start, out, SECOND)
        with pytest.raises(ArtifactError, match=f"sae {OTHER}"):
            train_several_on_cache(start, out, {"k2": (HOOK, SECOND)}, seed=0)
        refused.append(sorted(os.listdir(tmp_path)))

    last = train_on_cache(start, out, FIRST, log=second)
    assert len(refused) == 2
    assert last["metrics/l0"] == 8
    assert json.loads((out / "manifest.json").read_text())["config"]["k"] == 8
    assert os.listdir(tmp_path) == ["sae"]


def test_several_are_trained_into_a_folder_once_at_a_time(start: Start, tmp_path: Path) -> None:
    out, n_refused = tmp_path / "saes", 0

    def second(_record: Mapping[str, object]) -> None:
        nonlocal n_refused
        with pytest.raises(ArtifactError, match=f"saes {OTHER}"):
            train_several_on_cache(start, out, {"k2": (HOOK, SECOND)}, seed=0)
        n_refused += 1

    train_several_on_cache(start, out, {"k8": (HOOK, FIRST)}, seed=0, log=second)
    assert n_refused == 2
    assert os.listdir(tmp_path) == ["saes"]
    assert os.listdir(out) == ["k8"]


def test_what_a_killed_process_locked_is_free(start: Start, tmp_path: Path) -> None:
    hold = "import sys, time; from sae_persona.artifacts import only_writer\n"
    hold += "with only_writer(sys.argv[1]): print('held', flush=True); time.sleep(600)"
    out = tmp_path / "sae"
    with subprocess.Popen([sys.executable, "-c", hold, str(out)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ArtifactError, match=OTHER):
            train_on_cache(start, out, FIRST)
        other.send_signal(signal.SIGKILL)
    assert os.listdir(tmp_path) == ["sae.lock"]
    train_on_cache(start, out, FIRST)
    assert os.listdir(tmp_path) == ["sae"]


@pytest.mark.slow
def test_all_processes_of_a_torchrun_hear_that_the_folder_is_taken(start: Start, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sae_persona"]
    settings = [part for one in ("d_sae=32", "k=8", "n_tokens=6400", "batch_size=64") for part in ("--set", one)]
    command = [*launch, "train", str(start.cache), *settings, "--out", str(tmp_path / "sae")]
    with only_writer(tmp_path / "sae"):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode != 0
    assert f"sae {OTHER}" in done.stderr
    assert "RuntimeError" not in done.stderr
    assert os.listdir(tmp_path) == []
