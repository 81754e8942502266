"""Documents one at a time, from a JSONL file or from a Hugging Face dataset that is never downloaded whole."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from sae_persona.data.files import iterate_documents, parse_document
from sae_persona.errors import ConfigError, DataError
from sae_persona.types import Chat

HUB = "hf:"
"""Begins the name of a dataset: `hf:NAME[@CONFIG][:SPLIT]`, where NAME may be a local folder."""


def stream_documents(source: str, *, n_documents: int | None = None) -> Iterator[Chat | str]:
    """The chats (`messages`) and plain texts (`text`) of a source, or the first of them.

    Raises:
        DataError: the source cannot be read, is empty, or a record is neither chat nor text.
        ConfigError: `n_documents` is not positive.
    """
    if n_documents is not None and n_documents < 1:
        raise ConfigError(f"n_documents={n_documents}: expected at least 1.")
    documents = _dataset(source.removeprefix(HUB)) if source.startswith(HUB) else iterate_documents(source)
    return islice(documents, n_documents)


def _dataset(source: str) -> Iterator[Chat | str]:
    """The documents of `NAME[@CONFIG][:SPLIT]`; the split is `train` unless it is named."""
    name, colon, split = source.rpartition(":")
    if not colon or "/" in split:
        name, split = source, "train"
    name, _, config = name.partition("@")
    n_documents = 0
    for record in _records(name, config or None, split):
        yield parse_document(record, f"dataset {name}, {split} record {n_documents}")
        n_documents += 1
    if not n_documents:
        raise DataError(f"dataset {name!r} has no record in split {split!r}. Name another split.")


def _records(name: str, config: str | None, split: str) -> Iterator[dict[str, Any]]:
    # Slow to import, and most uses need none of it.
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        yield from load_dataset(name, config, split=split, streaming=True)
    except (OSError, ValueError, DatasetsError) as error:
        reason = " ".join(str(error).split())[:250]
        raise DataError(
            f"dataset {name!r} cannot be streamed ({type(error).__name__}: {reason}). Check its name, config and "
            "split, or give a JSONL file."
        ) from error
