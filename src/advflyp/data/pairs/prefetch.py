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
    """Each item with what `work` makes of it, in order, or, as a text, why it is skipped.

    Threads, not processes: decoding and resizing run outside the interpreter lock, and the order stays ours.
    What else `work` raises is raised here. A consumer that stops early does not wait for what nobody wants.

    Args:
        items: What to work on.
        work: Called from several threads at once; an item for which it raises `SkippedSample` is skipped.
        workers: Threads.
        ahead: Items that are begun before they are asked for, at most.
        held: Bytes of memory that an item holds; of those begun, no more than MAX_AHEAD_BYTES and one item.
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
    """Batches of what `threaded` decoded: the items, and their tensors as one; the last may be smaller.

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
    """The items, up to three of them made by a thread before they are asked for. What it raises is raised here.

    A consumer that stops early stops the thread, and waits for the item it is at.
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
