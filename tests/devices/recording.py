"""CUDA graphs on a processor: `torch.cuda.make_graphed_callables` by a tape of operations, as strict as the real one.

A replay runs no Python of the product: its numbers, branches and tensors are those of the recording. It writes to the
recording's memory, where the next replay overwrites its results, and spoils the activations of the others that share
the pool.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from devices.sham import ShamDevice

Compute = Callable[[Tensor], Tensor]


# Beside views, what needs no kernel.
BOOKKEEPING = {"_unsafe_view", "promote_types", "_record_function_enter_new", "_record_function_exit"}


class Dispatched(TorchDispatchMode):
    """Counts the operations of its block by name, and those that make a device compute or copy."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._overloadpacket.__name__
        self.counts[name] += 1
        self.kernels += not (func.is_view or name in BOOKKEEPING)
        return func(*args, **(kwargs or {}))


class Tape(TorchDispatchMode):
    """The operations of its block, to be done again with the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.operations:
            if func.is_view:
                continue
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and new is not old:
                    old.copy_(new)

    @torch.no_grad()
    def spoil(self) -> None:
        for func, _, _, result in self.operations:
            for tensor in tree_leaves(result):
                if not func.is_view and isinstance(tensor, Tensor) and tensor.is_floating_point():
                    tensor.fill_(float("nan"))


class Recordings:
    """Stands in for CUDA's graphs.

    recorded: the shape of each recorded batch, and whether it has gradients
    replayed: how many replays there were, forward and backward
    replays:  what these did
    """

    def __init__(self) -> None:
        self.recorded: list[tuple[tuple[int, ...], bool]] = []
        self.replayed = 0
        self.replays = Dispatched()
        self._pools: dict[object, list[Tape]] = {}

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(torch.cuda, "make_graphed_callables", self.record)
        patch.setattr(torch.cuda, "graph_pool_handle", object)

    def replay(self, tape: Tape, spoilt: Sequence[Tape] = ()) -> None:
        self.replayed += 1
        with self.replays:
            for other in spoilt:
                other.spoil()
            tape.replay()

    def record(self, compute: Compute, samples: tuple[Tensor], *, pool: object, **_: Any) -> Compute:
        (static,) = samples
        self.recorded.append((tuple(static.shape), static.requires_grad))
        others, recordings = self._pools.setdefault(pool, []), self
        forward, backward = Tape(), Tape()
        compute(static)  # as a warm-up, which may wait for the device
        syncs = ShamDevice._active.syncs if ShamDevice._active else []
        waits = len(syncs)
        with forward:
            output = compute(static)
        flow, slope = torch.empty_like(output), torch.empty_like(static)
        if output.requires_grad:
            with backward:
                (slope,) = torch.autograd.grad(output, static, flow)
        if syncs[waits:]:
            raise RuntimeError(f"operation not permitted when stream is capturing: {syncs[waits]}\nmore")
        others.append(forward)

        class Graphed(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, images: Tensor) -> Tensor:
                static.data.copy_(images)
                recordings.replay(forward, [tape for tape in others if tape is not forward])
                return output.detach()

            @staticmethod
            def backward(ctx: Any, gradient: Tensor) -> Any:
                flow.copy_(gradient)
                recordings.replay(backward)
                return slope.detach()

        return lambda images: Graphed.apply(images)
