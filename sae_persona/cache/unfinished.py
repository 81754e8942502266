"""The file behind a cache while it is being written."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from sae_persona.cache.layout import Layout, read_layout
from sae_persona.errors import CacheFileError


@dataclass(frozen=True, eq=False)
class UnfinishedCache:
    """The arrays of a file that `create_layout` made, open for writing by this process alone."""

    layout: Layout
    file: BinaryIO

    @property
    def committed(self) -> int:
        """Tokens that are safely in the file."""
        return int(self.read("committed"))

    def read(self, name: str) -> np.ndarray:
        """The array with all that was written so far."""
        self.flush()
        return self.layout.read(name)

    def write(self, name: str, values: Tensor | np.ndarray, *, start: int = 0) -> None:
        """Write rows into an array, from row `start` on; bfloat16 goes in as its bits."""
        place = self.layout.places[name]
        if isinstance(values, Tensor):
            values = values.cpu()
            values = (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()
        self.file.seek(place.offset + start * place.row_bytes)
        self.file.write(np.ascontiguousarray(values, dtype=place.dtype).data)

    def flush(self) -> None:
        """Hand all that was written to the operating system: a kill cannot undo it."""
        self.file.flush()

    def set_counter(self, name: str, value: int) -> None:
        """Move a counter, once all that was written before is with the operating system."""
        self.flush()
        self.write(name, np.array(value))
        self.flush()


@contextlib.contextmanager
def open_unfinished(path: Path) -> Iterator[UnfinishedCache]:
    """Take up a file where its last writer left it.

    Raises:
        CacheFileError: the file is damaged, is no cache, or is being written by another process.
    """
    with path.open("r+b") as file:
        _lock(file, path)
        yield UnfinishedCache(read_layout(path, locking=False), file)


def _lock(file: BinaryIO, path: Path) -> None:
    """Keep other writers out until the file is closed, and HDF5's readers too, which ask for the same lock."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system: two writers at once are the user's to avoid
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CacheFileError(f"{path} is being written by another process. Wait for it to end.") from error
