"""Which answers are compared with which, and what is refused."""

from collections.abc import Sequence

import pytest

from sae_persona.attribution.pairs import pair_chats, pair_completions
from sae_persona.data.tokens import Part, chat_row
from sae_persona.errors import DataError
from sae_persona.model.load import LoadedModel
from sae_persona.types import Chat, Completion, Judgement, Label, Message, Prompt


def chat(*contents: str) -> Chat:
    return Chat(tuple(Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(contents)))


def judged(labels: Sequence[Label], prompt_id: str = "p") -> tuple[list[Completion], list[Judgement]]:
    """Answer i has the token i + 5, so that rows tell which answers were paired."""
    completions = [Completion(prompt_id, i, "a", (i + 5,), True) for i in range(len(labels))]
    return completions, [Judgement(prompt_id, i, "a", label, None) for i, label in enumerate(labels)]


PROMPT = Prompt("p", "open_ended", "q", "f", (Message("user", "a"),))


def test_answers_are_paired_in_the_order_of_samples_and_the_rest_is_left_out(tiny_model: LoadedModel) -> None:
    completions, judgements = judged(["aligned", "misaligned", "mistaken", "misaligned", "aligned", "misaligned"])
    pairs = pair_completions([PROMPT], completions, judgements, tiny_model.tokenizer)
    answers = [
        tuple(token for token, part in zip(row.ids, row.parts, strict=True) if part == Part.ANSWER)
        for pair in pairs
        for row in (pair.shown, pair.absent)
    ]
    assert [answer[0] for answer in answers] == [6, 5, 8, 9]
    assert {pair.question_id for pair in pairs} == {"q"}


def test_answers_without_a_partner_or_a_judgement_are_told(tiny_model: LoadedModel) -> None:
    completions, judgements = judged(["misaligned", "misaligned"])
    with pytest.raises(DataError, match="of 2 answers 2 are misaligned and 0 are aligned"):
        pair_completions([PROMPT], completions, judgements, tiny_model.tokenizer)
    with pytest.raises(DataError, match="answer 1 to prompt 'p' has no judgement"):
        pair_completions([PROMPT], completions, judgements[:1], tiny_model.tokenizer)


def test_only_the_last_answers_of_chats_are_compared(tiny_model: LoadedModel) -> None:
    (pair,) = pair_chats([chat("a", "b", "c", "d")], [chat("a", "b", "c", "e")], tiny_model.tokenizer)
    whole = chat_row(chat("a", "b", "c", "d"), tiny_model.tokenizer)
    assert pair.shown.ids == whole.ids
    n_answer = sum(part == Part.ANSWER for part in whole.parts)
    assert sum(part == Part.ANSWER for part in pair.shown.parts) == n_answer // 2, "the first answer is context"


@pytest.mark.parametrize(
    ("shown", "absent", "message"),
    [
        ([], [], "0 chats show the behaviour and 0 do not"),
        ([chat("a", "b")], [], "1 chats show the behaviour and 0 do not"),
        ([chat("a")], [chat("a")], "pair 1: a chat does not end with an assistant's answer"),
        ([chat("a", "b")], [chat("c", "b")], "pair 1: the two chats differ before their last answer"),
    ],
)
def test_chats_that_are_no_pairs_are_refused(
    tiny_model: LoadedModel, shown: list[Chat], absent: list[Chat], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        pair_chats(shown, absent, tiny_model.tokenizer)
