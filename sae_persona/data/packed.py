"""Tokenised documents at five bytes a token, for data of which there are many.

A row may be a piece of a longer document; it knows of which.
"""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from sae_persona.data.tokens import Part, TokenRow

_PARTS = tuple(Part)


class PackedRows(Sequence[TokenRow]):
    """Rows that are held as arrays and become `TokenRow`s when they are asked for."""

    def __init__(
        self,
        ids: Int32[np.ndarray, " n_tokens"],
        parts: UInt8[np.ndarray, " n_tokens"],
        lengths: Int64[np.ndarray, " n_rows"],
        documents: Int32[np.ndarray, " n_rows"],
    ) -> None:
        self.ids = ids
        self.parts = parts
        self.lengths = lengths
        self.documents = documents
        """Index, in the data, of the document that a row is or is a piece of."""
        self._ends = np.cumsum(lengths)

    @classmethod
    def pack(cls, pieces: Iterable[tuple[int, TokenRow]]) -> "PackedRows":
        """The rows of an iterator, each with the index of its document."""
        ids, parts, lengths, documents = array("i"), bytearray(), array("q"), array("i")
        for document, row in pieces:
            ids.extend(row.ids)
            parts.extend(row.parts)
            lengths.append(len(row))
            documents.append(document)
        return cls(
            np.array(ids, dtype=np.int32),
            np.frombuffer(bytes(parts), dtype=np.uint8),
            np.array(lengths, dtype=np.int64),
            np.array(documents, dtype=np.int32),
        )

    @classmethod
    def of(cls, rows: Sequence[TokenRow]) -> "PackedRows":
        """Any rows; those that are not packed yet are documents, in their order."""
        return rows if isinstance(rows, PackedRows) else cls.pack(enumerate(rows))

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> TokenRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenRow]: ...
    def __getitem__(self, index: int | slice) -> TokenRow | list[TokenRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        place = self._place(range(len(self))[index])
        return TokenRow(tuple(self.ids[place].tolist()), tuple(_PARTS[part] for part in self.parts[place].tolist()))

    @property
    def n_tokens(self) -> int:
        """Tokens of all rows."""
        return len(self.ids)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of tokens, parts and seams between rows, and of the documents where a row is not one by itself."""
        digest = hashlib.sha256()
        for i, length in enumerate(self.lengths):
            place = self._place(i)
            digest.update(np.concatenate([[length], self.ids[place], self.parts[place]]).astype(np.int64).tobytes())
        if not np.array_equal(self.documents, np.arange(len(self))):
            digest.update(self.documents.tobytes())
        return digest.hexdigest()

    def _place(self, index: int) -> slice:
        end = int(self._ends[index])
        return slice(end - int(self.lengths[index]), end)
