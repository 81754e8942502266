"""Items made ahead of need, in a thread of their own."""

import contextlib
from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetched(items: Generator[T, None, None], *, n_ahead: int) -> Generator[T, None, None]:
    """The same items in the same order; up to `n_ahead` of them are made while the caller is busy with one.

    What `items` raises is raised here, at its place. Leaving early closes `items`.
    """
    if n_ahead == 0:
        yield from items
        return
    end = object()
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        ahead = deque(pool.submit(next, items, end) for _ in range(n_ahead))
        while (item := ahead.popleft().result()) is not end:
            ahead.append(pool.submit(next, items, end))
            yield item  # pyright: ignore[reportReturnType]
    finally:
        with contextlib.suppress(AttributeError):  # at the interpreter's end, what the pool needs may be gone
            pool.shutdown(cancel_futures=True)
        items.close()
