"""The ranks of a run, and what they exchange.

Every rank holds some rows of each batch, its images; it alone computes their embeddings and gradients. The loss
couples all rows. To a rank, the rows of the other ranks are constants, since they do not depend on its own. So it
computes the loss of the whole batch as a function of its own rows, and differentiates that:

- the gradient with respect to its own images is complete. No gradient is exchanged within an attack.
- the gradient with respect to the weights covers only its own rows. By the chain rule, the full gradient is the sum
  over all ranks; that sum is the only exchange of gradients in a step.

`Ranks` is a single rank, `Group` one of several; losses are written for either. Every exchange between hosts begins
with a meeting (`liveness.py`), which waits as long as all ranks are alive; only what follows it has a time limit.
"""

import gc
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from advflyp import liveness
from advflyp.devices import pick_device
from advflyp.errors import LostRank
from advflyp.liveness import Meetings
from advflyp.share import Share

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


class Ranks:
    """A single rank, which holds every row and exchanges nothing.

    Attributes:
        rank: The number of this rank.
        size: The number of ranks.
        first_row: Index in the batch of this rank's first row.
    """

    rank = 0
    size = 1
    first_row = 0

    def rows(self, own: int) -> int:
        """The number of rows in the whole batch, of which this rank holds `own`."""
        return own

    def split(self, sizes: Sequence[int] | None = None) -> None:
        """Set the number of rows per rank for the following batches; by default, back to the initial numbers."""

    def gather(self, rows: Tensor) -> Tensor:
        """(n, …) own rows → (N, …) rows of all ranks, in batch order; gradients reach every row."""
        return rows

    def mean(self, rows: Tensor) -> Tensor:
        """(n,) → the mean over the N rows of the batch; gradients reach only the own rows."""
        return rows.mean()

    def all_reduce_sum(self, value: Tensor) -> Tensor:
        """The elementwise sum over all ranks; gradients reach only the own value."""
        return value

    def all_gather(self, value: Tensor) -> Tensor:
        """(…) → (ranks, …) every rank's value; gradients reach only the own value."""
        return value[None]

    def logsumexp(self, value: Tensor) -> Tensor:
        """The elementwise log Σ exp over all ranks; gradients reach only the own value."""
        return value

    def all_gather_object(self, value: T) -> list[T]:
        """Every rank's `value`, in rank order."""
        return [value]

    def broadcast_from_rank0(self, work: Callable[[], T]) -> T:
        """Run `work` on rank 0 only; return its result, or raise its ValueError, on all ranks."""
        return work()

    def go_on(self, more: bool, stop: bool) -> tuple[bool, bool]:
        """Whether every rank has more to do, and whether any rank wants to stop."""
        return more, stop

    def wait_for_all(self) -> None:
        """Wait until every rank arrives, however long one takes; `LostRank` if one is gone."""

    def leave(self) -> None:
        """Stop exchanging signs of life with the other ranks."""

    def close(self) -> None:
        """Disconnect from the other ranks; call it before the process ends."""


ALONE = Ranks()


class Group(Ranks):
    """One of several ranks; torch.distributed must be initialised.

    Args:
        batch: N, rows of a batch over all ranks.
        device: This rank's device.
    """

    def __init__(self, batch: int, device: torch.device) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.device = device
        self.full = [Share(batch, rank, self.size).size for rank in range(self.size)]
        self.split()
        # What the host decides is exchanged between hosts: reading it from a device would make the host wait.
        self.hosts: Any = dist.new_group(backend="gloo", timeout=liveness.TIMEOUT)
        self.meetings = Meetings(self.hosts.group_name)

    def rows(self, own: int) -> int:
        return self.batch

    def split(self, sizes: Sequence[int] | None = None) -> None:
        self.sizes = self.full if sizes is None else list(sizes)
        self.batch, self.first_row = sum(self.sizes), sum(self.sizes[: self.rank])

    def gather(self, rows: Tensor) -> Tensor:
        return _Gather.apply(rows, self.sizes, self.rank)

    def mean(self, rows: Tensor) -> Tensor:
        return self.all_reduce_sum(rows.sum()) / self.batch

    def all_reduce_sum(self, value: Tensor) -> Tensor:
        whole = value.detach().clone()
        dist.all_reduce(whole)
        return _Shared.apply(value, whole)

    def all_gather(self, value: Tensor) -> Tensor:
        every = [torch.empty_like(value, requires_grad=False) for _ in range(self.size)]
        dist.all_gather(every, value.detach().contiguous())
        every[self.rank] = value
        return torch.stack(every)

    def logsumexp(self, value: Tensor) -> Tensor:
        highest = value.detach().clone()
        dist.all_reduce(highest, dist.ReduceOp.MAX)
        total = (value.detach() - highest).exp()
        dist.all_reduce(total)
        whole = highest + total.log()
        return _Shared.apply((value - whole).exp(), whole)

    def all_gather_object(self, value: T) -> list[T]:
        every: list[Any] = [None] * self.size
        self.meetings.meet()
        with _losses():
            dist.all_gather_object(every, value, group=self.hosts)
        return every

    def go_on(self, more: bool, stop: bool) -> tuple[bool, bool]:
        ended, stopped = self.meetings.meet(not more, stop)
        return not ended, bool(stopped)

    def wait_for_all(self) -> None:
        self.meetings.meet()

    def broadcast_from_rank0(self, work: Callable[[], T]) -> T:
        found: list[Any] = [None, None]
        if self.rank == 0:
            try:
                found[0] = work()
            except ValueError as error:
                found[1] = str(error)
        self.meetings.meet()
        with _losses():
            dist.broadcast_object_list(found, src=0, group=self.hosts)
        if found[1] is not None:
            raise ValueError(found[1])
        return found[0]

    def leave(self) -> None:
        self.meetings.pulse.leave()

    def close(self) -> None:
        self.leave()
        # A process whose gradient buckets outlive the connection may be aborted as it exits.
        gc.collect()
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _losses() -> Iterator[None]:
    """Turn the error that a backend raises when another rank is gone into `LostRank`."""
    try:
        yield
    except RuntimeError as error:
        raise LostRank from error


class _Shared(torch.autograd.Function):
    """A value that is the same on all ranks; its gradient goes to the own part only."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, whole: Tensor) -> Tensor:
        return whole.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Gather(torch.autograd.Function):
    """Rows of all ranks. Each rank's loss covers only its own rows, so the gradients are summed over the ranks.

    torch.distributed.nn has such a function, but it is deprecated in torch 2.15, and its successor is absent in 2.11.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int], rank: int) -> Tensor:
        ctx.sizes, ctx.rank = sizes, rank
        assert len(rows) == sizes[rank]
        # Collectives take equal shapes only.
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        every = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(every, padded)
        return torch.cat([part[:size] for part, size in zip(every, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        first = sum(ctx.sizes[: ctx.rank])
        return gradient[first : first + ctx.sizes[ctx.rank]], None, None


def start(
    device: str | torch.device, trackers: Sequence[str] = (), folder: Path | None = None
) -> "Accelerator":
    """Pick the device of this rank, and connect it to the others if a launcher has started several.

    Args:
        device: "auto", "cpu" or "cuda".
        trackers: Trackers that the run will write to.
        folder: Folder for the trackers' files.

    Raises:
        ValueError: There is no such device, ranks cannot use it, or there are more ranks than GPUs.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import InitProcessGroupKwargs

    # Accelerate keeps one state per process; a second run may ask for another device.
    AcceleratorState._reset_state(reset_partial_state=True)
    place = pick_device(device)
    if place.type not in ("cpu", "cuda") or place.index is not None:
        raise ValueError(f"the ranks of a run cannot share '{device}'; use cpu, or cuda for one GPU each")
    local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if place.type == "cuda" and local >= gpus:
        raise ValueError(
            f"local rank {local} has no GPU: this machine has {gpus}; start at most that many ranks on it"
        )
    return Accelerator(
        cpu=place.type == "cpu",
        log_with=list(trackers) or None,
        project_dir=folder,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=liveness.TIMEOUT)],
    )


def replicated(module: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """The module with its gradients averaged over all ranks, exchanged while they are being computed."""
    if ranks.size == 1:
        return module
    # DDP compares the parameters under a time limit, and one rank may still be downloading what the others have.
    ranks.wait_for_all()
    # `update` averages those buffers that change; the option not to synchronise them has another name in torch 2.15.
    known = inspect.signature(DistributedDataParallel).parameters
    alone: Any = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
    return DistributedDataParallel(
        module,
        device_ids=[device] if device.type == "cuda" else None,
        # Every step has the same graph, so unused parameters are known after the first.
        static_graph=True,
        gradient_as_bucket_view=True,
        **alone,
    )


@contextmanager
def process_group(device: str | torch.device) -> Iterator[tuple[Ranks, torch.device | None]]:
    """The ranks, for work outside training, and the device of this rank if a launcher assigned one.

    Ranks that were already connected stay connected afterwards.
    """
    connected = dist.is_initialized()
    if not connected and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE, None
        return
    own = None
    if not connected:
        own = start(device).device
    elif torch.cuda.is_available():
        own = torch.device(f"cuda:{torch.cuda.current_device()}")
    ranks = join(dist.get_world_size(), own or torch.device("cpu"))
    try:
        yield ranks, own
    finally:
        if connected:
            ranks.leave()
        else:
            ranks.close()


def join(batch: int, device: torch.device) -> Ranks:
    """`Group`, or `ALONE` for a single rank; call it after `start`. ValueError if a batch has fewer rows than ranks."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return ALONE
    if batch < dist.get_world_size():
        raise ValueError(
            f"data.batch_size = {batch} is less than the {dist.get_world_size()} ranks of this run; raise it"
        )
    return Group(batch, device)
