"""Write a cache with several processes: each its own shard, all of them behind one file.

`acts.h5` then holds everything but the activations, and of these a view into `acts-00000-of-00002.h5` and so on, which
any HDF5 reader follows. Rows, tokens, mask and activations are those of a cache that one process wrote.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch.distributed as dist

from sae_persona.artifacts import Manifest
from sae_persona.cache.layout import SHARD_KIND, TOKEN_COLUMNS, Piece, create_layout, read_layout
from sae_persona.cache.reader import ActivationCache, partial_path
from sae_persona.cache.statistics import finish
from sae_persona.cache.task import WritingTask, attributes_of, plan_writing
from sae_persona.cache.unfinished import open_unfinished
from sae_persona.cache.writer import append, check_same, disk_errors, unfinished
from sae_persona.data.tokens import TokenRow
from sae_persona.errors import ConfigError
from sae_persona.logs import Log, no_log
from sae_persona.model.load import LoadedModel


def write_shards(
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
    """`write_cache`, shared among the processes of the default `torch.distributed` group, on one file system.

    Every process of the group has to call it, with the same arguments and its own copy of the models. Each shard
    resumes after a kill like a cache; the same number of processes has to go on.

    Raises:
        ConfigError: there are more processes than batches.
        CacheFileError, ArtifactError, HookError, DataError, IncompatibleError: as `write_cache`.
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
    rank, n_shards = dist.get_rank(), dist.get_world_size()
    shares = share_out(task, n_shards)
    paths = [shard_path(path, i, n_shards) for i in range(n_shards)]
    manifests = [_shard_manifest(task, i, n_shards) for i in range(n_shards)]
    index = _index_manifest(task, paths, manifests)
    if path.exists():
        cache = ActivationCache.open(path)
        check_same(path, cache.manifest, index)
        return cache
    if partial_path(path).exists():
        check_same(partial_path(path), read_layout(partial_path(path)).manifest, index)
    with disk_errors(partial_path(paths[rank])):
        _write_shard(paths[rank], task, manifests[rank], shares[rank], progress)
    dist.barrier()  # all shards are whole
    if rank == 0:
        with disk_errors(partial_path(path)):
            log(_join(path, task, index, paths))
    dist.barrier()  # and so is the index
    return ActivationCache.open(path)


def shard_path(path: Path, shard: int, n_shards: int) -> Path:
    """Where a shard of `path` lies: beside it."""
    return path.with_name(f"{path.stem}-{shard:05}-of-{n_shards:05}{path.suffix}")


def share_out(task: WritingTask, n_shards: int) -> list[tuple[np.ndarray, ...]]:
    """Runs of batches of about as many tokens each, at least one batch for every shard.

    Raises:
        ConfigError: there are more shards than batches.
    """
    n_batches = len(task.batches)
    if n_shards > n_batches:
        raise ConfigError(
            f"{n_shards} processes cannot share {n_batches} batches. Start fewer of them, or "
            "choose a smaller batch_size."
        )
    ends = np.cumsum([task.n_tokens([batch]) for batch in task.batches])
    cuts = [0]
    for shard in range(1, n_shards):
        fair = int(np.searchsorted(ends, ends[-1] * shard / n_shards)) + 1
        cuts.append(min(max(fair, cuts[-1] + 1), n_batches - (n_shards - shard)))
    return [task.batches[start:stop] for start, stop in zip(cuts, [*cuts[1:], n_batches], strict=True)]


def _shard_manifest(task: WritingTask, shard: int, n_shards: int) -> Manifest:
    config = {**task.manifest.config, "shard": shard, "n_shards": n_shards}
    return replace(task.manifest, kind=SHARD_KIND, config=config)


def _index_manifest(task: WritingTask, paths: Sequence[Path], manifests: Sequence[Manifest]) -> Manifest:
    """It knows its shards by the fingerprints of their manifests."""
    inputs = {path.name: manifest.fingerprint for path, manifest in zip(paths, manifests, strict=True)}
    return replace(
        task.manifest,
        config={**task.manifest.config, "n_shards": len(paths)},
        inputs={**task.manifest.inputs, **inputs},
    )


def _write_shard(
    path: Path,
    task: WritingTask,
    manifest: Manifest,
    batches: Sequence[np.ndarray],
    progress: Callable[[int], None] | None,
) -> None:
    if path.exists():
        check_same(path, read_layout(path).manifest, manifest)
        return
    with unfinished(path, task, manifest, batches) as file:
        append(file, task, batches, progress)
    partial_path(path).replace(path)


def _join(path: Path, task: WritingTask, manifest: Manifest, shards: Sequence[Path]) -> dict[str, object]:
    """Make the file that stands for all shards, with the mask and the statistics over all of them."""
    partial = partial_path(path)
    new = partial.with_name(f"{partial.name}.new")
    with ExitStack() as stack:
        parts = [stack.enter_context(open_unfinished(shard)) for shard in shards]
        n_tokens = [part.layout.n_tokens for part in parts]
        create_layout(
            new,
            n_tokens=sum(n_tokens),
            widths=task.widths,
            dtype=task.dtype,
            attributes=attributes_of(task, manifest),
            pieces=[Piece(shard.name, n) for shard, n in zip(shards, n_tokens, strict=True)],
        )
        new.replace(partial)
        index = stack.enter_context(open_unfinished(partial))
        norms = [f"hooks/{hook}/norms" for hook in index.layout.hooks]
        for name in (*TOKEN_COLUMNS, *norms):
            for start, part in zip(np.cumsum([0, *n_tokens[:-1]]), parts, strict=True):
                index.write(name, part.read(name), start=int(start))
        index.set_counter("committed", sum(n_tokens))
        record = finish(index, task.drop_first, task.norm_limit, parts)
    partial.replace(path)
    return record
