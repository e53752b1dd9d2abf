"""Naive FLYP: Eq. 1 on class prompts."""

import math
from dataclasses import replace

import pytest
from torch import Tensor

from advflyp.data.batch import Batch
from advflyp.method.flyp import FLYP, FLYPConfig
from advflyp.model.clip import CLIP


@pytest.mark.parametrize("templates", [1, 2])
@pytest.mark.parametrize("mask", [False, True])
def test_the_loss(vision: CLIP, labelled: Batch, images_adv: Tensor, mask: bool, templates: int) -> None:
    """As in the paper another image of a class is a negative; masked, it is neither positive nor negative."""
    captions = [f"template {number % templates}: {label}" for number, label in enumerate(labelled.labels)]
    labelled = replace(labelled, captions=captions)
    method = FLYP(FLYPConfig(mask_same_caption=mask), vision)
    losses = method.losses(labelled.images, images_adv, labelled)
    labels, scale = labelled.labels.tolist(), vision.logit_scale.item()
    z = vision.encode_image(images_adv).detach().double().tolist()
    t = labelled.text_embeddings.double().tolist()
    n = len(labels)

    def similarity(i: int, j: int) -> float:
        return math.exp(scale * sum(a * b for a, b in zip(z[i], t[j], strict=True)))

    expected = 0.0
    for i in range(n):
        counted = [j for j in range(n) if j == i or not mask or labels[j] != labels[i]]
        expected -= math.log(similarity(i, i) / sum(similarity(i, j) for j in counted)) / (2 * n)
        expected -= math.log(similarity(i, i) / sum(similarity(j, i) for j in counted)) / (2 * n)
    assert set(losses) == {"clip"}
    assert losses["clip"].item() == pytest.approx(expected, rel=1e-9)
    assert method.attack_loss(images_adv, labelled).item() == pytest.approx(expected, rel=1e-9)
