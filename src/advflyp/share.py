"""How a batch is divided among the ranks."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Share:
    """The rows of every batch that belong to one rank: from `first` up to but not including `last`.

    Attributes:
        batch: N, images in a batch over all ranks.
        rank: The number of this rank.
        ranks: The number of ranks.
        drop_last: Drop the samples beyond an epoch's full batches; if False, they form a smaller batch, divided alike.
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
        """The number of batches in an epoch of `count` samples; in each, every rank has at least one row."""
        full, rest = divmod(count, self.batch)
        return full + (not self.drop_last and rest >= self.ranks)

    def holds(self, count: int) -> np.ndarray:
        """(count,) bool: which of an epoch's samples belong to this rank."""
        row = np.arange(count) % self.batch
        mine = (row >= self.first) & (row < self.last)
        rest = count % self.batch
        if rest and not self.drop_last:
            first, last = self.of_last(rest)
            mine[count - rest :] = (row[:rest] >= first) & (row[:rest] < last)
        return mine

    def of_last(self, rest: int) -> tuple[int, int]:
        """First and last (exclusive) of this rank's rows in a batch of `rest` samples, at most a full one.

        The numbers of rows of two ranks differ by at most one; no rank has more than in a full batch.
        """
        each, more = divmod(rest, self.ranks)
        full = [Share(self.batch, rank, self.ranks).size for rank in range(self.ranks)]
        larger = sorted(range(self.ranks), key=lambda rank: -full[rank])[:more]
        sizes = [each + (rank in larger) for rank in range(self.ranks)]
        first = sum(sizes[: self.rank])
        return first, first + sizes[self.rank]


# A single rank has all rows, whatever the batch size.
WHOLE = Share(1)
