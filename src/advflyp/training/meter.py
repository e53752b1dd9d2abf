"""What a step costs and does, measured without making the device wait: read only when a line is written."""

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


class Meter:
    """Metrics of the steps since the last line."""

    def __init__(self) -> None:
        self.flops_per_step: float | None = None  # of this process
        self.rate: float | None = None
        self._reset()

    def _reset(self) -> None:
        self.rows: list[dict[str, Tensor]] = []
        self.pairs = 0
        self.waited = 0.0
        self.started = perf_counter()

    def add(self, metrics: dict[str, Tensor], pairs: int) -> None:
        """metrics: device scalars of one step;  pairs: of all processes together"""
        self.rows.append(metrics)
        self.pairs += pairs

    @contextmanager
    def counting(self, compiled: bool) -> Iterator[None]:
        """Around the arithmetic of a step, which is counted once. That of compiled code cannot be."""
        if self.flops_per_step is not None or compiled:
            yield
            return
        with Flops() as flops:
            yield
        self.flops_per_step = flops.total

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for data."""
        begun = perf_counter()
        yield
        self.waited += perf_counter() - begun

    def means(self) -> dict[str, float]:
        """Of every metric; the device is waited for."""
        if not self.rows:
            return {}
        names = list(self.rows[0])
        table = torch.stack([torch.stack([row[name] for name in names]) for row in self.rows])
        return dict(zip(names, table.mean(0).tolist(), strict=True))

    def line(self, means: dict[str, float], device: torch.device, precision: Resolved) -> dict[str, float]:
        """`means` and what the steps took; begins anew.

        utilisation: arithmetic done, as a share of what the device does in plain matrix products at this precision
        data_wait:   share of the time in which there was no batch
        memory_gb:   the most that was in use, on the accelerator or, without one, in the process
        """
        seconds = perf_counter() - self.started
        result = {
            **means,
            "pairs_per_second": round(self.pairs / seconds, 1),
            "data_wait": round(self.waited / seconds, 4),
            "memory_gb": round(peak_memory(device) / 1e9, 3),
        }
        if self.flops_per_step is not None:
            if self.rate is None:
                self.rate = matrix_rate(device, precision)
            done = self.flops_per_step * len(self.rows) / seconds
            result["utilisation"] = round(done / self.rate, 4)
        self._reset()
        return result


def not_finite(means: dict[str, float]) -> list[str]:
    """Names of the losses and the gradient's norm, those that are NaN or infinite."""
    judged = [name for name in means if name.startswith("loss") or name == "grad_norm"]
    return [name for name in judged if not math.isfinite(means[name])]


class Flops(TorchDispatchMode):
    """Counts the floating-point operations of matrix products, convolutions and attention in its block.

    Not torch's FlopCounterMode, which follows modules by hooks that recomputed activations confuse.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def matrix_rate(device: torch.device, precision: Resolved) -> float:
    """Floating-point operations a second of this device in large matrix products, measured now."""
    cuda = device.type == "cuda"
    size, dtype = (8192, torch.bfloat16) if cuda else (1024, torch.bfloat16)
    if precision == "fp32":
        dtype = torch.float32
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = math.inf
    for _ in range(4):
        if cuda:
            torch.cuda.synchronize(device)
        begun = perf_counter()
        _ = a @ a
        if cuda:
            torch.cuda.synchronize(device)
        best = min(best, perf_counter() - begun)
    return 2 * size**3 / best


def peak_memory(device: torch.device) -> int:
    """Bytes: allocated on the accelerator at the most, or, on a CPU, resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
