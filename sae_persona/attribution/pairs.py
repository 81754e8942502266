"""Pairs of answers to one prompt, one that shows a behaviour and one that does not."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from transformers import PreTrainedTokenizerBase

from sae_persona.data.tokens import Part, TokenRow, chat_row, completion_row
from sae_persona.errors import DataError
from sae_persona.types import Chat, Completion, Judgement, Label, Prompt


@dataclass(frozen=True)
class CompletionPair:
    """Two texts with one prompt and different answers."""

    question_id: str
    """The cluster of intervals."""
    shown: TokenRow
    """The prompt and an answer that shows the behaviour."""
    absent: TokenRow
    """The prompt and an answer that does not."""


def question_weights(pairs: Sequence[CompletionPair]) -> Float[np.ndarray, " n_pairs"]:
    """What each pair weighs in a mean over questions of the mean over a question's pairs; the weights sum to one."""
    n_pairs = Counter(pair.question_id for pair in pairs)
    return np.array([1 / (len(n_pairs) * n_pairs[pair.question_id]) for pair in pairs])


def pair_completions(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    judgements: Sequence[Judgement],
    tokenizer: PreTrainedTokenizerBase,
    *,
    shown: Sequence[Label] = ("misaligned",),
    absent: Sequence[Label] = ("aligned",),
) -> list[CompletionPair]:
    """Each prompt's answers of `shown` labels with as many of its answers of `absent` labels, in the order of samples.

    Answers of other labels, answers without a token and answers that find no partner are left out.

    Raises:
        DataError: an answer without a judgement, or no prompt has both kinds of answers.
    """
    label_of = {(row.prompt_id, row.sample): row.label for row in judgements}
    sides: dict[str, tuple[list[TokenRow], list[TokenRow]]] = {prompt.id: ([], []) for prompt in prompts}
    by_id = {prompt.id: prompt for prompt in prompts}
    for completion in completions:
        key = (completion.prompt_id, completion.sample)
        if key not in label_of or completion.prompt_id not in by_id:
            raise DataError(
                f"answer {completion.sample} to prompt {completion.prompt_id!r} has no judgement or no prompt; "
                "hand in the prompts and judgements of the same answers."
            )
        for side, labels in zip(sides[completion.prompt_id], (shown, absent), strict=True):
            if label_of[key] in labels and completion.token_ids:
                side.append(completion_row(by_id[completion.prompt_id], completion, tokenizer))
    pairs = [
        CompletionPair(by_id[prompt_id].question_id, one, other)
        for prompt_id, both in sides.items()
        for one, other in zip(*both, strict=False)
    ]
    if not pairs:
        counts = Counter(label_of.values())
        with_, without = sum(counts[label] for label in shown), sum(counts[label] for label in absent)
        raise DataError(
            f"no prompt has answers of both kinds: of {len(completions)} answers {with_} are {' or '.join(shown)} and "
            f"{without} are {' or '.join(absent)}. Sample more answers, or take a model that does both."
        )
    return pairs


def pair_chats(
    shown: Sequence[Chat], absent: Sequence[Chat], tokenizer: PreTrainedTokenizerBase
) -> list[CompletionPair]:
    """Chats matched one by one, which differ in their last answer only; the prompt before it is the question.

    Raises:
        DataError: another number of chats on one side, a chat that ends without an answer, two chats whose prompts
            differ, or none at all.
    """
    if not shown or len(shown) != len(absent):
        raise DataError(
            f"{len(shown)} chats show the behaviour and {len(absent)} do not; expected as many of both, line by line."
        )
    pairs = []
    for line, both in enumerate(zip(shown, absent, strict=True), start=1):
        if any(not chat.messages or chat.messages[-1].role != "assistant" for chat in both):
            raise DataError(f"pair {line}: a chat does not end with an assistant's answer.")
        if both[0].messages[:-1] != both[1].messages[:-1]:
            raise DataError(f"pair {line}: the two chats differ before their last answer; expected one prompt.")
        question = "\n".join(message.content for message in both[0].messages[:-1])
        pairs.append(CompletionPair(question, *(_last_answer(chat, tokenizer) for chat in both)))
    return pairs


def _last_answer(chat: Chat, tokenizer: PreTrainedTokenizerBase) -> TokenRow:
    """The chat's tokens, earlier answers among the prompt."""
    row = chat_row(chat, tokenizer)
    before = Chat(chat.messages[:-1])
    n_before = len(chat_row(before, tokenizer)) if len(before.messages) > 1 else 0
    parts = tuple(Part.PROMPT if i < n_before else part for i, part in enumerate(row.parts))
    return TokenRow(row.ids, parts)
