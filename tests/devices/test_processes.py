"""A group of one process, by NCCL on a GPU and by gloo on a CPU: the collectives, and whole steps split or replicated.

NCCL takes one process a GPU; with one alone the exchange is real, and its result known.
"""

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from advflyp import distributed
from advflyp.data.batch import Batch
from advflyp.distributed import Group
from advflyp.training import build as module
from advflyp.training.build import TrainingRun
from advflyp.training.checkpoint import load_last
from advflyp.training.loop import write_checkpoint
from advflyp.training.runlog import SilentLog
from advflyp.training.state import load_state_dict
from advflyp.training.update import update
from helpers import assert_equal64, models_in_float64


@dataclass
class OneProcess:
    """It is connected to itself; `group` makes what several processes would have of a batch."""

    device: torch.device
    groups: list[Group] = field(default_factory=list)

    def group(self, batch: int, device: torch.device | None = None) -> Group:
        self.groups.append(Group(batch, self.device))
        return self.groups[-1]


@pytest.fixture(params=["gloo", pytest.param("nccl", marks=pytest.mark.gpu)])
def process(request: pytest.FixtureRequest) -> Iterator[OneProcess]:
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
    process = OneProcess(place)
    yield process
    # Its threads would use the connection.
    for group in process.groups:
        group.leave()
    dist.destroy_process_group()


def test_collectives(process: OneProcess) -> None:
    group, device = process.group(4), process.device
    rows = torch.rand(4, 3, device=device, requires_grad=True)
    results: dict[str, tuple[Tensor, Tensor]] = {
        "gather": (group.gather(rows), rows),
        "mean": (group.mean(rows[:, 0]), rows[:, 0].mean()),
        "total": (group.all_reduce_sum(rows), rows),
        "each": (group.all_gather(rows), rows[None]),
        "logsumexp": (group.logsumexp(rows), rows),
    }
    for name, (found, expected) in results.items():
        assert found.device == device
        torch.testing.assert_close(found, expected, msg=name)
        (gradient,) = torch.autograd.grad(found.square().sum(), rows, retain_graph=True)
        (wanted,) = torch.autograd.grad(expected.square().sum(), rows, retain_graph=True)
        torch.testing.assert_close(gradient, wanted, msg=name)
    assert group.all_gather_object({"rank": 0}) == [{"rank": 0}]
    assert group.go_on(True, False) == (True, False) and group.broadcast_from_rank0(lambda: 5) == 5


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_steps_of_a_group_are_those_of_one_alone(
    parallel: str,
    process: OneProcess,
    open_trainer: Callable[..., TrainingRun],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a line of metrics, which once failed on a GPU: the norm of a split gradient was on the host."""
    keys = {"train.device": process.device.type, "train.precision": "fp32", "train.deterministic": True}
    # Eq. 8 has no slope at the first step, where the model is the original: it would be a direction of rounding.
    keys |= {"method.feature_weight": 0}
    keys |= {"optim.name": "sgd", "optim.lr": 0.05, "optim.warmup_steps": 0, "optim.max_grad_norm": 1.0}

    def opened(**more: object) -> TrainingRun:
        with models_in_float64():
            return open_trainer(**keys, **more)

    def steps(run: TrainingRun) -> dict[str, Tensor]:
        """Metrics of each step, and the weights at the end."""
        result = {}
        batches = run.pairs.epoch(0)
        for number in range(2):
            run.meter.add(update(run, next(batches)).metrics, 8)
            means = run.meter.means()
            run.meter.line(means, process.device, "fp32")
            result |= {f"{key} {number}": torch.tensor(value).double() for key, value in means.items()}
            run.state.step += 1
        return result | {
            key: value.cpu().clone() for key, value in run.unsharded_model().state_dict().items()
        }

    alone = steps(opened())
    monkeypatch.setattr(distributed, "join", process.group)
    monkeypatch.setattr(module, "check_split", lambda recipe, ranks: None)

    # The objective of one process alone would not be wrapped.
    several: Any = SimpleNamespace(size=2, wait_for_all=lambda: None)
    real = distributed.replicated
    monkeypatch.setattr(
        distributed, "replicated", lambda objective, ranks, place: real(objective, several, place)
    )
    together = opened(**{"train.parallel": parallel})
    assert isinstance(together.ranks, Group) and together.ranks.size == 1
    assert_equal64(steps(together), alone)
    together.state.step = 0
    write_checkpoint(together, SilentLog())
    assert len(list((together.folder.path / "checkpoints").iterdir())) == 1


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_split_run_goes_on_from_its_checkpoint(
    optimizer: str,
    process: OneProcess,
    open_trainer: Callable[..., TrainingRun],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights and the optimiser's state are split again; a step counter, which is no row of a weight, stays whole."""
    monkeypatch.setattr(distributed, "join", process.group)
    monkeypatch.setattr(module, "check_split", lambda recipe, ranks: None)
    keys = {"train.device": process.device.type, "train.precision": "fp32", "train.deterministic": True}
    keys |= {"optim.name": optimizer, "optim.lr": 0.05, "optim.warmup_steps": 0, "train.parallel": "fsdp"}
    with models_in_float64():
        run = open_trainer(**keys)
    first, second, *_ = run.pairs.epoch(0)

    def weights() -> dict[str, Tensor]:
        return {key: value.cpu().clone() for key, value in run.unsharded_model().state_dict().items()}

    def weights_after(batch: Batch) -> dict[str, Tensor]:
        update(run, batch)
        run.state.step += 1
        return weights()

    start = weights_after(first)
    write_checkpoint(run, SilentLog())
    end = weights_after(second)
    weights_after(first)
    load_state_dict(run, load_last(run.folder.checkpoints)[0])
    assert run.state.step == 1
    assert_equal64(weights(), start)
    assert_equal64(weights_after(second), end)
