"""Floating types: nothing that matters is computed in fewer bits than float32, and some of it in more."""

import torch
from torch import Tensor

# Metal has no float64, whatever the machine.
WITHOUT_FLOAT64 = ("mps",)


def at_least_float32(x: Tensor) -> Tensor:
    """Half types become float32; float32 and float64 stay, so that a model in float64 computes all of it in float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def in_float64(x: Tensor) -> Tensor:
    """The values in float64, on the same device; on the CPU where that device has no float64."""
    return (x.cpu() if x.device.type in WITHOUT_FLOAT64 else x).double()
