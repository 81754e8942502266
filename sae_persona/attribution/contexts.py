"""Windows of text around the places where a latent is high, kept while the data stream by."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt64
from transformers import PreTrainedTokenizerBase

_PEAK_AT = 3 / 4
"""Where in its window the highest token stands: what comes before explains more than what follows."""
_UNFINISHED = "\ufffd"
"""What tokenizers write for the first bytes of a character that the next token completes."""


@dataclass(frozen=True)
class Context:
    """Some tokens of one passage, with one latent's activation on each."""

    document: int
    """Index of the document in the data."""
    start: int
    """Position of the first of these tokens in its passage."""
    peak: int
    """Index of the highest token among these; 0 where the latent is silent."""
    tokens: tuple[str, ...]
    """The tokens as text; joined they give the text. Empty for the first bytes of a character that is not whole yet."""
    activations: tuple[float, ...]
    """0 on tokens that do not count."""

    @property
    def value(self) -> float:
        """The activation at the peak."""
        return self.activations[self.peak]

    @property
    def text(self) -> str:
        """The tokens joined."""
        return "".join(self.tokens)


@dataclass(frozen=True, order=True)
class Window:
    """A context whose tokens are still ids. Windows sort with the highest first; equals by where they stand."""

    minus_value: float
    document: int
    start: int
    ids: tuple[int, ...]
    activations: tuple[float, ...]
    peak: int

    def context(self, tokenizer: PreTrainedTokenizerBase) -> Context:
        """The same in text."""
        return Context(self.document, self.start, self.peak, token_texts(self.ids, tokenizer), self.activations)


class RunningTop:
    """The `n` highest windows offered so far; of windows with the same tokens only the highest."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._kept: dict[tuple[int, ...], Window] = {}

    @property
    def bar(self) -> float:
        """A window of a lower value is not wanted."""
        return -np.inf if len(self._kept) < self.n else -max(self._kept.values()).minus_value

    def offer(self, window: Window) -> None:
        """Keep the window if it belongs to the highest."""
        same = self._kept.get(window.ids)
        if same is not None:
            self._kept[window.ids] = min(same, window)
            return
        self._kept[window.ids] = window
        if len(self._kept) > self.n:
            del self._kept[max(self._kept.values()).ids]

    def windows(self) -> list[Window]:
        """The highest first."""
        return sorted(self._kept.values())


class RunningSample:
    """`n` windows drawn at random, each with the same chance: those with the smallest keys."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._kept: list[tuple[int, Window]] = []

    @property
    def bar(self) -> int:
        """A window with a higher key is not wanted."""
        return 2**64 - 1 if len(self._kept) < self.n else -self._kept[0][0]

    def offer(self, key: int, window: Window) -> None:
        """Keep the window if its key is among the smallest."""
        heapq.heappush(self._kept, (-key, window))
        if len(self._kept) > self.n:
            heapq.heappop(self._kept)

    def windows(self) -> list[Window]:
        """In the order of their keys, which is a random one; windows with the same tokens once."""
        drawn = [window for _, window in sorted(self._kept, reverse=True)]
        return list({window.ids: window for window in reversed(drawn)}.values())[::-1]


def keys(
    seed: int, latent: int, documents: Int[np.ndarray, " passages"], sums: Int[np.ndarray, " passages"]
) -> UInt64[np.ndarray, " passages"]:
    """A random number for each passage, from the seed, the latent, its document and the sum of its ids alone.

    So a draw does not depend on the order in which passages come. Source: SplitMix64 (Steele et al. 2014).
    """
    state = np.zeros(len(documents), dtype=np.uint64)
    for part in (np.full(len(documents), seed), np.full(len(documents), latent), documents, sums):
        state = _mixed(state + part.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return state


def _mixed(state: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def window_start(peak: int, length: int, width: int) -> int:
    """Where in a passage of `length` tokens the window around the token at `peak` begins."""
    return max(0, min(peak - int(_PEAK_AT * width), length - width))


def token_texts(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Each token's share of the decoded text, spaces included."""
    texts, before = [], ""
    for n in range(1, len(ids) + 1):
        now = str(tokenizer.decode(list(ids[:n]), clean_up_tokenization_spaces=False))
        if now.endswith(_UNFINISHED) and n < len(ids):
            texts.append("")
            continue
        texts.append(now[len(before) :])
        before = now
    return tuple(texts)
