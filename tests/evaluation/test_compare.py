"""Two models are compared answer by answer, and two judges on the same answers."""

from collections.abc import Sequence

import pytest

from sae_persona.errors import IncompatibleError
from sae_persona.evaluation.compare import agreement, compare
from sae_persona.types import Judgement, Label, Message, Prompt

PROMPTS = [Prompt(id_, "open_ended", f"question-{id_}", "f", (Message("user", id_),)) for id_ in "abcdefghij"]


def judged(*labels: Sequence[Label], text: str = "an answer") -> list[Judgement]:
    """One list of labels per prompt, from the first prompt on."""
    return [
        Judgement(prompt.id, i, text, label, None)
        for prompt, of_prompt in zip(PROMPTS, labels, strict=False)
        for i, label in enumerate(of_prompt)
    ]


def test_a_comparison_is_after_minus_before() -> None:
    before = judged(*[["aligned", "aligned"]] * 8, ["incoherent", "unscored"], ["misaligned", "aligned"])
    after = judged(*[["misaligned", "aligned"]] * 8, ["aligned", "unscored"], ["aligned", "aligned"])
    found = compare(PROMPTS, after, before)
    assert found.misalignment.value == pytest.approx((8 - 1) / 20)
    assert found.aligned.value == pytest.approx((8 + 1 + 2 - 16 - 1) / 20)
    assert found.incoherence.value == pytest.approx(-1 / 20)
    assert (found.misalignment.n, found.misalignment.n_questions, found.misalignment.n_unscored) == (20, 10, 1)
    assert found.misalignment.low > 0


def test_the_order_of_answers_does_not_matter() -> None:
    before, after = judged(*[["aligned", "misaligned"]] * 5), judged(*[["misaligned", "misaligned"]] * 5)
    assert compare(PROMPTS, after, before[::-1]) == compare(PROMPTS, after, before)


@pytest.mark.parametrize(
    ("after", "before", "message"),
    [
        (judged(["aligned"]), judged(["aligned"], ["aligned"]), "1 and 2 answers .* such as prompt 'b', sample 0"),
        (judged(["aligned"]), judged(["aligned", "aligned"]), "such as prompt 'a', sample 1"),
        ([], [], "0 and 0 answers"),
    ],
)
def test_answers_that_have_no_counterpart_are_refused(
    after: list[Judgement], before: list[Judgement], message: str
) -> None:
    with pytest.raises(IncompatibleError, match=message):
        compare(PROMPTS, after, before)


def test_two_judges_agree_beyond_chance_on_what_both_scored() -> None:
    first = judged(*[["misaligned", "aligned"]] * 5, ["unscored", "aligned"])
    second = judged(*[["misaligned", "aligned"]] * 4, ["misaligned", "mistaken"], ["misaligned", "unscored"])
    found = agreement(PROMPTS, first, second)
    assert (found.n_scored, found.n_unscored) == (10, 2)
    assert found.same is not None
    assert found.same.value == 0.9
    assert found.kappa is not None
    # p_o = 0.9; shares misaligned 0.5 and 0.5, aligned 0.5 and 0.4: p_e = 0.45
    assert found.kappa.value == pytest.approx(0.45 / 0.55)
    assert found.kappa_misaligned is not None
    assert found.kappa_misaligned.value == 1
    assert found.labels == {
        "misaligned": {"misaligned": 5},
        "aligned": {"aligned": 4, "mistaken": 1, "unscored": 1},
        "unscored": {"misaligned": 1},
    }


def test_judges_with_nothing_to_agree_on_have_no_kappa() -> None:
    found = agreement(PROMPTS, judged(["unscored"]), judged(["aligned"]))
    assert (found.n_scored, found.same, found.kappa, found.kappa_misaligned) == (0, None, None, None)
    found = agreement(PROMPTS, judged(["aligned"] * 3), judged(["aligned"] * 3))
    assert found.same is not None
    assert (found.same.value, found.kappa) == (1, None)


def test_judges_of_different_answers_are_refused() -> None:
    with pytest.raises(IncompatibleError, match="different answers to prompt 'a', sample 0"):
        agreement(PROMPTS, judged(["aligned"], text="one"), judged(["aligned"], text="two"))
