"""CUDA graphs on a processor: a tape of operations in place of a capture, as strict as the real one.

A replay runs no Python of the product: its numbers, branches and tensors are those of the recording. It writes to the
recording's memory, where the next replay overwrites its results, and spoils the activations of the others that share
the pool.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from advflyp.model import graphs
from devices.sham import Sham, ShamDevice

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


def host_of(tensor: Tensor) -> Tensor:
    return tensor.host if isinstance(tensor, Sham) else tensor


def memory_of(tensor: Tensor) -> torch.UntypedStorage:
    return host_of(tensor).untyped_storage()


class Lent:
    """A tensor in memory that somebody else has to keep, since a recording reads or writes there."""

    def __init__(self, tensor: Tensor) -> None:
        host, self.is_sham = host_of(tensor), isinstance(tensor, Sham)
        self.memory, self.dtype = StorageWeakRef(host.untyped_storage()), host.dtype
        self.where = host.storage_offset(), host.size(), host.stride()

    def __call__(self) -> Tensor:
        assert not self.memory.expired(), "a recording reads or writes memory that has been freed"
        memory = torch.UntypedStorage._new_with_weak_ptr(self.memory.cdata)
        tensor = torch.empty(0, dtype=self.dtype).set_(memory, *self.where)
        return Sham(tensor) if self.is_sham else tensor


def given(value: Any) -> Any:
    return value() if isinstance(value, Lent) else value


class Tape(TorchDispatchMode):
    """The operations of its block, to be done again with the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self._before: list[tuple[Tensor, Tensor]] = []  # what is written in place

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            self._before.append((args[0], args[0].clone()))
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def let_go(self) -> None:
        """Keep no memory but what the operations have allocated, and leave all other as it was before the capture."""
        made = {
            memory_of(tensor)._cdata
            for func, _, _, result in self.operations
            for tensor in tree_leaves(result)
            if isinstance(tensor, Tensor) and not (func.is_view or func._schema.is_mutable)
        }

        for tensor, before in reversed(self._before):
            if memory_of(tensor)._cdata not in made:
                tensor.copy_(before)
        self._before = []

        def lent(value: Any) -> Any:
            return Lent(value) if isinstance(value, Tensor) and memory_of(value)._cdata not in made else value

        self.operations = [
            (func, *tree_map(lent, (args, kwargs, result)))
            for func, args, kwargs, result in self.operations
            if not func.is_view
        ]

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.operations:
            again = func(*tree_map(given, args), **tree_map(given, kwargs))
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and new is not old:
                    old.copy_(new)

    @torch.no_grad()
    def spoil(self) -> None:
        for func, _, _, result in self.operations:
            for tensor in tree_leaves(result):
                # What is written in place may be memory of the recording's own.
                if not func._schema.is_mutable and isinstance(tensor, Tensor) and tensor.is_floating_point():
                    tensor.fill_(float("nan"))


class Recordings:
    """Stands in for CUDA's graphs, on a processor or a sham device.

    recorded: the shape of each recorded batch, and whether it has gradients
    steps:    the function of each recorded step of an attack, and the number of its rows
    replayed: how many replays there were, forward and backward
    replays:  what these did
    """

    def __init__(self) -> None:
        self.recorded: list[tuple[tuple[int, ...], bool]] = []
        self.steps: list[tuple[str, int]] = []
        self.replayed = 0
        self.replays = Dispatched()
        self._graphs: list[list[Graph]] = []  # of each recording
        self._pools: dict[object, list[list[Graph]]] = {}

    def install(self, patch: pytest.MonkeyPatch) -> None:
        passes, steps = graphs._Recording, graphs._RecordedStep

        def recording(encode: Any, images: Tensor, capture: Any) -> Any:
            self.recorded.append((tuple(images.shape), images.requires_grad))
            self._graphs.append([])
            return passes(encode, images, capture)

        def recorded_step(step: Any, state: Any, size: int, *others: Any) -> Any:
            self.steps.append((step.func.__name__ if isinstance(step, partial) else step.__name__, size))
            self._graphs.append([])
            return steps(step, state, size, *others)

        patch.setattr(graphs, "_Recording", recording)
        patch.setattr(graphs, "_RecordedStep", recorded_step)
        patch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(self))
        patch.setattr(torch.cuda, "graph", self.capture)
        patch.setattr(torch.cuda, "graph_pool_handle", object)
        for name in ("Stream", "current_stream"):
            patch.setattr(torch.cuda, name, lambda: SimpleNamespace(wait_stream=lambda other: None))
        patch.setattr(torch.cuda, "stream", lambda stream: nullcontext())

    @contextmanager
    def capture(
        self, graph: "Graph", *, pool: object, stream: object, capture_error_mode: str
    ) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        self._pools.setdefault(pool, []).append(self._graphs[-1])
        self._graphs[-1].append(graph)
        graph.pool = pool
        syncs = ShamDevice._active.syncs if ShamDevice._active else []
        waits = len(syncs)
        with graph.tape:
            yield
        graph.tape.let_go()
        if syncs[waits:]:
            raise RuntimeError(f"operation not permitted when stream is capturing: {syncs[waits]}\nmore")

    def replay(self, graph: "Graph") -> None:
        self.replayed += 1
        with self.replays:
            for recording in self._pools[graph.pool]:
                for other in recording if graph not in recording else []:
                    other.tape.spoil()
            graph.tape.replay()
            for recording in self._pools[graph.pool]:
                if (
                    graph in recording[1:]
                ):  # a backward pass frees the activations, and writes where they were
                    recording[0].tape.spoil()


class Graph:
    """A `torch.cuda.CUDAGraph`."""

    def __init__(self, recordings: Recordings) -> None:
        self.tape = Tape()
        self.pool: object = None
        self.replay = lambda: recordings.replay(self)
