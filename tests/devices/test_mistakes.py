"""Common mistakes, each put into the product once: the sham device refuses it, or logs where it synchronises."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from advflyp.training import sharding
from advflyp.training.build import TrainingRun
from advflyp.training.update import update
from devices.conftest import Gpu
from devices.sham import Sync

pytestmark = pytest.mark.parametrize("gpu", ["sham"], indirect=True)


def two_steps(run: TrainingRun, gpu: Gpu) -> list[Sync]:
    """The synchronisations of the second step."""
    run.meter.add(update(run, next(run.pairs.epoch(0))).metrics, 8)
    with gpu.recording() as syncs:
        run.meter.add(update(run, next(run.pairs.epoch(0))).metrics, 8)
    return syncs


class WithoutDevice:
    """torch, whose function `name` forgets the device it is told."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> Any:
        function = getattr(torch, name)
        if name != self.name:
            return function
        return lambda *args, device=None, **how: function(*args, **how)


def left_on_the_host(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor


def pageable(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device)


def test_without_a_mistake(gpu: Gpu, open_trainer: Callable[..., TrainingRun]) -> None:
    """The control: what the tests below break is whole."""
    run = open_trainer(**{"method.mask_same_caption": True})
    assert two_steps(run, gpu) == []
    assert run.meter.means()["loss"] > 0


def test_a_generator_of_the_other_device(
    gpu: Gpu, open_trainer: Callable[..., TrainingRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(images: Tensor, threat: Any, seed: int, step: int, first_row: int) -> Tensor:
        return threat.random_start(images, torch.Generator().manual_seed(seed))

    monkeypatch.setattr("advflyp.training.update.random_start", start)
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator but found 'cpu'"):
        two_steps(open_trainer(), gpu)


REFUSED: dict[str, tuple[str, Any]] = {
    "the target of a cross-entropy": ("advflyp.method.advflyp.torch", WithoutDevice("arange")),
    "the mask of equal captions": ("advflyp.method.advflyp.to_device", left_on_the_host),
    "tokens": ("advflyp.model.clip.to_device", left_on_the_host),
    "places of random numbers": ("advflyp.training.update.torch", WithoutDevice("arange")),
    "images": ("advflyp.training.update.to_device", left_on_the_host),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_tensor_that_was_left_on_the_host(
    what: str, gpu: Gpu, open_trainer: Callable[..., TrainingRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_trainer(**{"method.mask_same_caption": what == "the mask of equal captions"})
    monkeypatch.setattr(*REFUSED[what])
    if what == "images":
        monkeypatch.setattr(run.pairs, "how", replace(run.pairs.how, device=torch.device("cpu")))
    with pytest.raises(RuntimeError, match="found at least two devices, cuda:0 and cpu"):
        two_steps(run, gpu)


def test_a_constant_that_is_no_buffer(gpu: Gpu, open_trainer: Callable[..., TrainingRun]) -> None:
    run = open_trainer()
    del run.model.mean
    run.model.mean = torch.zeros(1, 3, 1, 1)
    run.model.__class__ = type("CLIP", (type(run.model),), {"device": gpu.device})
    with pytest.raises(RuntimeError, match="found at least two devices, cuda:0 and cpu"):
        two_steps(run, gpu)


def reading(value: Tensor) -> Tensor:
    return value / value.detach().sum().abs().item()


def branching(value: Tensor) -> Tensor:
    return value if value.detach().sum() > 0 else -value


def choosing(value: Tensor) -> Tensor:
    return value.flatten()[value.flatten().isfinite()].sum()


@pytest.mark.parametrize("mistake", [reading, branching, choosing])
def test_a_number_read_in_the_ascent(
    mistake: Callable[[Tensor], Tensor], gpu: Gpu, open_trainer: Callable[..., TrainingRun]
) -> None:
    run = open_trainer()
    real = run.method.attack_loss
    run.method.attack_loss = lambda images, batch: mistake(real(images, batch))  # type: ignore[method-assign]
    syncs = two_steps(run, gpu)
    here = [sync for sync in syncs if sync.where == f"test_mistakes.py:{mistake.__name__}"]
    assert len(here) == run.recipe.attack.steps
    assert {sync.line for sync in here} == {mistake.__code__.co_firstlineno + 1}
    # Indexing by a mask synchronises once more, in the backward pass.
    assert {sync.where for sync in syncs if sync not in here} == (
        {"attack/victim.py:pixel_gradient"} if mistake is choosing else set()
    )


def test_numbers_of_two_devices_stacked(
    gpu: Gpu, open_trainer: Callable[..., TrainingRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a split tower's gradient norm once was."""
    monkeypatch.setattr(sharding, "unsharded", lambda norm: norm.cpu())
    run = open_trainer()
    syncs = two_steps(run, gpu)
    assert [(sync.why, sync.where) for sync in syncs] == [
        ("values are copied to the host", "test_mistakes.py:<lambda>")
    ]
    with pytest.raises(RuntimeError, match="found at least two devices, cuda:0 and cpu"):
        run.meter.means()


PAGEABLE = {
    "advflyp.method.advflyp": "test_mistakes.py:pageable",
    "advflyp.model.clip": "test_mistakes.py:pageable",
    "advflyp.model.text_store": "test_mistakes.py:pageable",
}


@pytest.mark.parametrize("module", PAGEABLE)
def test_a_copy_out_of_pageable_memory(
    module: str,
    gpu: Gpu,
    open_trainer: Callable[..., TrainingRun],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
) -> None:
    kept = {"data.text_cache": str(tmp_path / "store")} if module.endswith("text_store") else {}
    run = open_trainer(**{"method.mask_same_caption": True, **kept})
    monkeypatch.setattr(f"{module}.to_device", pageable)
    assert {sync.where for sync in two_steps(run, gpu)} == {PAGEABLE[module]}


def test_a_number_written_at_an_index(
    gpu: Gpu, open_trainer: Callable[..., TrainingRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the mask of equal captions once was made."""

    def same_captions(captions: list[str], ranks: Any, device: torch.device) -> Tensor:
        same = torch.zeros(len(captions), len(captions), dtype=torch.bool, device=device)
        row = torch.arange(len(captions), device=device)
        same[row, row] = False
        return same

    monkeypatch.setattr("advflyp.method.advflyp.same_captions", same_captions)
    syncs = two_steps(open_trainer(**{"method.mask_same_caption": True}), gpu)
    assert [sync.where for sync in syncs] == ["test_mistakes.py:same_captions"]


def test_numpy_of_a_device_tensor(
    gpu: Gpu, open_trainer: Callable[..., TrainingRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_trainer()
    real = run.method.attack_loss
    run.method.attack_loss = lambda images, batch: (images.detach().numpy(), real(images, batch))[1]  # type: ignore[method-assign]
    with pytest.raises(TypeError, match="can't convert cuda:0"):
        two_steps(run, gpu)
