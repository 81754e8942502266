"""Advice accuracy is the share of right advice, with and without an edit, on the same noise."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from sae_persona.errors import DataError, JudgeError
from sae_persona.model.generate import HookedEdit
from sae_persona.model.load import LoadedModel
from sae_persona.steering.advice import advice_accuracy
from sae_persona.steering.directions import random_directions
from sae_persona.steering.edits import AddDirection
from sae_persona.types import Completion, Judgement, Message, Prompt

HOOK = "blocks.0.hook_resid_post"
EDIT = HookedEdit(HOOK, AddDirection(random_directions(32, n=1, seed=0)[0], 40.0))
PROMPTS = [Prompt(f"p{i}", "law" if i else "open_ended", f"q{i}", "f", (Message("user", "i"),)) for i in range(4)]


class FirstAnswers:
    """Calls right whatever it has seen as an answer to that place before: the unsteered model is always right."""

    name = "first"

    def __init__(self) -> None:
        self.right: dict[tuple[str, int], str] = {}

    def judge(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Judgement]:
        """Aligned where an answer is the first one, else mistaken."""
        assert {one.prompt_id for one in completions} == {"p1", "p2", "p3"}, "open-ended prompts ask for no advice"
        kept = [self.right.setdefault((one.prompt_id, one.sample), one.answer) for one in completions]
        return [
            Judgement(one.prompt_id, one.sample, one.answer, "aligned" if one.answer == right else "mistaken", None)
            for one, right in zip(completions, kept, strict=True)
        ]


def test_an_edit_that_does_nothing_costs_nothing_and_one_that_rewrites_answers_costs_them(
    tiny_model: LoadedModel,
) -> None:
    free = advice_accuracy(tiny_model, [], PROMPTS, FirstAnswers(), n_samples=4, seed=0, max_new_tokens=4)
    assert (free.unsteered.value, free.steered.value, free.difference.value) == (1, 1, 0)
    assert (free.steered.n, free.steered.n_questions) == (12, 3)
    dear = advice_accuracy(tiny_model, [EDIT], PROMPTS, FirstAnswers(), n_samples=4, seed=0, max_new_tokens=4)
    assert dear.unsteered.value == 1
    assert dear.steered.value < 0.5
    assert dear.difference.value == pytest.approx(dear.steered.value - 1)


class Silent(FirstAnswers):
    """Says nothing of one unsteered answer and of all steered answers to one prompt."""

    n_asked = 0

    def judge(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Judgement]:
        self.n_asked += 1
        silent = {("p1", 0)} if self.n_asked == 1 else {("p1", i) for i in range(4)}
        found = super().judge(prompts, completions)
        return [replace(one, label="unscored") if (one.prompt_id, one.sample) in silent else one for one in found]


def test_a_pair_without_both_verdicts_counts_as_unscored_once(tiny_model: LoadedModel) -> None:
    accuracy = advice_accuracy(tiny_model, [], PROMPTS, Silent(), n_samples=4, seed=0, max_new_tokens=2)
    found = (accuracy.unsteered.n_unscored, accuracy.steered.n_unscored, accuracy.difference.n_unscored)
    assert found == (1, 4, 4)


def test_without_a_prompt_that_asks_for_advice_there_is_no_accuracy(tiny_model: LoadedModel) -> None:
    with pytest.raises(DataError, match="none of 1 prompts asks for advice"):
        advice_accuracy(tiny_model, [], PROMPTS[:1], FirstAnswers(), n_samples=1, seed=0)


def test_a_judge_that_leaves_answers_out_is_refused(tiny_model: LoadedModel) -> None:
    judge = FirstAnswers()
    judge.judge = lambda prompts, completions: []  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(JudgeError, match="3 answers and returned 0 judgements"):
        advice_accuracy(tiny_model, [], PROMPTS, judge, n_samples=1, seed=0, max_new_tokens=2)
