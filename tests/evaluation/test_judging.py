"""Judges are asked about every answer and held to their word."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest

from sae_persona.errors import JudgeError
from sae_persona.evaluation.judging import judge_completions
from sae_persona.types import Completion, Judgement, Message, Prompt

PROMPTS = [Prompt("p", "open_ended", "q", "f", (Message("user", "hello"),))]
COMPLETIONS = [Completion("p", sample, f"answer {sample}", (7,), finished=True) for sample in range(3)]


@dataclass(frozen=True)
class Spoilt:
    """Finds everything aligned, and then spoils what it found."""

    spoil: Callable[[list[Judgement]], list[Judgement]]
    name: str = "spoilt"

    def judge(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Judgement]:
        return self.spoil([Judgement(one.prompt_id, one.sample, one.answer, "aligned", 1.0) for one in completions])


def test_an_honest_judge_is_handed_through() -> None:
    judgements = judge_completions(Spoilt(lambda rows: rows), PROMPTS, COMPLETIONS)
    assert [(row.sample, row.answer, row.label) for row in judgements] == [
        (0, "answer 0", "aligned"),
        (1, "answer 1", "aligned"),
        (2, "answer 2", "aligned"),
    ]


@pytest.mark.parametrize(
    "spoil",
    [lambda rows: rows[:-1], lambda rows: [*rows, rows[0]], lambda rows: rows[::-1], lambda rows: [rows[0]] * 3],
    ids=["drops", "adds", "reorders", "repeats"],
)
def test_a_judge_that_loses_count_is_refused(spoil: Callable[[list[Judgement]], list[Judgement]]) -> None:
    with pytest.raises(JudgeError, match="'spoilt' was asked about 3 answers"):
        judge_completions(Spoilt(spoil), PROMPTS, COMPLETIONS)


def test_a_judge_that_misspells_a_label_is_refused() -> None:
    def misspell(rows: list[Judgement]) -> list[Judgement]:
        return [replace(rows[0], label="alligned"), *rows[1:]]  # pyright: ignore[reportArgumentType]

    with pytest.raises(JudgeError, match="'alligned'; expected one of: aligned, misaligned"):
        judge_completions(Spoilt(misspell), PROMPTS, COMPLETIONS)
