"""What the processes of tests/test_waiting.py do; each prints what came of it."""

import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta

import torch

from advflyp import distributed, liveness
from advflyp.errors import LostRank

# Seconds, in place of ten minutes.
LIMIT = 2.0


def main(what: str) -> None:
    liveness.TIMEOUT, liveness.BEAT = timedelta(seconds=LIMIT), 0.2
    with distributed.process_group("cpu") as (ranks, _):
        try:
            print(WORK[what](ranks))
        except LostRank as error:
            print(error)
            sys.exit(1)


def slow(ranks: distributed.Ranks) -> list[object]:
    """The second takes three times as long as it might keep silent."""
    time.sleep(3 * LIMIT * ranks.rank)
    return [ranks.all_gather_object(ranks.rank)]


def slow_everywhere(ranks: distributed.Ranks) -> list[object]:
    """One or the other is late for everything that is exchanged."""
    late = ranks.rank == 1
    found: list[object] = [ranks.broadcast_from_rank0(lambda: time.sleep(3 * LIMIT) or "done")]
    time.sleep(3 * LIMIT * late)
    found += [ranks.go_on(not late, False), ranks.go_on(True, late), ranks.go_on(True, False)]
    time.sleep(3 * LIMIT * late)
    ranks.wait_for_all()
    return [*found, ranks.all_reduce_sum(torch.tensor(1 + ranks.rank)).item()]


def gone(rank: int, how: Callable[[], None]) -> Callable[[distributed.Ranks], list[int]]:
    """A process that is lost while the others wait for it."""

    def work(ranks: distributed.Ranks) -> list[int]:
        ranks.wait_for_all()
        if ranks.rank == rank:
            time.sleep(1)
            how()
        return ranks.all_gather_object(ranks.rank)

    return work


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def vanish() -> None:
    """No connection is closed, as when a machine loses its network."""
    os.kill(os.getpid(), signal.SIGSTOP)


def fail() -> None:
    raise ValueError("its own message")


WORK: dict[str, Callable[[distributed.Ranks], object]] = {
    "slow": slow,
    "slow everywhere": slow_everywhere,
    **{f"kill {rank}": gone(rank, kill) for rank in (0, 1)},
    **{f"vanish {rank}": gone(rank, vanish) for rank in (0, 1)},
    **{f"fail {rank}": gone(rank, fail) for rank in (0, 1)},
}
