"""What a cache of a data file is going to hold, before it is written."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from sae_persona.cache.layout import STORED_AS, TOKEN_COLUMNS
from sae_persona.data.files import read_documents
from sae_persona.data.tokens import TokenRow, chat_row, text_row
from sae_persona.model.hooks import resolve_hook
from sae_persona.model.load import LoadedModel

Dtype = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class CachePlan:
    """Rows to be cached, and what they come to."""

    rows: tuple[TokenRow, ...] = field(repr=False)
    n_documents: int
    n_tokens: int
    n_bytes: int
    """Of the file, but for some kilobytes of layout."""


def plan_cache(model: LoadedModel, data: Path, *, hook_names: Sequence[str], dtype: Dtype, context: int) -> CachePlan:
    """Tokenise the chats and texts of a file, in pieces of at most `context` tokens and of what the model can read.

    Raises:
        HookError: the model has no such hook.
        DataError: a line is neither chat nor text, or the tokenizer cannot render a chat.
    """
    for name in hook_names:
        resolve_hook(model.hf, name)
    documents = read_documents(data)
    width = min(context, model.context or context)
    rows: list[TokenRow] = []
    for document in documents:
        is_text = isinstance(document, str)
        row = text_row(document, model.tokenizer) if is_text else chat_row(document, model.tokenizer)
        rows += [TokenRow(row.ids[i : i + width], row.parts[i : i + width]) for i in range(0, len(row), width)]
    n_tokens = sum(map(len, rows))
    per_hook = model.d_model * np.dtype(STORED_AS[dtype][1]).itemsize + np.dtype(np.float32).itemsize  # and the norm
    per_token = len(set(hook_names)) * per_hook + sum(np.dtype(column).itemsize for column in TOKEN_COLUMNS.values())
    return CachePlan(tuple(rows), len(documents), n_tokens, n_tokens * per_token)
