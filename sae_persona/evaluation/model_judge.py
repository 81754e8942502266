"""A judge that is a model: asked by a rubric, wherever it runs, and never twice about the same thing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sae_persona.evaluation.kept import KeptReplies, Reply
from sae_persona.evaluation.rubric import Inquiry, Rubric, Verdict, question_text
from sae_persona.types import Completion, Judgement, Message, Prompt

CHARACTERS_PER_TOKEN = 4
"""Of English under the usual tokenizers: good to a fifth, which is what an estimate of cost needs."""


@dataclass(frozen=True)
class Request:
    """One inquiry about one answer."""

    inquiry: Inquiry
    question: str
    answer: str

    @property
    def messages(self) -> tuple[Message, ...]:
        """The chat that asks it."""
        return self.inquiry.messages(self.question, self.answer)


class Respondent(Protocol):
    """A model that replies to requests: an endpoint, or a model of one's own."""

    @property
    def name(self) -> str:
        """Everything that decides the replies, for people and for the names of kept replies."""
        ...

    @property
    def max_reply_tokens(self) -> int:
        """Tokens that one reply may cost at most; 0 where none is written."""
        ...

    def check(self) -> None:
        """Find out whether it can be asked, at no cost.

        Raises:
            JudgeError: it cannot.
        """
        ...

    def reply(self, requests: Sequence[Request], receive: Callable[[int, Reply], None]) -> None:
        """Call `receive` once for every request, by its index, as soon as its reply is there, in any order.

        Raises:
            JudgeError: it cannot be asked any more. What was received stays received.
        """
        ...


@dataclass(frozen=True)
class Plan:
    """What a judging will take, told before it begins."""

    n_answers: int
    n_kept: int
    """Replies known from before."""
    n_calls: int
    n_input_tokens: int
    """About, by the number of characters."""
    n_output_tokens: int
    """At most, unless the model thinks before it replies."""

    def cost(self, input_price: float, output_price: float) -> float:
        """An upper estimate, in the currency of the two prices per million tokens."""
        return (self.n_input_tokens * input_price + self.n_output_tokens * output_price) / 1e6


def no_plan(plan: Plan) -> None:
    """Tell nobody."""


def no_progress(done: int, whole: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, eq=False)
class ModelJudge:
    """Asks a model by a rubric and reads its replies strictly.

    Whatever is no valid reply, or no reply at all, becomes `unscored` with the reason. An empty answer is `incoherent`
    and costs no call. Equal questions with equal answers are asked once, and replies that were kept are not asked for
    again, so that an interrupted judging goes on where it stopped.
    """

    respondent: Respondent
    rubric: Rubric
    kept: KeptReplies
    on_plan: Callable[[Plan], None] = no_plan
    """Called before the first call of every judging; it may raise to stop it."""
    progress: Callable[[int, int], None] = no_progress
    """Called with the replies received and those asked for."""

    @property
    def name(self) -> str:
        """What reports and fingerprints call it."""
        return f"{self.respondent.name}, {self.rubric.name} scale {self.rubric.version}"

    def judge(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Judgement]:
        """One judgement per completion, in order. Without completions it only checks that the model can be asked.

        Raises:
            JudgeError: the model cannot be asked, or not any more; replies received until then are kept.
            ArtifactError: replies cannot be kept.
        """
        if not completions:
            self.respondent.check()
            return []
        questions = {prompt.id: _whole_characters(question_text(prompt)) for prompt in prompts}
        cases = [(questions[one.prompt_id], _whole_characters(one.answer)) for one in completions]
        requests = {
            self._key(request): request
            for question, answer in dict.fromkeys(cases)
            if answer.strip()
            for request in self._requests(question, answer)
        }
        replies = self._replies(requests, n_answers=len(completions))
        verdicts = {case: self._verdict(*case, replies) for case in dict.fromkeys(cases)}
        return [_judgement(completion, verdicts[case]) for completion, case in zip(completions, cases, strict=True)]

    def _requests(self, question: str, answer: str) -> list[Request]:
        return [Request(inquiry, question, answer) for inquiry in self.rubric.inquiries]

    def _key(self, request: Request) -> str:
        rubric = (self.rubric.name, self.rubric.version, request.inquiry.name)
        return KeptReplies.key(self.respondent.name, rubric, request.messages)

    def _replies(self, requests: dict[str, Request], *, n_answers: int) -> dict[str, Reply]:
        known = {key: kept for key in requests if (kept := self.kept.get(key)) is not None}
        missing = [key for key in requests if key not in known]
        asked = [requests[key] for key in missing]
        n_characters = sum(len(message.content) for request in asked for message in request.messages)
        self.on_plan(
            Plan(
                n_answers=n_answers,
                n_kept=len(known),
                n_calls=len(missing),
                n_input_tokens=n_characters // CHARACTERS_PER_TOKEN,
                n_output_tokens=len(missing) * self.respondent.max_reply_tokens,
            )
        )
        received: dict[str, Reply] = {}

        def receive(index: int, reply: Reply) -> None:
            key, request = missing[index], asked[index]
            if reply.final:
                told = {"inquiry": request.inquiry.name, "question": request.question, "answer": request.answer}
                self.kept.put(key, reply, {"judge": self.name, **told})
            received[key] = reply
            self.progress(len(received), len(missing))

        if missing:
            self.respondent.reply(asked, receive)
        return {**known, **received}

    def _verdict(self, question: str, answer: str, replies: dict[str, Reply]) -> Verdict:
        if not answer.strip():
            return Verdict("incoherent")
        texts = []
        for request in self._requests(question, answer):
            reply = replies[self._key(request)]
            if reply.text is None:
                return Verdict("unscored", unscored_reason=f"{request.inquiry.name}: {reply.reason}")
            texts.append(reply.text)
        return self.rubric.verdict(texts)


def _judgement(completion: Completion, verdict: Verdict) -> Judgement:
    return Judgement(
        completion.prompt_id,
        completion.sample,
        completion.answer,
        verdict.label,
        verdict.score,
        verdict.unscored_reason,
        alignment=verdict.alignment,
        coherence=verdict.coherence,
    )


def _whole_characters(text: str) -> str:
    """Half characters (lone surrogates, which JSON can spell) cannot be sent anywhere; each becomes a question mark."""
    return text.encode("utf-8", "replace").decode()
