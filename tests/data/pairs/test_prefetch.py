"""Batches ahead of time."""

import threading
from collections.abc import Iterator

import pytest

from advflyp.data.pairs import prefetch
from advflyp.data.pairs.prefetch import prefetched, threaded


def test_the_items_in_order_some_of_them_ahead() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    taken = prefetched(items())
    assert next(taken) == 0
    while len(made) < 4:  # the one taken, and three waiting
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
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_threads_keep_the_order_and_stay_within_bounds() -> None:
    begun = 0

    def items() -> Iterator[int]:
        nonlocal begun
        for number in range(50):
            begun += 1
            yield number

    def slow_first(number: int) -> int:
        if number % 7 == 0:
            threading.Event().wait(0.01)
        return number * number

    done = threaded(items(), slow_first, 4, 6)
    assert next(done) == (0, 0) and begun == 7
    assert list(done) == [(n, n * n) for n in range(1, 50)]


def test_an_error_in_a_thread_is_raised_at_its_place() -> None:
    done = threaded(range(5), lambda n: 1 // (n - 2), 2, 3)
    assert [next(done)[0] for _ in range(2)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(done)


def test_what_waits_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "MAX_AHEAD_BYTES", 100)
    made: list[int] = []

    def items() -> Iterator[int]:
        for size in (*[40] * 10, 500, 40):
            made.append(size)
            yield size

    waiting: list[int] = []
    taken: list[int] = []
    for size, done in threaded(items(), lambda size: -size, workers=2, ahead=6, held=lambda size: size):
        assert done == -size
        taken.append(size)
        waiting.append(sum(made) - sum(taken))
    assert taken == made and len(taken) == 12
    # Six of 40 would be 240. What has just been read may be larger than the limit.
    assert max(waiting[:8]) <= 100 + 40 and max(waiting) <= 100 + 500
