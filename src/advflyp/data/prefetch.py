"""Batches made ahead of time in a thread, so that reading and decoding go on while the model computes."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def prefetched(items: Iterable[T], ahead: int = 2) -> Iterator[T]:
    """The items, up to `ahead` of them made before they are asked for. What the thread raises is raised here.

    A consumer that stops early stops the thread, and waits for the item it is at.
    """
    ready: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(ahead)
    stop = threading.Event()

    def put(done: bool, value: T | BaseException | None) -> None:
        while not stop.is_set():
            try:
                return ready.put((done, value), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                put(False, item)
                if stop.is_set():
                    break
            put(True, None)
        except BaseException as error:
            put(True, error)
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            done, value = ready.get()
            if isinstance(value, BaseException):
                raise value
            if done:
                return
            yield value  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
