"""Where everything lies in a cache file (described for readers of the files in docs/cache-format.md).

HDF5 lays out all arrays at their full size before the first activation is computed, and is not used for writing after
that. A killed writer therefore leaves a file that opens, a full disk meets no library that cannot bear it (HDF5 crashes
the process when it closes after a failed write), every array is one run of bytes that can be mapped into memory, and a
resumed run overwrites what was written but not committed.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from sae_persona.artifacts import Manifest
from sae_persona.errors import ArtifactError, CacheFileError

FORMAT = "sae_persona activation cache"
FORMAT_VERSION = 2
"""Raised when a file of the old layout can no longer be read by the new code, or the reverse."""
SHARD_KIND = "activation_cache_shard"
"""Kind of the manifest of one of several files that make up a cache."""
READABLE_VERSIONS = (1, 2)
"""Version 1 knew one model and one file, and kept no moments of blocks."""

STORED_AS: dict[str, tuple[torch.dtype, type[np.generic]]] = {
    "float32": (torch.float32, np.float32),
    "float16": (torch.float16, np.float16),
    "bfloat16": (torch.bfloat16, np.uint16),
}
"""Name → dtype of the tensor, dtype of its bytes in the file (HDF5 has no bfloat16)."""

TOKEN_COLUMNS: dict[str, type[np.generic]] = {
    "token_ids": np.int32,
    "positions": np.int32,
    "document_ids": np.int32,
    "parts": np.uint8,
    "counts": np.bool_,
}
COUNTERS: dict[str, type[np.generic]] = {"committed": np.int64, "n_counted": np.int64, "complete": np.bool_}
"""Tokens that are safely in the file; tokens that count; whether the mask and the statistics are there too."""
BLOCK_ROWS = 8192
"""Rows whose moments are taken together: enough for their sums to cost nothing, few enough to hold in memory."""
_ALIGNMENT = 64
"""Arrays begin at multiples of this, so that mapped numbers are aligned whatever their dtype."""
_DAMAGE = (OSError, KeyError, ValueError, TypeError, IndexError, RuntimeError)
"""What h5py raises, and what is raised by using what it returns, where a file is not whole."""


@dataclass(frozen=True)
class Place:
    """Where an array lies, and in which file."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def row_bytes(self) -> int:
        """Length of one entry of the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def map(self) -> np.ndarray:
        """The array mapped copy-on-write: row access through HDF5 is 30 to 240 times slower."""
        return np.memmap(self.path, self.dtype, "c", offset=self.offset, shape=self.shape)


@dataclass(frozen=True)
class Piece:
    """Activations that lie in another file: a shard, by its name beside the index, and its number of rows."""

    file_name: str
    n_rows: int


def create_layout(
    path: Path,
    *,
    n_tokens: int,
    widths: Mapping[str, int],
    dtype: str,
    attributes: Mapping[str, str],
    pieces: Sequence[Piece] = (),
) -> None:
    """Create the file with every array in it and nothing committed; `widths` is d_in by hook.

    With `pieces` the activations are not in this file: they are a view of those of the pieces, one after the other.
    """
    with h5py.File(path, "w", alignment_threshold=1, alignment_interval=_ALIGNMENT) as file:
        file.attrs.update({"format": FORMAT, "format_version": FORMAT_VERSION, **attributes})
        for name, counter in COUNTERS.items():
            file[name] = counter(0)
        for name, column in TOKEN_COLUMNS.items():
            _allocate(file, name, (n_tokens,), column)
        n_blocks = -(-n_tokens // BLOCK_ROWS)
        for hook, d_in in widths.items():
            group = file.create_group(f"hooks/{hook}")
            if pieces:
                activations = _view(group, hook, d_in, STORED_AS[dtype][1], pieces)
            else:
                activations = _allocate(group, "activations", (n_tokens, d_in), STORED_AS[dtype][1])
                _allocate(group, "block_mean", (n_blocks, d_in), np.float64)
                _allocate(group, "block_squares", (n_blocks, d_in), np.float64)
            activations.attrs["dtype"] = dtype
            _allocate(group, "norms", (n_tokens,), np.float32)
            _allocate(group, "mean", (d_in,), np.float64)
            _allocate(group, "variance", (d_in,), np.float64)
            group["median_norm"] = 0.0


@dataclass(frozen=True, eq=False)
class Layout:
    """What a cache file is and where its arrays lie, finished or not."""

    path: Path
    manifest: Manifest
    model: str
    """What the activations were taken from, as it was loaded; several are listed."""
    models: Mapping[str, str]
    """The same by name, where a file holds several models; empty where it holds one."""
    hooks: tuple[str, ...]
    """Hook names, each after `MODEL/` where the file holds several models."""
    places: Mapping[str, Place]
    """By the array's name, such as `token_ids` or `hooks/HOOK/norms`."""
    activations: Mapping[str, tuple[Place, ...]]
    """By hook: one place, or one in every shard."""

    @property
    def dtype(self) -> str:
        """Precision of the stored activations."""
        return self.manifest.config["dtype"]

    @property
    def n_tokens(self) -> int:
        """Rows of every array, committed or not."""
        return self.places["token_ids"].shape[0]

    def read(self, name: str) -> np.ndarray:
        """The array as it is in the file now, mapped."""
        return self.places[name].map()


def read_layout(path: Path, *, locking: bool = True) -> Layout:
    """The layout of a file; `locking` waits for no one and refuses a file that is being written.

    Raises:
        CacheFileError: the file is truncated, damaged, no cache of ours, or being written by another process; or one
            of its shards is.
    """
    try:
        with h5py.File(path, "r", locking=locking) as file:
            return _read_layout(path, file, locking)
    except BlockingIOError as error:
        raise CacheFileError(f"{path} is being written by another process. Wait for it to end.") from error
    except _DAMAGE as error:
        raise CacheFileError(
            f"{path} is no readable activation cache: truncated, damaged or of another format ({error}). "
            "Check the path; a damaged cache has to be written again."
        ) from error


def _read_layout(path: Path, file: h5py.File, locking: bool) -> Layout:
    attributes: dict[str, Any] = dict(file.attrs)
    if attributes.get("format") != FORMAT:
        raise CacheFileError(f"{path} is an HDF5 file of something else than this package's caches. Check the path.")
    if (version := attributes["format_version"]) not in READABLE_VERSIONS:
        raise CacheFileError(
            f"{path} has layout version {version}, this code reads versions {READABLE_VERSIONS[0]} to "
            f"{READABLE_VERSIONS[-1]}. Use the package version that wrote it, or cache again."
        )
    try:
        manifest = Manifest.from_json(attributes["manifest"])
    except ArtifactError as error:
        raise CacheFileError(f"{path}: {error}") from error
    places: dict[str, Place] = {}
    views: dict[str, h5py.Dataset] = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and item.is_virtual:
            views[name] = item
        elif isinstance(item, h5py.Dataset):
            places[name] = _place(path, item)

    file.visititems(visit)
    hooks = tuple(manifest.config["hook_names"])
    activations = {}
    for hook in hooks:
        name = f"hooks/{hook}/activations"
        activations[hook] = _pieces(path, manifest, views[name], locking) if name in views else (places[name],)
    layout = Layout(
        path,
        manifest,
        attributes["model"],
        json.loads(attributes.get("models", "{}")),
        hooks,
        places,
        activations,
    )
    _check_arrays(layout)
    return layout


def _place(path: Path, item: h5py.Dataset) -> Place:
    if (offset := item.id.get_offset()) is None:
        raise ValueError(f"array {item.name} is not one run of bytes")
    return Place(path, offset, item.shape, item.dtype)


def _pieces(path: Path, manifest: Manifest, view: h5py.Dataset, locking: bool) -> tuple[Place, ...]:
    """Where the shards behind a view keep their rows."""
    found = []
    for source in view.virtual_sources():
        shard = path.with_name(source.file_name)
        if not shard.is_file():
            raise CacheFileError(f"{path} is made of shards, and {shard.name} is not beside it. Put it back.")
        try:
            with h5py.File(shard, "r", locking=locking) as file:
                fingerprint = Manifest.from_json(str(file.attrs["manifest"])).fingerprint
                activations: Any = file[source.dset_name]
                found.append(_place(shard, activations))
        except (*_DAMAGE, ArtifactError) as error:
            raise CacheFileError(
                f"{shard}, a shard of {path}, cannot be read: truncated, damaged or of another format ({error}). "
                "Delete both and cache again: whole shards are kept."
            ) from error
        if fingerprint != manifest.inputs.get(shard.name):
            raise CacheFileError(f"{shard} is no shard of {path}, but of another cache. Put the right one there.")
    return tuple(found)


def _check_arrays(layout: Layout) -> None:
    """Raise unless all arrays are there, of one length, and of the width and dtype that belong to them."""
    n, stored = layout.n_tokens, np.dtype(STORED_AS[layout.dtype][1])
    expected: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {name: ((), one) for name, one in COUNTERS.items()}
    expected |= {name: ((n,), column) for name, column in TOKEN_COLUMNS.items()}
    for hook, places in layout.activations.items():
        d_in = places[0].shape[1]
        shapes = {place.shape[1:] for place in places}
        if sum(place.shape[0] for place in places) != n or shapes != {(d_in,)} or {p.dtype for p in places} != {stored}:
            raise ValueError(f"activations at {hook} are not {n} rows of one width in {layout.dtype}")
        expected |= {
            f"hooks/{hook}/norms": ((n,), np.float32),
            f"hooks/{hook}/mean": ((d_in,), np.float64),
            f"hooks/{hook}/variance": ((d_in,), np.float64),
            f"hooks/{hook}/median_norm": ((), np.float64),
        }
    for name, (shape, dtype) in expected.items():
        if name not in layout.places:
            raise KeyError(f"array {name} is missing")
        if (layout.places[name].shape, layout.places[name].dtype) != (shape, np.dtype(dtype)):
            raise ValueError(f"array {name} is not {np.dtype(dtype)} of shape {list(shape)}")


def _allocate(group: h5py.Group, name: str, shape: Sequence[int], dtype: type[np.generic]) -> h5py.Dataset:
    """A contiguous array whose place in the file is fixed now and whose bytes are written later."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    return group.create_dataset(name, shape=shape, dtype=dtype, dcpl=properties, fill_time="never")


def _view(group: h5py.Group, hook: str, d_in: int, dtype: type[np.generic], pieces: Sequence[Piece]) -> h5py.Dataset:
    """Activations of several files under one name, for any HDF5 reader."""
    layout = h5py.VirtualLayout((sum(piece.n_rows for piece in pieces), d_in), dtype)
    start = 0
    for piece in pieces:
        name = f"hooks/{hook}/activations"
        layout[start : start + piece.n_rows] = h5py.VirtualSource(piece.file_name, name, (piece.n_rows, d_in), dtype)
        start += piece.n_rows
    return group.create_virtual_dataset("activations", layout)
