"""The order of an epoch: shuffled, split over ranks, continued exactly where it stopped.

Every order depends on (seed, epoch, share) alone. A position is a small mapping of numbers that a checkpoint stores;
only the stream that made it can read it.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, TypeVar

import numpy as np

from advflyp.data.pairs.samples import Indexed, Sample, Shard, Sharded
from advflyp.limits import MAX_SHUFFLED_BYTES
from advflyp.seeds import derive_seed
from advflyp.share import WHOLE, Share
from advflyp.wording import counted

Position = dict[str, Any]
Raw = TypeVar("Raw", covariant=True)  # a sample before decoding


class Stream(Protocol[Raw]):
    """Undecoded samples of an epoch.

    Attributes:
        contents: What it is made of, in words: a position is of use only while that stays the same.
    """

    @property
    def contents(self) -> str: ...

    def __len__(self) -> int:
        """Number of samples per epoch over all ranks, as far as that is known."""
        ...

    def samples(self, epoch: int, position: Position | None = None) -> Iterator[tuple[Raw, Position]]:
        """The samples of an epoch after `position`, each with the position after it."""
        ...


def open_stream(source: Indexed | Sharded, *, seed: int, buffer: int, share: Share = WHOLE) -> Stream:
    """The stream of one rank; all ranks together see each sample once per epoch."""
    if isinstance(source, Sharded):
        return ShardStream(source, seed=seed, buffer=buffer, rank=share.rank, ranks=share.ranks)
    return IndexedStream(source, seed=seed, share=share)


def permutation(n: int, *seed: Any) -> np.ndarray:
    """(n,) a permutation that depends on the values of `seed` alone."""
    return np.random.Generator(np.random.PCG64(derive_seed(*seed, bits=128))).permutation(n)


class IndexedStream:
    """A permutation of all samples, from which every rank takes its rows of every batch.

    The batches of all ranks together thus equal those of a single rank, row by row, as long as no sample is skipped.
    """

    def __init__(self, source: Indexed | Sequence[Any], *, seed: int, share: Share = WHOLE) -> None:
        self.source, self.seed, self.share = source, seed, share
        self.contents = counted(len(source), "sample")

    def __len__(self) -> int:
        return len(self.source)

    def samples(self, epoch: int, position: Position | None = None) -> Iterator[tuple[Any, Position]]:
        done = position["done"] if position else 0
        mine = permutation(len(self), self.seed, epoch)[self.share.holds(len(self))]
        for number in mine[done:].tolist():
            done += 1
            yield self.source[number], {"done": done}


Place = tuple[int, int, int]  # shard in the epoch's order, number in it, offset


class _Block:
    """Consecutive samples, by their place in the block; `end` is the place in the stream after them."""

    def __init__(self, most: int) -> None:
        self.most, self.count, self.held = most, 0, 0
        self.samples: dict[int, Sample] = {}
        self.end: Place = (0, 0, 0)

    def fill(self, incoming: Iterator[tuple[Sample, Place]], most: int) -> None:
        """Take up to `most` more samples, as far as they exist and fit."""
        room = min(most, self.most - self.count) if self.held < MAX_SHUFFLED_BYTES else 0
        for sample, self.end in islice(incoming, room):
            self.samples[self.count] = sample
            self.count, self.held = self.count + 1, self.held + sample.held
            if self.held >= MAX_SHUFFLED_BYTES:
                return


class ShardStream:
    """Shards in random order, and their samples shuffled in blocks of `buffer` consecutive samples.

    A block ends early if its samples fill MAX_SHUFFLED_BYTES. With blocks instead of a reservoir, a position is just
    the start of a block and the number of its samples already used, and resuming reads at most one block again. The
    next block is read while the current one is used.
    With fewer shards than ranks, every rank reads all of them and takes every `ranks`-th sample.
    """

    def __init__(self, source: Sharded, *, seed: int, buffer: int, rank: int = 0, ranks: int = 1) -> None:
        self.source, self.seed, self.buffer, self.rank, self.ranks = source, seed, buffer, rank, ranks
        self.contents = f"{counted(len(source), 'sample')} in {counted(len(source.shards), 'shard')}"

    def __len__(self) -> int:
        return len(self.source)

    def samples(self, epoch: int, position: Position | None = None) -> Iterator[tuple[Sample, Position]]:
        at = position or {"block": 0, "out": 0, "shard": 0, "number": 0, "offset": 0}
        number, out = at["block"], at["out"]
        begin: Place = (at["shard"], at["number"], at["offset"])
        incoming = self._unshuffled(epoch, *begin)
        block = _Block(self.buffer)
        block.fill(incoming, self.buffer)
        while block.samples:
            following = _Block(self.buffer)
            order = permutation(len(block.samples), self.seed, epoch, self.rank, number)
            for place in order[out:].tolist():
                following.fill(incoming, 1)
                out += 1
                at = dict(zip(("shard", "number", "offset"), begin, strict=True))
                yield block.samples.pop(place), {"block": number, "out": out, **at}
            following.fill(incoming, self.buffer)
            block, begin, number, out = following, block.end, number + 1, 0

    def _unshuffled(self, epoch: int, first: int, number: int, offset: int) -> Iterator[tuple[Sample, Place]]:
        """The samples of this rank, each with the place after it."""
        shards = self._order(epoch)
        split = len(self.source.shards) < self.ranks
        for place in range(first, len(shards)):
            shard, most = shards[place]
            for sample, offset in shard.read(offset):  # noqa: B020, a resumed stream begins within a shard
                if most is not None and number >= most:
                    break
                number += 1
                if not split or number % self.ranks == self.rank:
                    yield sample, (place, number, offset)
            number = offset = 0

    def _order(self, epoch: int) -> list[tuple[Shard, int | None]]:
        """The shards of this rank, each with the number of samples wanted from it (None: all)."""
        chosen: list[tuple[Shard, int | None]] = []
        left = self.source.limit
        for shard in self.source.shards:
            if left is None:
                chosen.append((shard, None))
            elif left > 0:
                assert shard.count is not None
                chosen.append((shard, min(left, shard.count)))
                left -= shard.count
        order = permutation(len(chosen), self.seed, epoch, "shards").tolist()
        if len(self.source.shards) >= self.ranks:
            order = order[self.rank :: self.ranks]
        return [chosen[number] for number in order]


class Mixed:
    """Two streams, the second making up a share of the samples, evenly spread.

    An epoch is one epoch of the main stream; the other stream starts its own epochs as often as needed.
    """

    def __init__(self, main: Stream, other: Stream, share: float, ranks: int = 1) -> None:
        if len(other) < ranks:
            raise ValueError(
                "data.also holds fewer pairs than the run has ranks; leave it out or name a larger source"
            )
        self.main, self.other, self.share = main, other, share
        self.contents = f"{main.contents} and {other.contents}"

    def __len__(self) -> int:
        return int(len(self.main) / (1 - self.share))

    def samples(self, epoch: int, position: Position | None = None) -> Iterator[tuple[Sample, Position]]:
        # Different epochs of the main stream must not use the same epochs of the other.
        begin = {"n": 0, "main": None, "other": None, "round": epoch * 1_000_000}
        at: Position = dict(position or begin)
        main = self.main.samples(epoch, at["main"])
        other = self.other.samples(at["round"], at["other"])
        while True:
            if int((at["n"] + 1) * self.share) > int(at["n"] * self.share):
                found = next(other, None)
                if found is None:
                    at["round"] += 1
                    other = self.other.samples(at["round"])
                    found = next(other, None)
                if found is None:
                    raise ValueError(
                        f"data.also should hold {counted(len(self.other), 'pair')} but yields none; inspect it "
                        "with `advflyp data check`, or leave it out"
                    )
                sample, at["other"] = found
            else:
                found = next(main, None)
                if found is None:
                    return
                sample, at["main"] = found
            at["n"] += 1
            yield sample, dict(at)
