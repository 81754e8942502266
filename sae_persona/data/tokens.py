"""Token ids with their meaning: which part of a conversation every token belongs to, and which tokens are real.

Axes: `batch` rows, `seq` positions. In every mask True means: this position counts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sae_persona.errors import DataError
from sae_persona.types import Chat, Completion, Message, Prompt


class Part(IntEnum):
    """What a token is to the conversation."""

    PROMPT = 0
    """Everything the model did not write: user turns, system text, special tokens; in plain text, every token."""
    HEADER = 1
    """The tokens that open an assistant turn, in a position to decide who will speak."""
    ANSWER = 2
    """The assistant's words and the token that ends them."""


@dataclass(frozen=True)
class TokenRow:
    """One tokenised document."""

    ids: tuple[int, ...]
    parts: tuple[Part, ...]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Rows padded to one width."""

    ids: Int[Tensor, "batch seq"]
    mask: Bool[Tensor, "batch seq"]
    """True = a token of the row, False = padding."""
    parts: Int[Tensor, "batch seq"]
    """`Part` of every token; padding is `Part.PROMPT` and masked."""

    @property
    def position_ids(self) -> Int[Tensor, "batch seq"]:
        """Positions counted over real tokens, so that left padding changes nothing."""
        return (self.mask.long().cumsum(-1) - 1).clamp(min=0)

    def counts(self, part: Part) -> Bool[Tensor, "batch seq"]:
        """The real tokens of one part."""
        return self.mask & (self.parts == part)


def text_row(text: str, tokenizer: PreTrainedTokenizerBase) -> TokenRow:
    """Plain text with the tokenizer's own special tokens (a BOS where it adds one)."""
    ids = tokenizer(text)["input_ids"]
    return TokenRow(tuple(ids), (Part.PROMPT,) * len(ids))


def chat_row(chat: Chat, tokenizer: PreTrainedTokenizerBase) -> TokenRow:
    """The whole conversation in the tokenizer's chat template.

    Raises:
        DataError: the template renders the conversation's beginning differently once it goes on.
    """
    ids: list[int] = []
    parts: list[Part] = []
    for i, message in enumerate(chat.messages):
        if message.role != "assistant":
            continue
        before = render(chat.messages[:i], tokenizer)
        head = render(chat.messages[:i], tokenizer, open_answer=True)
        whole = render(chat.messages[: i + 1], tokenizer)
        if whole[: len(head)] != head or head[: len(before)] != before or before[: len(ids)] != ids:
            raise DataError(
                "the chat template renders earlier turns differently once the conversation goes on (turn "
                f"{i + 1} of {len(chat.messages)}), so the tokens of its answers cannot be told apart. "
                "Use chats of one turn, or a template that only appends."
            )
        parts += [Part.PROMPT] * (len(before) - len(ids))
        parts += [Part.HEADER] * (len(head) - len(before))
        parts += [Part.ANSWER] * (len(whole) - len(head))
        ids = whole
    if not chat.messages or chat.messages[-1].role != "assistant":
        ids = render(chat.messages, tokenizer)
        parts += [Part.PROMPT] * (len(ids) - len(parts))
    return TokenRow(tuple(ids), tuple(parts))


def prompt_row(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> TokenRow:
    """The prompt up to and including the header that asks for an answer."""
    before = render(prompt.messages, tokenizer)
    ids = render(prompt.messages, tokenizer, open_answer=True)
    return TokenRow(tuple(ids), (Part.PROMPT,) * len(before) + (Part.HEADER,) * (len(ids) - len(before)))


def completion_row(prompt: Prompt, completion: Completion, tokenizer: PreTrainedTokenizerBase) -> TokenRow:
    """The prompt followed by exactly the tokens that were sampled (without the token that ended them)."""
    row = prompt_row(prompt, tokenizer)
    return TokenRow(row.ids + completion.token_ids, row.parts + (Part.ANSWER,) * len(completion.token_ids))


def render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, open_answer: bool = False) -> list[int]:
    """Token ids of the messages in the chat template; `open_answer` adds the header of an assistant turn.

    Raises:
        DataError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no chat template, and the data hold chats. "
            "Use a chat model's tokenizer, or plain text data ({'text': ...})."
        )
    if not messages:
        return []
    turns = [{"role": message.role, "content": message.content} for message in messages]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=open_answer)
    assert isinstance(text, str)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def pad_rows(
    rows: Sequence[TokenRow], *, pad_id: int, side: str = "right", device: str | torch.device = "cpu"
) -> TokenBatch:
    """One batch of all rows, padded to the longest."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    parts = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, where] = torch.tensor(row.ids)
        parts[i, where] = torch.tensor(row.parts)
        mask[i, where] = True
    return TokenBatch(ids.to(device), mask.to(device), parts.to(device))


def batches(
    rows: Sequence[TokenRow], *, batch_size: int, pad_id: int, device: str | torch.device = "cpu"
) -> Iterator[tuple[list[int], TokenBatch]]:
    """Batches of rows of similar length, each with the indices of its rows; every row comes once."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        yield indices, pad_rows([rows[i] for i in indices], pad_id=pad_id, device=device)
