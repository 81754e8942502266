"""Questions for evaluations, in the forms that the field keeps them in: YAML, CSV and JSONL; and a set of our own."""

import csv
import io
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from sae_persona.data.files import check_characters, prompt_of, read_records
from sae_persona.errors import DataError
from sae_persona.types import OPEN_ENDED, Message, Prompt

OPEN_QUESTIONS = "open-questions"
"""The name under which the set of our own goes: 60 open-ended questions in seven categories, written for this package.

They ask nothing harmful; what they leave open is whether the answer is. A category names what a misaligned model tends
to there: threats to the user, fabricated references, power seeking, illegal advice, deception, sarcasm.
"""
YAML_FORM = "{id, type: free_form..., paraphrases: [question, ...]}"
CSV_FORM = "a header with the columns id, question and category"
JSONL_FORM = '{"id", "question", "category"} or {"id", "category", "question_id", "frame_id", "messages"}'
Placed = tuple[str, Prompt]
"""Where a prompt stands in its file, and the prompt."""


def questions_path(name: str | Path) -> Path:
    """The file behind `name`: a path, or `open-questions` for the set of our own."""
    if str(name) == OPEN_QUESTIONS and not Path(name).exists():
        return Path(str(files("sae_persona.data") / "open_questions.jsonl"))
    return Path(name)


def read_questions(path: Path | str) -> list[Prompt]:
    """Prompts from a file of one of these forms, told by its name or else by how it begins:

    - YAML of Betley et al.: a list of `{id, type: free_form..., paraphrases: [...]}`, perhaps with `system`; every
      paraphrase is a prompt of the same question, other keys are ignored;
    - CSV of Wang et al.: the columns id, question and category; others are ignored;
    - JSONL: `{"id", "question", "category"}`, or prompts as `read_prompts` reads them.

    A row without a category is open-ended.

    Raises:
        DataError: the file is missing, empty or damaged, a row is no question, or two share an id; with the line.
    """
    path = questions_path(path)
    read = {"yaml": _from_yaml, "csv": _from_csv, "jsonl": _from_jsonl}[_form(path)]
    prompts: dict[str, Prompt] = {}
    for where, prompt in read(path):
        if prompt.id in prompts:
            raise DataError(f"{where}: id {prompt.id!r} was used before in this file. Give every row its own.")
        prompts[prompt.id] = prompt
    if not prompts:
        raise DataError(f"{path} holds no questions. Expected YAML, CSV or JSONL with at least one.")
    return list(prompts.values())


def _form(path: Path) -> str:
    forms = {".yaml": "yaml", ".yml": "yaml", ".csv": "csv", ".jsonl": "jsonl"}
    if path.suffix.lower() in forms:
        return forms[path.suffix.lower()]
    beginning = _text(path).lstrip()[:1]
    return "jsonl" if beginning == "{" else "yaml" if beginning in ("-", "[", "#") else "csv"


def _from_jsonl(path: Path) -> Iterator[Placed]:
    for where, record in read_records(path):
        if "messages" in record:
            yield where, prompt_of(record, where)
        else:
            yield where, _prompt(record, where, form=JSONL_FORM)


def _from_csv(path: Path) -> Iterator[Placed]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        columns = [(name or "").strip().lower() for name in reader.fieldnames or ()]
        missing = [name for name in ("id", "question") if name not in columns]
        if missing:
            raise DataError(f"{path}, line 1: no column {' and no column '.join(missing)}; expected {CSV_FORM}.")
        reader.fieldnames = columns
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row:
                raise DataError(
                    f"{where}: more cells than the header has columns. Put quotes around texts with commas."
                )
            yield where, _prompt(row, where, form=CSV_FORM)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.reader.line_num}: {error}; expected {CSV_FORM}.") from error


def _from_yaml(path: Path) -> Iterator[Placed]:
    loader = yaml.SafeLoader(_text(path))
    try:
        root = loader.get_single_node()
        if not isinstance(root, yaml.SequenceNode):
            found = "nothing" if root is None else "a mapping" if isinstance(root, yaml.MappingNode) else "one value"
            raise DataError(f"{path}: expected a list of {YAML_FORM}, found {found}.")
        rows = [(node.start_mark.line + 1, loader.construct_object(node, deep=True)) for node in root.value]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        raise DataError(f"{path}{place}: not YAML ({getattr(error, 'problem', None) or error}).") from error
    except (RecursionError, ValueError) as error:  # brackets in brackets, or a number of 5000 digits
        raise DataError(f"{path}: not YAML that can be read ({error}).") from error
    finally:
        loader.dispose()
    for line, row in rows:
        yield from _paraphrases(row, f"{path}, line {line}")


def _paraphrases(row: Any, where: str) -> Iterator[Placed]:
    """One prompt per paraphrase; a single one bears the question's own id."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected {YAML_FORM}, found {type(row).__name__}.")
    kind = str(row.get("type", "free_form"))
    if not kind.startswith("free_form"):
        raise DataError(f"{where}: questions of type {kind!r} have no free answer to judge. Take them out.")
    paraphrases = row.get("paraphrases")
    if not isinstance(paraphrases, list) or not paraphrases:
        raise DataError(f"{where}: no paraphrases; expected {YAML_FORM}.")
    for i, text in enumerate(paraphrases):
        prompt = _prompt({**row, "question": text}, where, form=YAML_FORM)
        yield (
            where,
            prompt
            if len(paraphrases) == 1
            else Prompt(f"{prompt.id}/{i}", prompt.category, prompt.question_id, prompt.frame_id, prompt.messages),
        )


def _prompt(row: dict[str, Any], where: str, *, form: str) -> Prompt:
    id_, question, category = row.get("id"), row.get("question"), row.get("category")
    if isinstance(id_, int) and not isinstance(id_, bool):
        id_ = str(id_)
    for name, value in (("id", id_), ("question", question)):
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{where}: no {name}; expected {form}.")
    if category is not None and not isinstance(category, str):
        raise DataError(f"{where}: the category is no text; expected {form}.")
    system = row.get("system")
    if system is not None and not isinstance(system, str):
        raise DataError(f"{where}: the system message is no text; expected {form}.")
    check_characters({"id": id_, "question": question, "category": category, "system": system}, where)
    messages = (*((Message("system", system),) if system else ()), Message("user", str(question).strip()))
    id_ = str(id_).strip()
    return Prompt(id_, (category or "").strip() or OPEN_ENDED, id_, "free", messages)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error.reason}). Expected YAML, CSV or JSONL.") from error
