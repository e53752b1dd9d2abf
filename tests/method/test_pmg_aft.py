"""PMG-AFT against its equation."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from advflyp.data.batch import Batch
from advflyp.method.pmg_aft import PMGAFT, PMGAFTConfig
from advflyp.method.tecoa import TeCoA, TeCoAConfig
from advflyp.model.clip import CLIP
from method.oracle import check, cross_entropy, divergence


def make(model: CLIP, original: CLIP | None, **config: Any) -> PMGAFT:
    method = PMGAFT(PMGAFTConfig(**config), model)
    method.original = original
    return method


def test_the_loss(vision: CLIP, original: CLIP, labelled: Batch, images_adv: Tensor) -> None:
    """CE + α·KL(P_adv ‖ P⁰_adv) + β·KL(P_adv ‖ P_clean): P⁰ of the adversarial picture, and constant."""
    method = make(vision, original, original_weight=0.8, clean_weight=1.7)
    losses = method.losses(labelled.images, images_adv, labelled)
    scale = vision.logit_scale.item()

    def equation(z: np.ndarray, clean: np.ndarray, frozen: np.ndarray, t: np.ndarray) -> float:
        guided = 0.8 * divergence(z, frozen, t, scale) + 1.7 * divergence(z, clean, t, scale)
        return cross_entropy(z, t, labelled.labels.tolist(), scale) + guided

    check(
        torch.stack([losses[name] for name in ("ce", "original", "clean")]).sum(),
        equation,
        vision,
        z=vision.encode_image(images_adv),
        clean=vision.encode_image(labelled.images),
        frozen=original.encode_image(images_adv),
        t=labelled.class_embeddings,
    )


def test_the_released_codes_loss(vision: CLIP, original: CLIP, labelled: Batch, images_adv: Tensor) -> None:
    """τ = 1 in all terms, and the divergences of a batch's images summed."""
    method = make(vision, original, clean_weight=0.6, logit_temperature=1.0, divergence="sum")
    losses = method.losses(labelled.images, images_adv, labelled)
    n = len(images_adv)

    def equation(z: np.ndarray, clean: np.ndarray, frozen: np.ndarray, t: np.ndarray) -> float:
        guided = n * divergence(z, frozen, t, 1) + 0.6 * n * divergence(z, clean, t, 1)
        return cross_entropy(z, t, labelled.labels.tolist(), 1) + guided

    check(
        torch.stack(list(losses.values())).sum(),
        equation,
        vision,
        z=vision.encode_image(images_adv),
        clean=vision.encode_image(labelled.images),
        frozen=original.encode_image(images_adv),
        t=labelled.class_embeddings,
    )
    z, t = (x.detach().numpy() for x in (vision.encode_image(images_adv), labelled.class_embeddings))
    expected = [cross_entropy(z[i : i + 1], t, [y], 1) for i, y in enumerate(labelled.labels.tolist())]
    assert method.attack_loss(images_adv, labelled).tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("value", [0, -1.0])
def test_no_temperature_that_a_softmax_cannot_have(value: float) -> None:
    for config in (PMGAFTConfig, TeCoAConfig):
        with pytest.raises(ValueError, match=r"method\.logit_temperature must be above 0, not"):
            config(logit_temperature=value)


def test_the_attack_is_tecoas(vision: CLIP, labelled: Batch, images_adv: Tensor) -> None:
    ours = make(vision, None).attack_loss(images_adv, labelled)
    assert torch.equal(ours, TeCoA(TeCoAConfig(), vision).attack_loss(images_adv, labelled))


def test_a_weight_of_zero_leaves_a_branch_out(
    vision: CLIP, original: CLIP, labelled: Batch, images_adv: Tensor
) -> None:
    nothing = torch.full_like(images_adv, float("nan"))
    method = make(vision, original, clean_weight=0)
    assert set(method.losses(nothing, images_adv, labelled)) == {"ce", "original"}
    assert all(torch.isfinite(term) for term in method.losses(nothing, images_adv, labelled).values())
    method = make(vision, None, original_weight=0)
    assert not method.needs_original
    assert set(method.losses(labelled.images, images_adv, labelled)) == {"ce", "clean"}
    with pytest.raises(ValueError, match=r"method\.clean_weight must be at least 0"):
        PMGAFTConfig(clean_weight=-1)
