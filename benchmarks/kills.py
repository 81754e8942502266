"""Twenty kills (SIGKILL) of a cache and of a training at random moments, each gone on with by the same command.

The commands are `sae-persona cache` and `sae-persona train` on the committed world, first without a kill. Then each is
begun anew twenty times and killed once, at a moment drawn evenly between its first file and its result; the same
command is run again; and all that it leaves is compared with what the undisturbed run left. A cache is compared whole,
but for the time at which its manifest says it was made; of an SAE's folder the weights and the configuration, and the
log without its timings. `done` is the share that was safe on the disk when the kill came, `same bytes` what became of
it; nothing else may lie beside it. Nothing here is a timing.
"""

import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from sae_persona.cache.layout import read_layout
from sae_persona.sae.config import TrainConfig

N_KILLS = 20
WORLD = Path("checkpoints/persona_world")
HOOK = "blocks.1.hook_resid_post"
CACHE_OPTIONS = ("--hook", HOOK, "--batch-size", "8")
TRAINING: Mapping[str, Any] = {"d_sae": 128, "k": 8, "batch_size": 64, "n_tokens": 64 * 5000}
"""Five checkpoints, each after a thousand steps."""
_CREATED = re.compile(rb'"created": ?"[^"]*"')
_TIMINGS = ("details/tokens_per_second", "details/seconds_left")


@dataclass(frozen=True)
class Command:
    """One of the two commands, by what it reads and leaves."""

    arguments: tuple[str, ...]
    out: str
    """Name of what it writes."""
    content: Callable[[Path], Mapping[str, bytes]]
    """What has to be the same."""
    done: Callable[[Path], float]
    """Share that is safe on the disk."""

    def begin(self, folder: Path) -> subprocess.Popen[bytes]:
        """Start it in a process of its own."""
        command = [sys.executable, "-m", "sae_persona", *self.arguments, "--out", str(folder / self.out)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def run() -> Iterator[Mapping[str, object]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = str(WORLD / "data" / "documents-train.jsonl")
        settings = [part for key, value in TRAINING.items() for part in ("--set", f"{key}={value}")]
        commands = {
            "cache": Command(
                ("cache", str(WORLD / "base"), "--data", data, *CACHE_OPTIONS), "acts.h5", cache_content, cache_done
            ),
            "train": Command(
                ("train", str(folder / "whole-cache" / "acts.h5"), *settings), "sae", sae_content, training_done
            ),
        }
        moments = random.Random(0)
        for name, command in commands.items():
            whole = folder / f"whole-{name}"
            seconds = undisturbed(command, whole)
            for number in range(1, N_KILLS + 1):
                yield {
                    "command": name,
                    "kill": number,
                    **killed_once(command, folder / "killed", whole, seconds, moments),
                }


def undisturbed(command: Command, folder: Path) -> float:
    """Seconds from the first file of a run to its result.

    Raises:
        RuntimeError: the command failed.
    """
    folder.mkdir()
    process = command.begin(folder)
    started = appeared(lambda: any(folder.iterdir()), process)
    ended = appeared((folder / command.out).exists, process)
    if process.wait():
        raise RuntimeError(f"the command {command.arguments} ended with status {process.returncode}.")
    return ended - started


def killed_once(
    command: Command, folder: Path, whole: Path, seconds: float, moments: random.Random
) -> dict[str, object]:
    """Kill a run, go on with it, and compare."""
    while True:  # a run may end before the moment that was drawn for it
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        process = command.begin(folder)
        started, after = appeared(lambda: any(folder.iterdir()), process), moments.uniform(0, seconds)
        time.sleep(max(started + after - time.perf_counter(), 0))
        process.kill()
        if process.wait() < 0:
            break
    done = command.done(folder)
    again = command.begin(folder).wait()
    alone = [path.name for path in folder.iterdir()] == [command.out]
    same = again == 0 and command.content(folder / command.out) == command.content(whole / command.out)
    return {"after seconds": after, "done": done, "same bytes": "yes" if same and alone else "NO"}


def appeared(there: Callable[[], bool], process: subprocess.Popen[bytes]) -> float:
    """When something was there, or the process had ended."""
    while not there() and process.poll() is None:
        time.sleep(0.001)
    return time.perf_counter()


def cache_content(path: Path) -> dict[str, bytes]:
    return {"all": _CREATED.sub(b"", path.read_bytes())}


def cache_done(folder: Path) -> float:
    path = folder / "acts.h5.partial"
    if not path.exists():
        return float((folder / "acts.h5").exists())
    layout = read_layout(path)
    return int(layout.read("committed")) / layout.n_tokens


def sae_content(folder: Path) -> dict[str, bytes]:
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    content["manifest.json"] = _CREATED.sub(b"", content["manifest.json"])
    records = [json.loads(line) for line in content["training.jsonl"].splitlines()]
    content["training.jsonl"] = json.dumps(
        [{key: value for key, value in record.items() if key not in _TIMINGS} for record in records]
    ).encode()
    return content


def training_done(folder: Path) -> float:
    path = folder / "sae.checkpoint"
    if not path.exists():
        return float((folder / "sae").exists())
    with safe_open(path, framework="pt") as file:
        return int((file.metadata() or {})["step"]) / TrainConfig(**TRAINING).n_steps
