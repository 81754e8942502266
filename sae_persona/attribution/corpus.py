"""What latents are read on: rows of tokens that a model goes through, or an activation cache; in blocks, never whole.

Axes: `n` tokens of one block, `passages` rows (documents, or pieces of long ones) that stand in it one after the other.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sae_persona.cache.reader import ActivationCache
from sae_persona.data.packed import PackedRows
from sae_persona.data.tokens import Part, TokenRow, batches
from sae_persona.errors import DataError, IncompatibleError
from sae_persona.model.hooks import residuals
from sae_persona.model.load import LoadedModel
from sae_persona.sae.encode import counted_tokens
from sae_persona.sae.load import check_fits

if TYPE_CHECKING:
    from sae_lens import SAE

TokensRead = Literal["all", "prompt", "header", "answer"]
"""Which tokens count: all, or one part of the conversation (`data.tokens.Part`)."""
_BUFFER_BATCHES = 16
"""Batches of rows that are sorted by length together: enough to waste little on padding, few enough to hold."""
_BLOCK_TOKENS = 8192
"""Tokens of a cache in one block, but for the rest of its last passage."""


@dataclass(frozen=True, eq=False)
class Block:
    """Whole passages, one after the other."""

    resid: Float[Tensor, "n d_in"]
    ids: Int[np.ndarray, " n"]
    counts: Bool[np.ndarray, " n"]
    """True = this token counts; the others are shown in contexts, with activation 0."""
    starts: Int[np.ndarray, " passages"]
    """Where each passage begins in the block."""
    documents: Int[np.ndarray, " passages"]
    """Index of each passage's document in the data; pieces of one document share it."""


class Source(Protocol):
    """Where blocks come from."""

    @property
    def tokens(self) -> TokensRead:
        """Which tokens count."""
        ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """What the ids mean."""
        ...

    def blocks(self, sae: "SAE", hook_name: str) -> Iterator[Block]:
        """Every passage once, in any order."""
        ...


@dataclass(frozen=True, eq=False)
class Corpus:
    """Rows of tokens, and the model that reads them. Rows may come from an iterator: few are held at a time."""

    model: LoadedModel
    rows: Iterable[TokenRow] = field(repr=False)
    tokens: TokensRead = "all"
    drop_first: int = 1
    """First tokens of a row that do not count, as in training."""
    max_norm: float | None = None
    """Tokens of a larger norm do not count; None: all do."""
    batch_size: int = 64

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's."""
        return self.model.tokenizer

    def blocks(self, sae: "SAE", hook_name: str) -> Iterator[Block]:
        """Every row once, in any order.

        Raises:
            HookError, IncompatibleError: the SAE does not fit the model, or the rows were made by another tokenizer.
            DataError: a row has no token.
        """
        check_fits(sae, self.model, hook_name)
        numbered = iter(_numbered(self.rows))
        while some := list(islice(numbered, _BUFFER_BATCHES * self.batch_size)):
            documents, rows = zip(*some, strict=True)
            _check_rows(documents, rows, self.model)
            device, pad_id = self.model.device, self.model.pad_id
            for indices, batch in batches(rows, batch_size=self.batch_size, pad_id=pad_id, device=device):
                resid = residuals(self.model.hf, batch, [hook_name])[hook_name]
                counts = counted_tokens(batch, resid, drop_first=self.drop_first, max_norm=self.max_norm)
                lengths = np.array([len(rows[i]) for i in indices])
                parts = batch.parts[batch.mask].cpu().numpy().astype(np.uint8)
                yield Block(
                    resid=resid[batch.mask],
                    ids=batch.ids[batch.mask].cpu().numpy(),
                    counts=counts[batch.mask].cpu().numpy() & _of_part(parts, self.tokens),
                    starts=np.cumsum(lengths) - lengths,
                    documents=np.array([documents[i] for i in indices]),
                )


@dataclass(frozen=True, eq=False)
class CachedCorpus:
    """The tokens of an activation cache, with the tokenizer that made them. No model runs."""

    cache: ActivationCache
    tokenizer: PreTrainedTokenizerBase
    tokens: TokensRead = "all"

    def blocks(self, sae: "SAE", hook_name: str) -> Iterator[Block]:
        """Every passage once, in the order of the file.

        Raises:
            HookError: the cache does not hold that hook.
            IncompatibleError: the SAE has another width, or the tokens are another tokenizer's.
        """
        cache = self.cache
        if cache.d_in(hook_name) != sae.cfg.d_in:
            raise IncompatibleError(
                f"this SAE expects d_in={sae.cfg.d_in}; {cache.path} holds activations of width "
                f"{cache.d_in(hook_name)} at {hook_name}. Load an SAE trained on this model."
            )
        _check_ids(int(cache.token_ids.max()), len(self.tokenizer), str(cache.path))
        stored = cache.hooks[hook_name].rows
        beginnings = np.flatnonzero(cache.positions == 0)
        for start, stop in _spans(beginnings, cache.n_tokens):
            inside = beginnings[(beginnings >= start) & (beginnings < stop)]
            place = slice(start, stop)
            yield Block(
                resid=stored.block(start, stop).float(),
                ids=np.asarray(cache.token_ids[place]),
                counts=np.asarray(cache.counts[place]) & _of_part(np.asarray(cache.parts[place]), self.tokens),
                starts=inside - start,
                documents=np.asarray(cache.document_ids[inside]),
            )
            stored.release(start, stop)


def _spans(beginnings: Int[np.ndarray, " passages"], n_tokens: int) -> Iterator[tuple[int, int]]:
    """Runs of whole passages of about `_BLOCK_TOKENS` tokens."""
    start = 0
    while start < n_tokens:
        after = np.searchsorted(beginnings, start + _BLOCK_TOKENS)
        stop = int(beginnings[after]) if after < len(beginnings) else n_tokens
        yield start, stop
        start = stop


def _numbered(rows: Iterable[TokenRow]) -> Iterable[tuple[int, TokenRow]]:
    return zip(rows.documents.tolist(), rows, strict=True) if isinstance(rows, PackedRows) else enumerate(rows)


def _of_part(parts: UInt8[np.ndarray, " n"], tokens: TokensRead) -> Bool[np.ndarray, " n"]:
    return np.ones(len(parts), dtype=bool) if tokens == "all" else parts == Part[tokens.upper()]


def _check_rows(documents: tuple[int, ...], rows: tuple[TokenRow, ...], model: LoadedModel) -> None:
    for document, row in zip(documents, rows, strict=True):
        if not row.ids:
            raise DataError(f"document {document} has no token. Leave it out.")
    n_known = model.hf.get_input_embeddings().get_parameter("weight").shape[0]
    _check_ids(max(max(row.ids) for row in rows), n_known, "the data")


def _check_ids(largest: int, n_known: int, where: str) -> None:
    if largest >= n_known:
        raise IncompatibleError(
            f"{where} holds token {largest}, and the tokenizer's tokens are 0 to {n_known - 1}: another tokenizer made "
            "it. Use the model that the data were made for."
        )


def as_tensor(values: Bool[np.ndarray, " n"], like: Tensor) -> Bool[Tensor, " n"]:
    """The mask on the device of another tensor."""
    return torch.from_numpy(values).to(like.device)
