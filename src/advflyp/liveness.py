"""Which ranks are alive, and meetings at which all are: how slow ranks are told from lost ones.

A rank may be at something for hours while the others wait: an attack on its share of the images, a download, a
checkpoint on a slow disk. So a meeting waits for as long as all are alive, and whether they are alive is asked every
second by threads of their own (`_Pulse`).
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

# How long a rank that is alive may keep silent, and how long an exchange may take once all are there for it.
TIMEOUT = timedelta(minutes=10)
# Seconds between two signs of life.
BEAT = 1.0
# Seconds that the result of a meeting may be on its way after one of the ranks has left.
GRACE = 2.0
# A store's counter holds so many bits for each of the things that are counted.
BITS = 20
FOREVER = timedelta(days=365)


class Meetings:
    """Where the ranks of a run wait for one another.

    Args:
        name: A name of its own for the meetings of one group.
    """

    def __init__(self, name: str) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        # A connection of its own: another thread may wait for an answer on the group's.
        store = _get_default_store().clone()
        store.set_timeout(FOREVER)
        self.store: Any = PrefixStore(f"advflyp/{name}", store)
        self.meetings = 0
        self.pulse = _Pulse()
        # Also where the process ends without `leave`: a thread that is in the middle of an exchange would abort it.
        weakref.finalize(self, self.pulse.leave)

    def leave(self) -> None:
        """Stop asking whether the others are alive, and letting them know."""
        self.pulse.leave()

    def meet(self, *votes: bool) -> list[int]:
        """How many ranks gave each vote, when all have come here; `LostRank` where one is gone.

        By a counter in the store, not by a collective: one that waits for a machine that has vanished keeps the
        process from ending.
        """
        self.meetings += 1
        ballot = sum(vote << (BITS * place) for place, vote in enumerate([True, *votes]))
        counted: list[int] = []
        # The store's machine may vanish as well, and no call of it ends then.
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
                # Whoever came to this meeting has left the last one.
                for key in (f"{meeting - 1}", f"{meeting - 1}/all"):
                    self.store.delete_key(key)


class _Pulse:
    """Tells ranks that are slow from those that are gone: a thread in each, which meets those of the others.

    A process that has been killed closes its connections, and the threads of the others see that at once; from one
    whose machine has vanished they hear nothing for `TIMEOUT`.

    Attributes:
        all_alive: No rank has been lost, or has left.
    """

    def __init__(self) -> None:
        self.group: Any = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self.all_alive = True
        self.leaving = threading.Event()
        self.thread = threading.Thread(target=self._beat, name="pulse", daemon=True)
        self.thread.start()

    def leave(self) -> None:
        """Tell the others, whose threads end as well: from here on ranks end one after the other."""
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
