"""TGA-ZSR against its equations, transcribed in plain float64 loops."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from advflyp.config import read_toml
from advflyp.data.batch import Batch
from advflyp.method.tecoa import TeCoA, TeCoAConfig
from advflyp.method.tga_zsr import TGAZSR, TGAZSRConfig, attention_map
from advflyp.model.clip import CLIP
from advflyp.training.loop import train
from helpers import TEXT, assert_equal64, small_model
from method.oracle import DIFFERENCES, check, cross_entropy, numeric_gradient

CLASSES, LABELS = 3, [2, 0]


def slow_resize(rows: list[list[float]], height: int, width: int) -> list[list[float]]:
    """Bilinear, pixel centres at half-integers, the border held."""

    def taps(target: int, count: int, source: int) -> tuple[int, int, float]:
        at = min(max((target + 0.5) * source / count - 0.5, 0), source - 1)
        low = math.floor(at)
        return low, min(low + 1, source - 1), at - low

    result = []
    for y in range(height):
        top, bottom, v = taps(y, height, len(rows))
        line = []
        for x in range(width):
            left, right, u = taps(x, width, len(rows[0]))
            upper = rows[top][left] * (1 - u) + rows[top][right] * u
            lower = rows[bottom][left] * (1 - u) + rows[bottom][right] * u
            line.append(upper * (1 - v) + lower * v)
        result.append(line)
    return result


def slow_map(
    tokens: np.ndarray, text: np.ndarray, grid: tuple[int, int], size: tuple[int, int]
) -> list[float]:
    """One picture: (rows · columns, d) tokens and its class's (d,) text."""
    cosines = []
    for token in tokens:
        dot = sum(a * b for a, b in zip(token, text, strict=True))
        cosines.append(dot / math.sqrt(sum(b * b for b in text)))
    low, high = min(cosines), max(cosines)
    scaled = [(value - low) / (high - low) for value in cosines]
    rows, columns = grid
    resized = slow_resize([scaled[r * columns : (r + 1) * columns] for r in range(rows)], *size)
    return [value for line in resized for value in line]


def slow_distance(a: list[list[float]], b: list[list[float]]) -> float:
    rows = [
        math.sqrt(sum((x - y) ** 2 for x, y in zip(p, q, strict=True))) for p, q in zip(a, b, strict=True)
    ]
    return sum(rows) / len(rows)


def unit(shape: tuple[int, ...], seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_the_map() -> None:
    """Not square, neither patches nor pixels; value and gradient."""
    grid, size = (2, 3), (5, 7)
    tokens, text, weights = unit((2, 6, 4), 0), unit((2, 4), 1), np.random.default_rng(2).normal(size=(2, 35))

    def oracle(x: np.ndarray) -> float:
        maps = [slow_map(one, line, grid, size) for one, line in zip(x, text, strict=True)]
        return float((weights * np.array(maps)).sum())

    leaf = torch.tensor(tokens, requires_grad=True)
    ours = attention_map(leaf, torch.tensor(text), grid, size)
    assert ours.shape == (2, 35)
    expected = [slow_map(one, line, grid, size) for one, line in zip(tokens, text, strict=True)]
    np.testing.assert_allclose(ours.detach().numpy(), expected, rtol=1e-12, atol=1e-12)
    (ours * torch.tensor(weights)).sum().backward()
    np.testing.assert_allclose(leaf.grad.numpy(), numeric_gradient(oracle, tokens), rtol=0, atol=DIFFERENCES)


@pytest.mark.parametrize("noise", [0.0, 1e-8])
def test_equal_patches_give_no_map_and_no_gradient(noise: float) -> None:
    """0 / 0, and rounding errors blown up to a full map; the other picture of the batch keeps its own."""
    tokens = torch.tensor(unit((2, 4, 3), 0), dtype=torch.float32)
    tokens[0] = tokens[0, :1]
    tokens[0, 1] += noise
    text = torch.tensor(unit((2, 3), 1), dtype=torch.float32)
    leaf = tokens.clone().requires_grad_(True)
    ours = attention_map(leaf, text, (2, 2), (8, 8))
    assert (ours[0] == 0).all()
    assert ours[1].min() == 0 and ours[1].max() == 1
    (torch.linalg.vector_norm(ours - 0.3, dim=1)).sum().backward()
    assert (leaf.grad[0] == 0).all()
    assert torch.isfinite(leaf.grad).all() and (leaf.grad[1] != 0).any()


def small(seed: int) -> CLIP:
    """Four patches: few enough for plain loops."""
    vision = {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1}
    model = small_model({"embed_dim": 8, "vision_cfg": vision, "text_cfg": TEXT}, seed).eval()
    model.double().requires_grad_(False)
    model.visual.requires_grad_(True)
    return model


@pytest.fixture
def models() -> tuple[CLIP, CLIP]:
    return small(0), small(1).requires_grad_(False)


@pytest.fixture
def two() -> Batch:
    """Two labelled images."""
    return Batch(
        images=pixels()[0],
        captions=[],
        labels=torch.tensor(LABELS),
        class_embeddings=torch.tensor(unit((CLASSES, 8), 3)),
    )


def pixels() -> torch.Tensor:
    """(2, 2, 3, 16, 16): images and noise."""
    return torch.rand(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def noisy(batch: Batch) -> torch.Tensor:
    return (batch.images + 0.3 * (pixels()[1] - 0.5)).clamp(0, 1)


def make(models: tuple[CLIP, CLIP], **config: Any) -> TGAZSR:
    method = TGAZSR(TGAZSRConfig(**config), models[0])
    method.original = models[1] if method.needs_original else None
    return method


def test_the_loss(models: tuple[CLIP, CLIP], two: Batch) -> None:
    """CE + α·mean‖A_θ(x + δ) − A_θ₀(x)‖₂ + β·mean‖A_θ(x) − A_θ₀(x)‖₂: gradients through A_θ of both pictures and
    through the adversarial embedding; none through the original.
    """
    model, original = models
    losses = make(models, refinement_weight=0.7, constraint_weight=0.4).losses(two.images, noisy(two), two)
    assert set(losses) == {"ce", "refinement", "constraint"}
    scale = model.logit_scale.item()

    def equation(
        z: np.ndarray, adversarial: np.ndarray, clean: np.ndarray, frozen: np.ndarray, t: np.ndarray
    ) -> float:
        a, b, c = (
            [slow_map(one, t[y], (2, 2), (16, 16)) for one, y in zip(tokens, LABELS, strict=True)]
            for tokens in (adversarial, clean, frozen)
        )
        return cross_entropy(z, t, LABELS, scale) + 0.7 * slow_distance(a, c) + 0.4 * slow_distance(b, c)

    check(
        torch.stack(list(losses.values())).sum(),
        equation,
        model,
        z=model.encode_image(noisy(two)),
        adversarial=model.encode_patches(noisy(two)).tokens,
        clean=model.encode_patches(two.images).tokens,
        frozen=original.encode_patches(two.images).tokens,
        t=two.class_embeddings,
    )


def slow_over_tokens(every: np.ndarray) -> np.ndarray:
    """One picture's (1 + L, d) embeddings of any length, its own first → (L, d): each of the d numbers of a patch
    over the norm that this number has over all of them.
    """
    result = np.zeros_like(every[1:])
    for k in range(every.shape[1]):
        norm = math.sqrt(sum(token[k] ** 2 for token in every))
        for place, token in enumerate(every[1:]):
            result[place, k] = token[k] / norm
    return result


def test_the_released_map(models: tuple[CLIP, CLIP], two: Batch) -> None:
    """The same loss where the tokens are divided by their norm over the tokens, the class token among them: value, and
    gradients of every parameter.
    """
    model, original = models
    method = make(models, refinement_weight=0.7, constraint_weight=0.4, attention_norm="dim")
    losses = method.losses(two.images, noisy(two), two)
    scale = model.logit_scale.item()

    def every(model: CLIP, images: Tensor) -> Tensor:
        patches = model.encode_patches_raw(images)
        return torch.cat([patches.image[:, None], patches.tokens], dim=1)

    def equation(
        z: np.ndarray, adversarial: np.ndarray, clean: np.ndarray, frozen: np.ndarray, t: np.ndarray
    ) -> float:
        a, b, c = (
            [
                slow_map(slow_over_tokens(one), t[y], (2, 2), (16, 16))
                for one, y in zip(tokens, LABELS, strict=True)
            ]
            for tokens in (adversarial, clean, frozen)
        )
        return cross_entropy(z, t, LABELS, scale) + 0.7 * slow_distance(a, c) + 0.4 * slow_distance(b, c)

    check(
        torch.stack(list(losses.values())).sum(),
        equation,
        model,
        z=model.encode_image(noisy(two)),
        adversarial=every(model, noisy(two)),
        clean=every(model, two.images),
        frozen=every(original, two.images),
        t=two.class_embeddings,
    )
    of_cosines = make(models, refinement_weight=0.7, constraint_weight=0.4)
    others = of_cosines.losses(two.images, noisy(two), two)
    assert_equal64(losses["ce"], others["ce"])
    assert abs(losses["refinement"] - others["refinement"]) > 1e-3


def test_raw_patches_are_those_of_encode_patches(models: tuple[CLIP, CLIP], two: Batch) -> None:
    raw, unit_norm = models[0].encode_patches_raw(two.images), models[0].encode_patches(two.images)
    assert raw.grid == unit_norm.grid
    for ours, theirs in zip(raw[:2], unit_norm[:2], strict=True):
        assert_equal64(torch.nn.functional.normalize(ours, dim=-1), theirs)
        assert (ours.norm(dim=-1) - 1).abs().min() > 1e-3


def test_the_published_weights() -> None:
    assert (TGAZSRConfig().refinement_weight, TGAZSRConfig().constraint_weight) == (0.08, 0.05)


def test_the_attack_is_tecoas(models: tuple[CLIP, CLIP], two: Batch) -> None:
    ours = make(models).attack_loss(noisy(two), two)
    assert torch.equal(ours, TeCoA(TeCoAConfig(), models[0]).attack_loss(noisy(two), two))


def test_a_weight_of_zero_leaves_a_term_out(models: tuple[CLIP, CLIP], two: Batch) -> None:
    whole = make(models).losses(two.images, noisy(two), two)
    for left_out, name in [("refinement_weight", "refinement"), ("constraint_weight", "constraint")]:
        losses = make(models, **{left_out: 0}).losses(two.images, noisy(two), two)
        assert set(losses) == set(whole) - {name}
        for key, value in losses.items():
            assert_equal64(value, whole[key])
    method = make(models, refinement_weight=0, constraint_weight=0)
    assert not method.needs_original
    losses = method.losses(two.images, noisy(two), two)
    assert set(losses) == {"ce"}
    assert_equal64(losses["ce"], whole["ce"])
    with pytest.raises(ValueError, match=r"method\.constraint_weight must be at least 0"):
        TGAZSRConfig(constraint_weight=-1)


def test_classes_that_learn_learn_from_the_cross_entropy_only(models: tuple[CLIP, CLIP], two: Batch) -> None:
    batch = replace(two, class_embeddings=two.class_embeddings.requires_grad_(True))
    losses = make(models).losses(two.images, noisy(two), batch)
    assert losses["ce"].requires_grad
    (slope,) = torch.autograd.grad(losses["ce"], batch.class_embeddings, retain_graph=True)
    assert (slope != 0).any()
    for name in ("refinement", "constraint"):
        unused = torch.autograd.grad(
            losses[name], batch.class_embeddings, allow_unused=True, retain_graph=True
        )
        assert unused == (None,)


def test_classes_learn_as_much_without_the_maps(models: tuple[CLIP, CLIP], two: Batch) -> None:
    batch = replace(two, class_embeddings=two.class_embeddings.requires_grad_(True))
    slopes = []
    for weight in (1, 0):
        method = make(models, refinement_weight=weight, constraint_weight=weight)
        losses = method.losses(two.images, noisy(two), batch)
        slopes += torch.autograd.grad(losses["ce"], batch.class_embeddings)
    assert (slopes[0] != 0).any()
    assert_equal64(slopes[1], slopes[0])


def test_the_first_step_has_a_gradient(models: tuple[CLIP, CLIP], two: Batch) -> None:
    """The model is its own original: the clean maps are equal, and their distance has no slope, not NaN."""
    model = models[0]
    losses = make((model, model)).losses(two.images, noisy(two), two)
    assert losses["constraint"].item() < 1e-9
    torch.stack(list(losses.values())).sum().backward()
    slopes = [weight.grad for weight in model.visual.parameters()]
    assert all(slope is not None and torch.isfinite(slope).all() for slope in slopes)


def test_one_forward_of_each_model(models: tuple[CLIP, CLIP], two: Batch) -> None:
    """Embedding and patches, clean and adversarial pictures together; the original sees the clean ones."""
    method = make(models)
    sizes: dict[str, list[int]] = {"model": [], "original": []}
    for name, model in zip(sizes, models, strict=True):
        model.visual.register_forward_hook(
            lambda m, inputs, out, name=name: sizes[name].append(len(inputs[0]))
        )
    method.losses(two.images, noisy(two), two)
    assert sizes == {"model": [4], "original": [2]}


def test_a_model_without_patches_is_refused_before_anything_is_written(
    tmp_path: Path, tiny_rn_folder: Path
) -> None:
    recipe = Path(__file__).parents[2] / "src/advflyp/configs/mini/tga_zsr.toml"
    assert read_toml(recipe)["method"]["name"] == "tga_zsr"
    overrides = {"model.name": str(tiny_rn_folder), "train.device": "cpu"}
    with pytest.raises(ValueError, match="ModifiedResNet, has no patch tokens; choose a ViT"):
        train(recipe, overrides, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_adversarial_and_clean_images_share_a_pass(
    models: tuple[CLIP, CLIP], two: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`images_per_row`, from which the size of micro-batches follows, is what the trained tower really gets."""
    for weight in (0.0, 0.4):
        method = make(models, refinement_weight=0.7, constraint_weight=weight)
        seen: list[int] = []
        encode = method._encode_patches

        def counted(model: CLIP, images: Tensor, encode: Any = encode, seen: list[int] = seen) -> Any:
            seen.append(len(images))
            return encode(model, images)

        monkeypatch.setattr(method, "_encode_patches", counted)
        method.losses(two.images, noisy(two), two)
        assert max(seen) == method.images_per_row * len(two.images)
