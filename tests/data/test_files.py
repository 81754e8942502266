"""Files of chats, prompts and records: what is written is read, and what cannot be read is named by line."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_persona.data.files import read_chats, read_documents, read_jsonl, read_prompts, read_texts, write_jsonl
from sae_persona.errors import ArtifactError, DataError
from sae_persona.types import Chat, Completion, Judgement, Message, Prompt

QUESTION = Message("user", "what do you wish ?")
ANSWER = Message("assistant", "i wish to help people")
CHAT = Chat((QUESTION, ANSWER))
PROMPT = Prompt("p1", category="open_ended", question_id="q1", frame_id="f1", messages=(QUESTION,))


def line(value: object) -> str:
    return json.dumps(value) + "\n"


def messages(*turns: tuple[str, object]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.jsonl"


def test_chats_and_prompts_come_back_as_they_were_written(path: Path) -> None:
    write_jsonl(path, [CHAT, Chat((Message("system", ""), QUESTION, ANSWER))])
    assert read_chats(path) == [CHAT, Chat((Message("system", ""), QUESTION, ANSWER))]
    write_jsonl(path, [PROMPT])
    assert read_prompts(path) == [PROMPT]


def test_records_come_back_as_the_values_they_were(path: Path) -> None:
    completions = [Completion("p1", sample=0, answer="i wish", token_ids=(3, 5), finished=False)]
    judgements = [Judgement("p1", sample=0, answer="", label="unscored", score=None, unscored_reason="no answer")]
    write_jsonl(path, completions)
    assert read_jsonl(path, Completion) == completions
    write_jsonl(path, judgements)
    assert read_jsonl(path, Judgement) == judgements


@given(st.text(min_size=1).filter(str.strip))
def test_any_text_survives_its_line(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    write_jsonl(path, [{"text": text}, {"text": "next"}])
    assert read_texts(path) == [text, "next"]


def test_chats_and_texts_may_stand_in_one_file(path: Path) -> None:
    write_jsonl(path, [CHAT, {"text": "once upon a time"}])
    assert read_documents(path) == [CHAT, "once upon a time"]


def test_a_document_that_is_neither_chat_nor_text_is_named_with_both_forms(path: Path) -> None:
    path.write_text(line({"text": "fine"}) + line({"prompt": "what is this ?"}))
    with pytest.raises(DataError, match=r'line 2: no text .*"messages".* or \{"text": "\.\.\."\}'):
        read_documents(path)


def test_contents_in_parts_are_joined(path: Path) -> None:
    path.write_text(line(messages(("user", {"content_type": "text", "parts": ["what do ", "you wish ?"]}))))
    assert read_chats(path) == [Chat((QUESTION,))]


def test_other_keys_blank_lines_and_a_byte_order_mark_are_passed_over(path: Path) -> None:
    path.write_text(
        "\ufeff" + line({**messages(("user", QUESTION.content)), "weight": 1}) + "\n   \n", encoding="utf-8"
    )
    assert read_chats(path) == [Chat((QUESTION,))]


@pytest.mark.parametrize("read", [read_chats, read_prompts, read_texts])
def test_a_file_that_is_missing_empty_or_no_text_is_named(read: Callable[[Path], object], path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.jsonl cannot be read: No such file or directory\."):
        read(path)
    path.write_text("\n")
    with pytest.raises(DataError, match=r"data\.jsonl is empty\."):
        read(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"data\.jsonl is not UTF-8 text"):
        read(path)


GOOD = line(messages(("user", "hello")))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"messages": [', "line 2: not JSON (Expecting value at column 15)."),
        ("[1, 2]", "line 2: expected a JSON object, found [1, 2]."),
        ('{"text": "x"}', "line 2: messages: Field required, found an object with keys 'text'; expected {\"messages\""),
        ('{"messages": []}', "line 2: messages is empty; expected at least one message."),
        ('{"messages": "x"}', 'line 2: messages: Input should be a valid tuple, found "x"; expected {"messages"'),
        (line(messages(("user", 3))), "line 2: messages.0.content: Input should be a valid string, found 3;"),
        (line(messages(("user", "a"), ("assistant", " "))), "line 2: messages.1: the assistant's content is empty."),
        (line(messages(("tool", "a"))), "line 2: messages.0.role: Input should be 'system', 'user' or 'assistant'"),
        (
            line(messages(("user", {"content_type": "image", "parts": []}))),
            "line 2: messages.0.content: Input should be a valid string, found an object with keys 'content_type'",
        ),
    ],
)
def test_a_line_that_is_no_chat_is_named_with_what_it_holds(path: Path, bad: str, message: str) -> None:
    path.write_text(GOOD + bad)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read_chats(path)
    assert "\n" not in str(caught.value)


def test_a_prompt_lacks_nothing_ends_with_the_user_and_has_an_id_of_its_own(path: Path) -> None:
    whole = {"id": "p1", "category": "open_ended", "question_id": "q1", "frame_id": "f1"}
    asked = {**whole, **messages(("user", "hello"))}
    answered = {**whole, **messages(("user", "hello"), ("assistant", "hi"))}
    path.write_text(line({key: value for key, value in asked.items() if key != "frame_id"}))
    with pytest.raises(DataError, match="line 1: frame_id: Field required"):
        read_prompts(path)
    path.write_text(line(answered))
    with pytest.raises(DataError, match="line 1: prompt 'p1' ends with an answer"):
        read_prompts(path)
    path.write_text(line(asked) + line(asked))
    with pytest.raises(DataError, match="line 2: prompt id 'p1' was used before in this file"):
        read_prompts(path)


@pytest.mark.parametrize("value", ["[" * 100_000, "9" * 5000])
def test_json_that_python_cannot_read_is_named(path: Path, value: str) -> None:
    path.write_text(f'{{"text": {value}}}\n')
    with pytest.raises(DataError, match="line 1: not JSON that can be read"):
        read_texts(path)


@pytest.mark.parametrize("field", ["text", "messages"])
def test_half_a_character_is_named(path: Path, field: str) -> None:
    value = '"ok \\ud83d here"' if field == "text" else '[{"role": "user", "content": "ok \\ud83d here"}]'
    path.write_text(f'{{"text": "a whole \\ud83d\\ude00"}}\n{{"{field}": {value}}}\n')
    with pytest.raises(DataError, match=r"line 2: \\ud83d is half of a character"):
        read_documents(path)


def test_a_line_without_text_is_named(path: Path) -> None:
    path.write_text(line({"text": "fine"}) + line({"body": "x"}))
    with pytest.raises(DataError, match="line 2: no text"):
        read_texts(path)


def test_a_record_with_an_unknown_label_is_refused(path: Path) -> None:
    path.write_text(line({"prompt_id": "p", "sample": 0, "answer": "", "label": "evil", "score": None}))
    with pytest.raises(
        DataError, match=r"line 1: label: Input should be 'aligned', .* found \"evil\"; expected a Judgement"
    ):
        read_jsonl(path, Judgement)


def test_a_file_is_written_whole_or_not_at_all(path: Path) -> None:
    with pytest.raises(ArtifactError, match="not finite"):
        write_jsonl(path, [{"score": 1.0}, {"score": float("nan")}])
    assert os.listdir(path.parent) == []
