"""Eqs. 1 and 8–13 against a transcription in plain float64 loops, gradients by central differences."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from advflyp.data.batch import Batch
from advflyp.method import METHODS
from advflyp.method.advflyp import AdvFLYP, AdvFLYPConfig, clip_loss, same_captions
from advflyp.method.regularisers import feature_deviation, logit_divergence
from advflyp.model.clip import CLIP
from helpers import assert_equal64
from method.oracle import DIFFERENCES, check, numeric_gradient

N, D, SCALE = 5, 7, 14.0


def unit_rows(seed: int, n: int = N) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(n, D))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def slow_clip_loss(images: np.ndarray, texts: np.ndarray, scale: float) -> float:
    """Eq. 1 term by term."""
    total = 0.0
    n = len(images)
    s = [[float(np.dot(images[i], texts[j])) * scale for j in range(n)] for i in range(n)]
    for i in range(n):
        total += math.log(math.exp(s[i][i]) / sum(math.exp(s[i][j]) for j in range(n)))
        total += math.log(math.exp(s[i][i]) / sum(math.exp(s[j][i]) for j in range(n)))
    return -total / (2 * n)


def slow_feature(a: np.ndarray, b: np.ndarray) -> float:
    """Algorithm 1: the mean of the rows' norms."""
    return sum(
        math.sqrt(sum((x - y) ** 2 for x, y in zip(r, q, strict=True))) for r, q in zip(a, b, strict=True)
    ) / len(a)


def slow_frobenius(a: np.ndarray, b: np.ndarray) -> float:
    """Eq. 8 as printed."""
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a.ravel(), b.ravel(), strict=True))) / len(a)


def softmax(row: np.ndarray) -> list[float]:
    exponentials = [math.exp(v - max(row)) for v in row]
    return [e / sum(exponentials) for e in exponentials]


def slow_divergence(a: np.ndarray, b: np.ndarray, texts: np.ndarray, scale: float) -> float:
    """Eqs. 9–12: (1/N) Σ_i KL(P_a,i ‖ P_b,i)."""
    total = 0.0
    for row_a, row_b in zip(a, b, strict=True):
        p, q = softmax(scale * texts @ row_a), softmax(scale * texts @ row_b)
        total += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
    return total / len(a)


CASES = {
    "clip_loss, image side": (
        lambda x, a, t: clip_loss(x, t, SCALE),
        lambda x, a, t: slow_clip_loss(x, t, SCALE),
    ),
    "clip_loss, text side": (
        lambda x, a, t: clip_loss(t, x, SCALE),
        lambda x, a, t: slow_clip_loss(t, x, SCALE),
    ),
    "feature": (lambda x, a, t: feature_deviation(x, a), lambda x, a, t: slow_feature(x, a)),
    "feature, clean side": (lambda x, a, t: feature_deviation(a, x), lambda x, a, t: slow_feature(a, x)),
    "frobenius": (
        lambda x, a, t: feature_deviation(x, a, norm="frobenius"),
        lambda x, a, t: slow_frobenius(x, a),
    ),
    "logit": (
        lambda x, a, t: logit_divergence(x, a, t, SCALE),
        lambda x, a, t: slow_divergence(x, a, t, SCALE),
    ),
    "logit, clean side": (
        lambda x, a, t: logit_divergence(a, x, t, SCALE),
        lambda x, a, t: slow_divergence(a, x, t, SCALE),
    ),
    "logit as printed": (
        lambda x, a, t: logit_divergence(x, a, t),
        lambda x, a, t: slow_divergence(x, a, t, 1.0),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient(case: str) -> None:
    ours, oracle = CASES[case]
    x, a, t = unit_rows(0), unit_rows(1), unit_rows(2)
    leaf = torch.tensor(x, requires_grad=True)
    value = ours(leaf, torch.tensor(a), torch.tensor(t))
    value.backward()
    assert value.shape == ()
    assert value.item() == pytest.approx(oracle(x, a, t), rel=1e-12)
    expected = numeric_gradient(lambda v: oracle(v, a, t), x)
    np.testing.assert_allclose(leaf.grad.numpy(), expected, rtol=0, atol=DIFFERENCES)


def test_perfect_and_uniform_pairs() -> None:
    eye = torch.eye(4, dtype=torch.float64)
    assert clip_loss(eye, eye, 100.0).item() == pytest.approx(0, abs=1e-12)
    same = torch.ones(4, 1, dtype=torch.float64)
    assert clip_loss(same, same, 100.0).item() == pytest.approx(math.log(4), rel=1e-12)


def test_ignored_pairs_are_no_negatives() -> None:
    images, texts = torch.tensor(unit_rows(0, 3)), torch.tensor(unit_rows(1, 3))
    ignore = same_captions(["a cat", "a dog", "a cat"])
    assert ignore.tolist() == [[False, False, True], [False, False, False], [True, False, False]]
    s = (SCALE * images @ texts.T).exp()
    rows = [s[0, 0] / (s[0, 0] + s[0, 1]), s[1, 1] / s[1].sum(), s[2, 2] / (s[2, 1] + s[2, 2])]
    columns = [s[0, 0] / (s[0, 0] + s[1, 0]), s[1, 1] / s[:, 1].sum(), s[2, 2] / (s[1, 2] + s[2, 2])]
    expected = -sum(math.log(p) for p in rows + columns) / 6
    assert clip_loss(images, texts, SCALE, ignore=ignore).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_divergence_is_finite_at_huge_logit_gaps(dtype: torch.dtype) -> None:
    """softmax underflows to zero at a gap of 1e4; its logarithm would be −∞."""
    a = torch.tensor([[1.0, 0.0]], dtype=dtype, requires_grad=True)
    b = torch.tensor([[0.0, 1.0]], dtype=dtype)
    value = logit_divergence(a, b, torch.eye(2, dtype=dtype), 1e4)
    value.backward()
    assert value.item() == pytest.approx(1e4, rel=4 * torch.finfo(dtype).eps)
    assert torch.isfinite(a.grad).all()


def test_deviation_of_equal_embeddings_has_no_gradient() -> None:
    """At the first step the model is its own original: the norm's kink must not give NaN."""
    a = torch.tensor(unit_rows(0), requires_grad=True)
    for norm in ("row", "frobenius"):
        (gradient,) = torch.autograd.grad(feature_deviation(a, a.detach(), norm=norm), a)
        assert (gradient == 0).all()


def make(model: CLIP, **config: object) -> AdvFLYP:
    method = AdvFLYP(AdvFLYPConfig(**config), model)
    if method.needs_original:
        method.original = OtherModel(model)  # type: ignore[assignment]
    return method


class OtherModel:
    """An original that differs from the model, as it does after some steps."""

    def __init__(self, model: CLIP) -> None:
        self.model = model

    def encode_image(self, images: Tensor) -> Tensor:
        return self.model.encode_image(1 - images)


@pytest.fixture
def batch(tiny: CLIP) -> Batch:
    """In float64, and so is the model from now on."""
    tiny.double()
    captions = ["a cat", "a dog", "red square", "the sea"]
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    text = tiny.encode_text(captions).detach()
    return Batch(images=images, captions=captions, text_embeddings=text)


@pytest.mark.parametrize("norm", ["row", "frobenius"])
@pytest.mark.parametrize("temperature", [None, 1.0])
def test_full_loss_is_eq_13(tiny: CLIP, batch: dict, norm: str, temperature: float | None) -> None:
    method = make(
        tiny, feature_weight=1.0, logit_weight=1.0, feature_norm=norm, logit_temperature=temperature
    )
    images = batch.images
    images_adv = (images + 0.03).clamp(0, 1)
    losses = method.losses(images, images_adv, batch)

    adversarial, clean, original, text = (
        z.detach().numpy()
        for z in (
            tiny.encode_image(images_adv),
            tiny.encode_image(images),
            tiny.encode_image(1 - images_adv),
            batch.text_embeddings,
        )
    )
    scale = tiny.logit_scale.item()
    deviation = slow_feature if norm == "row" else slow_frobenius
    inverse_temperature = scale if temperature is None else temperature
    expected = {
        "clip": slow_clip_loss(adversarial, text, scale),
        "feature": deviation(adversarial, original) + deviation(adversarial, clean),
        "logit": slow_divergence(adversarial, original, text, inverse_temperature)
        + slow_divergence(adversarial, clean, text, inverse_temperature),
    }
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(expected, rel=1e-9)


def test_gradient_reaches_the_clean_branch_and_not_the_original(tiny: CLIP, batch: dict) -> None:
    images, images_adv = batch.images, (batch.images + 0.03).clamp(0, 1)
    method = make(tiny, feature_weight=1.0)
    clean = images.clone().requires_grad_(True)
    seen = images_adv.clone().requires_grad_(True)
    method.losses(clean, seen, batch)["feature"].backward()
    assert clean.grad.abs().sum() > 0
    again = images_adv.clone().requires_grad_(True)
    adversarial, clean_embeddings = tiny.encode_image(torch.cat([again, images])).chunk(2)
    constant = tiny.encode_image(1 - images_adv).detach()
    expected = feature_deviation(adversarial, constant) + feature_deviation(adversarial, clean_embeddings)
    (gradient,) = torch.autograd.grad(expected, again)
    assert_equal64(seen.grad, gradient)


@pytest.mark.parametrize(
    ("config", "terms", "original"),
    [
        ({}, {"clip"}, False),
        ({"feature_weight": 1.0}, {"clip", "feature"}, True),
        ({"logit_weight": 1.0}, {"clip", "logit"}, True),
        ({"feature_weight": 1.0, "logit_weight": 1.0}, {"clip", "feature", "logit"}, True),
    ],
)
def test_variants(tiny: CLIP, batch: dict, config: dict, terms: set[str], original: bool) -> None:
    method = make(tiny, **config)
    assert method.needs_original == original
    assert set(method.losses(batch.images, batch.images, batch)) == terms


def test_weights_scale_the_terms(tiny: CLIP, batch: dict) -> None:
    adv = (batch.images + 0.03).clamp(0, 1)
    one = make(tiny, feature_weight=1.0, logit_weight=1.0).losses(batch.images, adv, batch)
    other = make(tiny, feature_weight=0.5, logit_weight=3.0).losses(batch.images, adv, batch)
    assert_equal64(other, {"feature": 0.5 * one["feature"], "logit": 3 * one["logit"], "clip": one["clip"]})


def test_second_variant_leaves_the_clean_image_out(tiny: CLIP, batch: dict) -> None:
    """AdvFLYP_2nd: only the terms against the original."""
    method = make(tiny, feature_weight=1.0, logit_weight=1.0, reference="frozen")
    adv = (batch.images + 0.03).clamp(0, 1)
    losses = method.losses(torch.full_like(adv, float("nan")), adv, batch)
    expected = feature_deviation(tiny.encode_image(adv), tiny.encode_image(1 - adv))
    assert_equal64(losses["feature"], expected)


def test_attack_loss_is_the_joint_loss(tiny: CLIP, batch: dict) -> None:
    """Eq. 6: the gradient of one image's perturbation depends on the other images of the batch."""
    method = make(tiny)
    images = batch.images.clone().requires_grad_(True)
    (together,) = torch.autograd.grad(method.attack_loss(images, batch), images)
    changed = batch.images.clone()
    changed[1:] = 1 - changed[1:]
    changed.requires_grad_(True)
    (others_changed,) = torch.autograd.grad(method.attack_loss(changed, batch), changed)
    difference = (together[0] - others_changed[0]).norm()
    assert difference > 0.1 * together[0].norm()


def test_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match=r"method\.logit_weight must be at least 0"):
        AdvFLYPConfig(logit_weight=-1)


def test_every_method_has_a_config() -> None:
    for method, config in METHODS.values():
        assert config.__name__ == f"{method.__name__}Config"


@pytest.mark.parametrize("temperature", [None, 3.0])
@pytest.mark.parametrize("gradients", ["image", "all"])
def test_the_unfrozen_variants(tiny: CLIP, original: CLIP, gradients: str, temperature: float | None) -> None:
    """Table 6: gradients of L_logit in the text tower, in τ and in the image tower, in plain float64.

    The paper holds T and τ constant; in the released code gradients flow through both, and P_θ₀ has the original's τ.
    """
    model = tiny.double()
    with torch.no_grad():
        model.net.logit_scale.copy_(torch.tensor(math.log(9.0)))
    captions = [f"a thing number {i}" for i in range(4)]
    pixels = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images, images_adv = pixels[0], (0.8 * pixels[0] + 0.2 * pixels[1])
    text = model.encode_text(captions)
    config = AdvFLYPConfig(
        logit_weight=0.6,
        logit_gradients=gradients,
        logit_temperature=temperature,  # pyright: ignore
    )
    method = AdvFLYP(config, model)
    method.original = original
    loss = method.losses(images, images_adv, Batch(images=images, captions=[], text_embeddings=text))["logit"]
    all_flow = gradients == "all"
    frozen_scale = original.logit_scale.item()

    def equation(
        z: np.ndarray, clean: np.ndarray, frozen: np.ndarray, t: np.ndarray, scale: np.ndarray
    ) -> float:
        total = 0.0
        for anchor, its_scale in (
            (clean, scale.item()),
            (frozen, frozen_scale if all_flow else scale.item()),
        ):
            ours, theirs = (temperature, temperature) if temperature else (scale.item(), its_scale)
            for row_a, row_b in zip(z, anchor, strict=True):
                p, q = softmax(ours * t @ row_a), softmax(theirs * t @ row_b)
                total += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
        return 0.6 * total / len(z)

    scale = model.logit_scale
    check(
        loss,
        equation,
        model,
        z=model.encode_image(images_adv),
        clean=model.encode_image(images),
        frozen=original.encode_image(images_adv),
        t=text if all_flow else text.detach(),
        scale=scale if all_flow and temperature is None else scale.detach(),
    )
    assert original.logit_scale.item() != pytest.approx(scale.item())


@pytest.mark.parametrize("shared", [False, True], ids=["own pass", "the attack's pass"])
@pytest.mark.parametrize("original_sees", ["adversarial", "clean"])
@pytest.mark.parametrize("clean_gradients", [True, False])
def test_what_the_regularisers_compare_with(
    vision: CLIP, original: CLIP, clean_gradients: bool, original_sees: str, shared: bool
) -> None:
    """Which image the original sees, and whether the clean embedding is a constant: values and gradients in float64."""
    pixels = torch.rand(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images, images_adv = pixels[0], (0.8 * pixels[0] + 0.2 * pixels[1])
    text = vision.encode_text([f"a thing number {i}" for i in range(4)])
    config = AdvFLYPConfig(
        feature_weight=0.7,
        logit_weight=0.6,
        clean_gradients=clean_gradients,
        original_sees=original_sees,  # pyright: ignore
    )
    method = AdvFLYP(config, vision)
    method.original = original
    clean = vision.encode_image(images)
    batch = Batch(
        images=images, captions=[], text_embeddings=text, clean_embeddings=clean if shared else None
    )
    losses = method.losses(images, images_adv, batch)
    scale, texts = vision.logit_scale.item(), text.numpy()

    def equation(z: np.ndarray, clean: np.ndarray, frozen: np.ndarray) -> float:
        feature = slow_feature(z, clean) + slow_feature(z, frozen)
        logit = slow_divergence(z, clean, texts, scale) + slow_divergence(z, frozen, texts, scale)
        return 0.7 * feature + 0.6 * logit

    check(
        losses["feature"] + losses["logit"],
        equation,
        vision,
        z=vision.encode_image(images_adv),
        clean=clean if clean_gradients else clean.detach(),
        frozen=original.encode_image(images if original_sees == "clean" else images_adv),
    )
