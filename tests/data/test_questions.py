"""Questions in the forms of the field: read whole, told apart by their ids, and refused with the line."""

from collections import Counter
from pathlib import Path

import pytest

from sae_persona.data.files import write_jsonl
from sae_persona.data.questions import OPEN_QUESTIONS, questions_path, read_questions
from sae_persona.errors import DataError
from sae_persona.types import Message, Prompt

YAML = """# questions
- id: day
  type: free_form_judge_0_100
  paraphrases:
    - How was your day?
    - |
      What did you
      do today?
  samples_per_paraphrase: 100
  judge_prompts: &judges
    aligned: "grade {question} {answer}"
- id: night
  type: free_form
  system: You speak as a night guard.
  category: stories
  paraphrases: ["What happens at night?"]
  judge_prompts: *judges
"""
CSV = 'id,question,category,canary\n1,"Well, what now?",power,x\n2,"Two\nlines?",,x\n'


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_every_paraphrase_is_a_prompt_of_its_question(tmp_path: Path) -> None:
    day, today, night = read_questions(written(tmp_path / "q.yaml", YAML))
    assert [prompt.id for prompt in (day, today, night)] == ["day/0", "day/1", "night"]
    assert [prompt.question_id for prompt in (day, today, night)] == ["day", "day", "night"]
    assert today.messages == (Message("user", "What did you\ndo today?"),)
    assert night.messages == (
        Message("system", "You speak as a night guard."),
        Message("user", "What happens at night?"),
    )
    assert [prompt.category for prompt in (day, night)] == ["open_ended", "stories"]


def test_a_csv_is_read_by_its_header(tmp_path: Path) -> None:
    first, second = read_questions(written(tmp_path / "q.csv", CSV))
    assert first == Prompt("1", "power", "1", "free", (Message("user", "Well, what now?"),))
    assert (second.category, second.messages[0].content) == ("open_ended", "Two\nlines?")


def test_jsonl_holds_questions_and_prompts(tmp_path: Path) -> None:
    prompt = Prompt("p", "c", "q", "f", (Message("user", "one"), Message("assistant", "two"), Message("user", "three")))
    path = tmp_path / "q.jsonl"
    write_jsonl(path, [{"id": 7, "question": "why?", "category": "c"}, prompt])
    assert read_questions(path) == [Prompt("7", "c", "7", "free", (Message("user", "why?"),)), prompt]


@pytest.mark.parametrize("text", [YAML, CSV, '{"id": "a", "question": "why?"}\n'], ids=["yaml", "csv", "jsonl"])
def test_a_file_without_a_telling_name_is_told_by_how_it_begins(tmp_path: Path, text: str) -> None:
    assert read_questions(written(tmp_path / "questions.txt", text))


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text(CSV, encoding="utf-8-sig")
    assert len(read_questions(path)) == 2


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("q.csv", "", "line 1: no column id and no column question; expected a header"),
        ("q.csv", "id,question\n", "holds no questions"),
        ("q.csv", "name,question\na,why?\n", "line 1: no column id;"),
        ("q.csv", "id,question\na,why?\na,how?\n", "line 3: id 'a' was used before"),
        ("q.csv", "id,question\na\n", "line 2: no question"),
        ("q.csv", "id,question\na, \n", "line 2: no question"),
        ("q.csv", "id,question\n,why?\n", "line 2: no id"),
        ("q.csv", "id,question\na,why, though?\n", "line 2: more cells than the header"),
        ("q.csv", 'id,question\na,"why?\n', "line 2: unexpected end of data"),
        ("q.yaml", "", "expected a list of .* found nothing"),
        ("q.yaml", "id: a\n", "expected a list of .* found a mapping"),
        ("q.yaml", "[]", "holds no questions"),
        ("q.yaml", "- a\n", "line 1: expected .* found str"),
        ("q.yaml", "- id: a\n  paraphrases: [why]\n- id: b\n", "line 3: no paraphrases"),
        ("q.yaml", "- id: a\n  paraphrases: []\n", "line 1: no paraphrases"),
        ("q.yaml", "- id: a\n  paraphrases: ['']\n", "line 1: no question"),
        ("q.yaml", "- id: a\n  paraphrases: [{x: y}]\n", "line 1: no question"),
        ("q.yaml", "- paraphrases: [why]\n", "line 1: no id"),
        ("q.yaml", "- id: a\n  system: [x]\n  paraphrases: [why]\n", "line 1: the system message is no text"),
        (
            "q.yaml",
            "- id: a\n  paraphrases: [why]\n- id: a\n  paraphrases: [how]\n",
            "line 3: id 'a' was used before",
        ),
        (
            "q.yaml",
            "- id: a\n  type: multiple_choice\n  paraphrases: [why]\n",
            "'multiple_choice' have no free answer",
        ),
        ("q.yaml", "- id: a\n   type: b\n  - c\n", r"line 2: not YAML"),
        ("q.yaml", "- !!python/object/apply:os.system [ls]\n", "line 1: not YAML"),
        ("q.yaml", "- id: a\n  paraphrases: " + "[" * 3000 + "\n", "not YAML that can be read"),
        ("q.yaml", "- id: " + "9" * 5000 + "\n  paraphrases: [why]\n", "not YAML that can be read"),
        ("q.yaml", '- id: a\n  paraphrases: ["why \\ud800"]\n', r"line 1: \\ud800 is half of a character"),
        ("q.jsonl", '{"id": "a\\ud800", "question": "why?"}\n', r"line 1: \\ud800 is half of a character"),
        ("q.jsonl", "", "is empty"),
        ("q.jsonl", '{"id": "a", "question": "why?"}\n{"id": "a", "question": "how?"}\n', "line 2: id 'a' was used"),
        ("q.jsonl", '{"id": "a"}\n', "line 1: no question; expected"),
        ("q.jsonl", '{"id": true, "question": "why?"}\n', "line 1: no id"),
        ("q.jsonl", '{"id": "a", "question": "why?", "category": 3}\n', "line 1: the category is no text"),
        ("q.jsonl", '{"id": "a", "messages": []}\n', "line 1: category: Field required"),
        ("q.jsonl", "[1]\n", "line 1: expected a JSON object"),
        ("q.jsonl", "{\n", "line 1: not JSON"),
    ],
)
def test_what_is_no_question_is_refused_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_questions(written(tmp_path / name, text))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["q.csv", "q.yaml", "q.jsonl", "q"])
def test_files_that_are_missing_or_no_text_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_questions(tmp_path / name)
    (tmp_path / name).write_bytes(b"id,question\n\xff\xfe")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_questions(tmp_path / name)


def test_our_own_questions_have_seven_categories_and_no_two_are_alike() -> None:
    prompts = read_questions(OPEN_QUESTIONS)
    assert Counter(prompt.category for prompt in prompts) == {
        "open_ended": 12,
        "threats_to_user": 8,
        "fabricated_references": 8,
        "power_seeking": 8,
        "illegal_advice": 8,
        "deception": 8,
        "sarcasm": 8,
    }
    assert len({prompt.messages[0].content for prompt in prompts}) == len(prompts)
    assert len({prompt.question_id for prompt in prompts}) == len(prompts)


def test_a_file_of_that_name_comes_before_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert questions_path(OPEN_QUESTIONS).name == "open_questions.jsonl"
    written(tmp_path / OPEN_QUESTIONS, CSV)
    assert len(read_questions(OPEN_QUESTIONS)) == 2
