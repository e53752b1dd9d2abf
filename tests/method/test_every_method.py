"""What every method must do, by name: its attack raises its own loss, and training lowers it."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from advflyp.data.batch import Batch
from advflyp.data.training import LabelledBatches
from advflyp.method import METHODS
from advflyp.model.folder import weights_sha256
from advflyp.model.load import load_model
from advflyp.model.zeroshot import class_embeddings
from advflyp.training import loop
from advflyp.training.build import TrainingRun, build
from advflyp.training.loop import train
from advflyp.training.recipe import read_recipe
from advflyp.training.runlog import read_metrics
from advflyp.training.update import Updated, find_adversarial, update
from data.test_training import class_tree
from helpers import RECIPE, assert_equal64, models_in_float64, write_folder


@pytest.fixture
def recipes(tmp_path: Path, tiny_folder: Path) -> dict[str, Path]:
    """A recipe for each method, on pictures of four classes or on pairs."""
    class_tree(tmp_path / "classes", 64)
    write_folder(tmp_path / "pairs", 64)
    result = {}
    for name, (method, _) in METHODS.items():
        data = tmp_path / ("pairs" if method.trains_on == "pairs" else "classes")
        text = RECIPE.format(model=tiny_folder, data=data).replace('"advflyp"', f'"{name}"')
        result[name] = tmp_path / f"{name}.toml"
        result[name].write_text(text.replace("feature_weight = 1.0\nlogit_weight = 1.0\n", ""))
    return result


def with_another_original(run: TrainingRun) -> TrainingRun:
    """At the first step model and original are the same, and distances between them have no slope."""
    if run.method.original is not None:
        noise = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in run.method.original.parameters():
                weight += 0.05 * torch.randn(weight.shape, generator=noise)
    return run


@pytest.mark.parametrize("name", METHODS)
def test_the_attack_raises_the_methods_own_loss(name: str, recipes: dict[str, Path], tmp_path: Path) -> None:
    run = with_another_original(build(read_recipe(recipes[name], {"attack.steps": 5}), tmp_path / "run"))
    batch = next(iter(run.pairs.epoch(0)))
    batch = run.add_texts(batch)
    threat = run.recipe.attack.threat
    found = find_adversarial(run, batch).images
    assert threat.contains(batch.images, found).all()
    start = threat.random_start(batch.images, torch.Generator().manual_seed(0))
    reached, began, clean = (
        run.method.attack_loss(images, batch).mean() for images in (found, start, batch.images)
    )
    assert reached > began and reached > clean


SOFT = [(name, {"method.soft_targets": m}) for name in ("advflyp", "flyp") for m in (0.9, 1)]


@pytest.mark.parametrize(
    ("name", "overrides"), [*((name, {}) for name in METHODS), *SOFT, ("agft", {"method.ratio": 1})]
)
def test_an_attack_that_begins_at_the_image_has_a_gradient_or_is_refused(
    name: str, overrides: dict[str, float], recipes: dict[str, Path], tmp_path: Path
) -> None:
    with models_in_float64():
        run = build(read_recipe(recipes[name], overrides), tmp_path / "run")
    batch = next(iter(run.pairs.epoch(0)))
    images = batch.images.double()
    batch = run.add_texts(replace(batch, images=images))
    leaf = images.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(run.method.attack_loss(leaf, batch).sum(), leaf)
    # Of images of a range of 1, losses of about 1: anything below is rounding, whose sign is no direction.
    assert run.method.flat_at_clean == (slope.abs().max() < 1e-12)
    for key, value in (("attack.start", "zero"), ("attack.steps", 0)):
        refused = pytest.raises(ValueError, match=f"{key} = .* has no gradient at the clean images")
        with refused if run.method.flat_at_clean else nullcontext():
            build(read_recipe(recipes[name], {**overrides, key: value}), tmp_path / key)
    if run.method.flat_at_clean:
        torch.stack([*run.method.losses(images, images, batch).values()]).sum().backward()
        slopes = [weight.grad.abs().max() for weight in run.model.parameters() if weight.grad is not None]
        assert slopes and max(slopes) < 1e-12, "without an attack nothing is trained"


@pytest.mark.parametrize(
    ("name", "steps"), [(name, steps) for name in METHODS for steps in (0, 2) if (name, steps) != ("fare", 0)]
)
def test_training_lowers_the_loss(name: str, steps: int, recipes: dict[str, Path], tmp_path: Path) -> None:
    overrides = {"attack.steps": steps, "train.epochs": 10, "checkpoint.every": 100}
    train(recipes[name], overrides, out=tmp_path / "run")
    losses = [line["loss"] for line in read_metrics(tmp_path / "run") if line["kind"] == "train"]
    assert len(losses) == 4
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", ["tecoa", "pmg_aft", "flyp"])
def test_training_raises_the_robust_accuracy(name: str, recipes: dict[str, Path], tmp_path: Path) -> None:
    """A quarter is chance."""
    overrides = {
        "train.epochs": 15,
        "validate.set": f"folder:{tmp_path / 'classes'}",
        "checkpoint.every": 100,
    }
    train(recipes[name], overrides, out=tmp_path / "run")
    robust = [line["robust"] for line in read_metrics(tmp_path / "run") if line["kind"] == "validate"]
    assert max(robust) >= robust[0] + 0.2 and max(robust) > 0.6


@pytest.mark.parametrize("name", [name for name in METHODS if name != "advflyp"])
def test_a_resumed_run_is_the_same_run(
    name: str, recipes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(recipes[name], {"checkpoint.every": 1}, out=tmp_path / "whole")
    real_step, done = loop.update, []

    def dying_step(run: TrainingRun, batch: Batch) -> Updated:
        done.append(1)
        if len(done) == 6:
            raise KeyboardInterrupt
        return real_step(run, batch)

    monkeypatch.setattr(loop, "update", dying_step)
    with pytest.raises(KeyboardInterrupt):
        train(recipes[name], {"checkpoint.every": 1}, out=tmp_path / "cut")
    monkeypatch.undo()
    train(recipes[name], {"checkpoint.every": 1}, out=tmp_path / "cut", resume=True)
    whole, cut = (weights_sha256(load_model(tmp_path / run)) for run in ("whole", "cut"))
    assert whole == cut


def test_frozen_prompts_are_encoded_once(
    recipes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with models_in_float64():
        run = build(read_recipe(recipes["tecoa"]), tmp_path / "run")
    encoded: list[str] = []
    real = run.model.encode_text
    monkeypatch.setattr(
        run.model, "encode_text", lambda texts, *tokens: encoded.extend(texts) or real(texts, *tokens)
    )
    assert isinstance(run.pairs, LabelledBatches)
    expected = class_embeddings(run.model, run.pairs.classes, run.pairs.templates)
    encoded.clear()
    for batch in run.pairs.epoch(0):
        batch = update(run, batch).batch
        assert_equal64(batch.class_embeddings, expected)
        assert_equal64(batch.text_embeddings, expected[batch.labels])
        assert not batch.class_embeddings.requires_grad
    assert encoded == [f"This is a photo of a {name}." for name in run.pairs.classes]


def test_unfrozen_prompts_are_encoded_anew_and_learn(recipes: dict[str, Path], tmp_path: Path) -> None:
    overrides = {"train.unfreeze": "vision+text", "optim.warmup_steps": 0}
    with models_in_float64():
        run = build(read_recipe(recipes["tecoa"], overrides), tmp_path / "run")
    before = {name: weight.clone() for name, weight in run.model.net.named_parameters()}
    first, second, *_ = run.pairs.epoch(0)
    first, second = update(run, first).batch, update(run, second).batch
    assert first.class_embeddings.requires_grad
    assert not torch.equal(first.class_embeddings, second.class_embeddings)
    moved = {
        name for name, weight in run.model.net.named_parameters() if not torch.equal(weight, before[name])
    }
    assert "text_projection" in moved and "visual.proj" in moved and "logit_scale" not in moved
    batch = next(iter(run.pairs.epoch(1)))
    batch = run.add_texts(batch)
    expected = class_embeddings(run.model, run.pairs.classes, run.pairs.templates)
    assert_equal64(batch.class_embeddings.detach(), expected)


def test_images_alone_need_no_text(
    recipes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build(read_recipe(recipes["fare"]), tmp_path / "run")
    monkeypatch.setattr(run.model, "encode_text", None)
    batch = next(iter(run.pairs.epoch(0)))
    assert update(run, batch).batch.text_embeddings.numel() == 0
