"""Batches ahead of time."""

import threading
from collections.abc import Iterator

import pytest

from advflyp.data.prefetch import prefetched


def test_the_items_in_order_some_of_them_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    taken = prefetched(items(), ahead=3)
    assert next(taken) == 0
    while len(made) < 5:  # the one taken, three waiting, one in the hand of the thread
        pass
    assert list(taken) == list(range(1, 20))


def test_what_the_thread_raises_is_raised_here() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken shard")

    taken = prefetched(items())
    assert next(taken) == 1
    with pytest.raises(ValueError, match="broken shard"):
        next(taken)


def test_a_consumer_that_stops_stops_the_thread() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            number = 0
            while True:
                yield (number := number + 1)
        finally:
            closed.set()

    taken = prefetched(items())
    next(taken)
    taken.close()
    assert closed.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
