"""A group of one process, by NCCL on a GPU and by gloo on a CPU: the collectives, and whole steps split or replicated.

NCCL takes one process a GPU; with one alone the exchange is real, and its result known.
"""

import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from advflyp import distributed
from advflyp.distributed import Group
from advflyp.training import trainer as module
from advflyp.training.trainer import Trainer


@pytest.fixture(params=["gloo", pytest.param("nccl", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where the group's tensors are."""
    if request.param == "nccl" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device here")
    place = torch.device("cuda", 0) if request.param == "nccl" else torch.device("cpu")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    dist.init_process_group(
        request.param,
        init_method=f"tcp://127.0.0.1:{port}",
        rank=0,
        world_size=1,
        timeout=timedelta(minutes=2),
        device_id=place if request.param == "nccl" else None,
    )
    yield place
    dist.destroy_process_group()


def test_collectives(device: torch.device) -> None:
    group = Group(4, device)
    rows = torch.rand(4, 3, device=device, requires_grad=True)
    results: dict[str, tuple[Tensor, Tensor]] = {
        "gather": (group.gather(rows), rows),
        "mean": (group.mean(rows[:, 0]), rows[:, 0].mean()),
        "total": (group.total(rows), rows),
        "each": (group.each(rows), rows[None]),
        "logsumexp": (group.logsumexp(rows), rows),
    }
    for name, (found, expected) in results.items():
        assert found.device == device
        torch.testing.assert_close(found, expected, msg=name)
        (gradient,) = torch.autograd.grad(found.square().sum(), rows, retain_graph=True)
        (wanted,) = torch.autograd.grad(expected.square().sum(), rows, retain_graph=True)
        torch.testing.assert_close(gradient, wanted, msg=name)
    assert group.objects({"rank": 0}) == [{"rank": 0}]
    assert group.go_on(True, False) == (True, False) and group.first(lambda: 5) == 5


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_steps_of_a_group_are_those_of_one_alone(
    parallel: str, device: torch.device, open_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a line of metrics, which once failed on a GPU: the norm of a split gradient was on the host."""
    keys = {"train.device": device.type, "train.precision": "fp32", "train.deterministic": True}
    keys |= {"optim.name": "sgd", "optim.lr": 0.05, "optim.warmup_steps": 0, "optim.max_grad_norm": 1.0}

    def steps(trainer: Trainer) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
        found = []
        batches = trainer.pairs.epoch(0)
        for _ in range(2):
            trainer.meter.add(trainer.step(next(batches)), 8)
            found.append(trainer.meter.means())
            trainer.meter.line(found[-1], device, "fp32")
            trainer.progress.step += 1
        return found, {key: value.cpu().clone() for key, value in trainer._whole_model().state_dict().items()}

    alone = steps(open_trainer(**keys))
    monkeypatch.setattr(distributed, "join", lambda batch, device: Group(batch, device))
    monkeypatch.setattr(module, "check_split", lambda recipe, ranks: None)

    def replicated(objective: torch.nn.Module, ranks: Any, device: torch.device) -> torch.nn.Module:
        ranks.size = 2  # one alone would not be wrapped
        monkeypatch.setattr(ranks, "wait_for_all", lambda: None)  # there is no second one to wait for
        try:
            return real(objective, ranks, device)
        finally:
            ranks.size = 1

    real = distributed.replicated
    monkeypatch.setattr(distributed, "replicated", replicated)
    together = open_trainer(**keys, **{"train.parallel": parallel})
    assert isinstance(together.ranks, Group) and together.ranks.size == 1
    metrics, weights = steps(together)
    # Exact on a CPU. A GPU may choose another kernel for weights that lie elsewhere in memory.
    close = {"rtol": 0, "atol": 0} if device.type == "cpu" else {"rtol": 1e-4, "atol": 1e-5}
    for key, value in {**dict(enumerate(alone[0])), **alone[1]}.items():
        torch.testing.assert_close({**dict(enumerate(metrics)), **weights}[key], value, **close, msg=str(key))
    together.progress.step = 0
    together._save()
    assert len(list((together.out / "checkpoints").iterdir())) == 1
