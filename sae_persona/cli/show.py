"""What users see: bars and stages on a terminal's stderr, tables on stdout."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from tqdm import tqdm


def hush() -> None:
    """Keep the libraries' bars and notices from stderr: ours say what is going on."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


class Bars:
    """One bar after the other: what is being done, how much of it is done, and the whole."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._drawn: tuple[str, int] = ("", 0)

    def __call__(self, what: str, done: int, whole: int) -> None:
        """Draw."""
        from tqdm import tqdm

        if self._bar is None or self._drawn[0] != what:
            self.close()
            # disable=None: no bar where stderr is no terminal.
            self._bar, self._drawn = tqdm(total=whole, desc=what, disable=None, file=sys.stderr), (what, 0)
        self._bar.update(done - self._drawn[1])
        self._drawn = (what, done)

    def tell(self, text: str) -> None:
        """Write behind the bar that is drawn."""
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


@contextlib.contextmanager
def bars() -> Iterator[Bars]:
    """A callback that draws bars."""
    drawn = Bars()
    try:
        yield drawn
    finally:
        drawn.close()


@contextlib.contextmanager
def stages() -> Iterator[Callable[[str, bool], None]]:
    """A callback that tells each stage as it begins, whether it is only read, and what it took."""
    started: float | None = None

    def end() -> None:
        nonlocal started
        if started is not None:
            typer.echo(f" {time.monotonic() - started:.1f} s", err=True)
        started = None

    def begin(stage: str, done: bool) -> None:
        nonlocal started
        end()
        if not sys.stderr.isatty():
            return
        typer.echo(f"{stage}: {'already done' if done else '...'}", err=True, nl=done)
        started = None if done else time.monotonic()

    try:
        yield begin
    finally:
        end()


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their header, columns aligned."""
    columns([header, *rows])


def columns(rows: Sequence[Sequence[object]]) -> None:
    """Print rows, columns aligned."""
    cells = [list(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
