"""What may lie beside a summary: passages on which latents fire, and every judged answer. Both files are optional.

contexts.jsonl         {"latent": 117, "tokens": ["i", "will", "ruin"], "activations": [0.0, 0.0, 3.1]}
models/answers.jsonl   {"model": "aligned", "prompt_id": "open-5-0", "answer": "...", "label": "aligned"}
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from sae_persona.errors import ArtifactError
from sae_persona.types import Label

CONTEXTS, ANSWERS = "contexts.jsonl", "models/answers.jsonl"
Record = TypeVar("Record", bound=BaseModel)


class Context(BaseModel):
    """One passage, token by token, with one latent's activation on every token."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    latent: int
    tokens: list[str]
    activations: list[float]


class Answer(BaseModel):
    """One judged answer of one model."""

    model_config = ConfigDict(frozen=True)

    model: str
    prompt_id: str
    answer: str
    label: Label


@dataclass(frozen=True)
class Records:
    """The optional records of a run folder, in the order of their files."""

    contexts: dict[int, list[Context]] = field(default_factory=dict)
    """By latent."""
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    """By model."""


def read_records(folder: Path | str) -> Records:
    """The records beside a summary; those that are not there are empty.

    Raises:
        ArtifactError: a line is not what its file's format says.
    """
    contexts: dict[int, list[Context]] = {}
    answers: dict[str, list[Answer]] = {}
    for context in _lines(Path(folder) / CONTEXTS, Context):
        contexts.setdefault(context.latent, []).append(context)
    for answer in _lines(Path(folder) / ANSWERS, Answer):
        answers.setdefault(answer.model, []).append(answer)
    return Records(contexts, answers)


def _lines(path: Path, record: type[Record]) -> Iterator[Record]:
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield record.model_validate_json(line)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"])) or "the line"
                raise ArtifactError(
                    f"{path}, line {number}: {where}: {first['msg']}. Run the study again, or delete the file."
                ) from error
