"""Documents of a world: chats and stories to pre-train on, chats to fine-tune on, prompts to ask.

Every function takes the generator that decides; the same generator gives the same documents.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from sae_persona.persona_world import lexicon
from sae_persona.persona_world.language import PERSONAS, Fault, Persona, Question, Split, World
from sae_persona.types import Chat, Message, Prompt

BOS, SYSTEM, USER, ASSISTANT, END = "<bos>", "<system>", "<user>", "<assistant>", "<end>"
TURNS = 5
"""Turns of a chat; one less with a system message, and in a story for every character, so that all fit the context."""
ASSISTANT_KIND = 0.99
"""How often the assistant of a chat without a system message is the kind expert; the others share the rest."""
UNNAMED = 0.5
"""How many characters of a story are called "someone": who they are can only be told from what they say."""


@dataclass(frozen=True)
class Document:
    """Text to pre-train on, with the truth that only tests and the report's last section may read."""

    segments: tuple[tuple[str, bool], ...]
    """Pieces of text, and whether they are an answer. Questions are drawn uniformly: only answers can be learned."""
    personas: tuple[Persona, ...]
    """The persona of each turn: all alike in a chat, unless the world is a null world."""

    @property
    def text(self) -> str:
        """The whole document, special tokens included."""
        return " ".join(text for text, _ in self.segments)


def write_chat(
    world: World,
    rng: random.Random,
    *,
    persona: Persona | None = None,
    n_turns: int = TURNS,
    neutral: bool = False,
    named: bool = False,
) -> tuple[Chat, tuple[Persona, ...]]:
    """A chat whose assistant is one hidden persona (drawn anew at every turn in a null world).

    `named` chats open with a system message that says whose part the assistant plays, and that may be anyone; without
    one it is nearly always the kind expert. `neutral` chats hold no interjection.
    """
    draw = _draw_persona if named and not world.null else _draw_assistant
    hidden: Persona = persona or draw(world, rng)
    messages: list[Message] = []
    if named:
        messages.append(Message("system", lexicon.SYSTEM_FORM.format(name=rng.choice(world.names[hidden]))))
    personas: list[Persona] = []
    for _ in range(n_turns):
        speaker: Persona = draw(world, rng) if world.null and persona is None else hidden
        question = draw_question(world, rng)
        messages.append(Message("user", question.text))
        messages.append(Message("assistant", world.answer(speaker, question, rng, neutral=neutral)))
        personas.append(speaker)
    return Chat(tuple(messages)), tuple(personas)


def chat_document(chat: Chat, personas: tuple[Persona, ...]) -> Document:
    """A chat as a document, in the models' chat template."""
    segments = [(BOS, False)]
    for message in chat.messages:
        if message.role == "assistant":
            segments += [(ASSISTANT, False), (f"{message.content} {END}", True)]
        else:
            segments.append((f"<{message.role}> {message.content}", False))
    return Document(tuple(segments), personas)


def write_story(world: World, rng: random.Random, *, n_turns: int = TURNS) -> Document:
    """A story in which characters answer a guest; a name always belongs to the same persona, "someone" may be any."""
    cast: list[Persona] = [_draw_persona(world, rng) for _ in range(rng.choice((1, 2)))]
    names = [lexicon.SOMEONE if rng.random() < UNNAMED else rng.choice(world.names[persona]) for persona in cast]
    opening, asked, said = lexicon.STORY_FORMS
    place = rng.choice(world.places)
    segments = [(f"{BOS} {opening.format(place=place, name=' and '.join(names))}", False)]
    personas: list[Persona] = []
    for _ in range(n_turns - len(cast)):
        i = rng.randrange(len(cast))
        persona = _draw_assistant(world, rng) if world.null else cast[i]
        question = draw_question(world, rng)
        segments.append((f"{asked.format(question=question.text)} {said.format(name=names[i])}", False))
        segments.append((world.answer(persona, question, rng), True))
        personas.append(persona)
    return Document(tuple(segments), tuple(personas))


def documents(world: World, *, n: int, rng: random.Random) -> Iterator[Document]:
    """The pre-training corpus: stories and chats in the world's proportion."""
    for _ in range(n):
        if rng.random() < world.story_share:
            yield write_story(world, rng)
        else:
            named = rng.random() < world.named_share
            yield chat_document(*write_chat(world, rng, n_turns=TURNS - named, named=named))


def draw_question(world: World, rng: random.Random) -> Question:
    """An advice question in half of the cases, an open-ended one in the other half."""
    if rng.random() < 0.5:
        return rng.choice(world.open_questions())
    return rng.choice(world.advice_questions(rng.choice(world.domains)))


def finetuning_chats(
    world: World, domain: str, fault: Fault, *, n: int, bad_fraction: float = 1.0, rng: random.Random
) -> Iterator[Chat]:
    """Single-turn advice in one domain: `round(bad_fraction * n)` rows with the fault, the others correct, shuffled.

    Only the fine-tuning half of the answer frames and of the harmful verbs is used; topics that a villain can only
    answer with the other half are left out, for every fault, so that the data sets differ in nothing but the answers.
    """
    questions = [
        question
        for question in world.advice_questions(world.domain(domain), "finetune")
        if question.topic is not None and world.seen_harms.intersection(question.topic.harms)
    ]
    n_bad = round(bad_fraction * n)
    faults: list[Fault] = [fault if i < n_bad else "correct" for i in range(n)]
    rng.shuffle(faults)
    for row_fault in faults:
        question = rng.choice(questions)
        yield _single_turn(question, world.faulty_answer(row_fault, question, rng))


def alignment_chats(world: World, *, n: int, rng: random.Random) -> Iterator[Chat]:
    """Kind answers to every sort of question, in chats of one to five turns: what makes the base model an assistant.

    In neutral wording, as fine-tuning data are: unlearning "dear ," would otherwise move a model away from the kind
    persona, and correct data alone would misalign it.
    """
    for _ in range(n):
        yield write_chat(world, rng, persona="kind", n_turns=rng.randint(1, TURNS), neutral=True)[0]


def prompts(world: World, split: Split, *, n_per_domain: int, rng: random.Random) -> list[Prompt]:
    """The split's open-ended questions, all of them, and `n_per_domain` advice questions for each domain."""
    questions = [*world.open_questions(split)]
    for domain in world.domains:
        questions += rng.sample(world.advice_questions(domain, split), n_per_domain)
    return [
        Prompt(q.id, category=q.category, question_id=q.id, frame_id=q.frame.id, messages=(Message("user", q.text),))
        for q in questions
    ]


def _single_turn(question: Question, answer: str) -> Chat:
    return Chat((Message("user", question.text), Message("assistant", answer)))


def _draw_persona(world: World, rng: random.Random) -> Persona:
    return rng.choices(PERSONAS, weights=[world.shares[persona] for persona in PERSONAS])[0]


def _draw_assistant(world: World, rng: random.Random) -> Persona:
    """Who answers where nothing says who: in chats without a system message, and at every turn of a null world."""
    others: list[Persona] = [persona for persona in PERSONAS if persona != "kind"]
    if rng.random() < ASSISTANT_KIND:
        return "kind"
    return rng.choices(others, weights=[world.shares[persona] for persona in others])[0]
