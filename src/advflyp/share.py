"""How a batch is shared out over the ranks."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Share:
    """The rows of every batch that one rank has: from `first` to `last`, exclusive.

    Attributes:
        batch: N, images in a batch of all ranks.
        rank: Which rank.
        ranks: How many there are.
        drop_last: Leave out what an epoch has beyond its full batches; else it is a smaller batch, shared out alike.
    """

    batch: int
    rank: int = 0
    ranks: int = 1
    drop_last: bool = True

    @property
    def first(self) -> int:
        return self.rank * self.batch // self.ranks

    @property
    def last(self) -> int:
        return (self.rank + 1) * self.batch // self.ranks

    @property
    def size(self) -> int:
        return self.last - self.first

    def batches(self, count: int) -> int:
        """Batches in an epoch of `count` samples, each with a row for every rank."""
        full, rest = divmod(count, self.batch)
        return full + (not self.drop_last and rest >= self.ranks)

    def holds(self, count: int) -> np.ndarray:
        """(count,) bool: which of an epoch's samples are this rank's."""
        row = np.arange(count) % self.batch
        mine = (row >= self.first) & (row < self.last)
        rest = count % self.batch
        if rest and not self.drop_last:
            first, last = self.of_last(rest)
            mine[count - rest :] = (row[:rest] >= first) & (row[:rest] < last)
        return mine

    def of_last(self, rest: int) -> tuple[int, int]:
        """The rows, from the first to the last, exclusive, of a batch of `rest` at most as large as a full one: as many
        for each rank as for the others, but for one, and for none more than it has of a full batch.
        """
        each, more = divmod(rest, self.ranks)
        full = [Share(self.batch, rank, self.ranks).size for rank in range(self.ranks)]
        larger = sorted(range(self.ranks), key=lambda rank: -full[rank])[:more]
        sizes = [each + (rank in larger) for rank in range(self.ranks)]
        first = sum(sizes[: self.rank])
        return first, first + sizes[self.rank]


# A rank alone has all rows, of however many a batch consists.
WHOLE = Share(1)
