"""What is to be written into a cache: checked and resolved before anything is computed."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sae_persona.artifacts import Manifest, fingerprint, new_manifest
from sae_persona.cache.layout import STORED_AS, TOKEN_COLUMNS
from sae_persona.data.packed import PackedRows
from sae_persona.data.tokens import TokenRow
from sae_persona.errors import ConfigError, DataError, IncompatibleError
from sae_persona.model.hooks import resolve_hook
from sae_persona.model.load import LoadedModel

VERSION = 1
"""Raised when the same configuration would give other activations, columns or statistics."""
_MODEL_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True, eq=False)
class WritingTask:
    """What is to be computed and stored, checked and resolved."""

    models: Mapping[str, LoadedModel]
    """By name; the name is empty where there is one model only."""
    rows: PackedRows
    hook_names: tuple[str, ...]
    dtype: str
    drop_first: int
    norm_limit: float | None
    skips_not_finite: bool
    batch_size: int
    manifest: Manifest
    batches: tuple[np.ndarray, ...]
    """Rows of similar length, in the order of the file."""

    @property
    def widths(self) -> dict[str, int]:
        """d_in by hook, as hooks are called in the file."""
        return {hook_key(name, hook): model.d_model for name, model in self.models.items() for hook in self.hook_names}

    def n_tokens(self, batches: Sequence[np.ndarray]) -> int:
        """Tokens of some of the batches."""
        return sum(int(self.rows.lengths[batch].sum()) for batch in batches)


def hook_key(model_name: str, hook_name: str) -> str:
    """What a hook is called in a file: `MODEL/HOOK` where the file holds several models."""
    return f"{model_name}/{hook_name}" if model_name else hook_name


def plan_writing(
    model: LoadedModel | Mapping[str, LoadedModel],
    rows: Sequence[TokenRow],
    *,
    hook_names: Sequence[str],
    batch_size: int,
    dtype: str,
    drop_first: int,
    norm_limit: float | None,
    not_finite: str,
) -> WritingTask:
    """Check everything that can be known to be wrong before anything is computed or written."""
    models = {"": model} if isinstance(model, LoadedModel) else dict(model)
    hook_names = tuple(dict.fromkeys(hook_names))
    _check_models(models)
    for one in models.values():
        for name in hook_names:
            resolve_hook(one.hf, name)
    if not_finite not in ("refuse", "skip"):
        raise ConfigError(f"not_finite={not_finite!r}: expected 'refuse' or 'skip'.")
    _check_options(hook_names, batch_size=batch_size, dtype=dtype, drop_first=drop_first, norm_limit=norm_limit)
    packed = PackedRows.of(rows)
    _check_rows(packed, drop_first)
    first = next(iter(models.values()))
    manifest = new_manifest(
        "activation_cache",
        config={
            "hook_names": [hook_key(name, hook) for name in models for hook in hook_names],
            "batch_size": batch_size,
            "dtype": dtype,
            "drop_first": drop_first,
            "norm_limit": norm_limit,
            "model_dtype": str(first.hf.dtype).removeprefix("torch."),
            # Left out where it is the default, so that caches from before it was an option keep their fingerprint.
            **({"not_finite": not_finite} if not_finite != "refuse" else {}),
        },
        inputs={
            **{f"model {name}".strip(): one.fingerprint for name, one in models.items()},
            "tokenizer": fingerprint([first.tokenizer.get_vocab(), first.tokenizer.chat_template]),
            "rows": packed.fingerprint,
        },
        seed=0,
        version=VERSION,
    )
    order = np.argsort(packed.lengths, kind="stable")
    batches = tuple(order[start : start + batch_size] for start in range(0, len(order), batch_size))
    return WritingTask(
        models, packed, hook_names, dtype, drop_first, norm_limit, not_finite == "skip", batch_size, manifest, batches
    )


def _check_models(models: Mapping[str, LoadedModel]) -> None:
    if not models:
        raise ConfigError("no model was given; a cache needs at least one.")
    first_name, first = next(iter(models.items()))
    for name, model in models.items():
        if (name or len(models) > 1) and not _MODEL_NAME.fullmatch(name):
            raise ConfigError(f"a model is called {name!r}; expected letters, digits, '_', '-' and '.', no space.")
        if model.tokenizer.get_vocab() != first.tokenizer.get_vocab():
            raise IncompatibleError(
                f"models {first_name!r} and {name!r} have different vocabularies, and one cache holds one sequence of "
                "tokens. Cache them apart."
            )
        if model.hf.dtype != first.hf.dtype:
            raise IncompatibleError(
                f"model {first_name!r} is in {first.hf.dtype} and {name!r} in {model.hf.dtype}; between them, rounding "
                "would look like a difference of the models. Load all in one dtype."
            )


def _check_options(
    hook_names: Sequence[str], *, batch_size: int, dtype: str, drop_first: int, norm_limit: float | None
) -> None:
    if not hook_names:
        raise ConfigError("no hook_name was given; a cache needs at least one, such as 'blocks.1.hook_resid_post'.")
    if dtype not in STORED_AS:
        raise ConfigError(f"dtype {dtype!r} cannot be stored; choose one of {', '.join(STORED_AS)}.")
    if batch_size < 1 or drop_first < 0 or not (norm_limit is None or norm_limit > 1):
        raise ConfigError(
            f"batch_size={batch_size}, drop_first={drop_first}, norm_limit={norm_limit}: expected batch_size >= 1, "
            "drop_first >= 0, and norm_limit > 1 or None."
        )


def _check_rows(rows: PackedRows, drop_first: int) -> None:
    if not len(rows):
        raise DataError("there are no rows to cache. Check the data file.")
    if not rows.lengths.all():
        empty = rows.documents[int(rows.lengths.argmin())]
        raise DataError(f"document {empty} has no tokens. Remove it from the data.")
    if rows.lengths.max() <= drop_first:
        raise DataError(
            f"no document is longer than {drop_first} tokens, and the first {drop_first} of each do not count. "
            "Give longer documents or a smaller drop_first."
        )


def bytes_per_token(widths: Mapping[str, int], dtype: str) -> int:
    """What one token takes in a file, but for the layout and the moments of blocks."""
    itemsize = np.dtype(STORED_AS[dtype][1]).itemsize
    per_hook = sum(d_in * itemsize + np.dtype(np.float32).itemsize for d_in in widths.values())  # with its norm
    return per_hook + sum(np.dtype(column).itemsize for column in TOKEN_COLUMNS.values())


def attributes_of(task: WritingTask, manifest: Manifest) -> dict[str, str]:
    """What a file says of itself, beside its arrays."""
    sources = {name: model.source for name, model in task.models.items()}
    several = {"models": json.dumps(sources)} if "" not in sources else {}
    return {"manifest": manifest.to_json(), "model": ", ".join(sources.values()), **several}
