"""The order in which rows of a cache are visited: exact, seeded, and cheap on a disk.

Rows are read in chunks of neighbours. An epoch visits the chunks in random order and mixes the rows of many chunks in a
buffer, so memory is bounded by the buffer and every counted row comes once per epoch.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int

CHUNK_ROWS = 256
"""Neighbours read together: a few documents, and long enough a run of bytes for a disk."""
BUFFER_CHUNKS = 128
"""Chunks mixed at once: 32 768 rows, of which a batch of 4096 gets about 32 from each chunk."""


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


def _counted(counts: Bool[np.ndarray, " n_rows"], chunk: int) -> Int[np.ndarray, " n"]:
    first = chunk * CHUNK_ROWS
    return first + np.flatnonzero(counts[first : first + CHUNK_ROWS])
