"""Floating-point types: nothing that matters is computed below float32, and some of it in float64."""

from typing import Any

import torch
from torch import Tensor

from advflyp.config import LARGEST_INTEGER

# Metal has no float64 on any machine.
WITHOUT_FLOAT64 = ("mps",)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay, so a float64 model computes everything in float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_float64(x: Tensor) -> Tensor:
    """The values in float64, on the same device; on the CPU if that device has no float64."""
    return (x.cpu() if x.device.type in WITHOUT_FLOAT64 else x).double()


def whole(value: Any, name: str) -> int:
    """A number of Python, NumPy or torch as an int, which results can store; ValueError for any that they cannot."""
    number = value.item() if hasattr(value, "item") else value
    if not isinstance(number, int | float) or (isinstance(number, float) and not number.is_integer()):
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    if abs(number) > LARGEST_INTEGER:
        raise ValueError(f"{name} must be at most {LARGEST_INTEGER:,} in size")
    return int(number)
