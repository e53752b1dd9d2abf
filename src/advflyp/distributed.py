"""The ranks of a run, and what they exchange.

Every rank holds some rows of each batch: its images, of which it alone computes embeddings and gradients. The loss
couples all rows. What a rank needs of the others are constants to it, since their rows do not depend on its own; so it
has the loss of the whole batch as a function of its own rows, and differentiates that:

- the gradient of its own images is complete. No gradient is exchanged within an attack.
- the gradient of the weights is its rows' part. The parts of all ranks, added up, are the whole, by the chain rule over
  the rows; that sum is the one exchange of gradients in a step.

`Ranks` is one rank alone, `Group` one of several; losses are written for either. What the hosts exchange begins with a
meeting (`liveness.py`) that waits for as long as all ranks are alive; only what follows has a time limit.
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
    """One rank alone: it has every row, and there is nobody to exchange anything with.

    Attributes:
        rank: Which rank this is.
        size: How many there are.
        first_row: Where in the batch its own rows begin.
    """

    rank = 0
    size = 1
    first_row = 0

    def rows(self, own: int) -> int:
        """Rows of the whole batch, where `own` are this rank's."""
        return own

    def split(self, sizes: Sequence[int] | None = None) -> None:
        """From here on a batch consists of so many rows of each rank; by default of as many as at first."""

    def gather(self, rows: Tensor) -> Tensor:
        """(n, …) own rows → (N, …) those of all ranks, in the order of the batch. Gradients reach every row."""
        return rows

    def mean(self, rows: Tensor) -> Tensor:
        """(n,) → the mean over the N rows of the batch; gradients reach the own ones."""
        return rows.mean()

    def all_reduce_sum(self, value: Tensor) -> Tensor:
        """The sum over all ranks, element by element; gradients reach the own value."""
        return value

    def all_gather(self, value: Tensor) -> Tensor:
        """(…) → (ranks, …) every rank's value; gradients reach the own one."""
        return value[None]

    def logsumexp(self, value: Tensor) -> Tensor:
        """log Σ exp over all ranks, element by element; gradients reach the own value."""
        return value

    def all_gather_object(self, value: T) -> list[T]:
        """Every rank's `value`, in the order of the ranks."""
        return [value]

    def broadcast_from_rank0(self, work: Callable[[], T]) -> T:
        """What `work` returns on rank 0, for all of them; its ValueError is raised by all."""
        return work()

    def go_on(self, more: bool, stop: bool) -> tuple[bool, bool]:
        """Whether every rank has more to do, and whether any of them wants to stop."""
        return more, stop

    def wait_for_all(self) -> None:
        """Go on when every rank has come here, however long one takes; `LostRank` where one is gone."""

    def leave(self) -> None:
        """Stop asking whether the others are alive, and letting them know."""

    def close(self) -> None:
        """Leave the others, before the process ends."""


ALONE = Ranks()


class Group(Ranks):
    """One of several ranks, after torch.distributed was started.

    Args:
        batch: N, rows of a batch of all ranks.
        device: This rank's.
    """

    def __init__(self, batch: int, device: torch.device) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.device = device
        self.full = [Share(batch, rank, self.size).size for rank in range(self.size)]
        self.split()
        # What the host decides is exchanged by the hosts: reading it off a device would make that wait.
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
        self.meetings.leave()

    def close(self) -> None:
        self.leave()
        # A process whose gradient buckets outlive the connection may be aborted as it exits.
        gc.collect()
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def _losses() -> Iterator[None]:
    """What a backend raises where another rank is gone, in our words."""
    try:
        yield
    except RuntimeError as error:
        raise LostRank from error


class _Shared(torch.autograd.Function):
    """The value of a whole that is the same everywhere, with the gradient of the own part."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, whole: Tensor) -> Tensor:
        return whole.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _Gather(torch.autograd.Function):
    """Rows of all ranks. Each rank's loss depends on them through its own rows only: their gradients are summed.

    torch.distributed.nn has one that is deprecated in torch 2.15 and whose successor is absent in 2.11.
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
    """The device of this rank, and the connection to the others where a launcher has started several.

    Args:
        device: "auto", "cpu" or "cuda".
        trackers: Trackers that the run is going to write to.
        folder: Where they put files.

    Raises:
        ValueError: The device is not there, or is none for several ranks; or there are more ranks than GPUs.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import InitProcessGroupKwargs

    # Accelerate keeps one state for the process; a second run may ask for another device.
    AcceleratorState._reset_state(reset_partial_state=True)
    place = pick_device(device)
    if place.type not in ("cpu", "cuda") or place.index is not None:
        raise ValueError(f"the ranks of a run share no '{device}'; use cpu, or cuda for a GPU for each")
    local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if place.type == "cuda" and local >= gpus:
        raise ValueError(f"local rank {local} has no GPU: this machine has {gpus}; start no more ranks on it")
    return Accelerator(
        cpu=place.type == "cpu",
        log_with=list(trackers) or None,
        project_dir=folder,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=liveness.TIMEOUT)],
    )


def replicated(module: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """The module with the mean of its gradients over all ranks, exchanged while they are being computed."""
    if ranks.size == 1:
        return module
    # DDP compares the parameters in a limited time, and one rank may have had to fetch what the others had.
    ranks.wait_for_all()
    # Buffers never change while training; torch 2.15 has another word for leaving them alone than 2.11.
    known = inspect.signature(DistributedDataParallel).parameters
    alone: Any = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
    return DistributedDataParallel(
        module,
        device_ids=[device] if device.type == "cuda" else None,
        # A step's graph is always the same one: parameters it leaves out are known after the first.
        static_graph=True,
        gradient_as_bucket_view=True,
        **alone,
    )


@contextmanager
def process_group(device: str | torch.device) -> Iterator[tuple[Ranks, torch.device | None]]:
    """The ranks that work on something other than batches, and the device of this one if a launcher gave it one.

    Those that are connected already stay so afterwards.
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
    """What this rank is among those of its run, after `start`; ValueError where a batch has fewer rows than ranks."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return ALONE
    if batch < dist.get_world_size():
        raise ValueError(
            f"data.batch_size = {batch} is less than the {dist.get_world_size()} ranks of this run; raise it"
        )
    return Group(batch, device)
