"""AdvFLYP with soft targets against a transcription in plain float64, and AdvFLYP itself where they are off."""

import numpy as np
import pytest
import torch
from torch import Tensor

from advflyp.data.batch import Batch
from advflyp.method import blocks
from advflyp.method.advflyp import AdvFLYP, AdvFLYPConfig, clip_loss, same_captions
from advflyp.method.soft import soft_clip_loss
from advflyp.model.clip import CLIP
from helpers import assert_equal64, siglip_config, small_model
from method.oracle import check, log_softmax, numeric_gradient

N, D, SCALE, CLEAN_SCALE, M = 5, 7, 14.0, 9.0, 0.3


def unit_rows(seed: int, n: int = N) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, D))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def slow(
    x: np.ndarray, t: np.ndarray, clean: np.ndarray, scale: float, clean_scale: float, m: float
) -> float:
    """½ [ rows + columns ], each a mean cross-entropy against (1 − m) I + m softmax of the original's similarities."""
    total = 0.0
    for z, s in ((scale * x @ t.T, clean_scale * clean @ t.T), (scale * t @ x.T, clean_scale * t @ clean.T)):
        for i, (row, known) in enumerate(zip(z.tolist(), s.tolist(), strict=True)):
            targets = [m * float(np.exp(value)) for value in log_softmax(known)]
            targets[i] += 1 - m
            total -= sum(q * p for q, p in zip(targets, log_softmax(row), strict=True))
    return total / (2 * len(x))


@pytest.mark.parametrize("most", [4096**2, 2 * N])
def test_the_loss_and_its_gradients(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in blocks of two rows."""
    monkeypatch.setattr(blocks, "MOST_LOGITS", most)
    x, t, clean = unit_rows(0), unit_rows(1), unit_rows(2)
    images, texts = (torch.tensor(value, requires_grad=True) for value in (x, t))
    anchor = torch.tensor(clean, requires_grad=True)
    loss = soft_clip_loss(images, texts, SCALE, anchor, CLEAN_SCALE, M)
    assert loss.item() == pytest.approx(slow(x, t, clean, SCALE, CLEAN_SCALE, M), rel=1e-12)
    found = torch.autograd.grad(loss, [images, texts, anchor], allow_unused=True)
    assert found[2] is None
    slope = numeric_gradient(lambda v: slow(v, t, clean, SCALE, CLEAN_SCALE, M), x)
    np.testing.assert_allclose(found[0].numpy(), slope, rtol=0, atol=3e-9)
    # The texts of the targets are constant.
    s = torch.tensor(CLEAN_SCALE * clean @ t.T)
    targets = [M * s.softmax(dim) + (1 - M) * torch.eye(N, dtype=torch.float64) for dim in (1, 0)]
    z = SCALE * torch.tensor(x) @ texts.T
    expected = -sum((q * z.log_softmax(dim)).sum() for q, dim in zip(targets, (1, 0), strict=True)) / (2 * N)
    assert_equal64(found[1], torch.autograd.grad(expected, texts)[0])


def test_a_mixture_of_nothing_is_eq_1_and_ignored_pairs_have_no_share() -> None:
    images, texts, clean = (torch.tensor(unit_rows(seed)) for seed in range(3))
    ignore = same_captions(["a cat", "a dog", "a cat", "a", "b"])
    for mask in (None, ignore):
        found = soft_clip_loss(images, texts, SCALE, clean, CLEAN_SCALE, 0, ignore=mask)
        assert_equal64(found, clip_loss(images, texts, SCALE, ignore=mask))
    z, s = SCALE * images @ texts.T, CLEAN_SCALE * clean @ texts.T
    total = torch.zeros((), dtype=torch.float64)
    for logits, known, mask in ((z, s, ignore), (z.T, s.T, ignore.T)):
        for i in range(N):
            keep = ~mask[i]
            targets = M * known[i][keep].softmax(0) + (1 - M) * torch.eye(N, dtype=torch.float64)[i][keep]
            total = total - (targets * logits[i][keep].log_softmax(0)).sum()
    found = soft_clip_loss(images, texts, SCALE, clean, CLEAN_SCALE, M, ignore=ignore)
    assert_equal64(found, total / (2 * N))


def test_the_method(vision: CLIP, original: CLIP, labelled: Batch, images_adv: Tensor) -> None:
    """Inside and outside the same loss, and its gradient in the weights through f_θ(x + δ) alone."""
    method, batch = AdvFLYP(AdvFLYPConfig(soft_targets=M), vision), labelled
    method.original = original
    assert method.needs_original and not method.shares_clean
    losses = method.losses(batch.images, images_adv, batch)
    assert set(losses) == {"clip"}
    scale, known = vision.logit_scale.item(), original.logit_scale.item()

    def equation(z: np.ndarray, clean: np.ndarray, t: np.ndarray) -> float:
        return slow(z, t, clean, scale, known, M)

    z, clean = vision.encode_image(images_adv), original.encode_image(batch.images)
    check(losses["clip"], equation, vision, z=z, clean=clean, t=batch.text_embeddings)
    assert_equal64(method.attack_loss(images_adv, batch), losses["clip"])


def test_without_them_it_is_advflyp_to_the_last_bit(tiny: CLIP, images_adv: Tensor) -> None:
    """In float32, where another order of terms would show."""
    images = images_adv.float()
    tiny.float()
    captions = [str(n) for n in range(len(images))]
    batch = Batch(images=images, captions=captions, text_embeddings=tiny.encode_text(captions).detach())
    method = AdvFLYP(AdvFLYPConfig(soft_targets=0), tiny)
    assert not method.needs_original
    expected = clip_loss(tiny.encode_image(images), batch.text_embeddings, tiny.logit_scale)
    assert torch.equal(method.losses(images, images, batch)["clip"], expected)
    assert torch.equal(method.attack_loss(images, batch), expected)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match=r"method\.soft_targets must lie between 0 and 1, not 1\.5"):
        AdvFLYPConfig(soft_targets=1.5)
    with pytest.raises(
        ValueError, match=r"method\.soft_targets is for the contrastive loss; set method\.loss"
    ):
        AdvFLYP(AdvFLYPConfig(soft_targets=0.5), small_model(siglip_config()))
