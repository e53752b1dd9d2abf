import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

from advflyp.attack.pgd import pgd
from advflyp.data.batch import Batch
from advflyp.data.pairs.samples import Skipped
from advflyp.method.advflyp import clip_loss
from advflyp.method.base import Method
from advflyp.model.clip import CLIP
from advflyp.model.folder import read_card, weights_sha256
from advflyp.model.load import load_model
from advflyp.training import loop
from advflyp.training.build import TrainingRun, build
from advflyp.training.checkpoint import checkpoints, load_checkpoint, load_last, step_of
from advflyp.training.loop import fit, train
from advflyp.training.memory import copied
from advflyp.training.recipe import read_recipe
from advflyp.training.runlog import read_metrics
from advflyp.training.update import Updated, find_adversarial, random_start, update
from data.test_training import class_tree
from helpers import RECIPE, assert_equal64, models_in_float64, write_folder, write_shards


def state(run: Path) -> dict[str, torch.Tensor]:
    return load_model(run).net.state_dict()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_leaves_what_it_promises(recipe: Path, tmp_path: Path) -> None:
    result = train(recipe, out=tmp_path / "run")
    assert result.steps == 8
    assert result.best is None
    run = tmp_path / "run"
    assert read_recipe(run / "recipe.toml") == read_recipe(recipe)
    lines = [line for line in read_metrics(run) if line["kind"] == "train"]
    assert lines[-1]["step"] == 8
    assert lines[-1]["seen"] == 128
    terms = {"loss", "loss/clip", "loss/feature", "loss/logit", "pairs_per_second", "lr"}
    assert terms <= lines[-1].keys()
    # Float32: the means over eight steps of three terms.
    assert lines[-1]["loss"] == pytest.approx(
        sum(v for k, v in lines[-1].items() if k.startswith("loss/")), rel=1e-6
    )
    assert [step_of(path) for path in checkpoints(run / "checkpoints")] == [6, 8]
    card = json.loads((run / "best/card.json").read_text())
    assert card["step"] == 8 and card["recipe"]["optim"]["lr"] == 1e-3
    assert not list(run.rglob("*.partial"))


def test_the_same_seed_gives_the_same_run(recipe: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train(recipe, out=tmp_path / name)
    train(recipe, {"train.seed": 1}, out=tmp_path / "c")
    assert equal(state(tmp_path / "a"), state(tmp_path / "b"))
    assert not equal(state(tmp_path / "a"), state(tmp_path / "c"))


@pytest.mark.parametrize("killed_after", [3, 4, 6])
def test_resuming_equals_no_interruption(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_after: int
) -> None:
    """Bit for bit, whether the run died inside an epoch, at its end, or right at a checkpoint."""
    for name in "abcd":
        (tmp_path / "pairs" / f"{name}.png").write_bytes(b"broken")
        (tmp_path / "pairs" / f"{name}.txt").write_text("a broken image")
    overrides = {"checkpoint.every": 1, "optim.name": "sgd", "optim.lr": 0.05}
    real_step = loop.update
    drawn: list[float] = []  # by a method of the user's own, say, from torch's generator

    def step(run: TrainingRun, batch: Batch) -> Updated:
        if len(drawn) == dies_after:
            raise KeyboardInterrupt
        drawn.append(float(torch.rand(())))
        return real_step(run, batch)

    dies_after = None
    monkeypatch.setattr(loop, "update", step)
    train(recipe, overrides, out=tmp_path / "whole")
    uninterrupted, drawn, dies_after = drawn, [], killed_after
    with pytest.raises(KeyboardInterrupt):
        train(recipe, overrides, out=tmp_path / "cut")
    dies_after = None
    torch.manual_seed(999)
    result = train(recipe, overrides, out=tmp_path / "cut", resume=True)
    assert result.steps == 8 and drawn == uninterrupted
    assert equal(state(tmp_path / "cut"), state(tmp_path / "whole"))
    lines, expected = (read_metrics(tmp_path / name) for name in ("cut", "whole"))
    assert [line["step"] for line in lines if line["kind"] == "train"] == [8]
    skipped = [[line["skipped"] for line in some if line["kind"] == "data"] for some in (lines, expected)]
    assert skipped[0] == skipped[1] and sum(skipped[0][-1].values()) == 8, "four in each epoch"


@dataclass(frozen=True, kw_only=True)
class BankConfig:
    learns: bool = False


class Bank(Method):
    """Away from the mean of all embeddings so far, which it keeps, with their number."""

    config: BankConfig
    trains_on = "images"
    needs_original = False

    def __init__(self, config: BankConfig, model: CLIP) -> None:
        super().__init__(config, model)
        self.mean, self.seen = torch.zeros(model.config["model_cfg"]["embed_dim"]), 0
        self.head = torch.nn.Linear(2, 2).requires_grad_(config.learns)

    def attack_loss(self, images_adv: torch.Tensor, batch: Batch) -> torch.Tensor:
        return self.model.encode_image(images_adv) @ self.mean

    def losses(self, images: torch.Tensor, images_adv: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        embeddings = self.model.encode_image(images_adv)
        loss = self.ranks.mean(embeddings @ self.mean)
        new = embeddings.detach().sum(0)
        self.mean = (self.seen * self.mean + new) / (self.seen + len(embeddings))
        self.seen += len(embeddings)
        return {"bank": loss}


def test_a_method_keeps_its_state(recipe: Path, tmp_path: Path) -> None:
    path = tmp_path / "bank.toml"
    text = recipe.read_text().replace("feature_weight = 1.0\nlogit_weight = 1.0\n", "")
    path.write_text(text.replace('"advflyp"', f'"{__name__}:Bank"'))
    keys = {"checkpoint.every": 1, "checkpoint.keep": 9, "log.every": 1}
    train(path, keys, out=tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for checkpoint in checkpoints(tmp_path / "cut/checkpoints")[4:]:
        checkpoint.unlink()
    train(path, keys, out=tmp_path / "cut", resume=True)
    assert equal(state(tmp_path / "cut"), state(tmp_path / "whole"))
    with pytest.raises(ValueError, match="has parameters of its own in `head`"):
        train(path, {"method.learns": True}, out=tmp_path / "learns")
    assert not (tmp_path / "learns").exists()


@pytest.mark.long
def test_a_killed_process_resumes(recipe: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of a real command, then --resume."""
    command = [sys.executable, "-c", "from advflyp.cli.main import main; main()", "train", str(recipe)]
    options = ["--checkpoint.every", "1", "--train.epochs", "6"]
    process = subprocess.Popen([*command, "--out", str(tmp_path / "run"), *options], env={**os.environ})
    while process.poll() is None and len(checkpoints(tmp_path / "run/checkpoints")) < 2:
        pass
    process.kill()
    process.wait()
    train(recipe, {"checkpoint.every": "1", "train.epochs": "6"}, out=tmp_path / "run", resume=True)
    train(recipe, {"checkpoint.every": "1", "train.epochs": "6"}, out=tmp_path / "whole")
    assert equal(state(tmp_path / "run"), state(tmp_path / "whole"))


def test_the_last_smaller_batch_is_a_step(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """41 pairs in batches of 16, so 16, 16 and 9, in two epochs; also where a run is resumed before and behind it."""
    overrides = {"data.limit": 41, "data.drop_last": "false", "checkpoint.every": 1, "log.every": 1}
    result = train(recipe, overrides, out=tmp_path / "whole")
    assert result.steps == 6
    seen = [line["seen"] for line in read_metrics(tmp_path / "whole") if line["kind"] == "train"]
    assert seen == [16, 32, 41, 57, 73, 82]
    for left in (2, 3):
        run = build(read_recipe(recipe, overrides), tmp_path / f"cut-{left}")
        steps = iter(range(left))
        monkeypatch.setattr(loop, "update", lambda run, batch: (next(steps), update(run, batch))[1])  # noqa: B023
        with pytest.raises(StopIteration):
            fit(run)
        monkeypatch.undo()
        run.close()
        assert train(recipe, overrides, out=tmp_path / f"cut-{left}", resume=True).steps == 6
        assert equal(state(tmp_path / f"cut-{left}"), state(tmp_path / "whole"))


def test_a_last_batch_of_one_pair(recipe: Path, tmp_path: Path) -> None:
    """It has no negatives: the loss is 0, and so is what the attack gains."""
    overrides = {"data.limit": 33, "data.drop_last": "false", "log.every": 1, "train.max_steps": 3}
    train(recipe, overrides, out=tmp_path / "run")
    last = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "train"][-1]
    assert last["seen"] == 33 and last["loss/clip"] == 0 and "attack_gain" not in last


@pytest.mark.parametrize("unfreeze", ["vision", "all"])
def test_flyp_encodes_the_captions_that_are_drawn(tmp_path: Path, tiny_folder: Path, unfreeze: str) -> None:
    """Not the prompts of every template of every class."""
    data = class_tree(tmp_path / "classes", 24)
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(model=tiny_folder, data=data).replace('"advflyp"', '"flyp"'))
    overrides = {"data.templates": "openai", "data.batch_size": 8, "train.unfreeze": unfreeze}
    with models_in_float64():
        run = build(read_recipe(path, overrides), tmp_path / "run")
    batch = next(iter(run.pairs.epoch(0)))
    assert len(set(batch.captions)) > 4
    with mock.patch.object(run.model, "tokenizer", wraps=run.model.tokenizer) as tokenizer:
        batch = run.add_texts(batch)
    assert sum(len(call.args[0]) for call in tokenizer.call_args_list) <= 8
    assert batch.class_embeddings.numel() == 0
    assert batch.text_embeddings.requires_grad == (unfreeze == "all")
    assert_equal64(batch.text_embeddings, run.model.encode_text(batch.captions))
    run.close()


@pytest.mark.parametrize("shards", [False, True])
def test_a_run_is_not_resumed_on_other_data(shards: bool, recipe: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_shards(data, 64, per_shard=32) if shards else write_folder(data, 64)
    keys = {"data.train": str(data / "*.tar" if shards else data), "train.max_steps": 2}
    train(recipe, keys, out=tmp_path / "run")
    if shards:
        shutil.copy(data / "001.tar", data / "002.tar")
        held = "64 samples in 2 shards when it was started and now holds 96 samples in 3 shards"
    else:
        write_folder(data, 70)
        held = "64 samples when it was started and now holds 70 samples"
    with pytest.raises(
        ValueError, match=f"^the data of .*/run held {held}; restore it, or start another run$"
    ):
        train(recipe, keys, out=tmp_path / "run", resume=True)


def test_resuming_a_finished_run_changes_nothing(recipe: Path, tmp_path: Path) -> None:
    train(recipe, out=tmp_path / "run")
    before = (tmp_path / "run/metrics.jsonl").read_text()
    assert train(recipe, out=tmp_path / "run", resume=True).steps == 8
    assert (tmp_path / "run/metrics.jsonl").read_text() == before


@pytest.mark.parametrize("unfreeze", ["vision", "vision+text", "all"])
def test_only_what_is_unfrozen_moves(recipe: Path, tmp_path: Path, tiny_folder: Path, unfreeze: str) -> None:
    train(recipe, {"train.unfreeze": unfreeze, "train.max_steps": 3}, out=tmp_path / "run")
    before, after = load_model(tiny_folder).net.state_dict(), state(tmp_path / "run")
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert "visual.conv1.weight" in moved
    assert any(not k.startswith("visual.") and k != "logit_scale" for k in moved) == (unfreeze != "vision")
    assert ("logit_scale" in moved) == (unfreeze == "all")


def test_batch_norm_statistics_move_only_when_asked(
    recipe: Path, tmp_path: Path, tiny_rn_folder: Path
) -> None:
    before = load_model(tiny_rn_folder).net.state_dict()
    key = "visual.bn1.running_mean"
    for mode in ("frozen", "update"):
        overrides = {"model.name": tiny_rn_folder, "train.batch_norm": mode, "train.max_steps": 2}
        train(recipe, {k: str(v) for k, v in overrides.items()}, out=tmp_path / mode)
        assert torch.equal(state(tmp_path / mode)[key], before[key]) == (mode == "frozen")


def test_attack_raises_the_methods_loss_within_the_threat(recipe: Path, tmp_path: Path) -> None:
    run = build(read_recipe(recipe), tmp_path / "run")
    batch = next(iter(run.pairs.epoch(0)))
    images = batch.images
    batch = run.add_texts(batch)
    found = find_adversarial(run, batch).images
    threat = run.recipe.attack.threat
    assert threat.contains(images, found).all()
    start = threat.random_start(images, torch.Generator().manual_seed(0))
    assert run.method.attack_loss(found, batch) > run.method.attack_loss(start, batch)
    assert torch.equal(find_adversarial(run, batch).images, found), "the start depends on seed and step alone"
    run.state.step += 1
    assert not torch.equal(find_adversarial(run, batch).images, found)


def test_one_sgd_step_by_hand(recipe: Path, tmp_path: Path, tiny_folder: Path) -> None:
    """Basic AdvFLYP, Algorithm 1: attack, contrastive loss, w ← w − lr·∂L/∂w."""
    overrides = {
        "method.feature_weight": 0, "method.logit_weight": 0,
        "optim.name": "sgd", "optim.lr": 0.1, "optim.warmup_steps": 0, "optim.schedule": "constant",
    }  # fmt: skip
    with models_in_float64():
        run = build(read_recipe(recipe, overrides), tmp_path / "run")
    batch = next(iter(run.pairs.epoch(0)))
    reference, images = load_model(tiny_folder).double(), batch.images.double()
    text = reference.encode_text(batch.captions).detach()

    def loss(x: torch.Tensor) -> torch.Tensor:
        return clip_loss(reference.encode_image(x), text, reference.logit_scale)

    threat = run.recipe.attack.threat
    start = random_start(images, threat, 0, 0)
    found = pgd(images, loss, threat, steps=2, step_size=4 / 255, start=start)
    parameters = dict(reference.net.visual.named_parameters())
    at_end = loss(found)
    gradients = torch.autograd.grad(at_end, list(parameters.values()))
    metrics = update(run, batch).metrics
    measured = {
        "loss": at_end, "loss/clip": at_end, "attack_gain": at_end / loss(start),
        "grad_norm": torch.cat([gradient.flatten() for gradient in gradients]).norm(),
    }  # fmt: skip
    assert_equal64(metrics, {name: value.detach() for name, value in measured.items()})
    expected = {
        name: parameter - 0.1 * gradient
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
    }
    assert_equal64(dict(run.model.net.visual.named_parameters()), expected)


def test_validation_decides_the_best_and_patience_ends_the_run(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The original's is higher than any: only the trained weights compete.
    scores = iter([0.9, 0.2, 0.1, 0.5, 0.4, 0.5, 0.9])
    weights = []

    class FakeEvaluator:
        def __init__(self, model, *_: object, **__: object) -> None:
            self.model = model

        def run(self, attack, threat, **_: object) -> SimpleNamespace:
            if threat is None:
                return SimpleNamespace(accuracy=1.0)
            weights.append(weights_sha256(self.model))
            return SimpleNamespace(accuracy=next(scores))

    monkeypatch.setattr("advflyp.training.validation.Evaluator", FakeEvaluator)
    overrides = {"validate.set": "mini/val", "train.patience": 2, "train.epochs": 9}
    result = train(recipe, overrides, out=tmp_path / "run")
    assert result.best == 0.5
    assert result.steps == 20, "two epochs without gain after the third; the second was followed by a gain"
    assert weights_sha256(load_model(tmp_path / "run")) == weights[3]
    assert (
        result.before
        == read_card(tmp_path / "run")["original"]
        == {"clean": 1.0, "robust": pytest.approx(0.9)}
    )
    assert result.after == {"clean": 1.0, "robust": 0.5}
    lines = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "validate"]
    assert [line["best"] for line in lines] == [False, True, False, True, False, False]
    assert [line["step"] for line in lines] == [0, 4, 8, 12, 16, 20]


@pytest.mark.long
def test_training_makes_robust(recipe: Path, tmp_path: Path, tiny_folder: Path) -> None:
    """64 pairs, a minute: more of them keep their caption under PGD-10 than before."""
    data = write_folder(tmp_path / "more", 64)

    def robust(model_name: Path) -> tuple[float, float]:
        model = load_model(model_name)
        captions = sorted({p.read_text() for p in data.glob("*.txt")})
        text = model.encode_text(captions).detach()
        pairs = build(
            read_recipe(recipe, {"data.batch_size": 64}), tmp_path / f"probe-{model_name.name}"
        ).pairs
        batch = next(iter(pairs.epoch(0)))
        labels = torch.tensor([captions.index(c) for c in batch.captions])
        threat = read_recipe(recipe).attack.threat

        def loss(x: torch.Tensor) -> torch.Tensor:
            logits = model.logit_scale * model.encode_image(x) @ text.T
            return torch.nn.functional.cross_entropy(logits, labels)

        found = pgd(batch.images, loss, threat, steps=10, step_size=1 / 255, random_start=False)
        with torch.no_grad():
            accuracy = [
                (model.encode_image(x) @ text.T).argmax(1).eq(labels).float().mean().item()
                for x in (batch.images, found)
            ]
        return accuracy[0], accuracy[1]

    overrides = {
        "train.epochs": 60, "method.feature_weight": 0, "method.logit_weight": 0, "checkpoint.every": 1000,
        "method.mask_same_caption": "true", "optim.lr": 3e-3, "data.batch_size": 32,
    }  # fmt: skip
    train(recipe, overrides, out=tmp_path / "run")
    before, after = robust(tiny_folder), robust(tmp_path / "run")
    assert before[1] < 0.2
    assert after[0] > 0.6
    assert after[1] > 0.4


def test_validations_inside_an_epoch_count_once(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FakeEvaluator:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def run(self, *_: object, **__: object) -> SimpleNamespace:
            return SimpleNamespace(accuracy=1.0)

    monkeypatch.setattr("advflyp.training.validation.Evaluator", FakeEvaluator)
    overrides = {"validate.set": "mini/val", "validate.every": 2, "validate.attack": "clean"}
    train(recipe, overrides, out=tmp_path / "run")
    lines = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "validate"]
    assert [line["step"] for line in lines] == [0, 2, 4, 6, 8]
    assert "robust" not in lines[0]


def test_where_epochs_are_short_only_steps_count(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs of one step: the best and the last weights both stay, the last as they are without validation."""
    scores, weights, written = iter([0.9, 0.2, 0.5, 0.4]), [], []

    class FakeEvaluator:
        def __init__(self, model, *_: object, **__: object) -> None:
            self.model = model

        def run(self, *_: object, **__: object) -> SimpleNamespace:
            weights.append(weights_sha256(self.model))
            return SimpleNamespace(accuracy=next(scores))

    monkeypatch.setattr("advflyp.training.validation.Evaluator", FakeEvaluator)
    real_save = loop.save_checkpoint
    monkeypatch.setattr(
        loop, "save_checkpoint", lambda *args, **kwargs: (written.append(args[1]), real_save(*args, **kwargs))
    )
    short = {"data.limit": 16, "train.epochs": 8, "checkpoint.every": 3, "checkpoint.epochs": 100}
    keys = {
        "validate.set": "mini/val",
        "validate.attack": "clean",
        "validate.every": 3,
        "validate.epochs": 100,
        "checkpoint.last": "true",
    }
    result = train(recipe, short | keys, out=tmp_path / "run")
    lines = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "validate"]
    assert [line["step"] for line in lines] == [0, 3, 6, 8] and result.steps == 8
    assert written == [0, 3, 6, 8]
    best, last = (weights_sha256(load_model(tmp_path / "run" / name)) for name in ("best", "last"))
    assert (best, last) == (weights[2], weights[3]) and best != last
    assert read_card(tmp_path / "run" / "last")["step"] == 8
    train(recipe, short, out=tmp_path / "without")
    assert equal(state(tmp_path / "without"), state(tmp_path / "run" / "last"))
    assert not (tmp_path / "without" / "last").exists()


def test_resuming_between_epochs_without_checkpoints(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after step 5 of epochs of one step, with a checkpoint after step 3: bit for bit."""
    keys = {"data.limit": 16, "train.epochs": 8, "checkpoint.every": 3, "checkpoint.epochs": 100}
    train(recipe, keys, out=tmp_path / "whole")
    steps = iter(range(5))
    monkeypatch.setattr(loop, "update", lambda run, batch: (next(steps), update(run, batch))[1])
    with pytest.raises(StopIteration):
        train(recipe, keys, out=tmp_path / "cut")
    monkeypatch.undo()
    assert [step_of(path) for path in checkpoints(tmp_path / "cut/checkpoints")] == [0, 3]
    assert train(recipe, keys, out=tmp_path / "cut", resume=True).steps == 8
    assert equal(state(tmp_path / "cut"), state(tmp_path / "whole"))


def test_gradient_clipping_limits_the_step(recipe: Path, tmp_path: Path, tiny_folder: Path) -> None:
    overrides = {"optim.name": "sgd", "optim.lr": 1.0, "optim.momentum": 0, "optim.max_grad_norm": 1e-3,
                 "optim.warmup_steps": 0, "optim.schedule": "constant", "train.max_steps": 1}  # fmt: skip
    with models_in_float64():
        train(recipe, overrides, out=tmp_path / "run")
    before, (after, _) = load_model(tiny_folder).net.state_dict(), load_last(tmp_path / "run/checkpoints")
    moved = sum((before[k] - after["model"][f"net.{k}"]).pow(2).sum().item() for k in before) ** 0.5
    # torch adds 1e-6 to the norm that it divides by.
    assert moved == pytest.approx(1e-3, rel=1e-5)


def test_folders_that_cannot_take_a_run(recipe: Path, tmp_path: Path) -> None:
    train(recipe, {"train.max_steps": 1}, out=tmp_path / "run")
    with pytest.raises(ValueError, match="holds another run; continue it with --resume"):
        train(recipe, out=tmp_path / "run")
    with pytest.raises(ValueError, match=r"the recipe differs from .*optim\.lr was 0\.001, is 0\.01"):
        train(recipe, {"train.max_steps": 1, "optim.lr": 0.01}, out=tmp_path / "run", resume=True)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; name a folder"):
        train(recipe, out=tmp_path / "file")
    (tmp_path / "full").mkdir()
    # Also files that are called as a run's are.
    for name in ("thesis.tex", "recipe.toml", "metrics.jsonl"):
        path = tmp_path / "full" / name
        path.write_text("mine")
        for resume in (False, True):
            with pytest.raises(ValueError, match=r"is not empty|whose checkpoints are gone"):
                train(recipe, out=tmp_path / "full", resume=resume)
        assert path.read_text() == "mine" and list((tmp_path / "full").iterdir()) == [path]
        path.unlink()


def test_a_run_that_died_before_its_first_checkpoint_can_be_started_again(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(run: TrainingRun, batch: Batch) -> Updated:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "update", dies)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, out=tmp_path / "run")
    monkeypatch.undo()
    for path in checkpoints(tmp_path / "run/checkpoints"):
        path.unlink()
    assert train(recipe, out=tmp_path / "run", resume=True).steps == 8
    assert train(recipe, out=tmp_path / "new", resume=True).steps == 8, "a script may always say --resume"


def test_a_run_without_usable_data_leaves_nothing_in_the_way(recipe: Path, tmp_path: Path) -> None:
    """Mended, the same command trains."""
    table = tmp_path / "t.csv"
    table.write_text(
        "image,caption\n" + "".join(f"img/{number:04d}.png,text {number}\n" for number in range(16))
    )
    overrides = {"data.train": str(table), "data.limit": None, "data.batch_size": 8, "train.max_steps": 1}
    with pytest.raises(
        ValueError, match=r"16 of 16 samples of .*t\.csv cannot be used, .*image file cannot be read"
    ):
        train(recipe, overrides, out=tmp_path / "run")
    write_folder(tmp_path / "img", 16)
    assert train(recipe, overrides, out=tmp_path / "run").steps == 1
    assert [step_of(path) for path in checkpoints(tmp_path / "run/checkpoints")] == [0, 1]
    with pytest.raises(ValueError, match="holds another run"):
        train(recipe, overrides, out=tmp_path / "run")


def test_no_permission(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write anywhere but into the kernel's own tree.
    with pytest.raises(ValueError, match="cannot write to /proc/advflyp|no permission to write to /proc"):
        train(recipe, out="/proc/advflyp")
    monkeypatch.setattr("advflyp.training.folder.os.access", lambda path, mode: False)
    with pytest.raises(ValueError, match=f"no permission to write to {tmp_path}"):
        train(recipe, out=tmp_path / "run")


def test_nothing_is_left_after_a_mistake(recipe: Path, tmp_path: Path) -> None:
    for overrides in ({"data.train": "nowhere/*.tar"}, {"model.name": "minni"}, {"data.batch_size": "4096"}):
        with pytest.raises(ValueError):
            train(recipe, overrides, out=tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_checkpoints_load_without_running_code(recipe: Path, tmp_path: Path) -> None:
    train(recipe, {"train.max_steps": 1}, out=tmp_path / "run")
    for step, path in enumerate(checkpoints(tmp_path / "run/checkpoints")):
        assert load_checkpoint(path)["progress"]["step"] == step_of(path) == step


def test_skipped_samples_are_those_of_all_ranks(recipe: Path, tmp_path: Path) -> None:
    run = build(read_recipe(recipe), tmp_path / "run")
    run.state.skipped = Skipped(Counter({"no image": 1}), {"no image": "a"})
    others = Skipped(Counter({"no image": 2, "empty caption": 1}), {"no image": "b", "empty caption": "c"})
    written: list[dict[str, Any]] = []
    log: Any = SimpleNamespace(write=lambda kind, step, **about: written.append(about), say=lambda line: None)
    with mock.patch.object(run.ranks, "all_gather_object", lambda own: [own, others]):
        loop._report_skipped(run, log)
    (line,) = written
    assert line["skipped"] == {"no image": 3, "empty caption": 1}
    assert line["examples"] == {"no image": "a", "empty caption": "c"}
    run.close()


def test_no_usable_pair_is_an_error(recipe: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "broken", 20)
    for image in folder.glob("*.png"):
        image.write_bytes(b"?")
    with pytest.raises(
        ValueError, match="20 of 20 samples .* more than data.max_bad_fraction = 0.2: 20 not an image"
    ):
        train(recipe, {"data.train": str(folder)}, out=tmp_path / "run")


@pytest.mark.parametrize("loader", ["threads", "process"])
def test_who_makes_the_tokens(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: str
) -> None:
    """The process that makes the batches, where there is one: the training has better things to do."""
    run = build(read_recipe(recipe, {"data.loader": loader}), tmp_path / "run")
    asked: list[str] = []
    tokenizer = run.model.tokenizer
    monkeypatch.setattr(run.model, "tokenizer", lambda texts: asked.extend(texts) or tokenizer(texts))
    (batch, *_) = run.pairs.epoch(0)
    with torch.no_grad():
        expected = run.model.double().encode_text(batch.captions)
    asked.clear()
    assert_equal64(run.add_texts(batch).text_embeddings, expected)
    assert bool(asked) == (loader == "threads")
    run.close()


@pytest.mark.slow
def test_the_paper_s_recipe_trains_a_vit_b_32(tmp_path: Path) -> None:
    """configs/advflyp_full.toml as it is, but for random weights and a handful of pairs."""
    from helpers import write_shards

    shards = write_shards(tmp_path / "shards", 8, per_shard=4)
    config = Path(__file__).parent.parent.parent / "configs/advflyp_full.toml"
    overrides = {
        "model.name": "ViT-B-32/random", "data.train": f"{shards}/{{000..001}}.tar", "data.batch_size": 4,
        "train.max_steps": 2, "train.device": "cpu", "train.precision": "fp32", "optim.warmup_steps": 0,
        "validate.set": "none",
    }  # fmt: skip
    result = train(config, overrides, out=tmp_path / "run")
    assert result.steps == 2
    (line,) = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "train"]
    assert {"loss/clip", "loss/feature", "loss/logit"} <= line.keys()
    model = load_model(tmp_path / "run")
    assert model.image_size == (224, 224)
    assert model.encode_image(torch.rand(1, 3, 224, 224)).shape == (1, 512)


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", ["none", "4"])
def test_compiled_is_the_same_run(recipe: Path, tmp_path: Path, micro_batch: str) -> None:
    """Without Eq. 8, whose gradient has no direction while the model still is the original, but for rounding."""
    weights = []
    for compiled in ("false", "true"):
        keys = {"train.compile": compiled, "train.micro_batch": micro_batch, "method.feature_weight": "0"}
        keys |= {"train.max_steps": "4", "optim.name": "sgd"}
        with models_in_float64():
            train(recipe, keys, out=tmp_path / compiled)
        weights.append(load_last(tmp_path / compiled / "checkpoints")[0]["model"])
    assert_equal64(weights[1], weights[0])


@pytest.mark.parametrize("compiled", [True, False])
def test_every_tower_of_a_compiled_run_is_compiled(
    recipe: Path, tmp_path: Path, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frozen original too, and the whole copy of a tower that is split: deep copies lose the compiled call."""
    ran: Counter[int] = Counter()
    compiler: Any = torch.compile

    def compile_counted(call: Any, **how: Any) -> Any:
        def backend(graph: Any, inputs: Any) -> Any:
            def run(*given: Any) -> Any:
                ran[id(call.__self__)] += 1
                return graph(*given)

            return run

        return compiler(call, **how, backend=backend)

    monkeypatch.setattr(torch, "compile", compile_counted)
    config = read_recipe(recipe, {"train.compile": str(compiled).lower()})
    run = build(config, tmp_path / "run")
    original = run.method.original
    assert original is not None and not any(p.requires_grad for p in original.parameters())
    for model in (run.model, original):
        with torch.no_grad():
            model.encode_image(torch.rand(2, 3, *model.image_size))
        assert (ran[id(model.visual)] > 0) == compiled
    assert (copied(original, config.train).visual._compiled_call_impl is not None) == compiled
    run.close()


def test_no_autocast_surrounds_the_steps(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside one, torch keeps weights that were cast once: every later step would compute with those of the first."""
    real_step, depths = loop.update, []

    def step(run: TrainingRun, batch: Batch) -> Updated:
        depths.append(torch.autocast_increment_nesting())
        torch.autocast_decrement_nesting()
        return real_step(run, batch)

    monkeypatch.setattr(loop, "update", step)
    train(recipe, {"train.max_steps": 2, "train.precision": "bf16"}, out=tmp_path / "run")
    assert depths == [1, 1]
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match="call train outside of torch.autocast"),
    ):
        train(recipe, out=tmp_path / "other")
    assert not (tmp_path / "other").exists()
