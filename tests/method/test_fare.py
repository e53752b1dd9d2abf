"""FARE against its equation."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from advflyp.method.fare import FARE, FAREConfig
from advflyp.model.clip import CLIP
from helpers import assert_equal64
from method.oracle import check


@pytest.fixture
def method(vision: CLIP, original: CLIP) -> FARE:
    method = FARE(FAREConfig(), vision)
    method.original = original
    return method


def test_the_loss(method: FARE, labelled: dict, images_adv: Tensor) -> None:
    """(1/N) Σ_i ‖f_θ(x_i + δ_i) − f_θ₀(x_i)‖₂²: raw embeddings, the original's of the clean picture."""
    batch = {"images": labelled["images"], "captions": labelled["captions"]}
    losses = method.losses(labelled["images"], images_adv, batch)
    assert set(losses) == {"embedding"} and method.needs_original

    def equation(z: np.ndarray, frozen: np.ndarray) -> float:
        return sum((a - b) ** 2 for a, b in zip(z.ravel(), frozen.ravel(), strict=True)) / len(z)

    frozen = method.original.encode_image_raw(labelled["images"])
    z = method.model.encode_image_raw(images_adv)
    assert ((z.norm(dim=1) - 1).abs() > 0.01).all(), "not of unit length"
    check(losses["embedding"], equation, method.model, z=z, frozen=frozen)
    assert_equal64(method.attack_loss(images_adv, batch), (z - frozen).square().sum(1))


def test_raw_embeddings_point_where_the_unit_ones_do(any_tiny: CLIP) -> None:
    size = any_tiny.image_size[0]
    images = torch.rand(3, 3, size, size, dtype=torch.float64)
    raw = any_tiny.double().encode_image_raw(images)
    assert_equal64(F.normalize(raw, dim=-1), any_tiny.encode_image(images))


def test_the_original_sees_the_batch_once(method: FARE, labelled: dict, monkeypatch) -> None:
    calls = []
    real = method.original.encode_image_raw
    monkeypatch.setattr(method.original, "encode_image_raw", lambda images: calls.append(1) or real(images))
    batch = {"images": labelled["images"]}
    for _ in range(3):
        method.attack_loss(batch["images"], batch)
    method.losses(batch["images"], batch["images"], batch)
    assert len(calls) == 1
    method.losses(batch["images"], batch["images"], {"images": labelled["images"]})
    assert len(calls) == 2
