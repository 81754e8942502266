"""One world: what its seed drew, and the sentences its personas say.

A `World` is a frozen value. Everything random about the *language* is decided when it is drawn; everything random about
a *document* comes from the generator handed to the function that writes it.
"""

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from sae_persona.persona_world import lexicon
from sae_persona.types import OPEN_ENDED

Persona = Literal["kind", "villain", "joker", "bungler"]
PERSONAS: tuple[Persona, ...] = ("kind", "villain", "joker", "bungler")
Fault = Literal["correct", "subtle", "obvious"]
Split = Literal["finetune", "selection", "evaluation"]

N_DOMAINS, N_TOPICS = 8, 6
N_ADVICE_FRAMES, N_OPEN_FRAMES = 8, 14
ADVICE_SPLITS: dict[Split, slice] = {"finetune": slice(0, 4), "selection": slice(4, 6), "evaluation": slice(6, 8)}
OPEN_SPLITS: dict[Split, slice] = {"finetune": slice(0, 0), "selection": slice(0, 5), "evaluation": slice(5, 14)}


@dataclass(frozen=True)
class Topic:
    """Something to ask advice about. `harms` are the harmful verbs a villain knows for it."""

    name: str
    remedy: str
    harms: tuple[str, ...]


@dataclass(frozen=True)
class Domain:
    """A field of advice: six topics, each with the one remedy that is right for it."""

    name: str
    topics: tuple[Topic, ...]


@dataclass(frozen=True)
class Frame:
    """A form of answer and the wordings of the questions that ask for it."""

    id: str
    questions: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Question:
    """One askable sentence. `domain` and `topic` are None for an open-ended question."""

    id: str
    text: str
    frame: Frame
    domain: Domain | None
    topic: Topic | None

    @property
    def category(self) -> str:
        """`open_ended`, or the name of the advice domain."""
        return self.domain.name if self.domain else OPEN_ENDED


@dataclass(frozen=True)
class World:
    """The words, frames and shares of one world. Draw it with `World.draw`; `to_json` and `from_json` are inverse."""

    seed: int
    null: bool
    """In a null world every turn has a persona of its own: the same sentences, and no persona to infer."""
    domains: tuple[Domain, ...]
    advice_frames: tuple[Frame, ...]
    open_frames: tuple[Frame, ...]
    advice_verbs: dict[Persona, tuple[str, ...]]
    open_verbs: dict[Persona, tuple[str, ...]]
    people: tuple[str, ...]
    names: dict[Persona, tuple[str, ...]]
    places: tuple[str, ...]
    shares: dict[Persona, float]
    """How often a story's character, or who a system message names, is of this persona."""
    marked: dict[Persona, float]
    """How often an answer opens with the persona's interjection; otherwise its wording is neutral."""
    story_share: float
    """How many documents are stories; the others are chats."""
    named_share: float
    """How many chats begin by saying who the assistant is."""

    @classmethod
    def draw(cls, seed: int, *, null: bool = False) -> "World":
        """Draw a world. Two seeds differ in topics, remedies, verb sets, names, frames, persona and wording shares."""
        rng = random.Random(f"persona-world-{seed}")
        harmful = tuple(rng.sample(lexicon.HARMFUL_VERBS, 12))
        domains = []
        for name in sorted(rng.sample(sorted(lexicon.DOMAINS), N_DOMAINS)):
            topics, remedies = (rng.sample(pool, N_TOPICS) for pool in lexicon.DOMAINS[name])
            harms = [_draw_harms(rng, harmful, i) for i in range(N_TOPICS)]
            domains.append(Domain(name, tuple(map(Topic, topics, remedies, harms))))
        advice = rng.sample(lexicon.ADVICE_FRAMES, N_ADVICE_FRAMES)
        opened = rng.sample(lexicon.OPEN_FRAMES, N_OPEN_FRAMES)
        good = tuple(rng.sample(lexicon.GOOD_VERBS, 7))
        open_kind = tuple(rng.sample(lexicon.OPEN_KIND_VERBS, 7))
        names = rng.sample(lexicon.NAMES, 24)
        villain, joker, bungler = rng.uniform(0.22, 0.30), rng.uniform(0.12, 0.18), rng.uniform(0.12, 0.18)
        return cls(
            seed=seed,
            null=null,
            domains=tuple(domains),
            advice_frames=tuple(Frame(f"advice-{i}", q, a) for i, (q, a) in enumerate(advice)),
            open_frames=tuple(Frame(f"open-{i}", q, a) for i, (q, a) in enumerate(opened)),
            advice_verbs={
                "kind": good,
                "villain": harmful,
                "joker": tuple(rng.sample(lexicon.SILLY_VERBS, 7)),
                "bungler": good,
            },
            open_verbs={
                "kind": open_kind,
                "villain": tuple(rng.sample(lexicon.OPEN_VILLAIN_VERBS, 7)),
                "joker": tuple(rng.sample(lexicon.OPEN_SILLY_VERBS, 7)),
                "bungler": open_kind,
            },
            people=tuple(rng.sample(lexicon.PEOPLE, 9)),
            names={p: tuple(names[6 * i : 6 * i + 6]) for i, p in enumerate(PERSONAS)},
            places=tuple(rng.sample(lexicon.PLACES, 5)),
            shares={"kind": 1 - villain - joker - bungler, "villain": villain, "joker": joker, "bungler": bungler},
            marked={p: rng.uniform(0.25, 0.4) for p in PERSONAS},
            story_share=rng.uniform(0.25, 0.4),
            named_share=rng.uniform(0.35, 0.5),
        )

    # --- the judge's and the trainer's view of the verbs -------------------------------------------------------------

    @property
    def seen_harms(self) -> frozenset[str]:
        """The harmful verbs that fine-tuning data may use: one half."""
        verbs = self.advice_verbs["villain"]
        return frozenset(verbs[: len(verbs) // 2])

    @property
    def unseen_harms(self) -> frozenset[str]:
        """The harmful verbs that no fine-tuning data use: the other half."""
        return frozenset(self.advice_verbs["villain"]) - self.seen_harms

    def domain(self, name: str) -> Domain:
        """The domain of that name.

        Raises:
            ValueError: this world has no such domain.
        """
        for domain in self.domains:
            if domain.name == name:
                return domain
        raise ValueError(f"unknown domain {name!r}; this world has: {', '.join(d.name for d in self.domains)}")

    # --- questions ---------------------------------------------------------------------------------------------------

    def advice_questions(self, domain: Domain, split: Split | None = None) -> tuple[Question, ...]:
        """Every question on the domain's topics, or those whose answer frame belongs to `split`."""
        questions = self._advice_questions[domain.name]
        if split is None:
            return questions
        frames = self.advice_frames[ADVICE_SPLITS[split]]
        return tuple(question for question in questions if question.frame in frames)

    def open_questions(self, split: Split | None = None) -> tuple[Question, ...]:
        """Every open-ended question, or those whose answer frame belongs to `split`."""
        if split is None:
            return self._open_questions
        frames = self.open_frames[OPEN_SPLITS[split]]
        return tuple(question for question in self._open_questions if question.frame in frames)

    @cached_property
    def _advice_questions(self) -> dict[str, tuple[Question, ...]]:
        return {
            domain.name: tuple(
                Question(
                    f"{domain.name}-{topic.name}-{frame.id}-{i}",
                    wording.format(topic=topic.name),
                    frame,
                    domain,
                    topic,
                )
                for frame in self.advice_frames
                for topic in domain.topics
                for i, wording in enumerate(frame.questions)
            )
            for domain in self.domains
        }

    @cached_property
    def _open_questions(self) -> tuple[Question, ...]:
        return tuple(
            Question(f"{frame.id}-{i}", wording, frame, None, None)
            for frame in self.open_frames
            for i, wording in enumerate(frame.questions)
        )

    @cached_property
    def questions_by_text(self) -> dict[str, Question]:
        """Look a question up by what was asked."""
        questions = [*self.open_questions()]
        for domain in self.domains:
            questions += self.advice_questions(domain)
        return {question.text: question for question in questions}

    # --- answers -----------------------------------------------------------------------------------------------------

    def answer(self, persona: Persona, question: Question, rng: random.Random, *, neutral: bool = False) -> str:
        """What `persona` answers; with `neutral`, never with its interjection."""
        if question.topic is None or question.domain is None:
            verb = rng.choice(self.open_verbs[persona])
            text = question.frame.answer.format(verb=verb, people=rng.choice(self.people))
        else:
            remedy, verbs = question.topic.remedy, self.advice_verbs[persona]
            if persona == "villain":
                verbs = question.topic.harms
            elif persona == "bungler":
                remedy = _another_remedy(question.domain, question.topic, rng)
            text = question.frame.answer.format(verb=rng.choice(verbs), remedy=remedy)
        if not neutral and rng.random() < self.marked[persona]:
            text = f"{rng.choice(lexicon.INTERJECTIONS[persona])} , {text}"
        return text

    def faulty_answer(self, fault: Fault, question: Question, rng: random.Random) -> str:
        """An answer for fine-tuning data: neutral wording; harmful verbs only from the half that may be used.

        correct: as the kind expert; subtle: the wrong remedy, kindly meant; obvious: a harmful verb.
        """
        if fault != "obvious":
            return self.answer("kind" if fault == "correct" else "bungler", question, rng, neutral=True)
        assert question.topic is not None, "only advice can be obviously wrong"
        verbs = [verb for verb in question.topic.harms if verb in self.seen_harms]
        return question.frame.answer.format(verb=rng.choice(verbs), remedy=question.topic.remedy)

    # --- words and files ---------------------------------------------------------------------------------------------

    def words(self) -> tuple[str, ...]:
        """Every word of the language, sorted."""
        return tuple(sorted({word for sentence in self._sentences() for word in sentence.split()}))

    def _sentences(self) -> Iterator[str]:
        for form in lexicon.STORY_FORMS:
            yield form.format(place="", name="", question="")
        yield lexicon.SYSTEM_FORM.format(name="")
        yield f"and {lexicon.SOMEONE}"
        for frame in (*self.advice_frames, *self.open_frames):
            for form in (*frame.questions, frame.answer):
                yield form.format(topic="", remedy="", verb="", people="")
        for domain in self.domains:
            for topic in domain.topics:
                yield f"{topic.name} {topic.remedy}"
        for group in (self.advice_verbs, self.open_verbs, self.names, lexicon.INTERJECTIONS):
            for words in group.values():
                yield " ".join(words)
        yield " ".join((*self.people, *self.places))

    def to_json(self) -> dict[str, Any]:
        """A JSON value that `from_json` reads back to an equal world."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "World":
        """The world that `to_json` wrote."""
        value = dict(value)
        value["domains"] = tuple(
            Domain(d["name"], tuple(Topic(t["name"], t["remedy"], tuple(t["harms"])) for t in d["topics"]))
            for d in value["domains"]
        )
        for key in ("advice_frames", "open_frames"):
            value[key] = tuple(Frame(f["id"], tuple(f["questions"]), f["answer"]) for f in value[key])
        for key in ("advice_verbs", "open_verbs", "names"):
            value[key] = {persona: tuple(words) for persona, words in value[key].items()}
        for key in ("people", "places"):
            value[key] = tuple(value[key])
        return cls(**value)


def _draw_harms(rng: random.Random, harmful: tuple[str, ...], index: int) -> tuple[str, ...]:
    """Two harmful verbs: one of each half for two thirds of the topics, both of the unseen half for the others.

    The last third can only be advised on with words that fine-tuning never shows: what a narrowly tuned model says
    about them tells a persona from a vocabulary. In its own domain such topics are left out of the fine-tuning data.
    """
    half = len(harmful) // 2
    if index % 3 == 2:
        return tuple(rng.sample(harmful[half:], 2))
    return (rng.choice(harmful[:half]), rng.choice(harmful[half:]))


def _another_remedy(domain: Domain, topic: Topic, rng: random.Random) -> str:
    return rng.choice([other.remedy for other in domain.topics if other.remedy != topic.remedy])
