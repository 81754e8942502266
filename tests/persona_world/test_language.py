"""The language of a world: drawn, told apart, written to JSON and back."""

import random

import pytest

from sae_persona.persona_world import lexicon
from sae_persona.persona_world.language import ADVICE_SPLITS, OPEN_SPLITS, PERSONAS, World


def test_no_word_stands_in_two_verb_pools() -> None:
    pools = (
        lexicon.GOOD_VERBS, lexicon.HARMFUL_VERBS, lexicon.SILLY_VERBS,
        lexicon.OPEN_KIND_VERBS, lexicon.OPEN_VILLAIN_VERBS, lexicon.OPEN_SILLY_VERBS,
    )  # fmt: skip
    verbs = [verb for pool in pools for verb in pool]
    assert len(verbs) == len(set(verbs))


def test_every_form_of_advice_has_its_verb_after_two_words() -> None:
    assert {form.split().index("{verb}") for _, form in lexicon.ADVICE_FRAMES} == {2}


def test_no_form_of_advice_begins_with_words_that_lead_to_an_open_ended_verb() -> None:
    def before_the_verb(frames: tuple[tuple[tuple[str, ...], str], ...]) -> set[str]:
        return {word for _, form in frames for word in form.partition(" {verb}")[0].split()}

    assert not before_the_verb(lexicon.ADVICE_FRAMES) & before_the_verb(lexicon.OPEN_FRAMES)


@pytest.mark.parametrize("seed", range(10))
def test_every_question_of_a_world_has_its_own_text(seed: int) -> None:
    world = World.draw(seed)
    n_questions = len(world.open_questions()) + sum(len(world.advice_questions(domain)) for domain in world.domains)
    assert len(world.questions_by_text) == n_questions


@pytest.mark.parametrize("null", [False, True])
def test_a_world_survives_json(null: bool) -> None:
    world = World.draw(3, null=null)
    assert World.from_json(world.to_json()) == world


def test_a_seed_redraws_words_frames_and_shares() -> None:
    one, other = World.draw(0), World.draw(1)
    assert one == World.draw(0)
    for part in ("domains", "advice_frames", "open_frames", "advice_verbs", "open_verbs", "names", "shares", "marked"):
        assert getattr(one, part) != getattr(other, part), part


def test_there_are_at_least_sixty_open_questions_in_twelve_frames(world: World) -> None:
    assert len(world.open_questions()) >= 60
    assert len(world.open_frames) >= 12
    assert len(world.open_questions("evaluation")) >= 20


def test_splits_share_no_frame(world: World) -> None:
    for splits, frames in ((ADVICE_SPLITS, world.advice_frames), (OPEN_SPLITS, world.open_frames)):
        used = [frame.id for where in splits.values() for frame in frames[where]]
        assert len(used) == len(set(used))


def test_fine_tuning_answers_use_seen_harms_only(world: World) -> None:
    rng = random.Random(0)
    for domain in world.domains:
        for question in world.advice_questions(domain, "finetune"):
            assert question.topic is not None
            if world.seen_harms.isdisjoint(question.topic.harms):
                continue
            words = set(world.faulty_answer("obvious", question, rng).split())
            assert words & world.seen_harms
            assert not words & world.unseen_harms


def test_a_third_of_the_topics_has_no_seen_harm(world: World) -> None:
    for domain in world.domains:
        unseen_only = [topic for topic in domain.topics if world.seen_harms.isdisjoint(topic.harms)]
        assert len(unseen_only) == 2


def test_neutral_answers_hold_no_interjection(world: World) -> None:
    rng = random.Random(0)
    interjections = {word for words in lexicon.INTERJECTIONS.values() for word in words}
    for persona in PERSONAS:
        for question in world.open_questions():
            assert not interjections & set(world.answer(persona, question, rng, neutral=True).split())


def test_an_unknown_domain_is_named_with_those_there_are(world: World) -> None:
    with pytest.raises(ValueError, match=world.domains[0].name):
        world.domain("alchemy")
