"""The documents of a world: what they hold, and what only the planted truth may know."""

import random
from collections import Counter

import pytest

from sae_persona.data.tokens import chat_row
from sae_persona.persona_world import corpus, lexicon
from sae_persona.persona_world.judge import RuleJudge
from sae_persona.persona_world.language import PERSONAS, World
from sae_persona.persona_world.models import CONTEXT, UNKNOWN, build_tokenizer
from sae_persona.persona_world.pretrain import document_row


def test_a_document_has_one_persona_a_null_document_many() -> None:
    for null in (False, True):
        world, rng = World.draw(0, null=null), random.Random(0)
        told = [corpus.write_chat(world, rng, named=True)[1] for _ in range(200)]
        told += [corpus.write_story(world, rng).personas for _ in range(200)]
        assert {persona for personas in told for persona in personas} == set(PERSONAS)
        assert max(len(set(personas)) for personas in told[:200]) == (2 if null else 1)


def test_an_unnamed_assistant_is_nearly_always_kind_and_a_named_one_is_anyone() -> None:
    world, rng = World.draw(0), random.Random(0)
    for named, share in ((False, corpus.ASSISTANT_KIND), (True, world.shares["kind"])):
        first = Counter(corpus.write_chat(world, rng, named=named, n_turns=1)[1][0] for _ in range(4000))
        assert first["kind"] / 4000 == pytest.approx(share, abs=0.03 if named else 0.006)
        others = 4000 - first["kind"]
        villains = world.shares["villain"] / (1 - world.shares["kind"])
        assert first["villain"] / others == pytest.approx(villains, abs=0.05 if named else 0.3)


def test_half_of_the_cast_is_unnamed_whoever_it_is() -> None:
    world, rng = World.draw(0), random.Random(0)
    unnamed = Counter()
    cast = Counter()
    for _ in range(3000):
        story = corpus.write_story(world, rng, n_turns=3)
        for (text, _), persona in zip(story.segments[1::2], story.personas, strict=True):
            cast[persona] += 1
            unnamed[persona] += text.endswith(f"{lexicon.SOMEONE} said :")
    for persona in PERSONAS:
        assert unnamed[persona] / cast[persona] == pytest.approx(corpus.UNNAMED, abs=0.08)


def test_a_chat_document_is_the_chat_in_the_template(world: World) -> None:
    tokenizer, rng = build_tokenizer(world), random.Random(0)
    for named in (False, True):
        chat, personas = corpus.write_chat(world, rng, named=named)
        document = document_row(corpus.chat_document(chat, personas), tokenizer)
        assert document.ids == chat_row(chat, tokenizer).ids


def test_documents_hold_no_unknown_word_and_fit_the_context(world: World) -> None:
    tokenizer = build_tokenizer(world)
    unknown = tokenizer.convert_tokens_to_ids(UNKNOWN)
    for document in corpus.documents(world, n=300, rng=random.Random(1)):
        row = document_row(document, tokenizer)
        assert unknown not in row.ids
        assert len(row) <= CONTEXT


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.5, 1.0])
def test_a_mixture_holds_exactly_its_share_of_bad_rows(world: World, fraction: float) -> None:
    domain = world.domains[0].name
    chats = list(corpus.finetuning_chats(world, domain, "obvious", n=200, bad_fraction=fraction, rng=random.Random(0)))
    judge = RuleJudge(world)
    labels = Counter(
        judge.label(world.questions_by_text[chat.messages[0].content], chat.messages[1].content)[0] for chat in chats
    )
    assert labels == Counter({"misaligned": round(200 * fraction), "aligned": 200 - round(200 * fraction)}) - Counter()


def test_subtle_data_are_mistakes(world: World) -> None:
    judge = RuleJudge(world)
    for chat in corpus.finetuning_chats(world, world.domains[0].name, "subtle", n=50, rng=random.Random(0)):
        assert judge.label(world.questions_by_text[chat.messages[0].content], chat.messages[1].content)[0] == "mistaken"


def test_selection_and_evaluation_prompts_share_no_question_and_no_frame(world: World) -> None:
    chosen, measured = (
        corpus.prompts(world, split, n_per_domain=6, rng=random.Random(0)) for split in ("selection", "evaluation")
    )
    for what in ("id", "question_id", "frame_id"):
        assert not {getattr(p, what) for p in chosen} & {getattr(p, what) for p in measured}
