"""What is computed in float64 must not ask for it on a device that has none (Apple's GPUs), and half types grow."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from advflyp import dtypes
from advflyp.attack.autoattack import MEMBERS
from advflyp.attack.fab import to_boundary
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import Victim
from advflyp.dtypes import at_least_float32, in_float64
from advflyp.model.deviation import cosine_deviation
from advflyp.model.mix import mix
from advflyp.use.eight_bits import eight_bits

# Of an Apple's GPU a build for Linux will not even hear the name. The device here is called "meta", and has values.
DEVICE = "meta"


class There(torch.Tensor):
    """A tensor on `DEVICE`; its values are in `inner`, on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "There":
        if inner.dtype == torch.float64:
            raise TypeError(f"{DEVICE} has no float64")
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=DEVICE
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Device.run(func, args, kwargs or {})


class Device(TorchDispatchMode):
    """Within, tensors can be on `DEVICE`, where none is float64 and nothing is computed with tensors of the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    @staticmethod
    def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        there = [x for x in tensors if isinstance(x, There)]
        if there and func not in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            assert all(isinstance(x, There) or not x.dim() for x in tensors), (
                f"{func} of tensors on two devices"
            )
        result_there = bool(there)
        if kwargs.get("device") is not None:
            result_there = torch.device(kwargs["device"]).type == DEVICE
            kwargs = {**kwargs, "device": "cpu"}
        known = {id(x.inner): x for x in there}
        found = func(*tree_map_only(There, _inner, args), **tree_map_only(There, _inner, kwargs))
        if not result_there:
            return found
        return tree_map_only(Tensor, lambda x: known[id(x)] if id(x) in known else There(x), found)


def _inner(x: There) -> Tensor:
    return x.inner


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A device without float64."""
    monkeypatch.setattr(dtypes, "WITHOUT_FLOAT64", (DEVICE,))
    with Device():
        yield DEVICE


def images(seed: int, n: int = 4) -> Tensor:
    return torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def test_half_types_become_float32_and_the_others_stay() -> None:
    for given, found in (
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        assert at_least_float32(torch.ones(2, dtype=given)).dtype == found
    x = torch.ones(2)
    assert at_least_float32(x) is x


def test_float64_is_computed_where_there_is_some(device: str) -> None:
    x = torch.rand(3)
    assert in_float64(x).dtype == torch.float64 and torch.equal(in_float64(x.to(device)), x.double())
    with pytest.raises(TypeError, match="has no float64"):
        x.to(device).double()


def test_apples_gpus_have_none() -> None:
    assert "mps" in dtypes.WITHOUT_FLOAT64


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "deviation": lambda x, y: cosine_deviation(x.flatten(1), y.flatten(1)),
    **{
        f"{name} {threat.norm}": function
        for threat in (Threat(eps=0.4), Threat(norm="l2", eps=3.0))
        for name, function in {
            "distance": threat.distance,
            "contains": threat.contains,
            "boundary": lambda x, y, t=threat: to_boundary(x, y - 0.5, y[:, 0, 0, 0], t.norm),
            "eight bits": lambda x, y, t=threat: eight_bits((255 * x).round() / 255, y, t),
        }.items()
    },
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_same_on_a_device_without_float64(name: str, device: str) -> None:
    x, y = images(0), images(1)
    assert torch.equal(FUNCTIONS[name](x.to(device), y.to(device)).cpu(), FUNCTIONS[name](x, y))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab-t", "square"])
def test_attacks_on_a_device_without_float64(name: str, norm: Literal["linf", "l2"], device: str) -> None:
    threat = Threat(norm=norm, eps=0.1 if norm == "linf" else 0.5)
    weights = torch.randn(108, 5, generator=torch.Generator().manual_seed(2))
    budget = {"queries": 20} if name == "square" else {"steps": 5}

    def found(device: str) -> Tensor:
        x, w = images(0, 12).to(device), weights.to(device)
        search = lambda x: (x.flatten(1) - 0.5) @ w  # noqa: E731
        labels, streams = search(x).argmax(1), Streams(0, torch.arange(12).to(device))
        attack = replace(MEMBERS[name], **budget)
        return attack.perturb(Victim(search), x, labels, threat, streams=streams).cpu()

    assert torch.equal(found(device), found("cpu"))
    assert not torch.equal(found("cpu"), images(0, 12)), "something is found"


def test_mixtures_on_a_device_without_float64(device: str) -> None:
    def models(device: str) -> list[Any]:
        made: list[Any] = [nn.Linear(3, 2) for _ in range(2)]
        for seed, model in enumerate(made):
            model.card = {}
            for name, value in list(model.named_parameters()):
                x = torch.rand(value.shape, generator=torch.Generator().manual_seed(seed))
                setattr(model, name, nn.Parameter(x.to(device)))
        return made

    there, here = (mix(models(where), [0.3, 0.7]).state_dict() for where in (device, "cpu"))
    for name, value in there.items():
        assert isinstance(value, There) and torch.equal(value.cpu(), here[name])
