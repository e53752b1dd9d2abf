"""Tell slow ranks from lost ones: a heartbeat, and meetings that wait only while all ranks are alive.

A rank may be busy for hours while the others wait: with an attack on its share of the images, a download, a checkpoint
on a slow disk. So a meeting waits as long as all ranks are alive, which separate threads (`_Pulse`) check every second.
"""

import threading
import weakref
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store

from advflyp.errors import LostRank

# How long a live rank may stay silent, and how long an exchange may take once all ranks have arrived.
TIMEOUT = timedelta(minutes=10)
# Seconds between two heartbeats.
BEAT = 1.0
# Seconds to wait for the result of a meeting after one of the ranks has left.
GRACE = 2.0
# Bits of the store's counter for each number that is counted.
BITS = 20
FOREVER = timedelta(days=365)


class Meetings:
    """Meetings at which the ranks of a run wait for one another.

    Args:
        name: A name that is unique to one group's meetings.
    """

    def __init__(self, name: str) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        # A separate connection: another thread may be waiting for an answer on the group's.
        store = _get_default_store().clone()
        store.set_timeout(FOREVER)
        self.store: Any = PrefixStore(f"advflyp/{name}", store)
        self.meetings = 0
        self.pulse = _Pulse()
        # Also if the ranks never leave: a thread in the middle of an exchange would abort the process as it ends.
        weakref.finalize(self, self.pulse.leave)

    def meet(self, *votes: bool) -> list[int]:
        """Wait until all ranks arrive; how many of them gave each vote. `LostRank` if one is gone.

        Uses a counter in the store instead of a collective: a collective that waits for a vanished machine keeps the
        process from ending.
        """
        self.meetings += 1
        ballot = sum(vote << (BITS * place) for place, vote in enumerate([True, *votes]))
        counted: list[int] = []
        # The store's machine may vanish as well; calls of the store then never return.
        clerk = threading.Thread(target=self._count, args=(self.meetings, ballot, counted), daemon=True)
        clerk.start()
        clerk.join(BEAT)
        while clerk.is_alive() and self.pulse.all_alive:
            clerk.join(BEAT)
        clerk.join(GRACE)
        if not counted:
            raise LostRank
        return [counted[0] >> (BITS * (place + 1)) & (1 << BITS) - 1 for place in range(len(votes))]

    def _count(self, meeting: int, ballot: int, counted: list[int]) -> None:
        with suppress(RuntimeError):  # the store is gone, and its process with it
            total = self.store.add(f"{meeting}", ballot)
            if total & (1 << BITS) - 1 == self.size:
                self.store.set(f"{meeting}/all", str(total))
            counted.append(int(self.store.get(f"{meeting}/all")))
            if self.rank == 0:
                # All ranks at this meeting have left the previous one.
                for key in (f"{meeting - 1}", f"{meeting - 1}/all"):
                    self.store.delete_key(key)


class _Pulse:
    """Tells slow ranks from lost ones: a thread in each rank exchanges heartbeats with those of the others.

    If a process is killed, its connections close, which the threads of the others see at once; if a machine vanishes,
    they notice after `TIMEOUT`.

    Attributes:
        all_alive: Whether no rank has been lost or has left.
    """

    def __init__(self) -> None:
        self.group: Any = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self.all_alive = True
        self.leaving = threading.Event()
        self.thread = threading.Thread(target=self._beat, name="pulse", daemon=True)
        self.thread.start()

    def leave(self) -> None:
        """Tell the other ranks, whose threads end as well: from now on ranks may end at different times."""
        self.leaving.set()
        self.thread.join(2 * BEAT)

    def _beat(self) -> None:
        while self.all_alive:
            leaving = torch.tensor(int(self.leaving.wait(BEAT)))
            try:
                dist.all_reduce(leaving, dist.ReduceOp.MAX, group=self.group)
            except RuntimeError:
                self.all_alive = False
            else:
                self.all_alive = not leaving
