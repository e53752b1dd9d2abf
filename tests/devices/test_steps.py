"""Training steps on a GPU: where they are computed, and that they do not synchronise.

A step of AdvFLYP_full on a ViT-B/32 launches some 3,000 kernels, which takes the host longer than a fast GPU needs to
run them. While the host waits it launches none.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from advflyp.attack.threat import Threat
from advflyp.data.config import DataConfig
from advflyp.data.mini import EMBEDDED
from advflyp.data.mini.compose import MiniPairs
from advflyp.data.pairs.images import ImageReader
from advflyp.data.pairs.pairs import Reading
from advflyp.method import METHODS
from advflyp.model.clip import CLIP, TextCache
from advflyp.model.text_store import TextStore
from advflyp.share import Share
from advflyp.training.build import TrainingRun
from advflyp.training.update import random_start, update
from devices.conftest import Gpu

FULL = {"method.feature_weight": 1.0, "method.logit_weight": 1.0}
STEPS: dict[str, tuple[str, dict[str, object]]] = {
    **{name: (name, {}) for name in METHODS},
    "float32": ("advflyp", {"train.precision": "fp32"}),
    "masked": ("advflyp", {"method.mask_same_caption": True}),
    "printed equations": ("advflyp", {"method.feature_norm": "frobenius", "method.logit_temperature": 1.0}),
    "micro-batches": ("advflyp", {"train.micro_batch": 3}),
    "recomputed": ("advflyp", {"train.activation_checkpointing": True}),
    "everything trained": ("advflyp", {"train.unfreeze": "all"}),
    "prompts trained": ("tecoa", {"train.unfreeze": "vision+text"}),
    "sgd": ("advflyp", {"optim.name": "sgd"}),
    "clipped": ("advflyp", {"optim.max_grad_norm": 0.1}),
    "l2": ("advflyp", {"attack.norm": "l2", "attack.eps": 0.5, "attack.step_size": 0.5}),
    "clean": ("advflyp", {"attack.steps": 0}),
}
# where → why a step may synchronise there
ALLOWED = {
    "model/clip.py:__call__": "a caption is new: its embedding is kept in host memory; the step has queued nothing",
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_does_not_synchronise(name: str, gpu: Gpu, open_trainer: Callable[..., TrainingRun]) -> None:
    """What repeats: a batch, the attack, the losses, the update."""
    method, keys = STEPS[name]
    run = open_trainer(method, **keys)
    with gpu.recording() as at_first:
        update(run, next(run.pairs.epoch(0)))
    run.state.step += 1
    assert {sync.where for sync in at_first} <= ALLOWED.keys(), "\n".join(map(str, at_first))

    before = {name: weight.clone() for name, weight in run.model.net.named_parameters()}
    with gpu.recording() as syncs:
        batches = run.pairs.epoch(0)  # the same captions
        batch = next(batches)
        updated = update(run, batch)
    assert syncs == [], "\n".join(map(str, syncs))
    assert all(value.device == gpu.device for value in updated.metrics.values())
    assert all(
        value.device == gpu.device for slots in run.optimizer.state.values() for value in slots.values()
    )
    assert all(torch.isfinite(value) for value in updated.metrics.values())
    for name, weight in run.model.net.named_parameters():
        assert weight.device == gpu.device and weight.dtype == torch.float32
        trained = weight.requires_grad and weight.grad is not None and weight.grad.abs().sum() > 0
        assert torch.equal(weight, before[name]) != bool(trained)
    assert run.model.net.visual.conv1.weight.grad is not None
    if run.recipe.attack.steps:
        assert run.recipe.attack.threat.contains(updated.batch.images, updated.images_adv).all()


@pytest.mark.parametrize(("fits", "found"), [(16, None), (15, 4), (3, 2), (1, 1)])
def test_as_many_images_at_a_time_as_fit(
    fits: int,
    found: int | None,
    gpu: Gpu,
    open_trainer: Callable[..., TrainingRun],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Clean and adversarial images of a batch of 8 are 16 activations; in parts, a part's are there at a time."""
    original, encoded = CLIP._encode_image, []

    def encode(model: CLIP, images: torch.Tensor) -> torch.Tensor:
        needs_memory = torch.is_grad_enabled() and images.requires_grad
        if needs_memory and len(images) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        encoded.append(len(images))
        return original(model, images)

    with monkeypatch.context() as patched:
        patched.setattr(CLIP, "_encode_image", encode)
        run = open_trainer(**FULL, **{"train.micro_batch": "auto"})
        assert run.model.micro_batch == run.recipe.train.micro_batch == found
        assert run.method.original is not None and run.method.original.micro_batch == found
        encoded.clear()
        updated = update(run, next(run.pairs.epoch(0)))
    assert max(encoded) == (found or 16) and torch.isfinite(updated.metrics["loss"])


def test_updating_batch_norm_statistics_does_not_synchronise(
    gpu: Gpu, open_trainer: Callable[..., TrainingRun], tiny_rn_folder: Path
) -> None:
    run = open_trainer(**{"model.name": str(tiny_rn_folder), "train.batch_norm": "update"})
    batch = next(run.pairs.epoch(0))
    update(run, batch)
    before = run.model.net.visual.bn1.running_mean.clone()
    with gpu.recording() as syncs:
        update(run, batch)
    assert syncs == []
    assert not torch.equal(run.model.net.visual.bn1.running_mean, before)


def test_known_captions_do_not_synchronise(
    gpu: Gpu, open_trainer: Callable[..., TrainingRun], tmp_path: Path
) -> None:
    model = open_trainer().model
    texts = ["a cat", "a dog", "a cat"]
    # Each is encoded once, and these two together.
    expected = model.encode_text(texts[:2])[[0, 1, 0]]
    caches: list[Any] = [
        TextCache(model),
        TextStore(model, tmp_path / "store"),
        TextStore(model, tmp_path / "store"),
    ]
    for cache in caches:
        cache(texts)
        with gpu.recording() as syncs:
            found = cache(texts)
        assert syncs == []
        assert found.device == gpu.device
        assert torch.equal(found, expected)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_seed_means_the_same_start_as_on_a_cpu(norm: str, gpu: Gpu) -> None:
    images = torch.rand(9, 3, 8, 8)
    threat = Threat(norm=norm, eps=0.25)  # type: ignore[arg-type]
    with gpu.recording() as syncs:
        found = random_start(images.pin_memory().to(gpu.device, non_blocking=True), threat, 3, 7)
    assert syncs == []
    on_cpu = random_start(images, threat, 3, 7)
    if norm == "linf":
        assert torch.equal(found.cpu(), on_cpu)
    # L2 takes a logarithm, a cosine and a root, each to a few units in the last place, and divides by a length.
    torch.testing.assert_close(found.cpu(), on_cpu, rtol=0, atol=32 * 2**-24)


def test_a_seed_means_the_same_mini_images_as_on_a_cpu(gpu: Gpu) -> None:
    def first(device: torch.device) -> dict[str, Any]:
        config = DataConfig(train="mini", batch_size=8, limit=40)
        how = Reading(
            config=config,
            reader=ImageReader({"size": 64}),
            seed=5,
            device=device,
            share=Share(config.batch_size),
        )
        return next(MiniPairs(EMBEDDED, how).epoch(0))

    with gpu.recording() as syncs:
        found = first(gpu.device)
    assert syncs == []
    on_cpu = first(torch.device("cpu"))
    assert found.captions == on_cpu.captions
    assert found.images.device == gpu.device
    # Where a pixel is looked up, times 64 pixels, moves by a few units in the last place; its value by less than that.
    torch.testing.assert_close(found.images.cpu(), on_cpu.images, rtol=0, atol=64 * 8 * 2**-24)
