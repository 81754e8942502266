"""Where everything lies in a cache file (described for readers of the files in docs/cache-format.md).

HDF5 lays out all arrays at their full size before the first activation is computed, and is not used for writing after
that. A killed writer therefore leaves a file that opens, a full disk meets no library that cannot bear it (HDF5 crashes
the process when it closes after a failed write), every array is one run of bytes that can be mapped into memory, and a
resumed run overwrites what was written but not committed.
"""

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
FORMAT_VERSION = 1
"""Raised when a file of the old layout can no longer be read by the new code."""

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
HOOK_ARRAYS = ("activations", "norms", "mean", "variance", "median_norm")
_ALIGNMENT = 64
"""Arrays begin at multiples of this, so that mapped numbers are aligned whatever their dtype."""


@dataclass(frozen=True)
class Place:
    """Where an array lies in the file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def row_bytes(self) -> int:
        """Length of one entry of the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def map(self, path: Path) -> np.ndarray:
        """The array mapped copy-on-write: row access through HDF5 is 30 to 240 times slower."""
        return np.memmap(path, self.dtype, "c", offset=self.offset, shape=self.shape)


def create_layout(
    path: Path, *, n_tokens: int, widths: Mapping[str, int], dtype: str, attributes: Mapping[str, str]
) -> None:
    """Create the file with every array in it and nothing committed; `widths` is d_in by hook name."""
    with h5py.File(path, "w", alignment_threshold=1, alignment_interval=_ALIGNMENT) as file:
        file.attrs.update({"format": FORMAT, "format_version": FORMAT_VERSION, **attributes})
        for name, counter in COUNTERS.items():
            file[name] = counter(0)
        for name, column in TOKEN_COLUMNS.items():
            _allocate(file, name, (n_tokens,), column)
        for hook_name, d_in in widths.items():
            group = file.create_group(f"hooks/{hook_name}")
            _allocate(group, "activations", (n_tokens, d_in), STORED_AS[dtype][1]).attrs["dtype"] = dtype
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
    hook_names: tuple[str, ...]
    places: Mapping[str, Place]
    """By the array's name, such as `token_ids` or `hooks/HOOK_NAME/activations`."""

    @property
    def dtype(self) -> str:
        """Precision of the stored activations."""
        return self.manifest.config["dtype"]

    def read(self, name: str) -> np.ndarray:
        """The array as it is in the file now, mapped."""
        return self.places[name].map(self.path)


def read_layout(path: Path, *, locking: bool = True) -> Layout:
    """The layout of a file; `locking` waits for no one and refuses a file that is being written.

    Raises:
        CacheFileError: the file is truncated, damaged, no cache of ours, or being written by another process.
    """
    try:
        with h5py.File(path, "r", locking=locking) as file:
            return _read_layout(path, file)
    except BlockingIOError as error:
        raise CacheFileError(f"{path} is being written by another process. Wait for it to end.") from error
    except (OSError, KeyError) as error:
        raise CacheFileError(
            f"{path} is no readable activation cache: truncated, damaged or of another format ({error}). "
            "Delete it and cache again."
        ) from error


def _read_layout(path: Path, file: h5py.File) -> Layout:
    attributes: dict[str, Any] = dict(file.attrs)
    if attributes.get("format") != FORMAT:
        raise CacheFileError(f"{path} is an HDF5 file of something else than this package's caches. Check the path.")
    if (version := attributes["format_version"]) != FORMAT_VERSION:
        raise CacheFileError(
            f"{path} has layout version {version}, this code reads version {FORMAT_VERSION}. "
            "Use the package version that wrote it, or cache again."
        )
    try:
        manifest = Manifest.from_json(attributes["manifest"])
    except ArtifactError as error:
        raise CacheFileError(f"{path}: {error}") from error
    places: dict[str, Place] = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            places[name] = Place(item.id.get_offset(), item.shape, item.dtype)

    file.visititems(visit)
    hook_names = tuple(manifest.config["hook_names"])
    for name in (*COUNTERS, *TOKEN_COLUMNS, *(f"hooks/{hook}/{array}" for hook in hook_names for array in HOOK_ARRAYS)):
        if name not in places:
            raise KeyError(f"array {name} is missing")
    return Layout(path, manifest, attributes["model"], hook_names, places)


def _allocate(group: h5py.Group, name: str, shape: Sequence[int], dtype: type[np.generic]) -> h5py.Dataset:
    """A contiguous array whose place in the file is fixed now and whose bytes are written later."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    return group.create_dataset(name, shape=shape, dtype=dtype, dcpl=properties, fill_time="never")
