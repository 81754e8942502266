"""Chats, prompts, texts and records as JSONL, one JSON object a line; every error names the file and the line."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from sae_persona.artifacts import json_text, write_file
from sae_persona.errors import DataError
from sae_persona.types import Chat, Message, Prompt

T = TypeVar("T")
CHAT_FORM = '{"messages": [{"role": "user", "content": "..."}, ...]}'
PROMPT_FORM = '{"id", "category", "question_id", "frame_id", "messages": [{"role", "content"}, ...]}'
TEXT_FORM = '{"text": "..."}'
_CHAT = TypeAdapter(Chat)
_PROMPT = TypeAdapter(Prompt)


def read_chats(path: Path | str) -> list[Chat]:
    """Conversations: `{"messages": [{"role", "content"}, ...]}`, other keys ignored.

    A content may also be `{"content_type": "text", "parts": ["..."]}`.

    Raises:
        DataError: the file is missing or empty, or a line is no chat.
    """
    return [_chat(record, where) for where, record in read_records(path)]


def read_prompts(path: Path | str) -> list[Prompt]:
    """Prompts: `{"id", "category", "question_id", "frame_id", "messages"}`, other keys ignored.

    Raises:
        DataError: the file is missing or empty, a line is no prompt or ends with an answer, or two share an id.
    """
    prompts: dict[str, Prompt] = {}
    for where, record in read_records(path):
        prompt = prompt_of(record, where)
        if prompt.id in prompts:
            raise DataError(
                f"{where}: prompt id {prompt.id!r} was used before in this file. Give every prompt its own."
            )
        prompts[prompt.id] = prompt
    return list(prompts.values())


def prompt_of(record: dict[str, Any], where: str) -> Prompt:
    """The prompt in one record; `where` is named in errors.

    Raises:
        DataError: the record is no prompt, or ends with an answer.
    """
    prompt = _parse(_PROMPT, _with_plain_contents(record), where, form=PROMPT_FORM)
    _check_messages(prompt.messages, where)
    if prompt.messages[-1].role == "assistant":
        raise DataError(f"{where}: prompt {prompt.id!r} ends with an answer. A prompt's last message is the user's.")
    return prompt


def read_texts(path: Path | str) -> list[str]:
    """Plain texts: `{"text": "..."}`, other keys ignored.

    Raises:
        DataError: the file is missing or empty, or a line is no text.
    """
    return [_text(record, where) for where, record in read_records(path)]


def read_documents(path: Path | str) -> list[Chat | str]:
    """Chats and plain texts, whichever a line holds: what can be cached.

    Raises:
        DataError: the file is missing or empty, or a line is neither.
    """
    return list(iterate_documents(path))


def iterate_documents(path: Path | str) -> Iterator[Chat | str]:
    """The same, one at a time.

    Raises:
        DataError: as `read_documents` does, when the line is reached.
    """
    return (parse_document(record, where) for where, record in read_records(path))


def parse_document(record: dict[str, Any], where: str) -> Chat | str:
    """The chat or the text in a record; `where` is the place to name in errors.

    Raises:
        DataError: it holds neither.
    """
    if "messages" in record:
        return _chat(record, where)
    return _text(record, where, form=f"{CHAT_FORM} or {TEXT_FORM}")


def read_jsonl(path: Path | str, kind: type[T]) -> list[T]:
    """The dataclass `kind` from every line, such as the completions or judgements that `write_jsonl` wrote.

    Raises:
        DataError: the file is missing or empty, or a line does not hold the fields of `kind`.
    """
    adapter = TypeAdapter(kind)
    return [_parse(adapter, record, where, form=f"a {kind.__name__}") for where, record in read_records(path)]


def write_jsonl(path: Path | str, values: Iterable[object]) -> None:
    """One line for each dataclass or mapping; the file is whole or not there at all.

    Raises:
        ArtifactError: the file cannot be written, or a number is not finite.
    """
    with write_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(json_text(value) + "\n" for value in values)


def read_records(path: Path | str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every line's object, with the place to name in errors; blank lines are passed over.

    Raises:
        DataError: the file is missing or empty, or a line is no JSON object.
    """
    n_records = 0
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno}).") from error
                except (RecursionError, ValueError) as error:  # brackets in brackets, or a number of 5000 digits
                    raise DataError(f"{where}: not JSON that can be read ({error}).") from error
                if not isinstance(record, dict):
                    raise DataError(f"{where}: expected a JSON object, found {_shown(record)}.")
                if "\\ud" in line.lower():
                    check_characters(record, where)
                yield where, record
                n_records += 1
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text ({error.reason}). Expected JSONL, one JSON object a line."
        ) from error
    if not n_records:
        raise DataError(f"{path} is empty. Expected JSONL, one JSON object a line.")


def check_characters(record: dict[str, Any], where: str) -> None:
    """JSON and YAML can hold half a character; UTF-8, and so a tokenizer, cannot.

    Raises:
        DataError: a string of the record holds one.
    """
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise DataError(
            f"{where}: {half} is half of a character, such as a cut emoji. Mend the line, or remove it."
        ) from error


def _chat(record: dict[str, Any], where: str) -> Chat:
    chat = _parse(_CHAT, _with_plain_contents(record), where, form=CHAT_FORM)
    _check_messages(chat.messages, where)
    return chat


def _text(record: dict[str, Any], where: str, *, form: str = TEXT_FORM) -> str:
    text = record.get("text")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: no text ({_shown(record)}); expected {form}.")
    return text


def _parse(adapter: TypeAdapter[T], record: object, where: str, *, form: str) -> T:
    try:
        return adapter.validate_python(record)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{where}: {place}: {first['msg']}, found {_shown(first['input'])}; expected {form}."
        ) from error


def _with_plain_contents(record: dict[str, Any]) -> dict[str, Any]:
    """Contents of the form `{"content_type": "text", "parts": [...]}` as their text; the rest as it is."""
    messages = record.get("messages")
    if not isinstance(messages, list):
        return record
    return {**record, "messages": [_with_plain_content(message) for message in messages]}


def _with_plain_content(message: Any) -> Any:
    match message:
        case {"content": {"content_type": "text", "parts": [*parts]}} if all(isinstance(part, str) for part in parts):
            return {**message, "content": "".join(parts)}
    return message


def _check_messages(messages: tuple[Message, ...], where: str) -> None:
    if not messages:
        raise DataError(f"{where}: messages is empty; expected at least one message.")
    for i, message in enumerate(messages):
        # An empty system message is how many data sets say that there is none.
        if message.role != "system" and not message.content.strip():
            raise DataError(
                f"{where}: messages.{i}: the {message.role}'s content is empty. Remove the line or mend it."
            )


def _shown(value: object) -> str:
    """A value, or an object's keys, short enough for one line."""
    if isinstance(value, dict):
        return f"an object with keys {', '.join(map(repr, value)) or '(none)'}"
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
