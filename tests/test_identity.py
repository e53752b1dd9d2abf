"""What tells own attacks and models apart in results."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torchvision.transforms import Normalize

from advflyp.identity import recordable, source_sha256


def closing_over(value: Any) -> Callable[[], Any]:
    return lambda: value


def plain() -> None:
    pass


def with_default(n: int) -> Callable[..., Any]:
    def call(k: int = n, *, m: int = n) -> int:
        return k + m

    return call


def hooked(factor: int) -> nn.Module:
    made = nn.Identity()
    made.register_forward_hook(lambda module, given, found: factor * found)
    return made


class Slots:
    __slots__ = ("n",)

    def __init__(self, n: int) -> None:
        self.n = n


class Holder:
    def __init__(self, **held: Any) -> None:
        self.__dict__.update(held)

    def __call__(self) -> None:
        pass


class Private(nn.Module):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self._eps = eps


def made_class(number: int) -> type:
    """Two classes of one name, as before and after an edit."""

    def one(self: Any) -> str:
        return "one"

    def two(self: Any) -> str:
        return "two"

    return type("Made", (), {"__call__": one if number == 1 else two})


def layer(bias: float) -> nn.Module:
    made = nn.Linear(2, 2)
    for parameter in made.parameters():
        nn.init.constant_(parameter, bias)
    return made


@pytest.mark.parametrize(
    "one, other",
    [
        (1, 2),
        (1, True),
        ("a", "b"),
        (0.1, 0.2),
        (b"a", b"b"),
        ([1, 2], [2, 1]),
        ((1,), (1, 1)),
        ({"a": 1}, {"a": 2}),
        ({1, 2}, {1, 3}),
        (torch.zeros(2), torch.ones(2)),
        (torch.zeros(2), torch.zeros(2).double()),
        (np.zeros(2), np.zeros((2, 1))),
        (np.float32(1), np.float32(2)),
        (layer(0), layer(1)),
        (nn.Dropout(0.1), nn.Dropout(0.2)),
        (Holder(eps=1), Holder(eps=2)),
        (Holder(inner=Holder(eps=1)), Holder(inner=Holder(eps=2))),
        (SimpleNamespace(eps=1), SimpleNamespace(eps=2)),
        (Slots(1), Slots(2)),
        (Path("a"), Path("b")),
        (range(2), range(3)),
        (Fraction(1, 2), Fraction(1, 3)),
        (torch.float32, torch.float64),
        (np.array(["a", None]), np.array(["b", None])),
        (torch.zeros(2).to_sparse(), torch.ones(2).to_sparse()),
        (nn.Conv2d(1, 1, 3, bias=False), nn.Conv2d(1, 1, 3, bias=False, stride=2)),
        (nn.Sequential(nn.Tanh()), nn.Sequential(nn.Sigmoid())),
        (Normalize([0.0], [1.0]), Normalize([0.5], [1.0])),
        (Private(0.1), Private(0.2)),
        (hooked(1), hooked(2)),
        (hooked(1), nn.Identity()),
        (Normal(torch.zeros(2), torch.ones(2)), Normal(torch.zeros(2), torch.full((2,), 2.0))),
        (partial(torch.add, alpha=2), partial(torch.sub, alpha=2)),
        (made_class(1)(), made_class(2)()),
        (lambda x: x + 1, lambda x: x - 1),
        (with_default(1), with_default(2)),
        (torch.Tensor.relu, torch.Tensor.tanh),
        (partial(plain, 1), partial(plain, 2)),
        (closing_over(1), closing_over(2)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_code_that_holds_other_values_is_other_code(one: Any, other: Any) -> None:
    for made in (
        lambda value: partial(plain, value),
        lambda value: partial(plain, key=value),
        lambda value: partial(partial(plain, value), 3),
        closing_over,
        lambda value: Holder(value=value),
        lambda value: Holder(value=value).__call__,
        lambda value: Holder(inner=[closing_over({"a": value})]),
    ):
        assert source_sha256(made(one)) != source_sha256(made(other))
        assert source_sha256(made(one)) == source_sha256(made(one))


def test_what_holds_nothing_is_its_source() -> None:
    """Results that are older than this hash of values keep their keys."""
    hashes = {source_sha256(one) for one in (plain, Holder, Holder(), partial(plain), Holder().__call__)}
    assert len(hashes) == 1


def test_functions_without_source_are_their_bytecode() -> None:
    """As in Python's interactive shell and under `python -c`."""
    script = (
        "from advflyp.identity import source_sha256\n"
        "def f(x): return (lambda y: y + {} in {{'a', 'b', 'c'}})(x)\n"
        "class C:\n    def __call__(self): return {}\n"
        "print(source_sha256(f), source_sha256(C()))"
    )
    found = [output(script.format(n, n), seed) for n in (1, 2) for seed in "12"]
    assert found[0] == found[1] != found[2] == found[3]
    assert len({*found[0].split(), *found[2].split()}) == 4
    with pytest.raises(ValueError, match="the source of <built-in function len>"):
        source_sha256(len)


def output(script: str, seed: str) -> str:
    command = [sys.executable, "-c", script, os.path.dirname(__file__)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_an_object_that_holds_itself_has_a_hash() -> None:
    one, other = Holder(a=1), Holder(a=1)
    one.me, other.me = [one], [other]
    assert source_sha256(one) == source_sha256(other)


def test_what_does_not_change_a_result_is_left_out() -> None:
    net, held = nn.Linear(2, 2), Cached(2)
    before = source_sha256(Holder(net=net)), source_sha256(held)
    net.eval()
    assert held.double == 4
    assert (source_sha256(Holder(net=net)), source_sha256(held)) == before


class Cached:
    def __init__(self, n: int) -> None:
        self.n = n

    @cached_property
    def double(self) -> int:
        return 2 * self.n


def test_anything_can_be_held() -> None:
    def not_assigned_yet() -> Any:
        return later

    deep: list = []
    for _ in range(500):
        deep = [deep]
    shared: Any = 1
    for _ in range(100):
        shared = [shared, shared]  # 2¹⁰⁰ paths to the 1
    for value in (not_assigned_yet, deep, shared, torch.empty(2, device="meta"), nn.LazyLinear(2), 1j):
        assert len(source_sha256(partial(plain, value))) == 64
    later = 1


def test_the_hash_is_the_same_in_every_process() -> None:
    """Neither addresses nor the order of sets are part of it, nor what is not data."""
    script = (
        "import sys, logging, threading; sys.path.insert(0, sys.argv[1])\n"
        "from test_identity import Holder\n"
        "from advflyp.identity import source_sha256\n"
        "held = dict(a={'x', 'y', 'zz'}, b=object(), c=threading.Lock(), d=logging.getLogger(), e=len)\n"
        "print(source_sha256(Holder(**held)))"
    )
    assert output(script, "1") == output(script, "2")


def test_what_results_record_is_json() -> None:
    @dataclass
    class Terms:
        weight: float
        net: nn.Module

    value = {"n": 3, "terms": Terms(0.5, layer(1)), "names": ("a", None), "dtype": torch.float32}
    found = recordable(value)
    assert found == json.loads(json.dumps(found)) | {"names": ("a", None)}
    assert (found["n"], found["terms"]["weight"]) == (3, 0.5)
    assert recordable(layer(1)) == found["terms"]["net"] != recordable(layer(2))
