"""Which tokens of a cache count, and the statistics of those that do.

Whether a token counts depends on the median norm, and so on all tokens. Moments are therefore taken block by block
while a cache is written, over all tokens that may count, and stored; at the end only blocks with an outlier are read
again. A block's moments depend on its rows alone, so it makes no difference to them how often the writer was killed.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool

from sae_persona.cache.layout import BLOCK_ROWS
from sae_persona.cache.moments import Moments
from sae_persona.cache.rows import StoredRows
from sae_persona.cache.unfinished import UnfinishedCache
from sae_persona.errors import DataError

N_NAMED = 10
"""Places of activations that are not finite, named one by one; the others are counted."""


def store_block_moments(file: UnfinishedCache, *, start: int, end: int, drop_first: int) -> None:
    """Store the moments of every block that the rows from `start` to `end`, just written, complete."""
    first, last = start // BLOCK_ROWS, end // BLOCK_ROWS + (end == file.layout.n_tokens and end % BLOCK_ROWS > 0)
    if first == last or not _keeps_blocks(file):
        return
    for i in range(first, last):
        block = slice(i * BLOCK_ROWS, (i + 1) * BLOCK_ROWS)
        usable = usable_tokens(file, drop_first, block)
        for hook, places in file.layout.activations.items():
            moments = _of_block(StoredRows(file.layout.dtype, places), block.start, usable)
            if moments.n:
                file.write(f"hooks/{hook}/block_mean", moments.mean, start=i)
                file.write(f"hooks/{hook}/block_squares", moments.squares, start=i)


def usable_tokens(file: UnfinishedCache, drop_first: int, among: slice = slice(None)) -> Bool[np.ndarray, " n"]:
    """Tokens past the first of their document that are finite at every hook."""
    usable = file.read("positions")[among] >= drop_first
    for hook in file.layout.hooks:
        usable &= np.isfinite(file.read(f"hooks/{hook}/norms")[among])
    return usable


def finish(
    file: UnfinishedCache, drop_first: int, norm_limit: float | None, shards: Sequence[UnfinishedCache] = ()
) -> dict[str, object]:
    """Fill in the mask and the statistics, which depend on all tokens, and return what to log.

    Raises:
        DataError: no token counts.
    """
    usable = usable_tokens(file, drop_first)
    norms = {hook: file.read(f"hooks/{hook}/norms") for hook in file.layout.hooks}
    counts = usable.copy()
    if norm_limit is not None and usable.any():
        for at_hook in norms.values():
            counts &= at_hook <= norm_limit * np.median(at_hook[usable])
    if not counts.any():
        raise DataError(f"no token is finite and within {norm_limit} median norms at every hook. Raise norm_limit.")
    file.write("counts", counts)
    for hook, at_hook in norms.items():
        moments, start = Moments(), 0
        for part in shards or [file]:
            here = slice(start, start + part.layout.n_tokens)
            _add_moments(moments, part, hook, counts[here], usable[here])
            start = here.stop
        file.write(f"hooks/{hook}/mean", moments.mean)
        file.write(f"hooks/{hook}/variance", moments.variance)
        file.write(f"hooks/{hook}/median_norm", np.array(np.median(at_hook[counts])))
    file.set_counter("n_counted", int(counts.sum()))
    file.set_counter("complete", True)
    places = not_finite(file.read("document_ids"), file.read("positions"), list(norms.values()))
    return {
        "cache/n_tokens": len(counts),
        "cache/n_counted": int(counts.sum()),
        "cache/n_outliers": int(usable.sum() - counts.sum()),
        **({"cache/n_not_finite": places[0], "cache/not_finite": places[1]} if places[0] else {}),
    }


def not_finite(
    document_ids: np.ndarray, positions: np.ndarray, norms: Sequence[np.ndarray]
) -> tuple[int, tuple[str, ...]]:
    """How many tokens are not finite at some hook, and where the first of them are."""
    bad = np.zeros(len(positions), dtype=bool)
    for at_hook in norms:
        bad |= ~np.isfinite(at_hook)
    named = np.flatnonzero(bad)[:N_NAMED]
    return int(bad.sum()), tuple(f"document {document_ids[i]}, position {positions[i]}" for i in named)


def _keeps_blocks(file: UnfinishedCache) -> bool:
    return all(f"hooks/{hook}/block_mean" in file.layout.places for hook in file.layout.hooks)


def _of_block(rows: StoredRows, start: int, wanted: Bool[np.ndarray, " n"]) -> Moments:
    """Moments of the wanted rows of a block that begins at `start`."""
    moments = Moments.of(rows.take(start + np.flatnonzero(wanted)))
    rows.release(start, start + len(wanted))
    return moments


def _add_moments(
    moments: Moments, file: UnfinishedCache, hook: str, counts: Bool[np.ndarray, " n"], usable: Bool[np.ndarray, " n"]
) -> None:
    """Take in the rows of one file that count: from its blocks' moments where all of a block count that may."""
    rows = StoredRows(file.layout.dtype, file.layout.activations[hook])
    n_stored = file.committed if _keeps_blocks(file) else 0
    means, squares = (file.read(f"hooks/{hook}/{name}") if n_stored else () for name in ("block_mean", "block_squares"))
    for i, start in enumerate(range(0, len(counts), BLOCK_ROWS)):
        wanted = counts[start : start + BLOCK_ROWS]
        n = int(wanted.sum())
        if n and start + len(wanted) <= n_stored and n == usable[start : start + BLOCK_ROWS].sum():
            moments.merge(Moments(n, torch.from_numpy(means[i]), torch.from_numpy(squares[i])))
        else:
            moments.merge(_of_block(rows, start, wanted))
