"""Metrics and cost of the steps, collected without waiting for the device until a line of the log is written."""

import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from advflyp.model.precision import Resolved

# Sides of the square matrices on which a device's rate is measured; the time limit for all, and for repeating a
# product, in seconds.
SIDES = (128, 256, 512, 1024, 2048, 4096, 8192)
PATIENCE, LONG = 0.18, 0.01

_aten = torch.ops.aten
# torch 2.11 has formulas for attention on accelerators only.
_FORMULAS = {
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        _aten._scaled_dot_product_flash_attention
    ],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _aten._scaled_dot_product_flash_attention_backward
    ],
    **flop_registry,
}


class Meter:
    """Metrics of the steps since the last line."""

    def __init__(self) -> None:
        self.counts = True  # whether operations are counted at all
        self.is_counting = False
        self.flops_per_step: dict[Any, float] = {}  # of this process, by kind of step
        self.flops_of_last = 0.0  # 0 where they are not known
        self.rate = 0.0  # of the device; measured for the first line
        self._reset()

    def _reset(self) -> None:
        self.rows: list[dict[str, Tensor]] = []
        self.pairs = 0
        self.flops = 0.0
        self.waited = 0.0
        self.started = perf_counter()

    def add(self, metrics: dict[str, Tensor], pairs: int) -> None:
        """Add the last step: `metrics` are device scalars, `pairs` counts those of all ranks."""
        self.rows.append(metrics)
        self.pairs += pairs
        self.flops += self.flops_of_last

    @contextmanager
    def counting(self, compiled: bool, kind: Any = None) -> Iterator[None]:
        """Count a step's operations within the block, once per kind of step; compiled code cannot be counted."""
        if not self.counts or compiled or kind in self.flops_per_step:
            yield
        else:
            self.is_counting = True
            with Flops() as flops:
                yield
            self.is_counting = False
            self.flops_per_step[kind] = flops.total
        self.flops_of_last = self.flops_per_step.get(kind, 0.0)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time spent in the block as waiting for data."""
        begun = perf_counter()
        yield
        self.waited += perf_counter() - begun

    def means(self) -> dict[str, float]:
        """The mean of every metric; waits for the device."""
        if not self.rows:
            return {}
        names = list(self.rows[0])
        table = torch.stack([torch.stack([row[name] for name in names]) for row in self.rows])
        return dict(zip(names, table.mean(0).tolist(), strict=True))

    def line(self, means: dict[str, float], device: torch.device, precision: Resolved) -> dict[str, float]:
        """`means`, and the cost of the steps since the last line; resets the meter.

        utilisation: arithmetic done, as a fraction of the device's rate in plain matrix products at this precision
        data_wait:   fraction of the time spent waiting for a batch
        memory_gb:   peak memory, of the accelerator or, without one, of the process
        """
        seconds = perf_counter() - self.started
        result = {
            **means,
            "pairs_per_second": round(self.pairs / seconds, 1),
            "data_wait": round(self.waited / seconds, 4),
            "memory_gb": round(peak_memory(device) / 1e9, 3),
        }
        if self.flops:
            if not self.rate:
                self.rate = matrix_rate(device, precision)
            result["utilisation"] = round(self.flops / seconds / self.rate, 4)
        self._reset()
        return result


class Flops(TorchDispatchMode):
    """Counts the floating-point operations of matrix products, convolutions and attention in its block.

    Not torch's FlopCounterMode, whose module hooks are confused by recomputed activations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def matrix_rate(device: torch.device, precision: Resolved) -> float:
    """Measure how many floating-point operations per second the device reaches in matrix products.

    The products grow as long as the next one fits into `PATIENCE`: what takes some processors a hundredth of a second
    takes others ten seconds, above all in bf16.

    Returns:
        The rate of the fastest product.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    began, best = perf_counter(), 0.0
    for side in SIDES:
        seconds = _seconds_of_product(torch.ones(side, side, device=device, dtype=dtype))
        best = max(best, 2 * side**3 / seconds)
        # Twice the side is eight times the work.
        if perf_counter() - began + 8 * seconds > PATIENCE:
            break
    return best


def _seconds_of_product(a: Tensor) -> float:
    """The shortest of three runs; a long one is not repeated, as one-off costs hardly show in it."""
    shortest = math.inf
    for _ in range(3):
        _wait_for(a.device)
        begun = perf_counter()
        _ = a @ a
        _wait_for(a.device)
        shortest = min(shortest, perf_counter() - begun)
        if shortest > LONG:
            break
    return shortest


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: allocated on the accelerator or, on a CPU, resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
