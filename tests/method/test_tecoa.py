"""TeCoA and Table 9's regularised TeCoA against their equations."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from advflyp.data.batch import Batch
from advflyp.method.pmg_aft import PMGAFT, PMGAFTConfig
from advflyp.method.tecoa import TeCoA, TeCoAConfig
from advflyp.model.clip import CLIP
from method.oracle import check, cross_entropy, deviation, divergence


def make(model: CLIP, original: CLIP | None = None, **config: Any) -> TeCoA:
    method = TeCoA(TeCoAConfig(**config), model)
    method.original = original
    return method


def test_the_loss_is_the_cross_entropy(vision: CLIP, labelled: Batch, images_adv: Tensor) -> None:
    method = make(vision)
    assert not method.needs_original
    losses = method.losses(labelled.images, images_adv, labelled)
    assert set(losses) == {"ce"}

    def equation(z: np.ndarray, t: np.ndarray) -> float:
        return cross_entropy(z, t, labelled.labels.tolist(), vision.logit_scale.item())

    check(losses["ce"], equation, vision, z=vision.encode_image(images_adv), t=labelled.class_embeddings)


def test_the_attack_raises_each_pictures_own_cross_entropy(
    vision: CLIP, labelled: Batch, images_adv: Tensor
) -> None:
    values = make(vision).attack_loss(images_adv, labelled)
    scale = vision.logit_scale.item()
    z, t = (x.detach().double().numpy() for x in (vision.encode_image(images_adv), labelled.class_embeddings))
    expected = [cross_entropy(z[i : i + 1], t, [y], scale) for i, y in enumerate(labelled.labels.tolist())]
    assert values.tolist() == pytest.approx(expected, rel=1e-9)


def test_the_attack_sends_no_gradient_to_the_text_tower(
    tiny: CLIP, labelled: Batch, images_adv: Tensor
) -> None:
    labelled = replace(labelled, class_embeddings=labelled.class_embeddings.clone().requires_grad_(True))
    loss = make(tiny).attack_loss(images_adv.requires_grad_(True), labelled).sum()
    (gradient,) = torch.autograd.grad(loss, labelled.class_embeddings, allow_unused=True)
    assert gradient is None
    outer = make(tiny).losses(labelled.images, images_adv, labelled)["ce"]
    (gradient,) = torch.autograd.grad(outer, labelled.class_embeddings)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("reference", ["both", "frozen"])
def test_table_9(vision: CLIP, original: CLIP, labelled: Batch, images_adv: Tensor, reference: str) -> None:
    """CE + 0.7·L_feat + 0.3·L_logit, gradients through f_θ(x + δ) and f_θ(x) and not through the original."""
    method = make(vision, original, feature_weight=0.7, logit_weight=0.3, reference=reference)
    losses = method.losses(labelled.images, images_adv, labelled)
    assert set(losses) == {"ce", "feature", "logit"}
    scale = vision.logit_scale.item()
    clean_counts = reference == "both"

    def equation(z: np.ndarray, clean: np.ndarray, frozen: np.ndarray, t: np.ndarray) -> float:
        total = cross_entropy(z, t, labelled.labels.tolist(), scale)
        total += 0.7 * deviation(z, frozen) + 0.3 * divergence(z, frozen, t, scale)
        if clean_counts:
            total += 0.7 * deviation(z, clean) + 0.3 * divergence(z, clean, t, scale)
        return total

    clean = vision.encode_image(labelled.images)
    check(
        torch.stack(list(losses.values())).sum(),
        equation,
        vision,
        z=vision.encode_image(images_adv),
        clean=clean if clean_counts else clean.detach(),
        frozen=original.encode_image(images_adv),
        t=labelled.class_embeddings,
    )


def test_the_logit_regulariser_makes_it_pmg_aft(
    vision: CLIP, original: CLIP, labelled: Batch, images_adv: Tensor
) -> None:
    """Table 9 (b), as the paper says."""
    ours = make(vision, original, logit_weight=1.0).losses(labelled.images, images_adv, labelled)
    other = PMGAFT(PMGAFTConfig(), vision)
    other.original = original
    theirs = other.losses(labelled.images, images_adv, labelled)
    assert sum(ours.values()).item() == pytest.approx(sum(theirs.values()).item(), rel=1e-9)
