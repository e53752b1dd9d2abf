"""List devices, find one by name, and move tensors to it."""

import torch
from torch import Tensor


def pick_device(name: str | torch.device) -> torch.device:
    """The device called `name`.

    Args:
        name: "cpu", "cuda", "cuda:1", "mps", a `torch.device`, or "auto": the current CUDA device if there is one, else
            the CPU (MPS is untested and must be named explicitly).

    Returns:
        The device.

    Raises:
        ValueError: If there is no such device, or models cannot compute on it.
    """
    there = available_devices()
    if str(name) == "auto":
        return torch.device("cuda" if "cuda:0" in there else "cpu")
    if str(name) == "cpu:0":
        return torch.device("cpu")  # what accelerate calls the CPU of a rank
    if str(name) in there or f"{name}:0" in there:
        return torch.device(name)
    built = torch.version.cuda is not None or torch.version.hip is not None
    reason = " (torch was installed without CUDA)" if str(name).startswith("cuda") and not built else ""
    raise ValueError(f"there is no device '{name}' here{reason}; use {', '.join(there)} or auto")


def available_devices() -> list[str]:
    """The names of the devices that a model can compute on: "cpu", "cuda:0", "cuda:1", …, "mps:0"."""
    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    return ["cpu", *(f"cuda:{number}" for number in range(cuda)), *(["mps:0"] if mps else [])]


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Move a tensor to a device without making the host wait for the device.

    A copy from pageable memory may wait until the accelerator has finished all earlier work; one from pinned memory is
    queued like any other work.

    Args:
        tensor: A tensor of any shape and type, usually on the host.
        device: The target device.

    Returns:
        The tensor itself if it is already on `device`, otherwise a copy.
    """
    if tensor.device.type == "cpu" and torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def lowered(values: Tensor, index: Tensor, candidates: Tensor) -> Tensor:
    """(n,) `values`, each the least of itself and those of the (m,) `candidates` whose `index` names its place.

    torch refuses this operation on CUDA where `torch.use_deterministic_algorithms` is on, since sums of floats would
    depend on their order; a minimum does not.
    """
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode(0)
    try:
        return values.scatter_reduce(0, index, candidates, "amin")
    finally:
        torch.set_deterministic_debug_mode(before)
