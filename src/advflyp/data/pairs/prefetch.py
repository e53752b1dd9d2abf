"""Work done ahead of time: images decoded in threads, batches made while the model computes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from advflyp.errors import SkippedSample
from advflyp.limits import MAX_AHEAD_BYTES

T = TypeVar("T")
R = TypeVar("R")
_END = object()


def threaded(
    items: Iterable[T],
    work: Callable[[T], R],
    workers: int,
    ahead: int,
    held: Callable[[T], int] = lambda _: 0,
) -> Iterator[tuple[T, R | str]]:
    """Each item, in order, with the result of `work` or, as a text, the reason why it is skipped.

    Threads, not processes: decoding and resizing release the GIL, and the order is easy to keep. Any other exception
    from `work` is raised here. A consumer that stops early does not wait for the items already started.

    Args:
        items: What to work on.
        work: Called from several threads at once; an item for which it raises `SkippedSample` is skipped.
        workers: Threads.
        ahead: Maximum number of items started before they are requested.
        held: Memory that an item holds, in bytes; started items hold at most MAX_AHEAD_BYTES plus one item.
    """

    def tried(item: T) -> R | str:
        try:
            return work(item)
        except SkippedSample as reason:
            return str(reason)

    begun: deque[tuple[T, Future[R | str]]] = deque()
    bytes_held = 0
    pool = ThreadPoolExecutor(workers, "decode")
    try:
        for item in items:
            begun.append((item, pool.submit(tried, item)))
            bytes_held += held(item)
            while len(begun) > ahead or (bytes_held > MAX_AHEAD_BYTES and len(begun) > 1):
                first, future = begun.popleft()
                bytes_held -= held(first)
                yield first, future.result()
        while begun:
            first, future = begun.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def stacked(
    decoded: Iterable[tuple[T, Tensor | str]], size: int, skip: Callable[[T, str], None]
) -> Iterator[tuple[list[T], Tensor]]:
    """Batches of the results of `threaded`: the items, and their tensors stacked; the last may be smaller.

    Args:
        decoded: Items, each with its tensor or why it is skipped.
        size: Items of a batch.
        skip: Called with each item that is skipped, and why.
    """
    items: list[T] = []
    tensors: list[Tensor] = []
    for item, tensor in decoded:
        if isinstance(tensor, str):
            skip(item, tensor)
            continue
        items.append(item)
        tensors.append(tensor)
        if len(items) == size:
            yield items, torch.stack(tensors)
            items, tensors = [], []
    if items:
        yield items, torch.stack(tensors)


def prefetched(items: Iterable[T]) -> Iterator[T]:
    """The items, up to three of them made ahead by a thread, whose exceptions are raised here.

    A consumer that stops early stops the thread, and waits for the item being made.
    """
    iterator = iter(items)
    pool = ThreadPoolExecutor(1, "prefetch")
    try:
        waiting = deque(pool.submit(next, iterator, _END) for _ in range(3))
        while (item := waiting.popleft().result()) is not _END:
            waiting.append(pool.submit(next, iterator, _END))
            yield item  # type: ignore[misc]
    finally:
        pool.shutdown(cancel_futures=True)
        if close := getattr(iterator, "close", None):
            close()
