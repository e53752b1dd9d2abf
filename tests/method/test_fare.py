"""FARE against its equation."""

import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from advflyp.data.batch import Batch
from advflyp.method.fare import FARE, FAREConfig
from advflyp.model.clip import CLIP
from advflyp.training.loop import train
from helpers import assert_equal64, write_folder
from method.oracle import check


@pytest.fixture
def method(vision: CLIP, original: CLIP) -> FARE:
    method = FARE(FAREConfig(), vision)
    method.original = original
    return method


def test_the_loss(method: FARE, labelled: Batch, images_adv: Tensor) -> None:
    """(1/N) Σ_i ‖f_θ(x_i + δ_i) − f_θ₀(x_i)‖₂²: raw embeddings, the original's of the clean picture."""
    batch = Batch(images=labelled.images, captions=labelled.captions)
    losses = method.losses(labelled.images, images_adv, batch)
    assert set(losses) == {"embedding"} and method.needs_original

    def equation(z: np.ndarray, frozen: np.ndarray) -> float:
        return sum((a - b) ** 2 for a, b in zip(z.ravel(), frozen.ravel(), strict=True)) / len(z)

    frozen = method.original.encode_image_raw(labelled.images)
    z = method.model.encode_image_raw(images_adv)
    assert ((z.norm(dim=1) - 1).abs() > 0.01).all(), "not of unit length"
    check(losses["embedding"], equation, method.model, z=z, frozen=frozen)
    assert_equal64(method.attack_loss(images_adv, batch), (z - frozen).square().sum(1))


def test_raw_embeddings_point_where_the_unit_ones_do(any_tiny: CLIP) -> None:
    size = any_tiny.image_size[0]
    images = torch.rand(3, 3, size, size, dtype=torch.float64)
    raw = any_tiny.double().encode_image_raw(images)
    assert_equal64(F.normalize(raw, dim=-1), any_tiny.encode_image(images))


def test_the_original_sees_the_batch_once(method: FARE, labelled: Batch, monkeypatch) -> None:
    calls = []
    real = method.original.encode_image_raw
    monkeypatch.setattr(method.original, "encode_image_raw", lambda images: calls.append(1) or real(images))
    batch = Batch(images=labelled.images, captions=[])
    for _ in range(3):
        method.attack_loss(batch.images, batch)
    method.losses(batch.images, batch.images, batch)
    assert len(calls) == 1
    method.losses(batch.images, batch.images, Batch(images=labelled.images, captions=[]))
    assert len(calls) == 2


def test_images_need_no_captions(recipe: Path, tmp_path: Path) -> None:
    """A folder of images alone, and a tar of them."""
    data = write_folder(tmp_path / "images", 16)
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        for path in sorted(set(data.iterdir()) - set(data.glob("*.txt"))):
            tar.add(path, path.name)
    for text in data.glob("*.txt"):
        text.unlink()
    recipe.write_text(re.sub(r"(feature|logit)_weight.*\n", "", recipe.read_text()))
    for name in ("images", "images.tar"):
        overrides = {"data.train": str(tmp_path / name), "method.name": "fare", "data.batch_size": 8}
        assert train(recipe, overrides, out=tmp_path / f"run-{name}").steps == 4
        with pytest.raises(ValueError, match="caption"):
            train(recipe, overrides | {"method.name": "advflyp"}, out=tmp_path / f"no-{name}")
