"""What users see: bars and stages on a terminal's stderr, tables on stdout."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import typer


def hush() -> None:
    """Keep the libraries' bars and notices from stderr: ours say what is going on."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@contextlib.contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """A callback that draws one bar after the other: what is being done, how much of it is done, and the whole."""
    from tqdm import tqdm

    bar: tqdm | None = None
    drawn: tuple[str, int] = ("", 0)

    def draw(what: str, done: int, whole: int) -> None:
        nonlocal bar, drawn
        if bar is None or drawn[0] != what:
            if bar is not None:
                bar.close()
            # disable=None: no bar where stderr is no terminal.
            bar, drawn = tqdm(total=whole, desc=what, disable=None, file=sys.stderr), (what, 0)
        bar.update(done - drawn[1])
        drawn = (what, done)

    try:
        yield draw
    finally:
        if bar is not None:
            bar.close()


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
