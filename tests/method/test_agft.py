"""AGFT against its equations."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from advflyp.data.batch import Batch
from advflyp.method.agft import AGFT, AGFTConfig
from advflyp.model.clip import CLIP
from method.oracle import check, log_softmax

SCALE, RATIO = 21.0, 0.3


@pytest.fixture
def method(vision: CLIP, original: CLIP) -> AGFT:
    method = AGFT(AGFTConfig(scale=SCALE, ratio=RATIO), vision)
    method.original = original
    return method


def equation(z: np.ndarray, frozen: np.ndarray, t: np.ndarray) -> float:
    """1/N Σ_i −q_i · log softmax(s z_i Tᵀ), q_i = softmax(ρ s frozen_i Tᵀ)."""
    total = 0.0
    for own, anchor in zip(z, frozen, strict=True):
        log_p = log_softmax([SCALE * float(np.dot(own, row)) for row in t])
        log_q = log_softmax([RATIO * SCALE * float(np.dot(anchor, row)) for row in t])
        total -= sum(float(np.exp(q)) * p for p, q in zip(log_p, log_q, strict=True))
    return total / len(z)


def test_the_loss_and_its_gradient(method: AGFT, labelled: Batch, images_adv: Tensor) -> None:
    losses = method.losses(labelled.images, images_adv, labelled)
    assert set(losses) == {"ce"} and method.needs_original
    z, frozen = method.model.encode_image(images_adv), method.original.encode_image(labelled.images)
    check(losses["ce"], equation, method.model, z=z, frozen=frozen, t=labelled.class_embeddings)


def test_the_attack_raises_each_images_own_loss(method: AGFT, labelled: Batch, images_adv: Tensor) -> None:
    values = method.attack_loss(images_adv, labelled)
    tensors = (method.model.encode_image(images_adv), method.original.encode_image(labelled.images))
    z, frozen = (tensor.detach().numpy() for tensor in tensors)
    t = labelled.class_embeddings.numpy()
    assert values.tolist() == pytest.approx(
        [equation(z[i : i + 1], frozen[i : i + 1], t) for i in range(5)], rel=1e-9
    )


def test_labels_are_not_used_and_the_original_sees_the_clean_batch_once(
    method: AGFT, labelled: Batch, images_adv: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = method.original.encode_image
    monkeypatch.setattr(method.original, "encode_image", lambda images: seen.append(images) or real(images))
    before = method.attack_loss(images_adv, labelled)
    method.losses(labelled.images, images_adv, labelled)
    assert len(seen) == 1 and seen[0] is labelled.images
    assert torch.equal(
        before, method.attack_loss(images_adv, replace(labelled, labels=1 - labelled.labels.clamp(max=1)))
    )


@pytest.mark.parametrize(("key", "message"), [("scale", r"method\.scale"), ("ratio", r"method\.ratio")])
def test_mistakes(key: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"{message} must be above 0, not 0"):
        AGFTConfig(**{key: 0.0})
