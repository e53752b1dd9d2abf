"""Tensors of a CUDA device that is not there: what breaks on a GPU shows on a processor.

A `Sham` says that it is on cuda:0. Its values are on the host, where every operation computes them, so that results are
those of a CPU. `ShamDevice` is as strict as CUDA: it refuses what CUDA refuses, and logs where the host waits for the
device. `pretend.sham_cuda` makes torch believe in it.

It has no kernels, streams, memory, NCCL or compiler, nor CUDA's own kernels of attention and of lists of tensors.
Tensors on "meta" cannot be used beside it.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import advflyp
from devices.rules import INDEXING, NOT_DETERMINISTIC, SYNCHRONISING, TAKES_HOST_SCALARS

CUDA, HOST = torch.device("cuda", 0), torch.device("cpu")
PRODUCT, TESTS = f"{Path(advflyp.__file__).parent}/", f"{Path(__file__).parent}/"
TOOL = {f"{TESTS}{name}" for name in ("conftest.py", "pretend.py", "sham.py")}

# Frames of their own before Python 3.12 only.
COMPREHENSIONS = {"<dictcomp>", "<listcomp>", "<setcomp>"}

aten = torch.ops.aten


class DeviceError(RuntimeError):
    """What CUDA would have refused."""


@dataclass(frozen=True)
class Sync:
    """A place where the host waits for the device.

    why:   what it waits for
    where: "training/step.py:random_start", the innermost function of the product, or of the device tests, at work
    line:  in that file
    """

    why: str
    where: str
    line: int

    def __str__(self) -> str:
        return f"{self.where} (line {self.line}): {self.why}"


def caller() -> tuple[str, int]:
    """`where` and `line` of a `Sync` that happens now."""
    frame = sys._getframe(1)
    while frame is not None:
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        for root in (PRODUCT, TESTS):
            if file.startswith(root) and file not in TOOL and function not in COMPREHENSIONS:
                return f"{file.removeprefix(root)}:{function}", frame.f_lineno
        frame = frame.f_back
    return "?", 0


# What makes a buffer on "meta", where a model's size is looked at before it is made.
SIZED = (aten.lift_fresh.default, aten.zero_.default)


class Sham(Tensor):
    """A tensor on cuda:0, with its values in `host`.

    To torch's C++ it is on "meta" and has CUDA's dispatch keys: if it were on "cuda", autograd would ask for a driver.
    """

    host: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor) -> "Sham":
        assert type(host) is Tensor
        like = torch.empty_strided(host.shape, host.stride(), dtype=host.dtype, device="meta")
        self = Tensor._make_subclass(cls, like, False, dispatch_device=False, device_for_backend_keys=CUDA)
        self.host = host
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return ShamDevice.active().run(func, args, kwargs or {})

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    is_meta = property(lambda self: False)

    # They tell Module.to() to keep a parameter and exchange what it consists of, as it does for a real device.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["host"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], context: None, size: Any, stride: Any) -> "Sham":
        return Sham(inner["host"])

    def __repr__(self) -> str:
        return f"Sham({self.host!r})"

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_on_host(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        device = ShamDevice.active()
        parts = _on_host(index)
        tensors = [part for part in parts if isinstance(part, Tensor)]
        if not tensors or not isinstance(value, bool | int | float):
            super().__setitem__(parts, value)
            return
        with device.silent():
            super().__setitem__(parts, value)
        # CUDA fills where a mask says so; for any other index it copies the number to the device.
        if [part.dtype for part in tensors] != [torch.bool]:
            device.log("a number is written at an index: it is copied from the host")

    def tolist(self) -> Any:
        ShamDevice.active().log("numbers are read: tolist()")
        return self.host.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. "
            "Use Tensor.cpu() to copy the tensor to host memory first."
        )

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        ShamDevice.active().log("a tensor is written to a file")
        return self.host.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Sham":
        if id(self) not in memo:
            copy: Any = Sham(self.host.clone())
            if isinstance(self, torch.nn.Parameter):
                copy = torch.nn.Parameter(copy)
            memo[id(self)] = copy.requires_grad_(self.requires_grad)
        return memo[id(self)]


class ShamDevice(TorchDispatchMode):
    """Runs the operations on Shams and, while it is active, those on host tensors.

    syncs:      every synchronisation so far
    generators: those made for the device, by address: an operation is given another Python object for the same one
    rng:        the state of the device's default generator
    """

    _active: "ShamDevice | None" = None

    def __init__(self) -> None:
        super().__init__()
        self.syncs: list[Sync] = []
        self.generators: dict[int, torch.Generator] = {}
        self.rng = torch.Generator().manual_seed(0).get_state()
        self._silent = False

    @classmethod
    def active(cls) -> "ShamDevice":
        """The one in whose block this is called."""
        assert cls._active is not None, "a Sham is used outside of sham_cuda()"
        return cls._active

    def __enter__(self) -> "ShamDevice":
        assert ShamDevice._active is None
        ShamDevice._active = self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        ShamDevice._active = None

    def log(self, why: str) -> None:
        """The host waits for the device here."""
        if not self._silent:
            self.syncs.append(Sync(why, *caller()))

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Log nothing in the block."""
        before, self._silent = self._silent, True
        try:
            yield
        finally:
            self._silent = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Check one operation, log where it synchronises, and compute it on the host."""
        name = func._schema.name.removeprefix("aten::")
        kwargs = dict(kwargs)
        pinned = bool(kwargs.pop("pin_memory", None))
        leaves = [*_leaves(args), *_leaves(list(kwargs.values()))]
        any_sham = any(isinstance(leaf, Sham) for leaf in leaves)
        hosts = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, Sham)]
        on_device = _is_result_on_device(func, args, kwargs, any_sham)
        if func in SIZED and hosts and hosts[0].is_meta:
            return func(*args, **kwargs)
        if any(host.is_meta for host in hosts):
            raise DeviceError(
                f"a tensor on meta cannot be used beside the sham device ({func} in {caller()[0]})"
            )

        generator = next((leaf for leaf in leaves if isinstance(leaf, torch._C.Generator)), None)
        if generator is not None:
            self._check_generator(generator, on_device)
        if func in (aten._to_copy.default, aten.copy_.default):
            self._log_copy(func, args, kwargs, on_device)
        elif any_sham and hosts:
            self._check_devices(name, func, args, hosts)
        if on_device or any_sham:
            _check_determinism(name)
            self._log_syncs(name, args)
        if func is aten._fused_sdp_choice.default and any_sham:
            return 0  # attention by its equations

        if kwargs.get("device") is not None:
            kwargs["device"] = HOST
        draws = torch.Tag.nondeterministic_seeded in func.tags and generator is None and on_device
        with self._default_generator() if draws else torch.no_grad():
            return _compute(func, args, kwargs, on_device, pinned)

    def _check_devices(self, name: str, func: Any, args: tuple[Any, ...], hosts: list[Tensor]) -> None:
        """Of host tensors beside device ones only scalars are taken, and these not by every operation."""
        if name in INDEXING and isinstance(args[0], Sham):
            if any(isinstance(part, Tensor) and not isinstance(part, Sham) for part in args[1]):
                self.log("an index is copied from the host")
            hosts = [value for value in args[2:] if isinstance(value, Tensor) and not isinstance(value, Sham)]
            if hosts and hosts[0].dim() == 0:
                self.log("a number is written at an index: it is copied from the host")
        takes_scalars = torch.Tag.pointwise in func.tags or name in TAKES_HOST_SCALARS or name in INDEXING
        if takes_scalars and all(isinstance(value, Sham) for value in _written(func, args)):
            hosts = [value for value in hosts if value.dim() > 0]
        if hosts:
            where, line = caller()
            raise DeviceError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"({func} in {where}, line {line}; on cpu: {[tuple(host.shape) for host in hosts]})"
            )

    def _check_generator(self, generator: torch.Generator, on_device: bool) -> None:
        is_own = generator._cdata in self.generators  # type: ignore[attr-defined]
        if is_own != on_device:
            wanted, found = ("cuda", "cpu") if on_device else ("cpu", "cuda")
            raise DeviceError(
                f"Expected a '{wanted}' device type for generator but found '{found}' (in {caller()[0]})"
            )

    def _log_copy(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], to_device: bool) -> None:
        into = func is aten.copy_.default
        source = args[1] if into else args[0]
        if isinstance(source, Sham) and not to_device:
            self.log("values are copied to the host")
        elif not isinstance(source, Sham) and to_device:
            non_blocking = args[2] if into and len(args) > 2 else kwargs.get("non_blocking")
            if not (non_blocking and getattr(source, "is_marked_pinned", False)):
                self.log("values are copied from pageable memory, or by a blocking copy")

    def _log_syncs(self, name: str, args: tuple[Any, ...]) -> None:
        if name in SYNCHRONISING:
            self.log(SYNCHRONISING[name])
        elif name in INDEXING and any(
            isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) for part in args[1]
        ):
            self.log("the number of hits of a mask is read")

    @contextmanager
    def _default_generator(self) -> Iterator[None]:
        """Torch's default generator draws what the device's would."""
        before = torch.get_rng_state()
        torch.set_rng_state(self.rng)
        try:
            yield
        finally:
            self.rng = torch.get_rng_state()
            torch.set_rng_state(before)


def _is_result_on_device(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], any_sham: bool) -> bool:
    if func is aten.copy_.default:
        return isinstance(args[0], Sham)
    if kwargs.get("device") is not None:
        # C++ makes tensors that are to be like a Sham on "meta".
        return torch.device(kwargs["device"]).type in ("cuda", "meta")
    return any_sham


def _check_determinism(name: str) -> None:
    if name in NOT_DETERMINISTIC and torch.are_deterministic_algorithms_enabled():
        raise DeviceError(f"{name} does not have a deterministic implementation (in {caller()[0]})")


def _compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], on_device: bool, pinned: bool) -> Any:
    """The operation on what the Shams hold, its results as Shams; in place it returns the Sham it was given."""
    shams: dict[int, Sham] = {}

    def unwrap(value: Any) -> Any:
        if not isinstance(value, Sham):
            return value
        shams[id(value.host)] = value
        return value.host

    def wrap(value: Any) -> Any:
        if id(value) in shams:
            sham = shams[id(value)]
            assert sham.shape == value.shape, f"{func} changes a shape in place"
            return sham
        if type(value) is Tensor and on_device:
            return Sham(value)
        if type(value) is Tensor and pinned:
            value.is_marked_pinned = True  # type: ignore[attr-defined]
        return value

    plain = {key: _mapped(unwrap, value) for key, value in kwargs.items()}
    return _mapped(wrap, func(*_mapped(unwrap, args), **plain))


def _written(func: Any, args: tuple[Any, ...]) -> list[Tensor]:
    """Those of the arguments that the operation changes."""
    pairs = zip(args, func._schema.arguments, strict=False)
    changed = [value for value, argument in pairs if argument.alias_info and argument.alias_info.is_write]
    return [leaf for leaf in _leaves(changed) if isinstance(leaf, Tensor)]


def _on_host(index: Any) -> tuple[Any, ...]:
    """An index whose lists are host tensors, as with CUDA; C++ would make them where it believes a Sham to be."""
    parts = index if isinstance(index, tuple) else (index,)
    return tuple(torch.tensor(part) if isinstance(part, list | np.ndarray) else part for part in parts)


def _leaves(value: Any) -> Iterator[Any]:
    """What nested lists and tuples hold."""
    if isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """`function` of everything that nested lists and tuples hold."""
    if isinstance(value, list | tuple):
        return type(value)([_mapped(function, part) for part in value])
    return function(value)
