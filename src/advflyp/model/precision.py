"""The precision in which the towers compute: as asked for, or, for "auto", the faster one on the device."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["auto", "fp32", "bf16"]
Resolved = Literal["fp32", "bf16"]

# Side of the matrices multiplied to time a device; takes 0.05 s even if bf16 is emulated.
TIMED = 256
# A timing selects bf16 only if it is faster than float32 by this factor; near 1, noise would decide.
MARGIN = 1.25


class InPrecision:
    """A model whose towers compute in `precision`; pixels, embeddings and losses are at least float32."""

    precision: Resolved = "fp32"
    mean: Tensor  # of its normalisation
    name: str
    parameters: Callable[[], Iterator[nn.Parameter]]

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @contextmanager
    def computing_in(self, precision: Resolved) -> Iterator[None]:
        """Run the towers in this precision."""
        before, self.precision = self.precision, precision
        try:
            yield
        finally:
            self.precision = before

    def check_weights(self) -> None:
        """ValueError unless the weights are float32 or float64: results would record a precision they do not have."""
        kinds = {one.dtype for one in self.parameters() if one.is_floating_point()}
        if wrong := sorted(map(str, kinds - {torch.float32, torch.float64})):
            raise ValueError(
                f"{self.name} has {wrong[0].removeprefix('torch.')} weights: convert them with model.float(); "
                "to compute in bfloat16, pass precision='bf16'"
            )

    def _autocast(self) -> torch.autocast:
        # Around the towers only: similarities in bfloat16 would differ in the third digit, before τ⁻¹ = 100.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def without_autocast(kind: str) -> AbstractContextManager[object]:
    """Within the block, an autocast of the caller does not lower the precision on this type of device.

    For blocks that change no weights: torch keeps what autocast has cast until the outermost autocast ends.
    """
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


@dataclass(frozen=True)
class PrecisionChoice:
    """The precision that was chosen, and why.

    Attributes:
        precision: "fp32" or "bf16".
        reason: Why, as a clause to print and store, such as "this processor has AMX instructions for bf16".
    """

    precision: Resolved
    reason: str

    def __str__(self) -> str:
        return f"precision {self.precision}: {self.reason}"


def choose_precision(asked: str, device: str | torch.device) -> PrecisionChoice:
    """The precision that `asked` means on `device`.

    "auto" is bf16 where the device multiplies bf16 matrices faster than float32: CUDA devices of capability 8.0 and
    above, x86 processors with AVX512-BF16 or AMX, Arm processors with BF16. A processor that torch knows nothing about
    is timed once on a small product; every other device computes in float32.

    Args:
        asked: "auto", "fp32" or "bf16".
        device: Where the model computes.

    Returns:
        The choice. An explicit "bf16" is kept even if it is slower; the reason then says so.

    Raises:
        ValueError: If `asked` is none of these.
    """
    device = torch.device(device)
    check_precision(asked)
    if asked == "fp32":
        return PrecisionChoice("fp32", "asked for")
    fast, reason = _bf16_is_fast(device)
    if asked == "auto":
        return PrecisionChoice("bf16" if fast else "fp32", reason)
    if fast:
        return PrecisionChoice("bf16", "asked for")
    slow = f"asked for, but slow: {reason}"
    if device.type == "cpu":  # timing an accelerator would mean waiting for it
        slow += f"; a small matrix product takes {_time_ratio():.1f} times as long as in fp32"
    return PrecisionChoice("bf16", slow)


def resolve(precision: Precision, device: str | torch.device) -> Resolved:
    """`precision`, with "auto" replaced by its meaning on `device`."""
    return choose_precision("auto", device).precision if precision == "auto" else precision


def check_precision(asked: str, key: str = "precision") -> Precision:
    """Return `asked`, or raise a ValueError if it is not a precision; `key` is the option's name in the message."""
    if asked == "auto" or asked == "fp32" or asked == "bf16":
        return asked
    if asked in ("fp16", "float16", "half"):
        raise ValueError(
            f'{key} "{asked}" is not offered: gradients underflow in float16; use "auto", or "bf16", which has '
            "float32's range"
        )
    raise ValueError(f'{key} cannot be "{asked}"; it is one of auto, fp32, bf16')


def _bf16_is_fast(device: torch.device) -> tuple[bool, str]:
    """Whether bf16 products are faster than float32 ones, and the reason."""
    if device.type == "cuda":
        # Not torch.cuda.is_bf16_supported(), which counts emulation.
        major, minor = torch.cuda.get_device_capability(device)
        return major >= 8, f"{torch.cuda.get_device_name(device)} has CUDA capability {major}.{minor}"
    if device.type != "cpu":
        return False, f"bf16 has not been shown to be faster on {device.type}"
    return _cpu_multiplies_bf16()


@cache
def _cpu_multiplies_bf16() -> tuple[bool, str]:
    has = torch.cpu.get_capabilities()
    if has.get("architecture") == "x86_64":
        # The environment variable ATEN_CPU_CAPABILITY may limit what torch uses of the processor.
        wide = torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "NO AVX", "AVX2")
        for flag, name in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512-BF16")):
            if wide and has.get(flag):
                return True, f"this processor has {name} instructions for bf16"
        return False, "this processor has no instructions for bf16"
    if "neon" in has:
        if has.get("bf16"):
            return True, "this processor has BF16 instructions"
        return False, "this processor has no instructions for bf16"
    ratio = _time_ratio()
    if ratio * MARGIN < 1:
        return True, f"matrix products are {1 / ratio:.1f} times as fast in bf16 on this processor"
    return False, "matrix products are no faster in bf16 on this processor"


@cache
def _time_ratio() -> float:
    """Time of a small matrix product in bf16 on the CPU, relative to float32."""
    return _seconds(torch.bfloat16) / _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    a = torch.ones(TIMED, TIMED, dtype=dtype, device="cpu")
    best = math.inf
    for _ in range(4):
        begun = time.perf_counter()
        _ = a @ a
        best = min(best, time.perf_counter() - begun)
    return best


@contextmanager
def for_use(model: object) -> Iterator[None]:
    """Put the model into evaluation mode; on exit, every module gets its own mode back. A function has no modes.

    A CLIP computes in its own precision, even inside a `torch.autocast`.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    training = [module for module in model.modules() if module.training]
    own = [module for module in model.modules() if isinstance(module, InPrecision)]
    model.eval()
    try:
        with without_autocast(own[0].device.type) if own else nullcontext():
            yield
    finally:
        for module in training:
            module.training = True
