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
    """Undecoded samples of an epoch."""

    def __len__(self) -> int:
        """Samples that all ranks together get from an epoch, as far as that is known."""
        ...

    def samples(self, epoch: int, position: Position | None = None) -> Iterator[tuple[Raw, Position]]:
        """The samples of an epoch behind `position`, each with the position behind it."""
        ...


def open_stream(source: Indexed | Sharded, *, seed: int, buffer: int, share: Share = WHOLE) -> Stream:
    """The stream of one rank; all of them together see each sample once an epoch."""
    if isinstance(source, Sharded):
        return ShardStream(source, seed=seed, buffer=buffer, rank=share.rank, ranks=share.ranks)
    return IndexedStream(source, seed=seed, share=share)


def permutation(n: int, *seed: Any) -> np.ndarray:
    """(n,) a permutation that depends on the values of `seed` alone."""
    return np.random.Generator(np.random.PCG64(derive_seed(*seed, bits=128))).permutation(n)


class IndexedStream:
    """A permutation of all samples, of which every rank takes its rows of every batch.

    So the batches of all ranks together are those of a single one, row by row, as long as no sample is skipped.
    """

    def __init__(self, source: Indexed | Sequence[Any], *, seed: int, share: Share = WHOLE) -> None:
        self.source, self.seed, self.share = source, seed, share

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
    """Samples that follow one another, by their place in the block; `end` is the place in the stream behind them."""

    def __init__(self, most: int) -> None:
        self.most, self.count, self.held = most, 0, 0
        self.samples: dict[int, Sample] = {}
        self.end: Place = (0, 0, 0)

    def fill(self, incoming: Iterator[tuple[Sample, Place]], most: int) -> None:
        """Take `most` samples more, or as many as there are and go in."""
        room = min(most, self.most - self.count) if self.held < MAX_SHUFFLED_BYTES else 0
        for sample, self.end in islice(incoming, room):
            self.samples[self.count] = sample
            self.count, self.held = self.count + 1, self.held + sample.held
            if self.held >= MAX_SHUFFLED_BYTES:
                return


class ShardStream:
    """Shards in a random order; within a block of `buffer` samples that follow one another, a random order.

    A block ends early where its samples fill MAX_SHUFFLED_BYTES. Whole blocks instead of a reservoir, so that a
    position is where the block begins and how much of it is out:
    resuming reads at most a block again. While a block goes out the next one comes in.
    With fewer shards than ranks, every rank reads all of them and takes each `ranks`-th sample.
    """

    def __init__(self, source: Sharded, *, seed: int, buffer: int, rank: int = 0, ranks: int = 1) -> None:
        self.source, self.seed, self.buffer, self.rank, self.ranks = source, seed, buffer, rank, ranks

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
        """Samples of this rank with the place behind each."""
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
        """The shards of this rank, each with how many of its samples are wanted; all of them where that is None."""
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

    An epoch is one of the main stream; the other begins its own epochs as often as it is needed.
    """

    def __init__(self, main: Stream, other: Stream, share: float, ranks: int = 1) -> None:
        if len(other) < ranks:
            raise ValueError("data.also holds fewer pairs than there are ranks; drop it or name more")
        self.main, self.other, self.share = main, other, share

    def __len__(self) -> int:
        return int(len(self.main) / (1 - self.share))

    def samples(self, epoch: int, position: Position | None = None) -> Iterator[tuple[Sample, Position]]:
        # Rounds of different epochs of the main stream must not be the same ones.
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
                        f"data.also promises {counted(len(self.other), 'pair')} and gives none; look at it with "
                        "`advflyp data check`, or leave it out"
                    )
                sample, at["other"] = found
            else:
                found = next(main, None)
                if found is None:
                    return
                sample, at["main"] = found
            at["n"] += 1
            yield sample, dict(at)
