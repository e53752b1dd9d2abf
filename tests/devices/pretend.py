"""Torch's own view of a machine with one GPU, for as long as a test needs it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_map

from devices.rules import AUTOCAST_FLOAT32, AUTOCAST_LOWER, overload
from devices.sham import CUDA, HOST, Sham, ShamDevice

# A GPU's generator draws other numbers from the same seed than a CPU's.
OTHER_NUMBERS = 0x5DEECE66D


@contextmanager
def sham_cuda() -> Iterator[ShamDevice]:
    """In the block torch has one CUDA device, a sham one; afterwards everything is as it was."""
    sham = ShamDevice()
    _device_constructors.cache_clear()
    with (
        pytest.MonkeyPatch.context() as patch,
        torch.library._scoped_library("aten", "IMPL") as library,
        sham,
    ):
        _pretend(patch, sham)
        _autocast(library)
        try:
            yield sham
        finally:
            # A block `with torch.device(...)` remembers which functions make tensors, torch.tensor among them.
            _device_constructors.cache_clear()


def _pretend(patch: pytest.MonkeyPatch, sham: ShamDevice) -> None:
    def manual_seed(seed: int) -> None:
        sham.rng = torch._C.Generator().manual_seed(seed ^ OTHER_NUMBERS).get_state()

    def set_rng_state(state: Tensor, device: Any = CUDA) -> None:
        sham.rng = state.clone()

    cuda: dict[str, Callable[..., Any]] = {
        "_exchange_device": lambda device: 0,
        "_maybe_exchange_device": lambda device: 0,
        "_lazy_init": lambda: None,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "empty_cache": lambda: None,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: "a sham",
        "get_rng_state": lambda device=CUDA: sham.rng.clone(),
        "init": lambda: None,
        "is_available": lambda: True,
        "is_bf16_supported": lambda including_emulation=True: True,
        "is_current_stream_capturing": lambda: False,
        "is_initialized": lambda: True,
        "manual_seed": manual_seed,
        "manual_seed_all": manual_seed,
        "max_memory_allocated": lambda device=None: 0,
        "set_device": lambda device: None,
        "set_rng_state": set_rng_state,
        "synchronize": lambda device=None: sham.log("everything is waited for"),
    }
    for name, value in cuda.items():
        patch.setattr(torch.cuda, name, value)
    # It asks the driver; its name depends on torch's version.
    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
        patch.setattr(torch.optim.Optimizer, name, lambda self: None, raising=False)
    patch.setattr(torch, "Generator", _generators(sham))
    patch.setattr(torch, "tensor", _tensor(torch.tensor))
    patch.setattr(Tensor, "to", _to)
    patch.setattr(Tensor, "cuda", lambda self, *_, **how: self.to(CUDA, **how))
    patch.setattr(Tensor, "pin_memory", _pin_memory)
    patch.setattr(Tensor, "is_pinned", lambda self, *_: getattr(self, "is_marked_pinned", False))


def _generators(sham: ShamDevice) -> type:
    class Generator(torch._C.Generator):
        """One of the CPU, or one of the device, with one of the CPU underneath."""

        def __new__(cls, device: Any = "cpu") -> "Generator":
            self = super().__new__(cls, "cpu")
            if torch.device(device).type == "cuda":
                sham.generators[self._cdata] = self
            return self

        @property
        def device(self) -> torch.device:
            return CUDA if self._cdata in sham.generators else HOST

        def manual_seed(self, seed: int) -> "Generator":
            super().manual_seed(seed ^ OTHER_NUMBERS if self.device == CUDA else seed)
            return self

    return Generator


def _tensor(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.tensor, which makes tensors behind the dispatcher's back."""

    def tensor(data: Any, *, device: Any = None, requires_grad: bool = False, **how: Any) -> Tensor:
        made = plain(data, **how)
        return (made if device is None else made.to(device)).requires_grad_(requires_grad)

    return tensor


def _to(self: Tensor, *args: Any, copy: bool = False, **how: Any) -> Tensor:
    """Tensor.to, which asks the driver for the number of "cuda", and takes a Sham's device for "meta"."""
    device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **how)
    is_on_device = isinstance(self, Sham)
    to_device = is_on_device if device is None else device.type == "cuda"
    stays = to_device == is_on_device
    if stays and not copy and dtype in (None, self.dtype) and memory_format is None:
        return self
    target = None if stays else CUDA if to_device else device
    layout = {} if memory_format is None else {"memory_format": memory_format}
    return torch.ops.aten._to_copy(self, dtype=dtype, device=target, non_blocking=non_blocking, **layout)


def _pin_memory(self: Tensor, *_: Any) -> Tensor:
    if isinstance(self, Sham):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")
    if self.is_pinned():
        return self
    copy = self.clone()
    copy.is_marked_pinned = True  # type: ignore[attr-defined]
    return copy


def _autocast(library: torch.library.Library) -> None:
    """Autocast's kernels: torch's own cast what C++ knows to be on CUDA."""

    def rule(name: str, dtype: torch.dtype | None) -> None:
        function = overload(name)

        def kernel(*args: Any, **kwargs: Any) -> Any:
            wanted = dtype or torch.get_autocast_dtype("cuda")

            def cast(value: Any) -> Any:
                if (
                    not isinstance(value, Sham)
                    or not value.is_floating_point()
                    or value.dtype == torch.float64
                ):
                    return value
                return value.to(wanted)

            autocast = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)
            with torch._C._ExcludeDispatchKeyGuard(autocast):
                return function(*tree_map(cast, args), **tree_map(cast, kwargs))

        library.impl(name, kernel, "AutocastCUDA", allow_override=True)

    for name in AUTOCAST_LOWER:
        rule(name, None)
    for name in AUTOCAST_FLOAT32:
        rule(name, torch.float32)
