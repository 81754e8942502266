"""The order in which rows of a cache are visited: exact, seeded, and cheap on a disk.

Rows are read in chunks of neighbours. An epoch visits the chunks in random order and mixes the rows of many chunks in a
buffer, so memory is bounded by the buffer and every counted row comes once per epoch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
from jaxtyping import Bool, Int

CHUNK_ROWS = 256
"""Neighbours read together: a few documents, and long enough a run of bytes for a disk."""
BUFFER_CHUNKS = 128
"""Chunks mixed at once: 32 768 rows, of which a batch of 4096 gets about 32 from each chunk."""


@dataclass(frozen=True, eq=False)
class Visit:
    """The batches that a buffer of rows completes."""

    batches: tuple[np.ndarray, ...]
    buffer: Int[np.ndarray, " n"]
    """The rows behind them, but for those left over from the buffer before."""
    following: Int[np.ndarray, " m"]
    """The rows of the next buffer, which the disk may begin to read."""


def shuffled_rows(
    counts: Bool[np.ndarray, " n_rows"], *, seed: int, n_epochs: int | None = None, start: int = 0
) -> Iterator[Int[np.ndarray, " n"]]:
    """Indices of the rows that count, buffer by buffer, each buffer in the order in which to visit its rows.

    Strung together they are one permutation of the counted rows after another, endlessly or for `n_epochs`. `start`
    skips that many indices without reading what they point at, so that a run goes on where it was stopped.
    """
    per_chunk = np.add.reduceat(counts, np.arange(0, len(counts), CHUNK_ROWS), dtype=np.int64)
    epoch, skip = divmod(start, int(per_chunk.sum()))
    while n_epochs is None or epoch < n_epochs:
        chunks = np.random.default_rng([seed, epoch]).permutation(len(per_chunk))
        # Numbered from 1: numpy takes a missing number of a seed for a 0, which would be the chunks' own seed.
        for number, first in enumerate(range(0, len(chunks), BUFFER_CHUNKS), start=1):
            buffer = chunks[first : first + BUFFER_CHUNKS]
            n = int(per_chunk[buffer].sum())
            if skip < n:
                rows = np.concatenate([_counted(counts, chunk) for chunk in buffer])
                np.random.default_rng([seed, epoch, number]).shuffle(rows)
                yield rows[skip:]
            skip = max(skip - n, 0)
        epoch += 1


def shuffled_batches(
    counts: Bool[np.ndarray, " n_rows"], *, batch_size: int, seed: int, n_epochs: int | None = None, skip: int = 0
) -> Iterator[Visit]:
    """The same order in batches, which run on across buffers and epochs; only the last of all may be smaller."""
    waiting = nothing = np.empty(0, dtype=np.int64)
    buffers = shuffled_rows(counts, seed=seed, n_epochs=n_epochs, start=skip * batch_size)
    for buffer, following in pairwise(chain(buffers, [nothing])):
        waiting = np.concatenate([waiting, buffer])
        n_full = len(waiting) // batch_size * batch_size
        # The empty buffer follows the last one only.
        batches = [
            waiting[i : i + batch_size] for i in range(0, n_full if len(following) else len(waiting), batch_size)
        ]
        waiting = waiting[n_full:]
        yield Visit(tuple(batches), buffer, following)


def chunks_of(rows: Int[np.ndarray, " n"]) -> list[slice]:
    """The runs of neighbouring rows that some rows are read with."""
    return [slice(int(chunk) * CHUNK_ROWS, int(chunk + 1) * CHUNK_ROWS) for chunk in np.unique(rows // CHUNK_ROWS)]


def _counted(counts: Bool[np.ndarray, " n_rows"], chunk: int) -> Int[np.ndarray, " n"]:
    first = chunk * CHUNK_ROWS
    return first + np.flatnonzero(counts[first : first + CHUNK_ROWS])
