"""Items come in order, errors at their place, and nothing is left running."""

import threading
from collections.abc import Generator

import pytest

from sae_persona.cache.prefetch import prefetched


def numbers(made: list[int], *, fail_at: int = 99) -> Generator[int, None, None]:
    for i in range(6):
        if i == fail_at:
            raise ValueError("no more")
        made.append(i)
        yield i


@pytest.mark.parametrize("n_ahead", [0, 1, 4, 10])
def test_all_items_come_in_order(n_ahead: int) -> None:
    assert list(prefetched(numbers([]), n_ahead=n_ahead)) == [0, 1, 2, 3, 4, 5]


def test_an_error_comes_after_the_items_before_it() -> None:
    items = prefetched(numbers([], fail_at=2), n_ahead=4)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ValueError, match="no more"):
        next(items)


def test_items_are_made_while_the_consumer_is_busy_and_no_further_ahead() -> None:
    made: list[int] = []
    ready = threading.Event()

    def source() -> Generator[int, None, None]:
        for i in numbers(made):
            if i == 2:
                ready.set()
            yield i

    items = prefetched(source(), n_ahead=2)
    assert next(items) == 0
    assert ready.wait(60), "the third is made although only one was asked for"
    assert made == [0, 1, 2]


def test_leaving_early_ends_the_thread_and_closes_the_source() -> None:
    source = numbers([])
    items = prefetched(source, n_ahead=2)
    next(items)
    items.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
    assert next(source, "closed") == "closed"
