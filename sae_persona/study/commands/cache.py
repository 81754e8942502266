"""What a cache of some data is going to hold, before it is written."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from sae_persona.cache.task import bytes_per_token, hook_key
from sae_persona.data.packed import PackedRows
from sae_persona.data.stream import stream_documents
from sae_persona.data.tokens import TokenRow, chat_row, text_row
from sae_persona.errors import DataError
from sae_persona.model.hooks import resolve_hook
from sae_persona.model.load import LoadedModel

Dtype = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, eq=False)
class CachePlan:
    """Rows to be cached, and what they come to."""

    rows: PackedRows = field(repr=False)
    n_documents: int
    n_tokens: int
    n_bytes: int
    """Of the file, but for some kilobytes of layout."""


def plan_cache(
    models: Mapping[str, LoadedModel],
    data: str,
    *,
    hook_names: Sequence[str],
    dtype: Dtype,
    context: int,
    n_documents: int | None = None,
) -> CachePlan:
    """Tokenise the chats and texts of a source, in pieces of at most `context` tokens and of what the models can read.

    The tokenizer and its chat template are the first model's.

    Raises:
        HookError: a model has no such hook.
        DataError: a record is neither chat nor text, or the tokenizer cannot render a chat.
    """
    for model in models.values():
        for name in hook_names:
            resolve_hook(model.hf, name)
    width = min(context, *(model.context or context for model in models.values()))
    tokenizer = next(iter(models.values())).tokenizer
    n_read = 0

    def pieces() -> Iterator[tuple[int, TokenRow]]:
        nonlocal n_read
        for document in stream_documents(data, n_documents=n_documents):
            try:
                row = text_row(document, tokenizer) if isinstance(document, str) else chat_row(document, tokenizer)
            except DataError as error:
                raise DataError(f"document {n_read + 1} of {data}: {error}") from error
            for i in range(0, len(row), width):
                yield n_read, TokenRow(row.ids[i : i + width], row.parts[i : i + width])
            n_read += 1

    rows = PackedRows.pack(pieces())
    widths = {hook_key(name, hook): model.d_model for name, model in models.items() for hook in hook_names}
    return CachePlan(rows, n_read, rows.n_tokens, rows.n_tokens * bytes_per_token(widths, dtype))


@contextlib.contextmanager
def ranks() -> Iterator[tuple[int, int]]:
    """The rank of this process and the number of all that `torchrun` started: 0 of 1 without it.

    The processes of a torchrun can wait for one another while the context is open.
    """
    n_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if n_ranks == 1:
        yield 0, 1
        return
    import torch.distributed as dist

    # The first to be done waits for the last, however long that takes.
    dist.init_process_group("gloo", timeout=timedelta(days=30))
    try:
        yield dist.get_rank(), n_ranks
    finally:
        dist.destroy_process_group()


def own_device(device: str) -> str:
    """The device of this process: its own GPU where `torchrun` started several on one machine."""
    local_rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{local_rank}" if device == "cuda" and local_rank is not None else device
