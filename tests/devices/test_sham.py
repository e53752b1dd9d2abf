"""The sham device itself: it computes what a CPU does, refuses what CUDA refuses, and logs what synchronises.

Tests with `gpu` hold of a real GPU too: there they show that the sham one is what it pretends to be.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from devices.conftest import Gpu
from devices.pretend import sham_cuda
from devices.sham import DeviceError, Sham, ShamDevice


@pytest.fixture
def sham() -> Iterator[ShamDevice]:
    with sham_cuda() as device:
        yield device


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GELU(), nn.Flatten(), nn.Linear(64, 5)
    )


def test_it_says_that_it_is_on_cuda(sham: ShamDevice) -> None:
    for tensor in (torch.zeros(2, device="cuda"), torch.tensor([1.0], device="cuda"), torch.ones(2).cuda()):
        for made in (
            tensor,
            tensor + 1,
            tensor[:1],
            tensor.clone(),
            torch.zeros_like(tensor),
            tensor.new_ones(3),
        ):
            assert isinstance(made, Sham) and made.device == torch.device("cuda", 0)
            assert made.is_cuda and not made.is_cpu
        assert type(tensor.cpu()) is Tensor
    assert tensor.to("cuda") is tensor and tensor.to(torch.device("cuda", 0), torch.float32) is tensor
    assert tensor.to("cuda", torch.float64).dtype == torch.float64


def test_indices_choose_what_they_choose_on_a_cpu(gpu: Gpu) -> None:
    host = torch.arange(12.0).view(3, 4)
    device = host.to("cuda")
    rows, mask = torch.tensor([2, 0]), host[:, 0] > 0
    for index in (
        1,
        slice(1, 3),
        [2, 0, 2],
        (slice(None), [1, 3]),
        rows,
        (rows, rows),
        np.array([1, 0]),
        mask,
        ...,
        None,
    ):
        assert torch.equal(device[index].cpu(), host[index])
        changed, expected = device.clone(), host.clone()
        changed[index], expected[index] = 7.0, 7.0
        assert torch.equal(changed.cpu(), expected)
    assert torch.equal(device[rows.to("cuda")].cpu(), host[rows])


def test_training_steps_are_those_of_a_cpu(sham: ShamDevice) -> None:
    host = small()
    model = copy.deepcopy(host)
    weight = model[0].weight
    model.to("cuda")
    assert model[0].weight is weight and isinstance(weight, nn.Parameter) and weight.is_cuda
    assert copy.deepcopy(model)[0].weight.is_cuda
    images, labels = torch.rand(6, 3, 4, 4), torch.arange(6) % 5
    for net, device in ((host, "cpu"), (model, "cuda")):
        optimiser = torch.optim.AdamW(net.parameters(), lr=0.1, fused=True)
        for _ in range(3):
            optimiser.zero_grad()
            loss = F.cross_entropy(net(images.to(device)), labels.to(device))
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
        assert all(slot.is_cuda for slots in optimiser.state.values() for slot in slots.values()) == (
            device == "cuda"
        )
    for one, other in zip(host.state_dict().values(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(other.cpu(), one)


def test_a_state_goes_through_a_file(sham: ShamDevice, tmp_path: Path) -> None:
    model = small().to("cuda")
    torch.save(model.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", map_location="cpu", weights_only=True)
    other = small(seed=1).to("cuda")
    other.load_state_dict(state)
    for key, value in other.state_dict().items():
        assert (
            value.is_cuda
            and torch.equal(value.cpu(), state[key])
            and torch.equal(value, model.state_dict()[key])
        )


REFUSED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "sum": lambda device, host: device + host,
    "product": lambda device, host: device @ host.T,
    "in place": lambda device, host: device.add_(host),
    "into the host": lambda device, host: host.add_(device),
    "a host number changed": lambda device, host: host[0, 0].add_(device[0, 0]),
    "cat": lambda device, host: torch.cat([device, host]),
    "stacked numbers": lambda device, host: torch.stack([device[0, 0], host[0, 0]]),
    "index into the host": lambda device, host: host[torch.zeros(1, dtype=torch.int64, device="cuda")],
    "values at an index": lambda device, host: device.index_put_((torch.tensor([0]).cuda(),), host[:1]),
    "gather": lambda device, host: device.gather(1, host.long()),
    "embedding": lambda device, host: F.embedding(torch.zeros(1, dtype=torch.int64), device),
    "target": lambda device, host: F.cross_entropy(device, torch.zeros(2, dtype=torch.int64)),
    "where": lambda device, host: torch.where(host > 0, device, device),
    "weight": lambda device, host: F.linear(device, host),
}


@pytest.mark.parametrize("what", REFUSED)
def test_tensors_of_two_devices_are_refused(what: str, gpu: Gpu) -> None:
    device, host = torch.ones(2, 3, device="cuda"), torch.ones(2, 3)
    with pytest.raises(RuntimeError, match="device|cpu"):
        REFUSED[what](device, host)


def test_scalars_of_the_host_are_taken(gpu: Gpu) -> None:
    x, number = torch.ones(2, 3, device="cuda"), torch.tensor(2.0)
    for result in (
        x * number,
        number * x,
        torch.where(x > 0, number, x),
        torch.maximum(x, number),
        x.clone().fill_(number),
    ):
        assert result.is_cuda
    assert x.masked_fill(x > 0, number).sum().item() == 12
    x[:, 0] = number
    assert x.sum().item() == 8


def test_numpy_and_pinning_are_refused(gpu: Gpu) -> None:
    x = torch.ones(2, device="cuda")
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        x.numpy()
    with pytest.raises(RuntimeError, match="cannot pin"):
        x.pin_memory()


DRAWS: dict[str, Callable[[Any, str], Any]] = {
    "rand": lambda generator, device: torch.rand(2, generator=generator, device=device),
    "uniform_": lambda generator, device: torch.empty(2, device=device).uniform_(generator=generator),
    "normal_": lambda generator, device: torch.empty(2, device=device).normal_(generator=generator),
    "randperm": lambda generator, device: torch.randperm(5, generator=generator, device=device),
    "multinomial": lambda generator, device: torch.ones(4, device=device).multinomial(2, generator=generator),
}


@pytest.mark.parametrize("how", DRAWS)
def test_a_generator_belongs_to_its_device(how: str, gpu: Gpu) -> None:
    draw = DRAWS[how]
    for own, other in (("cpu", "cuda"), ("cuda", "cpu")):
        generator = torch.Generator(own).manual_seed(0)
        assert generator.device.type == own and draw(generator, own).device.type == own
        with pytest.raises(
            RuntimeError, match=f"Expected a '{other}' device type for generator but found '{own}'"
        ):
            draw(generator, other)


def test_a_seed_means_other_numbers_on_the_device(gpu: Gpu) -> None:
    def draws(device: str) -> Tensor:
        return torch.rand(4, generator=torch.Generator(device).manual_seed(3), device=device).cpu()

    assert torch.equal(draws("cuda"), draws("cuda"))
    assert not torch.equal(draws("cuda"), draws("cpu"))


def test_the_device_has_a_random_state_of_its_own(gpu: Gpu) -> None:
    torch.manual_seed(0)
    torch.rand(3)
    first = torch.rand(4, device="cuda")
    state = torch.cuda.get_rng_state()
    second, dropped = torch.rand(4, device="cuda"), F.dropout(torch.ones(50, device="cuda"))
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(4, device="cuda"), second)
    assert torch.equal(F.dropout(torch.ones(50, device="cuda")), dropped)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(4, device="cuda"), first), "the CPU's draws have not moved it"


def read(x: Tensor) -> None:
    x.sum().item()


SYNCHRONISING: dict[str, Callable[[Tensor], Any]] = {
    "item": read,
    "bool": lambda x: bool(x.sum()),
    "float": lambda x: float(x[0]),
    "if": lambda x: 1 if x[0] else 0,
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "mask assigned": lambda x: x.__setitem__(x > 0, torch.ones(4, device="cuda")),
    "equal": lambda x: torch.equal(x, x),
    "unique": lambda x: x.unique(),
    "copied into the host": lambda x: torch.empty(4).copy_(x),
    "from the host": lambda x: torch.ones(2).to("cuda"),
    "made of a list": lambda x: torch.tensor([1.0, 2.0], device="cuda"),
    "copied from the host": lambda x: x.copy_(torch.ones(4)),
    "a host index": lambda x: x[torch.tensor([0])],
    "an index as a list": lambda x: x[[0, 2]],
    "a number at an index": lambda x: x.__setitem__(
        torch.zeros(1, dtype=torch.int64).pin_memory().to("cuda", non_blocking=True), 3.0
    ),
    "synchronize": lambda x: torch.cuda.synchronize(),
}
# torch.cuda.set_sync_debug_mode() does not speak of it.
NOT_NAMED_BY_CUDA = {"synchronize"}


@pytest.mark.parametrize("what", SYNCHRONISING)
def test_synchronisations_are_logged(what: str, gpu: Gpu) -> None:
    if gpu.sham is None and what in NOT_NAMED_BY_CUDA:
        pytest.skip("a real device does not name it")
    x = torch.ones(4, device="cuda")
    with gpu.recording() as syncs:
        SYNCHRONISING[what](x)
    assert syncs
    assert all(sync.where.startswith("test_sham.py:") and sync.line > 0 for sync in syncs)


def test_a_synchronisation_says_where(gpu: Gpu) -> None:
    x = torch.ones(4, device="cuda")
    with gpu.recording() as syncs:
        read(x)
    (sync,) = syncs
    assert (sync.where, sync.line) == ("test_sham.py:read", read.__code__.co_firstlineno + 1)


def test_what_does_not_synchronise(gpu: Gpu) -> None:
    x, labels = torch.ones(4, 4, device="cuda"), torch.zeros(4, dtype=torch.int64, device="cuda")
    weight = torch.ones(4, 4, device="cuda", requires_grad=True)
    pinned = torch.ones(4, 4).pin_memory()
    assert pinned.is_pinned()
    with gpu.recording() as syncs:
        y = x + pinned.to("cuda", non_blocking=True)
        y = y.masked_fill(y > 1, 0.5)
        y[:, 1] = 2.0
        y[y > 3] = 1.0
        rows = torch.arange(4, device="cuda")
        y = y[rows] + y.scatter(1, rows[:, None], float("-inf")).topk(2, dim=1).values.sum()
        F.cross_entropy(y @ weight, labels).backward()
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        torch.where(y > 0, y, 0.0).clamp(0, 1).mul_(torch.tensor(2.0))
        torch.linspace(0, 1, 4, device="cuda")
    assert syncs == []


# operation → its result's type under autocast in bfloat16
AUTOCAST: dict[str, tuple[Callable[[Tensor], Tensor], torch.dtype]] = {
    "linear": (lambda x: F.linear(x, torch.ones(4, 4, device="cuda")), torch.bfloat16),
    "matmul": (lambda x: x @ x, torch.bfloat16),
    "einsum": (lambda x: torch.einsum("ij,ij->i", x, x), torch.bfloat16),
    "conv2d": (lambda x: F.conv2d(x.view(1, 1, 4, 4), x.view(1, 1, 4, 4)), torch.bfloat16),
    "attention": (lambda x: F.scaled_dot_product_attention(*(x.view(1, 1, 4, 4),) * 3), torch.bfloat16),
    "linear, gelu": (lambda x: F.gelu(x @ x), torch.bfloat16),
    "linear, layer_norm": (lambda x: F.layer_norm(x @ x, (4,)), torch.float32),
    "linear, softmax": (lambda x: (x @ x).softmax(-1), torch.float32),
    "linear, exp": (lambda x: (x @ x).exp(), torch.float32),
    "linear, sum": (lambda x: (x @ x).sum(-1), torch.float32),
    "linear, norm": (lambda x: (x @ x).norm(dim=1), torch.float32),
    "linear, mean": (lambda x: (x @ x).mean(-1), torch.bfloat16),
    "addition": (lambda x: x + x, torch.float32),
    "float64": (lambda x: x.double() @ x.double(), torch.float64),
}  # fmt: skip


@pytest.mark.parametrize("what", AUTOCAST)
def test_autocast_has_the_rules_of_cuda(what: str, gpu: Gpu) -> None:
    operation, dtype = AUTOCAST[what]
    x = torch.rand(4, 4, device="cuda", requires_grad=True)
    with torch.autocast("cuda", torch.bfloat16):
        result = operation(x)
    assert result.dtype == dtype
    with torch.autocast("cuda", enabled=False):
        assert operation(x).dtype == (torch.float64 if what == "float64" else torch.float32)
    result.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32
    assert operation(torch.rand(4, 4, device="cuda")).dtype in (torch.float32, torch.float64), (
        "outside of the region"
    )


def test_autocast_computes_in_bfloat16(sham: ShamDevice) -> None:
    x = torch.rand(4, 4)
    with torch.autocast("cuda", torch.bfloat16):
        found = x.cuda() @ x.cuda()
    assert torch.equal(found.cpu(), x.bfloat16() @ x.bfloat16())


def test_deterministic_mode_refuses_what_cuda_cannot_repeat(gpu: Gpu, deterministic: None) -> None:
    x = torch.rand(1, 1, 4, 4, device="cuda", requires_grad=True)
    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        F.grid_sample(x, torch.zeros(1, 2, 2, 2, device="cuda"), align_corners=False).sum().backward()
    # torch computes this one by other operations then.
    F.interpolate(x, (8, 8), mode="bilinear").sum().backward()


def test_afterwards_everything_is_as_it_was() -> None:
    def look() -> list[Any]:
        names = (name for name in dir(torch.cuda) if callable(getattr(torch.cuda, name)))
        return [
            *(getattr(torch.cuda, name) for name in names),
            torch.Generator, torch.tensor, Tensor.to, Tensor.cuda, Tensor.pin_memory, Tensor.is_pinned,
            torch.cuda.is_available(), torch.get_rng_state().tolist(),
        ]  # fmt: skip

    before = look()
    with pytest.raises(DeviceError), sham_cuda():
        left = torch.zeros(2, device="cuda")
        torch.rand(3, device="cuda")
        with torch.device("meta"):
            torch.empty(1)
        _ = left + torch.zeros(2)
    assert look() == before
    with torch.device("meta"):
        assert torch.tensor(0).is_meta
    with pytest.raises(AssertionError, match="outside of sham_cuda"):
        _ = left + 1
