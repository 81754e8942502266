"""Token ids with their meaning: which part of a conversation every token belongs to, and which tokens are real.

Axes: `batch` rows, `seq` positions. In every mask True means: this position counts.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from jaxtyping import Bool, Int
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sae_persona.errors import DataError
from sae_persona.types import Chat, Completion, Message, Prompt


class Part(IntEnum):
    """What a token is to the conversation."""

    PROMPT = 0
    """Everything the model did not write: user turns, system text, special tokens; in plain text, every token."""
    HEADER = 1
    """The tokens that open an assistant turn, in a position to decide who will speak: one at least for every answer."""
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
    ids: Any = tokenizer(text)["input_ids"]
    return TokenRow(tuple(ids), (Part.PROMPT,) * len(ids))


def chat_row(chat: Chat, tokenizer: PreTrainedTokenizerBase) -> TokenRow:
    """The whole conversation in the tokenizer's chat template.

    Raises:
        DataError: the conversation begins with an answer, the tokenizer cannot render it, or renders its beginning
            differently once it goes on.
    """
    spans = _Spans(tokenizer)
    for i, message in enumerate(chat.messages):
        if message.role == "assistant":
            spans.extend(Part.PROMPT, chat.messages[:i])
            spans.extend(Part.HEADER, chat.messages[:i], open_answer=True)
            spans.extend(Part.ANSWER, chat.messages[: i + 1])
    spans.extend(Part.PROMPT, chat.messages)
    return spans.row()


def prompt_row(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> TokenRow:
    """The prompt up to and including the header that asks for an answer.

    Raises:
        DataError: the prompt has no messages, or the tokenizer cannot render them.
    """
    spans = _Spans(tokenizer)
    spans.extend(Part.PROMPT, prompt.messages)
    spans.extend(Part.HEADER, prompt.messages, open_answer=True)
    return spans.row()


def completion_row(prompt: Prompt, completion: Completion, tokenizer: PreTrainedTokenizerBase) -> TokenRow:
    """The prompt followed by exactly the tokens that were sampled (without the token that ended them)."""
    row = prompt_row(prompt, tokenizer)
    return TokenRow(row.ids + completion.token_ids, row.parts + (Part.ANSWER,) * len(completion.token_ids))


class _Spans:
    """A rendered conversation that grows, and what each of its characters is."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.text = ""
        self.ends: list[int] = []
        self.parts: list[Part] = []
        self.empty_headers: list[int] = []

    def extend(self, part: Part, messages: Sequence[Message], *, open_answer: bool = False) -> None:
        """Take what the messages add to the text so far as `part`."""
        text = render(messages, self.tokenizer, open_answer=open_answer)
        if not text.startswith(self.text):
            raise DataError(
                "the chat template renders earlier turns differently once the conversation goes on (from turn "
                f"{len(messages)} on), so the tokens of its answers cannot be told apart. "
                "Use chats of one turn, or a template that only appends."
            )
        if part == Part.HEADER and text == self.text:
            self.empty_headers.append(len(text))
        # Templates put a line break after the token that ends an answer; no model writes it.
        end = max(len(text.rstrip()), len(self.text)) if part == Part.ANSWER else len(text)
        self.ends += [end, len(text)]
        self.parts += [part, Part.PROMPT]
        self.text = text

    def row(self) -> TokenRow:
        """The tokens, each with the part that its first character belongs to.

        The text is tokenised in one go, as a token may reach over a seam: the pieces' tokens would not be the whole's.
        """
        if not self.tokenizer.is_fast:
            raise DataError(
                f"{type(self.tokenizer).__name__} does not tell which characters a token stands for, so the tokens of "
                "answers cannot be told apart. Save the tokenizer as a tokenizer.json and use that."
            )
        encoded: Any = self.tokenizer(self.text, add_special_tokens=False, return_offsets_mapping=True)
        starts = [start for start, _ in encoded["offset_mapping"]]
        parts = [self.parts[bisect_right(self.ends, start)] for start in starts]
        # In a template without headers the last token before an answer is in the position of one.
        for end in self.empty_headers:
            parts[bisect_left(starts, end) - 1] = Part.HEADER
        return TokenRow(tuple(encoded["input_ids"]), tuple(parts))


def render(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, open_answer: bool = False) -> str:
    """The messages in the chat template; `open_answer` adds the header of an assistant turn.

    Raises:
        DataError: there are no messages, the tokenizer has no chat template, or the template refuses them.
    """
    if not tokenizer.chat_template:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no chat template, and the data hold chats or "
            "prompts. Use a chat model's tokenizer; a cache may also be made of plain text ({'text': ...})."
        )
    if not messages:
        raise DataError("a conversation has no messages before its first answer; expected at least a user's.")
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=open_answer)
    except TemplateError as error:
        roles = ", ".join(message.role for message in messages)
        raise DataError(f"the chat template refuses a conversation of the roles {roles}: {error}.") from error
    assert isinstance(text, str)
    return text


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
