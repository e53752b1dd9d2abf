"""SigLIP's loss against its equation and open_clip's own, and a SigLIP finetuned with it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.loss import SigLipLoss
from torch.nn import functional as F

from advflyp.data.batch import Batch
from advflyp.method.advflyp import AdvFLYP, AdvFLYPConfig, clip_loss, same_captions, sigmoid_loss
from advflyp.method.flyp import FLYP, FLYPConfig
from advflyp.model.clip import CLIP
from advflyp.model.folder import save_model
from advflyp.model.load import load_model
from advflyp.training.build import TrainingRun, build
from advflyp.training.loop import train
from advflyp.training.recipe import read_recipe
from advflyp.training.runlog import read_metrics
from advflyp.training.update import find_adversarial
from helpers import RECIPE, assert_equal64, siglip_config, small_model, write_folder
from method.oracle import DIFFERENCES, check, numeric_gradient

N, D, SCALE, BIAS = 5, 7, 14.0, -9.0


def unit_rows(seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(N, D))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def slow_sigmoid(images: np.ndarray, texts: np.ndarray, scale: float, bias: float) -> float:
    """−1/N Σ_i Σ_j log 1 / (1 + exp(z_ij·(−τ⁻¹ x_i·t_j − b))), the equation as printed."""
    total = 0.0
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            z = 1 if i == j else -1
            dot = sum(a * b for a, b in zip(image, text, strict=True))
            total += math.log(1 / (1 + math.exp(z * (-scale * dot - bias))))
    return -total / len(images)


ARGUMENTS = {
    "images": unit_rows(0),
    "texts": unit_rows(1),
    "scale": np.array(SCALE),
    "bias": np.array(BIAS),
}


@pytest.mark.parametrize("of", ARGUMENTS)
def test_value_and_gradient(of: str) -> None:
    tensors = {name: torch.tensor(value) for name, value in ARGUMENTS.items()}
    leaf = tensors[of].requires_grad_(True)
    value = sigmoid_loss(*tensors.values())
    assert value.shape == ()
    assert value.item() == pytest.approx(slow_sigmoid(**ARGUMENTS), rel=1e-12)
    value.backward()
    expected = numeric_gradient(lambda x: slow_sigmoid(**{**ARGUMENTS, of: x}), ARGUMENTS[of])
    np.testing.assert_allclose(leaf.grad.numpy(), expected, rtol=0, atol=DIFFERENCES)


def test_open_clips_own_loss() -> None:
    images, texts = torch.tensor(unit_rows(2)), torch.tensor(unit_rows(3))
    scale, bias = torch.tensor(117.3), torch.tensor(-12.9)
    assert_equal64(sigmoid_loss(images, texts, scale, bias), SigLipLoss()(images, texts, scale, bias))


def test_ignored_pairs_are_no_negatives() -> None:
    images, texts = torch.tensor(unit_rows(0)[:3]), torch.tensor(unit_rows(1)[:3])
    ignore = same_captions(["a cat", "a dog", "a cat"])
    total = sum(
        math.log1p(math.exp((-1 if i == j else 1) * (SCALE * float(images[i] @ texts[j]) + BIAS)))
        for i in range(3)
        for j in range(3)
        if (i, j) not in ((0, 2), (2, 0))
    )
    ours = sigmoid_loss(images, texts, SCALE, BIAS, ignore=ignore)
    assert ours.item() == pytest.approx(total / 3, rel=1e-12)


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "siglip"
    save_model(small_model(siglip_config(), name="siglip"), folder, {})
    return folder


@pytest.fixture
def siglip(siglip_folder: Path) -> CLIP:
    """In float64."""
    model = load_model(siglip_folder).double()
    model.requires_grad_(False)
    model.visual.requires_grad_(True)
    return model


def batch_of(model: CLIP) -> Batch:
    captions = ["a cat", "a dog", "a cat", "the sea"]
    g = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, *model.image_size, generator=g, dtype=model.dtype)
    text = model.encode_text(captions).detach()
    return Batch(images=images, captions=captions, text_embeddings=text)


def test_a_siglip_has_a_bias_and_keeps_it(siglip: CLIP, tiny: CLIP, tmp_path: Path) -> None:
    assert siglip.logit_bias is not None
    assert siglip.logit_bias.item() == -10
    assert tiny.logit_bias is None
    siglip.net.logit_bias.data.fill_(-3)
    save_model(siglip, tmp_path / "saved", {})
    assert load_model(tmp_path / "saved").logit_bias == -3


@pytest.mark.parametrize("mask", [False, True])
def test_auto_is_the_loss_of_pretraining(siglip: CLIP, tiny: CLIP, mask: bool) -> None:
    for model, name in ((siglip, "sigmoid"), (tiny, "clip")):
        batch = batch_of(model)
        method = AdvFLYP(AdvFLYPConfig(mask_same_caption=mask), model)
        (term,) = method.losses(batch.images, batch.images, batch).items()
        embeddings, text = model.encode_image(batch.images), batch.text_embeddings
        ignore = same_captions(batch.captions) if mask else None
        if name == "clip":
            expected = clip_loss(embeddings, text, model.logit_scale, ignore=ignore)
        else:
            assert model.logit_bias is not None
            expected = sigmoid_loss(embeddings, text, model.logit_scale, model.logit_bias, ignore=ignore)
        assert term[0] == name and torch.equal(term[1], expected)
        assert torch.equal(method.attack_loss(batch.images, batch), expected)


def test_the_other_loss_on_request(siglip: CLIP, tiny: CLIP) -> None:
    batch = batch_of(siglip)
    losses = AdvFLYP(AdvFLYPConfig(loss="contrastive"), siglip).losses(batch.images, batch.images, batch)
    assert set(losses) == {"clip"}
    FLYP(FLYPConfig(loss="sigmoid"), siglip)
    with pytest.raises(ValueError, match=r"method\.loss = 'sigmoid' needs a model with a logit bias"):
        AdvFLYP(AdvFLYPConfig(loss="sigmoid"), tiny)


def test_the_loss_of_the_method(siglip: CLIP) -> None:
    """Value and gradient with the feature regulariser off; only the image tower learns."""
    batch = batch_of(siglip)
    adversarial = (batch.images + 0.05).clamp(0, 1)
    loss = AdvFLYP(AdvFLYPConfig(), siglip).losses(batch.images, adversarial, batch)["sigmoid"]
    scale = siglip.logit_scale.item()
    check(
        loss,
        lambda z, t: slow_sigmoid(z, t, scale, -10.0),
        siglip,
        z=siglip.encode_image(adversarial),
        t=batch.text_embeddings,
    )


@pytest.fixture
def siglip_recipe(tmp_path: Path, siglip_folder: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(model=siglip_folder, data=write_folder(tmp_path / "pairs", 64)))
    return path


def reached(run: TrainingRun) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """open_clip's loss of the first batch: under the attack, at its random start, clean."""
    batch = next(iter(run.pairs.epoch(0)))
    batch = run.add_texts(batch)
    images, text, model = batch.images, batch.text_embeddings, run.model
    threat = run.recipe.attack.threat
    found = find_adversarial(run, batch).images
    assert threat.contains(images, found).all()
    start = threat.random_start(images, torch.Generator().manual_seed(0))
    assert model.logit_bias is not None
    with torch.no_grad():
        under, began, clean = (
            SigLipLoss()(model.encode_image(x), text, model.logit_scale, model.logit_bias)
            for x in (found, start, images)
        )
    return under, began, clean


def test_the_attack_raises_it(siglip_recipe: Path, tmp_path: Path) -> None:
    under, began, clean = reached(build(read_recipe(siglip_recipe, {"attack.steps": 5}), tmp_path / "run"))
    assert under > began and under > clean


def test_training_lowers_it(siglip_recipe: Path, siglip_folder: Path, tmp_path: Path) -> None:
    result = train(siglip_recipe, {"train.epochs": 10}, out=tmp_path / "run")
    (first, *_) = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "train"]
    assert {"loss/sigmoid", "loss/feature", "loss/logit"} <= set(first) and "loss/clip" not in first
    before, after = (
        reached(build(read_recipe(siglip_recipe, {"model.name": str(folder)}), tmp_path / "none"))
        for folder in (siglip_folder, result.out)
    )
    for x, y in zip(before, after, strict=True):
        assert y < 0.6 * x


def test_a_large_scale_is_clamped_as_clip_was_pretrained_and_not_siglip(
    siglip_recipe: Path, siglip_folder: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    """SigLIP's weights come with τ⁻¹ = 117; a clamp at 100 would change the model at the first step."""
    for folder, most in ((siglip_folder, None), (tiny_folder, 100.0)):
        model = load_model(folder)
        model.net.logit_scale.data.fill_(math.log(117.3))
        save_model(model, tmp_path / f"{folder.name}-117", {})
        overrides = {
            "model.name": str(tmp_path / f"{folder.name}-117"),
            "train.unfreeze": "all",
            "train.max_steps": 2,
        }
        train(siglip_recipe, overrides, out=tmp_path / folder.name)
        after = load_model(tmp_path / folder.name)
        if most is None:
            # Two steps of Adam move ln τ⁻¹ by its learning rate at most.
            assert abs(after.net.logit_scale.item() - math.log(117.3)) <= 2 * 1e-3 + 1e-6
            assert after.logit_scale.item() != model.logit_scale.item()
            assert after.logit_bias is not None and after.logit_bias != model.logit_bias
        else:
            assert 99 < after.logit_scale.item() <= most + 1e-3


def test_the_embeddings_of_a_siglip_are_its_own(siglip: CLIP) -> None:
    images = batch_of(siglip).images
    own: Any = siglip.net
    expected = own.encode_image((images - siglip.mean) / siglip.std, normalize=True)
    assert_equal64(siglip.encode_image(images), expected)
    texts = ["a cat", "the sea"]
    assert_equal64(siglip.encode_text(texts), F.normalize(own.encode_text(siglip.tokenizer(texts)), dim=-1))
