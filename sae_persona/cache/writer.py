"""Write the activations of one model or of several to one HDF5 file, in a way that survives being killed.

Axes: `n` tokens of one batch, `d_in` width at a hook.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from sae_persona.artifacts import Manifest
from sae_persona.cache.compute import ComputedBatch, compute_batch
from sae_persona.cache.layout import create_layout
from sae_persona.cache.prefetch import prefetched
from sae_persona.cache.reader import ActivationCache, partial_path
from sae_persona.cache.statistics import finish, store_block_moments
from sae_persona.cache.task import WritingTask, attributes_of, bytes_per_token, plan_writing
from sae_persona.cache.unfinished import UnfinishedCache, open_unfinished
from sae_persona.data.tokens import TokenRow
from sae_persona.errors import ArtifactError, CacheFileError
from sae_persona.logs import Log, no_log
from sae_persona.model.load import LoadedModel


def write_cache(
    model: LoadedModel | Mapping[str, LoadedModel],
    rows: Sequence[TokenRow],
    path: Path | str,
    *,
    hook_names: Sequence[str],
    batch_size: int = 64,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    drop_first: int = 1,
    norm_limit: float | None = 10.0,
    not_finite: Literal["refuse", "skip"] = "refuse",
    log: Log = no_log,
    progress: Callable[[int], None] | None = None,
) -> ActivationCache:
    """Store what every token of `rows` is at each hook, in one model or, by name, in several of one tokenizer.

    Tokens stand batch by batch, rows of similar length together. All are stored; `counts` is False for the first
    `drop_first` tokens of a document and for tokens whose norm at any hook of any model exceeds `norm_limit` times the
    median norm there (the attention sinks of many models), so that one mask serves all hooks. Means, variances and
    median norms are over the tokens that count. A token whose activation is not finite ends the run, or, with
    `not_finite="skip"`, does not count and is named in the log.

    The file is `PATH.partial` until it is complete. The same call after a kill goes on behind the last committed batch
    and gives the same bytes; a finished cache of the same call is opened and returned. `progress` is called with the
    number of tokens just finished.

    Raises:
        CacheFileError: `path` or `PATH.partial` holds something else, or an activation is not finite.
        ArtifactError: the disk is full; what was committed is kept.
        HookError: a model has no such hook.
        DataError: no rows, or a row without tokens, or none that counts.
        IncompatibleError: the models differ in their tokenizer or dtype.
        ConfigError: an option out of its range.
    """
    path = Path(path)
    task = plan_writing(
        model,
        rows,
        hook_names=hook_names,
        batch_size=batch_size,
        dtype=dtype,
        drop_first=drop_first,
        norm_limit=norm_limit,
        not_finite=not_finite,
    )
    if path.exists():
        cache = ActivationCache.open(path)
        check_same(path, cache.manifest, task.manifest)
        return cache
    with disk_errors(partial_path(path)):
        with unfinished(path, task, task.manifest, task.batches) as file:
            append(file, task, task.batches, progress)
            log(finish(file, drop_first, norm_limit))
        partial_path(path).replace(path)
    return ActivationCache.open(path)


def check_same(path: Path, found: Manifest, wanted: Manifest) -> None:
    """Raise unless what is in a file was asked for in the same words."""
    if found.fingerprint == wanted.fingerprint:
        return
    keys = dict.fromkeys([*wanted.config, *found.config])
    differing = [
        f"{key}={found.config[key]!r}" if key in found.config else f"without {key}={wanted.config[key]!r}"
        for key in keys
        if found.config.get(key) != wanted.config.get(key)
    ]
    differing += [f"another {key}" for key, value in wanted.inputs.items() if found.inputs.get(key) != value]
    raise CacheFileError(
        f"{path} was made otherwise: {', '.join(differing) or 'by another version of the code'}. "
        "Choose another --out, or delete it."
    )


@contextlib.contextmanager
def disk_errors(partial: Path) -> Iterator[None]:
    """Make one line of what a full disk or a missing permission raises."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"{partial} cannot be written: {error}. Free some space or choose another --out; the same command goes on "
            "from the last committed batch."
        ) from error


@contextlib.contextmanager
def unfinished(
    path: Path, task: WritingTask, manifest: Manifest, batches: Sequence[np.ndarray]
) -> Iterator[UnfinishedCache]:
    """The file `PATH.partial` for some batches: the one that a killed writer left, or a new one."""
    partial = partial_path(path)
    if not partial.exists():
        _begin(partial, task, manifest, batches)
    with open_unfinished(partial) as file:
        check_same(partial, file.layout.manifest, manifest)
        yield file


def _begin(partial: Path, task: WritingTask, manifest: Manifest, batches: Sequence[np.ndarray]) -> None:
    """Create the empty file; it takes its name only once its layout is whole."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    n_tokens = task.n_tokens(batches)
    if (needed := n_tokens * bytes_per_token(task.widths, task.dtype)) > (
        free := shutil.disk_usage(partial.parent).free
    ):
        raise ArtifactError(
            f"{partial} will take {needed / 1e6:,.1f} MB, and {partial.parent} has {free / 1e6:,.1f} MB left. "
            "Free some space, choose another --out, or store fewer hooks or a shorter dtype."
        )
    new = partial.with_name(f"{partial.name}.new")
    create_layout(
        new,
        n_tokens=n_tokens,
        widths=task.widths,
        dtype=task.dtype,
        attributes=attributes_of(task, manifest),
    )
    new.replace(partial)


def append(
    file: UnfinishedCache,
    task: WritingTask,
    batches: Sequence[np.ndarray],
    progress: Callable[[int], None] | None,
) -> None:
    """Compute and store all batches that are not committed yet; a GPU computes the next while one is stored."""
    ends, committed = np.cumsum([task.n_tokens([indices]) for indices in batches]), file.committed
    left = (
        compute_batch(task, indices).on_host() for indices, end in zip(batches, ends, strict=True) if end > committed
    )
    on_gpu = any(model.device.type == "cuda" for model in task.models.values())
    with contextlib.closing(prefetched(left, n_ahead=int(on_gpu))) as computed:
        for start, end in pairwise([0, *map(int, ends)]):
            if end > committed:
                _store(file, next(computed), start)
                store_block_moments(file, start=start, end=end, drop_first=task.drop_first)
                file.set_counter("committed", end)
            if progress:
                progress(end - start)


def _store(file: UnfinishedCache, computed: ComputedBatch, start: int) -> None:
    for name, column in computed.columns.items():
        file.write(name, column, start=start)
    for hook, activations in computed.activations.items():
        file.write(f"hooks/{hook}/activations", activations, start=start)
        file.write(f"hooks/{hook}/norms", computed.norms[hook], start=start)
