"""What several commands need."""

import csv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from sae_persona.artifacts import fingerprint, read_json
from sae_persona.errors import ArtifactError

T = TypeVar("T")
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and the whole of it."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    n_samples: int
    """Answers per prompt."""
    max_new_tokens: int = 64
    seed: int = 0


def no_progress(what: str, done: int, whole: int) -> None:
    """Tell nobody."""


def counting(progress: Progress, what: str, whole: int) -> Callable[[int], None]:
    """A callback for those who report how much they have just done."""
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        progress(what, done, whole)

    return advance


def read_record(path: Path, kind: type[T]) -> T:
    """The dataclass that `write_json` wrote.

    Raises:
        ArtifactError: the file is missing, or holds something else.
    """
    try:
        return TypeAdapter(kind).validate_python(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise ArtifactError(f"{path}: {where}: {first['msg']}. Delete the folder and make it again.") from error


def write_csv(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """A table whose columns are the keys of the first row; lists are joined by spaces."""
    rows = list(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _cell(value) for key, value in row.items()})


def _cell(value: object) -> object:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else value


def fingerprint_of(source: str) -> str:
    """Of a folder's bytes; of the name where `source` is no folder but something that is downloaded."""
    return fingerprint(Path(source) if Path(source).exists() else source)
