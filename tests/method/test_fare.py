"""FARE against its equation."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from advflyp.method.fare import FARE, FAREConfig
from advflyp.model.clip import CLIP
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
    assert not torch.allclose(z.norm(dim=1), torch.ones(len(z)), atol=1e-2), "not of unit length"
    check(losses["embedding"], equation, method.model, z=z, frozen=frozen)
    expected = (z - frozen).double().square().sum(1)
    torch.testing.assert_close(method.attack_loss(images_adv, batch).double(), expected, rtol=1e-4, atol=1e-6)


def test_raw_embeddings_point_where_the_unit_ones_do(any_tiny: CLIP) -> None:
    size = any_tiny.image_size[0]
    images = torch.rand(3, 3, size, size)
    raw = any_tiny.encode_image_raw(images)
    assert raw.dtype == torch.float32
    torch.testing.assert_close(F.normalize(raw, dim=-1), any_tiny.encode_image(images))


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
