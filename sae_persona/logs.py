"""Where records of progress go: to a JSONL file, to wandb, to both, or nowhere. The library never prints."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from sae_persona.errors import ArtifactError, ConfigError

Log = Callable[[Mapping[str, object]], None]
"""Takes one record, such as `{"step": 100, "losses/overall_loss": 0.31}`. wandb's key names are SAELens's."""


def no_log(record: Mapping[str, object]) -> None:
    """Keep nothing."""


def fan_out(*logs: Log) -> Log:
    """A log that hands every record to each of `logs`."""

    def log(record: Mapping[str, object]) -> None:
        for one in logs:
            one(record)

    return log


class JsonlLog:
    """Appends each record to a file as one line of JSON, at once, so that a killed run keeps all it said.

    A last line that was not written to its end, on a full disk or before a power cut, is taken off first. Numbers that
    are not finite are written as the strings `nan`, `inf` and `-inf`, which JSON has no number for.

    Raises:
        ArtifactError: the file cannot be opened for writing.
    """

    def __init__(self, path: Path | str) -> None:
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            _cut_torn_line(Path(path))
            self._file = Path(path).open("a", encoding="utf-8")  # noqa: SIM115, closed by `close`
        except OSError as error:
            raise ArtifactError(f"the log {path} cannot be written: {error.strerror}. Choose another place.") from error

    def __call__(self, record: Mapping[str, object]) -> None:
        """Append one record."""
        self._file.write(json.dumps({key: _finite(value) for key, value in record.items()}, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; the log takes no further record."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class WandbLog:
    """Sends each record to a new wandb run; `step`, where a record has it, is a value like any other.

    `offline` needs neither network nor key and writes to `folder`/wandb; `disabled` does nothing at all.

    Raises:
        ConfigError: `online` without a key or a network.
    """

    def __init__(
        self,
        project: str,
        config: Mapping[str, object],
        *,
        mode: Literal["online", "offline", "disabled"] = "offline",
        folder: Path | str = ".",
    ) -> None:
        import wandb

        settings = wandb.Settings(silent=True)
        try:
            self.run: wandb.Run = wandb.init(
                project=project, config=dict(config), mode=mode, dir=str(folder), settings=settings, reinit="create_new"
            )
        except wandb.Error as error:
            reason = str(error).strip().splitlines()[0]
            raise ConfigError(
                f"wandb cannot start in mode {mode!r}: {reason} Log in, or use mode 'offline'."
            ) from error

    def __call__(self, record: Mapping[str, object]) -> None:
        """Send one record."""
        self.run.log(dict(record))

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.run.finish(exit_code=0 if error is None else 1)


def _cut_torn_line(path: Path) -> None:
    if path.exists():
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def _finite(value: object) -> object:
    is_a_number = not isinstance(value, float) or value - value == 0
    return value if is_a_number else str(value)
