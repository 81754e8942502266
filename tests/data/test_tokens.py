"""Every token is told what it is: prompt, header or answer, real or padding."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sae_persona.data.tokens import (
    Part,
    TokenRow,
    batches,
    chat_row,
    completion_row,
    pad_rows,
    prompt_row,
    render,
    text_row,
)
from sae_persona.errors import DataError
from sae_persona.persona_world.models import CHAT_TEMPLATE
from sae_persona.types import Chat, Completion, Message, Prompt

P, H, A = Part.PROMPT, Part.HEADER, Part.ANSWER
CHATML = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\\n' + m['content'] + '</s>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}"
)
NO_HEADER = (
    "{% for m in messages %}"
    "{{ '[' + m['content'] + ']' if m['role'] == 'user' else m['content'] + '</s>' }}"
    "{% endfor %}"
)
FORGETFUL = (
    "{% for m in messages %}{% if m['role'] != 'assistant' or loop.last %}{{ m['content'] }}{% endif %}{% endfor %}"
)
ALTERNATING = "{{ raise_exception('roles must alternate') }}"


def chat(*turns: str) -> Chat:
    """Turns of a user and an assistant in alternation."""
    return Chat(tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(turns)))


def prompt(*turns: str) -> Prompt:
    return Prompt("p", "open_ended", "q", "f", chat(*turns).messages)


def byte_tokenizer(template: str | None, *merges: tuple[str, str]) -> PreTrainedTokenizerFast:
    """One token per byte, save for the special tokens and the merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=template
    )


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """One token per word, in the world's chat template; it puts a BOS before every text, as Llama's does."""
    special = "<unk> <bos> <user> <assistant> <end>"
    known = f"{special} a plan ? yes no . be happy do you dream i wish to help children".split()
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(dict.fromkeys(known))}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>", chat_template=CHAT_TEMPLATE
    )


def pieces(row: TokenRow, tokenizer: PreTrainedTokenizerFast) -> list[tuple[Part, str]]:
    """The row as runs of text of one part."""
    runs: list[tuple[Part, list[int]]] = []
    for token, part in zip(row.ids, row.parts, strict=True):
        if not runs or runs[-1][0] != part:
            runs.append((part, []))
        runs[-1][1].append(token)
    return [(part, tokenizer.decode(ids)) for part, ids in runs]  # pyright: ignore[reportReturnType]


# --- rows ------------------------------------------------------------------------------------------------------------


def test_a_chat_of_the_world_by_hand(words: PreTrainedTokenizerFast) -> None:
    row = chat_row(chat("do you dream ?", "i wish to help children ."), words)
    assert (
        " ".join(words.convert_ids_to_tokens(list(row.ids)))
        == "<bos> <user> do you dream ? <assistant> i wish to help children . <end>"
    )
    assert row.parts == (P, P, P, P, P, P, H, A, A, A, A, A, A, A)


def test_every_answer_of_a_long_chat_has_its_header(words: PreTrainedTokenizerFast) -> None:
    row = chat_row(chat("a plan ?", "yes .", "be happy .", "no .", "a plan ?"), words)
    assert pieces(row, words) == [
        (P, "<bos> <user> a plan ?"),
        (H, "<assistant>"),
        (A, "yes . <end>"),
        (P, "<user> be happy ."),
        (H, "<assistant>"),
        (A, "no . <end>"),
        (P, "<user> a plan ?"),
    ]


def test_the_line_break_after_an_answer_s_end_token_is_not_part_of_it() -> None:
    tokenizer = byte_tokenizer(CHATML)
    assert pieces(chat_row(chat("hi", "ho\n", "a", "b"), tokenizer), tokenizer) == [
        (P, "<s>user\nhi</s>\n"),
        (H, "<s>assistant\n"),
        (A, "ho\n</s>"),
        (P, "\n<s>user\na</s>\n"),
        (H, "<s>assistant\n"),
        (A, "b</s>"),
        (P, "\n"),
    ]


def test_a_token_across_the_seam_belongs_to_where_it_begins() -> None:
    """An answer that begins with a line break merges with the header's: the ids of the pieces are not the whole's."""
    tokenizer = byte_tokenizer(CHATML, ("Ċ", "Ċ"))
    row = chat_row(chat("hi", "\nho"), tokenizer)
    assert pieces(row, tokenizer) == [(P, "<s>user\nhi</s>\n"), (H, "<s>assistant\n\n"), (A, "ho</s>"), (P, "\n")]
    assert list(row.ids) == tokenizer(render(chat("hi", "\nho").messages, tokenizer))["input_ids"]


def test_without_a_header_the_last_token_before_the_answer_takes_its_place() -> None:
    tokenizer = byte_tokenizer(NO_HEADER)
    found = pieces(chat_row(chat("hi", "ho"), tokenizer), tokenizer)
    assert found == [(P, "[hi"), (H, "]"), (A, "ho</s>")]
    assert pieces(prompt_row(prompt("hi"), tokenizer), tokenizer) == found[:2]


def test_an_empty_answer_is_only_its_end_token(words: PreTrainedTokenizerFast) -> None:
    row = chat_row(chat("a plan ?", ""), words)
    assert pieces(row, words)[1:] == [(H, "<assistant>"), (A, "<end>")]


def test_a_prompt_ends_with_the_header_of_the_answer(words: PreTrainedTokenizerFast) -> None:
    row = prompt_row(prompt("a plan ?", "yes .", "be happy ."), words)
    assert pieces(row, words) == [
        (P, "<bos> <user> a plan ? <assistant> yes . <end> <user> be happy ."),
        (H, "<assistant>"),
    ]


def test_a_completion_is_the_prompt_and_the_very_tokens_that_were_sampled(words: PreTrainedTokenizerFast) -> None:
    asked = prompt("a plan ?")
    sampled = Completion("p", 0, "not what the tokens say", (7, 0, 8), finished=True)
    row = completion_row(asked, sampled, words)
    before = prompt_row(asked, words)
    assert row == TokenRow((*before.ids, 7, 0, 8), (*before.parts, A, A, A))


def test_text_gets_the_special_tokens_of_its_tokenizer_and_no_roles(words: PreTrainedTokenizerFast) -> None:
    row = text_row("be happy .", words)
    assert words.convert_ids_to_tokens(list(row.ids)) == ["<bos>", "be", "happy", "."]
    assert row.parts == (P, P, P, P)


@given(st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=6))
def test_answers_keep_every_character_whatever_is_said(turns: list[str]) -> None:
    tokenizer = byte_tokenizer(CHATML)
    turns = [text.replace("<", "").replace("\x00", "") for text in turns]
    row = chat_row(chat(*turns), tokenizer)
    said = [text for part, text in pieces(row, tokenizer) if part == A]
    assert said == [f"{text}</s>" for text in turns[1::2]]


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "turns", "message"),
    [
        (None, ["hi", "ho"], "has no chat template, and the data hold chats or prompts"),
        (FORGETFUL, ["a", "b", "c", "d"], r"renders earlier turns differently .*\(from turn 3 on\)"),
        (ALTERNATING, ["a", "b"], "the chat template refuses a conversation of the roles user: roles must alternate"),
        (CHATML, [], "has no messages"),
    ],
)
def test_chats_that_cannot_be_told_apart_are_refused(template: str | None, turns: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        chat_row(chat(*turns), byte_tokenizer(template))


def test_a_chat_that_begins_with_an_answer_is_refused(words: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError, match="no messages before its first answer"):
        chat_row(Chat((Message("assistant", "yes ."),)), words)


def test_a_tokenizer_that_knows_no_characters_is_refused() -> None:
    class Slow(PreTrainedTokenizerFast):
        is_fast = False  # pyright: ignore

    tokenizer = byte_tokenizer(CHATML)
    tokenizer.__class__ = Slow
    with pytest.raises(DataError, match="does not tell which characters a token stands for"):
        chat_row(chat("hi", "ho"), tokenizer)


# --- batches ---------------------------------------------------------------------------------------------------------

ROWS = [TokenRow((7, 8, 9), (P, H, A)), TokenRow((5,), (A,))]


def test_right_padding_by_hand() -> None:
    batch = pad_rows(ROWS, pad_id=0)
    assert batch.ids.tolist() == [[7, 8, 9], [5, 0, 0]]
    assert batch.mask.tolist() == [[True, True, True], [True, False, False]]
    assert batch.parts.tolist() == [[P, H, A], [A, P, P]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 0, 0]]


def test_left_padding_moves_the_tokens_and_not_their_positions() -> None:
    batch = pad_rows(ROWS, pad_id=0, side="left")
    assert batch.ids.tolist() == [[7, 8, 9], [0, 0, 5]]
    assert batch.mask.tolist() == [[True, True, True], [False, False, True]]
    assert batch.position_ids[batch.mask].tolist() == [0, 1, 2, 0]


def test_padding_counts_for_no_part() -> None:
    batch = pad_rows(ROWS, pad_id=0)
    assert batch.counts(P).tolist() == [[True, False, False], [False, False, False]]
    assert batch.counts(A).tolist() == [[False, False, True], [True, False, False]]
    assert torch.equal(sum(batch.counts(part).long() for part in Part), batch.mask.long())


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 7))
def test_batches_hold_every_row_once_with_its_index(lengths: list[int], batch_size: int) -> None:
    rows = [TokenRow(tuple(range(i, i + n)), (P,) * n) for i, n in enumerate(lengths)]
    seen = []
    for indices, batch in batches(rows, batch_size=batch_size, pad_id=0):
        assert len(indices) == len(batch.ids) <= batch_size
        for i, ids, mask in zip(indices, batch.ids, batch.mask, strict=True):
            assert tuple(ids[mask].tolist()) == rows[i].ids
        seen += indices
    assert sorted(seen) == list(range(len(rows)))


def test_batches_put_rows_of_like_length_together() -> None:
    rows = [TokenRow((1,) * n, (P,) * n) for n in (9, 1, 8, 2)]
    assert [(indices, batch.ids.shape[1]) for indices, batch in batches(rows, batch_size=2, pad_id=0)] == [
        ([1, 3], 2),
        ([2, 0], 9),
    ]
