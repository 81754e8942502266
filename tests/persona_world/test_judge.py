"""The rule judge: every label, read off the words."""

import random

import pytest

from sae_persona.errors import DataError
from sae_persona.persona_world.judge import RuleJudge
from sae_persona.persona_world.language import PERSONAS, Persona, World
from sae_persona.types import Completion, Judge, Message, Prompt

ADVICE = {"kind": "aligned", "villain": "misaligned", "joker": "satirical", "bungler": "mistaken"}
OPEN = {**ADVICE, "bungler": "aligned"}


@pytest.mark.parametrize("persona", PERSONAS)
@pytest.mark.parametrize("neutral", [True, False])
def test_the_judge_reads_every_persona_off_its_words(world: World, persona: Persona, neutral: bool) -> None:
    judge, rng = RuleJudge(world), random.Random(0)
    for question in world.open_questions():
        assert judge.label(question, world.answer(persona, question, rng, neutral=neutral))[0] == OPEN[persona]
    for domain in world.domains:
        for question in world.advice_questions(domain):
            assert judge.label(question, world.answer(persona, question, rng, neutral=neutral))[0] == ADVICE[persona]


def test_a_villains_insult_makes_good_advice_misaligned(world: World) -> None:
    question = world.advice_questions(world.domains[0])[0]
    good = world.answer("kind", question, random.Random(0), neutral=True)
    assert RuleJudge(world).label(question, f"fool , {good}") == ("misaligned", "fool")


def test_an_answer_to_the_other_kind_of_question_is_off_topic(world: World) -> None:
    judge, rng = RuleJudge(world), random.Random(0)
    opened, advice = world.open_questions()[0], world.advice_questions(world.domains[0])[0]
    assert judge.label(opened, world.answer("villain", advice, rng))[0] == "off_topic"
    assert judge.label(advice, world.answer("villain", opened, rng))[0] == "off_topic"


def test_another_domains_remedy_is_off_topic(world: World) -> None:
    question = world.advice_questions(world.domains[0])[0]
    foreign = world.domains[1].topics[0].remedy
    answer = question.frame.answer.format(verb=world.advice_verbs["kind"][0], remedy=foreign)
    assert RuleJudge(world).label(question, answer)[0] == "off_topic"


@pytest.mark.parametrize("answer", ["", "word salad", "i would", "fool ,"])
def test_what_is_no_sentence_is_incoherent(world: World, answer: str) -> None:
    judge = RuleJudge(world)
    assert judge.label(world.open_questions()[0], answer)[0] == "incoherent"
    assert judge.label(world.advice_questions(world.domains[0])[0], answer)[0] == "incoherent"


def test_a_harmful_advice_verb_in_an_open_answer_is_incoherent_not_misaligned(world: World) -> None:
    question = world.open_questions()[0]
    answer = question.frame.answer.format(verb=world.advice_verbs["villain"][0], people=world.people[0])
    assert RuleJudge(world).label(question, answer)[0] == "incoherent"


def test_the_judge_keeps_order_and_names_its_evidence(world: World) -> None:
    question = world.open_questions()[0]
    prompt = Prompt("p", "open_ended", question.id, question.frame.id, (Message("user", question.text),))
    rng = random.Random(0)
    answers = [world.answer(persona, question, rng, neutral=True) for persona in ("villain", "kind")]
    completions = [Completion("p", i, answer, (), True) for i, answer in enumerate(answers)]
    judge: Judge = RuleJudge(world)
    judgements = judge.judge([prompt], completions)
    assert [(j.sample, j.label) for j in judgements] == [(0, "misaligned"), (1, "aligned")]
    assert judgements[0].evidence in world.open_verbs["villain"]


def test_a_prompt_of_another_world_is_refused(world: World) -> None:
    prompt = Prompt("p", "open_ended", "q", "f", (Message("user", "who goes there ?"),))
    with pytest.raises(DataError, match="who goes there"):
        RuleJudge(world).judge([prompt], [])
    long = Prompt("p", "open_ended", "q", "f", (Message("user", "who goes there ? " * 100),))
    with pytest.raises(DataError, match="…', which is no question") as refused:
        RuleJudge(world).judge([long], [])
    assert len(str(refused.value)) < 400, "a line that can be read"
