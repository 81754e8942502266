"""Packed rows are the rows, in less memory."""

import hashlib

import numpy as np
import pytest

from sae_persona.data.packed import PackedRows
from sae_persona.data.tokens import Part, TokenRow

ROWS = [
    TokenRow((7, 300, 70_000), (Part.PROMPT, Part.HEADER, Part.ANSWER)),
    TokenRow((5,), (Part.PROMPT,)),
    TokenRow((9, 8), (Part.PROMPT, Part.ANSWER)),
]


def test_rows_come_back_as_they_were() -> None:
    packed = PackedRows.of(ROWS)
    assert list(packed) == ROWS
    assert packed[-1] == ROWS[-1]
    assert packed[1:] == ROWS[1:]
    assert isinstance(packed[0].parts[1], Part)
    assert (packed.n_tokens, packed.lengths.tolist(), packed.documents.tolist()) == (6, [3, 1, 2], [0, 1, 2])
    assert PackedRows.of(packed) is packed
    with pytest.raises(IndexError):
        packed[3]


def test_the_fingerprint_is_of_lengths_tokens_and_parts() -> None:
    numbers = np.array([3, 7, 300, 70_000, 0, 1, 2, 1, 5, 0, 2, 9, 8, 0, 2], dtype=np.int64)
    assert PackedRows.of(ROWS).fingerprint == hashlib.sha256(numbers.tobytes()).hexdigest()
    pieces = PackedRows.pack(zip([0, 0, 1], ROWS, strict=True))
    assert pieces.fingerprint != PackedRows.of(ROWS).fingerprint, "pieces of one document are not documents"
