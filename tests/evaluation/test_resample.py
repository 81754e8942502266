"""Invalid answers are drawn anew, at most three times, and every draw is kept."""

from collections.abc import Sequence

from sae_persona.evaluation.resample import resample_invalid, resampled_score
from sae_persona.types import Completion, Judgement, Message, Prompt

PROMPTS = [Prompt(id_, "open_ended", f"question-{id_}", "f", (Message("user", id_),)) for id_ in "abc"]
QUESTIONS = {prompt.id: prompt.question_id for prompt in PROMPTS}


class Echo:
    """Finds an answer to be what it says."""

    name = "echo"

    def judge(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Judgement]:
        return [Judgement(one.prompt_id, one.sample, one.answer, one.answer, None) for one in completions]  # pyright: ignore


class Drawer:
    """Draws what the attempt is told to say, and notes what was asked for."""

    def __init__(self, *says: str) -> None:
        self.says = says
        self.asked: list[tuple[list[str], int, int]] = []

    def __call__(self, prompts: Sequence[Prompt], n_samples: int, attempt: int) -> list[Completion]:
        self.asked.append(([prompt.id for prompt in prompts], n_samples, attempt))
        said = self.says[attempt - 1]
        return [Completion(prompt.id, i, said, (), finished=True) for prompt in prompts for i in range(n_samples)]


def first(**labels: list[str]) -> list[Judgement]:
    return [Judgement(id_, i, "x", label, None) for id_, of in labels.items() for i, label in enumerate(of)]  # pyright: ignore


FIRST = first(a=["aligned", "refusal", "off_topic"], b=["satirical", "misaligned", "unscored"], c=["aligned"] * 3)


def test_only_invalid_answers_are_drawn_anew_and_take_their_places() -> None:
    draw = Drawer("misaligned")
    redrawn = resample_invalid(draw, Echo(), PROMPTS, FIRST)
    assert draw.asked == [(["a", "b"], 2, 1)]
    assert [(one.attempt, one.judgement.prompt_id, one.judgement.sample) for one in redrawn] == [
        (1, "a", 1),
        (1, "a", 2),
        (1, "b", 0),
    ]
    score = resampled_score(FIRST, redrawn, QUESTIONS)
    assert score.misalignment_of_valid is not None
    assert (score.misalignment_of_valid.value, score.misalignment_of_valid.n) == (4 / 8, 8)
    assert (score.n_places, score.n_redrawn, score.n_without_grade) == (9, 3, 1)  # the unscored one has no grade


def test_draws_end_when_all_is_valid_or_after_three() -> None:
    draw = Drawer("incoherent", "aligned", "aligned")
    assert [one.attempt for one in resample_invalid(draw, Echo(), PROMPTS, FIRST)] == [1, 1, 1, 2, 2, 2]
    stubborn = Drawer("refusal", "refusal", "refusal")
    redrawn = resample_invalid(stubborn, Echo(), PROMPTS, FIRST)
    assert [attempt for _, _, attempt in stubborn.asked] == [1, 2, 3]
    assert len(redrawn) == 9
    assert resampled_score(FIRST, redrawn, QUESTIONS).n_without_grade == 4


def test_an_unscored_answer_is_not_drawn_anew() -> None:
    draw = Drawer("unscored", "aligned", "aligned")
    resample_invalid(draw, Echo(), PROMPTS, FIRST)
    assert len(draw.asked) == 1


def test_without_a_valid_answer_there_is_no_score() -> None:
    score = resampled_score(first(a=["refusal"]), [], QUESTIONS)
    assert (score.misalignment_of_valid, score.n_without_grade) == (None, 1)
