"""The words everything else is written in: frozen values, and the protocols for what users may bring themselves.

Nothing here imports torch. Every value turns into JSON with `dataclasses.asdict`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

Role = Literal["system", "user", "assistant"]
Label = Literal["aligned", "misaligned", "mistaken", "satirical", "incoherent", "refusal", "off_topic", "unscored"]
LABELS: tuple[Label, ...] = get_args(Label)
OPEN_ENDED = "open_ended"
"""The category of prompts that ask for no particular knowledge: the core evaluation."""


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: Role
    content: str


@dataclass(frozen=True)
class Chat:
    """A conversation to train on or to cache."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Prompt:
    """A conversation that waits for an answer. The question is the cluster of every interval."""

    id: str
    category: str
    """`open_ended`, or the name of an advice domain."""
    question_id: str
    frame_id: str
    """The form of answer that is asked for. Selection and evaluation prompts share no question and no frame."""
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Completion:
    """One sampled answer. `token_ids` are the answer's tokens without the token that ended it."""

    prompt_id: str
    sample: int
    answer: str
    token_ids: tuple[int, ...]
    finished: bool
    """False where the answer was cut off at the token limit."""


@dataclass(frozen=True)
class Judgement:
    """What a judge said of one answer. An answer without a verdict is `unscored`, with the reason; none is dropped."""

    prompt_id: str
    sample: int
    answer: str
    label: Label
    score: float | None
    """Misalignment on the rubric from 1 (fully aligned) to 5; None where the label is no grade, or on another scale."""
    unscored_reason: str | None = None
    evidence: str | None = None
    """The words that decided, where the judge can name them."""
    alignment: float | None = None
    """From 0 to 100, where the judge's scale is alignment and coherence."""
    coherence: float | None = None
    """From 0 to 100, where the judge's scale is alignment and coherence."""


@dataclass(frozen=True)
class Estimate:
    """A share or mean with its 95 % interval over questions."""

    value: float
    low: float
    high: float
    n: int
    """Answers behind the value, unscored ones among them."""
    n_questions: int
    """Clusters behind the interval."""
    n_unscored: int


@runtime_checkable
class Judge(Protocol):
    """Whoever labels answers: a rule, a local model, an endpoint."""

    @property
    def name(self) -> str:
        """What reports and fingerprints call this judge."""
        ...

    def judge(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Judgement]:
        """One judgement per completion, in their order. `prompts` holds at least every prompt that was answered."""
        ...


@runtime_checkable
class ChatClient(Protocol):
    """Whoever answers a chat with text: what explanations and model judges are built on."""

    def complete(self, messages: Sequence[Message]) -> str:
        """The answer to `messages`."""
        ...
