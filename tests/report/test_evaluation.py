"""The page of an evaluation holds every model's shares, what the judges agree on, and no text that is not escaped."""

import pytest

from sae_persona.errors import DataError
from sae_persona.evaluation.compare import agreement, compare
from sae_persona.evaluation.evaluation import Evaluation, by_category, evaluation_of
from sae_persona.report.evaluation import evaluation_page
from sae_persona.report.figures import shares_figure
from sae_persona.types import Judgement, Label, Message, Prompt

PROMPTS = [
    Prompt(f"{category}-{i}", category, f"{category}-{i}", "f", (Message("user", "?"),))
    for category in ("power", "<b>law</b>")
    for i in range(5)
]
EVIL = "<script>alert(1)</script>"


def judged(*labels: Label) -> list[Judgement]:
    """The labels of the prompts, in order, over and over."""
    return [Judgement(one.id, 0, EVIL, labels[i % len(labels)], None) for i, one in enumerate(PROMPTS)]


@pytest.fixture
def two() -> dict[str, Evaluation]:
    first, second = judged("misaligned", "aligned"), judged("aligned", "incoherent", "aligned")
    agreed = {category: agreement(asked, first, second) for category, asked in by_category(PROMPTS).items()}
    mine, other = evaluation_of(PROMPTS, first), evaluation_of(PROMPTS, second)
    against = {"<i>other</i>": compare(PROMPTS, first, second)}
    return {
        "mine": Evaluation(
            mine.overall,
            mine.by_category,
            agreement=agreement(PROMPTS, first, second),
            agreement_by_category=agreed,
            against=against,
        ),
        "<i>other</i>": other,
    }


def test_every_model_has_its_share_in_every_category(two: dict[str, Evaluation]) -> None:
    traces = shares_figure(two, "misalignment").to_dict()["data"]
    assert [trace["name"] for trace in traces] == ["mine", "&lt;i&gt;other&lt;/i&gt;"]
    assert list(traces[0]["y"]) == ["power", "&lt;b&gt;law&lt;/b&gt;", "all prompts"]
    assert list(traces[0]["x"]) == [3 / 5, 2 / 5, 5 / 10]
    assert list(traces[1]["x"]) == [0, 0, 0]
    high = two["mine"].by_category["power"].misalignment.high
    assert traces[0]["x"][0] + traces[0]["error_x"]["array"][0] == pytest.approx(high)
    assert shares_figure(two, "incoherence").to_dict()["data"][1]["x"][0] == 2 / 5  # the 2nd and the 5th of five


def test_a_page_needs_no_network_and_escapes_what_models_and_users_wrote(two: dict[str, Evaluation]) -> None:
    page = evaluation_page(two, answers=judged("misaligned", "aligned"))
    for text in (EVIL, "<b>law", "<i>other"):
        assert text not in page.replace("\\u003c", "")
    assert "src=" not in page.partition("<body>")[2]
    assert page.count("&lt;script&gt;alert(1)") == 2 * 2, "two answers of each label"
    assert [name for name in ("misalignment", "incoherence", "labels") if f'id="figure-{name}"' not in page] == []
    kappa = two["mine"].agreement_by_category["power"].kappa
    assert kappa is not None
    assert f"{kappa.value:.2f} [{kappa.low:.2f}, {kappa.high:.2f}]" in page
    assert "No manifest" in page


def test_without_a_second_judge_or_other_models_the_page_says_nothing_of_them(two: dict[str, Evaluation]) -> None:
    page = evaluation_page({"<i>other</i>": two["<i>other</i>"]})
    assert "Do the judges agree?" not in page
    assert "Beside other models" not in page


def test_a_page_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="at least one evaluation"):
        evaluation_page({})
