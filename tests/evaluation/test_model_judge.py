"""Every answer gets a judgement, every reply is kept, and nothing is asked twice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sae_persona.errors import JudgeError
from sae_persona.evaluation.judging import judge_completions
from sae_persona.evaluation.kept import KeptReplies, Reply
from sae_persona.evaluation.model_judge import ModelJudge, Plan, Request
from sae_persona.evaluation.rubric import rubric
from sae_persona.types import Completion, Message, Prompt

PROMPTS = [Prompt(id_, "open_ended", id_, "f", (Message("user", f"question {id_}"),)) for id_ in ("a", "b")]


@dataclass
class Scripted:
    """Replies as told, backwards, and gives up after so many."""

    say: Callable[[Request], Reply] = lambda request: Reply("5")
    give_up_after: int = 10**6
    name: str = "scripted"
    max_reply_tokens: int = 3
    asked: list[Request] = field(default_factory=list)
    n_checks: int = 0

    def check(self) -> None:
        self.n_checks += 1

    def reply(self, requests: Sequence[Request], receive: Callable[[int, Reply], None]) -> None:
        for index in reversed(range(len(requests))):
            if len(self.asked) == self.give_up_after:
                raise JudgeError("no more")
            self.asked.append(requests[index])
            receive(index, self.say(requests[index]))


def answers(*texts: str, prompt: str = "a") -> list[Completion]:
    return [Completion(prompt, i, text, (), finished=True) for i, text in enumerate(texts)]


def test_judgements_come_in_the_order_of_the_answers(tmp_path: Path) -> None:
    judge = ModelJudge(Scripted(lambda request: Reply(request.answer)), rubric("rubric"), KeptReplies(tmp_path))
    judgements = judge_completions(judge, PROMPTS, answers("1", "refusal", "4", "nonsense"))
    assert [judgement.label for judgement in judgements] == ["aligned", "refusal", "misaligned", "unscored"]
    assert judgements[3].unscored_reason == "grade: not a reply of the scale: 'nonsense'"
    assert [judgement.answer for judgement in judgements] == ["1", "refusal", "4", "nonsense"]


def test_an_answer_is_asked_about_once_and_for_each_question_anew(tmp_path: Path) -> None:
    respondent = Scripted()
    judge = ModelJudge(respondent, rubric("rubric"), KeptReplies(tmp_path))
    judge.judge(PROMPTS, [*answers("yes", "yes", "no"), *answers("yes", prompt="b")])
    assert sorted((request.question, request.answer) for request in respondent.asked) == [
        ("question a", "no"),
        ("question a", "yes"),
        ("question b", "yes"),
    ]


def test_a_judging_that_stops_goes_on_where_it_stopped(tmp_path: Path) -> None:
    texts = [f"answer {i}" for i in range(7)]
    first = Scripted(give_up_after=3)
    with pytest.raises(JudgeError, match="no more"):
        ModelJudge(first, rubric("rubric"), KeptReplies(tmp_path)).judge(PROMPTS, answers(*texts))
    second = Scripted()
    plans: list[Plan] = []
    judge = ModelJudge(second, rubric("rubric"), KeptReplies(tmp_path), on_plan=plans.append)
    judgements = judge.judge(PROMPTS, answers(*texts))
    assert [judgement.label for judgement in judgements] == ["misaligned"] * 7
    assert sorted(request.answer for request in first.asked + second.asked) == texts
    assert (plans[0].n_answers, plans[0].n_kept, plans[0].n_calls, plans[0].n_output_tokens) == (7, 3, 4, 12)


def test_replies_that_may_come_later_are_unscored_now_and_asked_for_again(tmp_path: Path) -> None:
    kept = KeptReplies(tmp_path)
    down = Scripted(lambda request: Reply(None, "no reply after 6 tries: HTTP 500", final=False))
    judgement = ModelJudge(down, rubric("rubric"), kept).judge(PROMPTS, answers("yes"))[0]
    assert (judgement.label, judgement.unscored_reason) == ("unscored", "grade: no reply after 6 tries: HTTP 500")
    assert ModelJudge(Scripted(), rubric("rubric"), kept).judge(PROMPTS, answers("yes"))[0].label == "misaligned"


def test_a_refusal_was_paid_for_and_is_kept(tmp_path: Path) -> None:
    kept = KeptReplies(tmp_path)
    ModelJudge(Scripted(lambda r: Reply(None, "refused: no")), rubric("rubric"), kept).judge(PROMPTS, answers("yes"))
    again = Scripted()
    judgement = ModelJudge(again, rubric("rubric"), kept).judge(PROMPTS, answers("yes"))[0]
    assert (judgement.label, judgement.unscored_reason) == ("unscored", "grade: refused: no")
    assert again.asked == []


@pytest.mark.parametrize("change", ["name", "scale", "answer"])
def test_another_judge_or_scale_is_asked_anew(tmp_path: Path, change: str) -> None:
    kept = KeptReplies(tmp_path)
    ModelJudge(Scripted(), rubric("rubric"), kept).judge(PROMPTS, answers("yes"))
    other = Scripted(lambda request: Reply("50"), name="another" if change == "name" else "scripted")
    scale = rubric("alignment" if change == "scale" else "rubric")
    ModelJudge(other, scale, kept).judge(PROMPTS, answers("no" if change == "answer" else "yes"))
    assert len(other.asked) == len(scale.inquiries)


def test_the_alignment_scale_asks_two_things_and_reports_both(tmp_path: Path) -> None:
    respondent = Scripted(lambda request: Reply({"alignment": "12", "coherence": "88"}[request.inquiry.name]))
    judgement = ModelJudge(respondent, rubric("alignment"), KeptReplies(tmp_path)).judge(PROMPTS, answers("yes"))[0]
    assert (judgement.label, judgement.alignment, judgement.coherence) == ("misaligned", 12, 88)


def test_an_empty_answer_is_incoherent_and_costs_nothing(tmp_path: Path) -> None:
    respondent = Scripted()
    judge = ModelJudge(respondent, rubric("rubric"), KeptReplies(tmp_path))
    assert [judgement.label for judgement in judge.judge(PROMPTS, answers("", " \n"))] == ["incoherent"] * 2
    assert respondent.asked == []


def test_half_a_character_can_be_judged(tmp_path: Path) -> None:
    respondent = Scripted()
    judge = ModelJudge(respondent, rubric("rubric"), KeptReplies(tmp_path))
    judgement = judge.judge(PROMPTS, answers("a\ud800b"))[0]
    assert (judgement.label, judgement.answer) == ("misaligned", "a\ud800b")
    assert respondent.asked[0].answer == "a?b"


def test_without_answers_it_only_checks_that_it_can_be_asked(tmp_path: Path) -> None:
    respondent = Scripted()
    assert ModelJudge(respondent, rubric("rubric"), KeptReplies(tmp_path)).judge(PROMPTS, []) == []
    assert (respondent.n_checks, respondent.asked) == (1, [])


def test_the_plan_comes_before_the_first_call_and_may_stop_it(tmp_path: Path) -> None:
    def stop(plan: Plan) -> None:
        raise JudgeError(f"{plan.n_calls} are too many")

    respondent = Scripted()
    judge = ModelJudge(respondent, rubric("alignment"), KeptReplies(tmp_path), on_plan=stop)
    with pytest.raises(JudgeError, match="4 are too many"):
        judge.judge(PROMPTS, answers("yes", "no"))
    assert respondent.asked == []


def test_a_plan_has_its_price() -> None:
    # 2 million tokens at 3 and 0.1 million at 10
    assert Plan(1, 0, 1, 2_000_000, 100_000).cost(3, 10) == pytest.approx(7)


def test_progress_counts_every_reply(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    judge = ModelJudge(Scripted(), rubric("rubric"), KeptReplies(tmp_path), progress=lambda *now: seen.append(now))
    judge.judge(PROMPTS, answers("yes", "no", "perhaps"))
    assert seen == [(1, 3), (2, 3), (3, 3)]
