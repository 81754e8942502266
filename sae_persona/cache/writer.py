"""Write the activations of a model to one HDF5 file, in a way that survives being killed.

Axes: `n` tokens of one batch, `d_in` width at a hook.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_persona.artifacts import Manifest, fingerprint, new_manifest
from sae_persona.cache.layout import STORED_AS, create_layout
from sae_persona.cache.moments import Moments
from sae_persona.cache.reader import ActivationCache, partial_path
from sae_persona.cache.unfinished import UnfinishedCache, open_unfinished
from sae_persona.data.tokens import TokenBatch, TokenRow, batches
from sae_persona.errors import ArtifactError, CacheFileError, ConfigError, DataError
from sae_persona.logs import Log, no_log
from sae_persona.model.hooks import residuals, resolve_hook
from sae_persona.model.load import LoadedModel

VERSION = 1
"""Raised when the same configuration would give other activations, columns or statistics."""
_BLOCK_ROWS = 8192
"""Rows read at once for the statistics at the end."""


def write_cache(
    model: LoadedModel,
    rows: Sequence[TokenRow],
    path: Path | str,
    *,
    hook_names: Sequence[str],
    batch_size: int = 64,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    drop_first: int = 1,
    norm_limit: float | None = 10.0,
    log: Log = no_log,
    progress: Callable[[int], None] | None = None,
) -> ActivationCache:
    """Store what every token of `rows` is at each hook.

    Tokens stand batch by batch, rows of similar length together. All are stored; `counts` is False for the first
    `drop_first` tokens of a document and for tokens whose norm at any hook exceeds `norm_limit` times the median norm
    there (the attention sinks of many models), so that one mask serves all hooks. Means, variances and median norms are
    over the tokens that count.

    The file is `PATH.partial` until it is complete. The same call after a kill goes on behind the last committed batch
    and gives the same bytes; a finished cache of the same call is opened and returned. `progress` is called with the
    number of tokens just finished.

    Raises:
        CacheFileError: `path` or `PATH.partial` holds something else, or an activation is not finite.
        ArtifactError: the disk is full; what was committed is kept.
        HookError: the model has no such hook.
        DataError: no rows, or a row without tokens, or none that counts.
        ConfigError: an option out of its range.
    """
    path = Path(path)
    hook_names = tuple(dict.fromkeys(hook_names))
    for name in hook_names:
        resolve_hook(model.hf, name)
    _check_options(hook_names, batch_size=batch_size, dtype=dtype, drop_first=drop_first, norm_limit=norm_limit)
    _check_rows(rows, drop_first)
    manifest = new_manifest(
        "activation_cache",
        config={
            "hook_names": hook_names,
            "batch_size": batch_size,
            "dtype": dtype,
            "drop_first": drop_first,
            "norm_limit": norm_limit,
            "model_dtype": str(model.hf.dtype).removeprefix("torch."),
        },
        inputs={
            "model": model.fingerprint,
            "tokenizer": fingerprint([model.tokenizer.get_vocab(), model.tokenizer.chat_template]),
            "rows": _fingerprint_rows(rows),
        },
        seed=0,
        version=VERSION,
    )
    if path.exists():
        cache = ActivationCache.open(path)
        _check_same(path, cache.manifest, manifest)
        return cache
    partial = partial_path(path)
    with _disk_errors(partial):
        if not partial.exists():
            _begin(partial, model, rows, hook_names, dtype, manifest)
        with open_unfinished(partial) as file:
            _check_same(partial, file.layout.manifest, manifest)
            _append(file, model, rows, hook_names, batch_size, dtype, progress)
            log(finish(file, drop_first, norm_limit))
        partial.replace(path)
    return ActivationCache.open(path)


def _check_options(
    hook_names: Sequence[str], *, batch_size: int, dtype: str, drop_first: int, norm_limit: float | None
) -> None:
    if not hook_names:
        raise ConfigError("no hook_name was given; a cache needs at least one, such as 'blocks.1.hook_resid_post'.")
    if dtype not in STORED_AS:
        raise ConfigError(f"dtype {dtype!r} cannot be stored; choose one of {', '.join(STORED_AS)}.")
    if batch_size < 1 or drop_first < 0 or (norm_limit is not None and norm_limit <= 1):
        raise ConfigError(
            f"batch_size={batch_size}, drop_first={drop_first}, norm_limit={norm_limit}: expected batch_size >= 1, "
            "drop_first >= 0, and norm_limit > 1 or None."
        )


def _check_rows(rows: Sequence[TokenRow], drop_first: int) -> None:
    if not rows:
        raise DataError("there are no rows to cache. Check the data file.")
    for i, row in enumerate(rows):
        if len(row) == 0:
            raise DataError(f"document {i} has no tokens. Remove it from the data.")
    if max(map(len, rows)) <= drop_first:
        raise DataError(
            f"no document is longer than {drop_first} tokens, and the first {drop_first} of each do not count. "
            "Give longer documents or a smaller drop_first."
        )


def _fingerprint_rows(rows: Sequence[TokenRow]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(np.array([len(row), *row.ids, *row.parts], dtype=np.int64).tobytes())
    return digest.hexdigest()


def _check_same(path: Path, found: Manifest, wanted: Manifest) -> None:
    if found.fingerprint == wanted.fingerprint:
        return
    differing = [
        f"{key}={found.config.get(key)!r}" for key, value in wanted.config.items() if found.config.get(key) != value
    ]
    differing += [f"another {key}" for key, value in wanted.inputs.items() if found.inputs.get(key) != value]
    raise CacheFileError(
        f"{path} was made otherwise: {', '.join(differing) or 'by another version of the code'}. "
        "Choose another --out, or delete it."
    )


@contextlib.contextmanager
def _disk_errors(partial: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"{partial} cannot be written: {error}. Free some space or choose another --out; the same command goes on "
            "from the last committed batch."
        ) from error


def _begin(
    partial: Path,
    model: LoadedModel,
    rows: Sequence[TokenRow],
    hook_names: Sequence[str],
    dtype: str,
    manifest: Manifest,
) -> None:
    """Create the empty file; it takes its name only once its layout is whole."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    new = partial.with_name(f"{partial.name}.new")
    create_layout(
        new,
        n_tokens=sum(map(len, rows)),
        widths=dict.fromkeys(hook_names, model.d_model),
        dtype=dtype,
        attributes={"manifest": manifest.to_json(), "model": model.source},
    )
    new.replace(partial)


def _append(
    file: UnfinishedCache,
    model: LoadedModel,
    rows: Sequence[TokenRow],
    hook_names: Sequence[str],
    batch_size: int,
    dtype: str,
    progress: Callable[[int], None] | None,
) -> None:
    """Compute and store all batches that are not committed yet."""
    end, committed = 0, int(file.read("committed"))
    for indices, batch in batches(rows, batch_size=batch_size, pad_id=model.pad_id, device=model.device):
        start, end = end, end + sum(len(rows[i]) for i in indices)
        if end > committed:
            columns = _token_columns(indices, batch)
            for name, column in columns.items():
                file.write(name, column, start=start)
            for name, resid in residuals(model.hf, batch, hook_names).items():
                stored = resid[batch.mask].to(STORED_AS[dtype][0])
                norms = stored.float().norm(dim=-1)
                _check_finite(norms, columns, name, dtype)
                file.write(f"hooks/{name}/activations", stored, start=start)
                file.write(f"hooks/{name}/norms", norms, start=start)
            file.set_counter("committed", end)
        if progress:
            progress(end - start)


def _token_columns(indices: Sequence[int], batch: TokenBatch) -> dict[str, Tensor]:
    document = torch.tensor(indices, device=batch.mask.device).unsqueeze(-1).expand_as(batch.mask)
    grids = {"token_ids": batch.ids, "positions": batch.position_ids, "document_ids": document, "parts": batch.parts}
    return {name: grid[batch.mask] for name, grid in grids.items()}


def _check_finite(norms: Float[Tensor, " n"], columns: Mapping[str, Tensor], hook_name: str, dtype: str) -> None:
    bad = torch.nonzero(~torch.isfinite(norms))
    if len(bad):
        document, position = (int(columns[name][bad[0]]) for name in ("document_ids", "positions"))
        raise CacheFileError(
            f"the activation at {hook_name} is not finite in {dtype} at document {document}, position {position}. "
            + ("float16 ends at 65504: store bfloat16." if dtype == "float16" else "Check the model and its dtype.")
        )


def finish(file: UnfinishedCache, drop_first: int, norm_limit: float | None) -> dict[str, object]:
    """Fill in the mask and the statistics, which depend on all tokens, and return what to log."""
    norms = {name: file.read(f"hooks/{name}/norms") for name in file.layout.hook_names}
    late = file.read("positions") >= drop_first
    counts = late.copy()
    if norm_limit is not None:
        for at_hook in norms.values():
            counts &= at_hook <= norm_limit * np.median(at_hook[late])
    if not counts.any():
        raise DataError(f"no token is within {norm_limit} median norms at every hook. Raise norm_limit.")
    file.write("counts", counts)
    dtype = STORED_AS[file.layout.dtype][0]
    for name, at_hook in norms.items():
        moments = Moments()
        activations = file.read(f"hooks/{name}/activations")
        for start in range(0, len(counts), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            moments.add(torch.from_numpy(activations[block][counts[block]]).view(dtype))
        file.write(f"hooks/{name}/mean", moments.mean)
        file.write(f"hooks/{name}/variance", moments.variance)
        file.write(f"hooks/{name}/median_norm", np.array(np.median(at_hook[counts])))
    file.set_counter("n_counted", int(counts.sum()))
    file.set_counter("complete", True)
    return {
        "cache/n_tokens": len(counts),
        "cache/n_counted": int(counts.sum()),
        "cache/n_outliers": int(late.sum() - counts.sum()),
    }
