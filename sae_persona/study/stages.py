"""Stages of a study: each computes one record, in a folder of its own, once.

A stage whose manifest matches (its configuration, its inputs' fingerprints, its version) is read instead of computed; a
killed one leaves nothing and starts over. A stage's fingerprint is that of its manifest, so that a change travels down.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_persona.artifacts import is_done, new_manifest, read_json, write_folder, write_json

RESULT = "result.json"


@dataclass
class Stages:
    """The folder of a study, and what has been done in it."""

    out: Path
    seed: int
    announce: Callable[[str, bool], None]
    """Called with a stage's name when it begins, and whether it is only read."""
    results: dict[str, Any] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def run(
        self,
        name: str,
        compute: Callable[[Path], Any],
        *,
        config: Mapping[str, Any],
        inputs: Mapping[str, str] | None = None,
        after: tuple[str, ...] = (),
        version: int = 1,
    ) -> Any:
        """The record of stage `name`: `compute(folder)` if it was not computed before.

        `compute` gets a folder for whatever else it wants to keep, and returns a JSON value. `after` names the stages
        whose records it reads. A skipped stage keeps the seconds of its first run.
        """
        manifest = new_manifest(
            f"study-{name}",
            config=config,
            inputs={**(inputs or {}), **{stage: self.fingerprints[stage] for stage in after}},
            seed=self.seed,
            version=version,
        )
        folder = self.out / name
        done = is_done(folder, manifest)
        self.announce(name, done)
        if not done:
            started = time.monotonic()
            with write_folder(folder, manifest) as partial:
                record = compute(partial)
                write_json(partial / RESULT, {"seconds": round(time.monotonic() - started, 2), "record": record})
        stored = read_json(folder / RESULT)
        self.results[name] = stored["record"]
        self.seconds[name] = stored["seconds"]
        self.fingerprints[name] = manifest.fingerprint
        return stored["record"]

    def remove(self) -> None:
        """Delete the folder: what the stages were for is done."""
        shutil.rmtree(self.out, ignore_errors=True)
