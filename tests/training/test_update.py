"""The parts of a step."""

import io
import itertools
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from rich.console import Console

import advflyp.training.update as step_module
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.model.folder import read_card
from advflyp.model.load import load_model
from advflyp.share import Share
from advflyp.training.build import build
from advflyp.training.checkpoint import checkpoints, load_last, step_of
from advflyp.training.loop import train
from advflyp.training.meter import Flops
from advflyp.training.recipe import read_recipe
from advflyp.training.runlog import read_metrics
from advflyp.training.update import (
    _share_statistics,
    attack_config,
    constant,
    derive_seed,
    find_adversarial,
    random_start,
    update,
)
from data.test_training import class_tree
from helpers import RECIPE, assert_equal64, models_in_float64


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_random_start_is_drawn_row_by_row(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is a function of seed, step and its place in the whole batch, however many are drawn together."""
    images = torch.rand(11, 3, 8, 8)
    threat = Threat(norm=norm, eps=0.5)  # type: ignore[arg-type]
    whole = random_start(images, threat, 3, 7)
    streams = Streams(derive_seed(3, 7), torch.arange(11))
    assert torch.equal(whole, threat.random_start(images, streams))
    assert threat.contains(images, whole).all()
    assert (
        len({tuple((row - image).flatten().tolist()) for row, image in zip(whole, images, strict=True)}) == 11
    )
    for other in ((4, 7), (3, 8)):
        assert not torch.equal(random_start(images, threat, *other), whole)

    shares = [Share(11, rank, 4) for rank in range(4)]
    for drawn in (1, 400, 10_000):
        monkeypatch.setattr(step_module, "DRAWN_ON_CPU", drawn)
        assert torch.equal(random_start(images, threat, 3, 7), whole)
        parts = [random_start(images[s.first : s.last], threat, 3, 7, s.first) for s in shares]
        assert torch.equal(torch.cat(parts), whole)


def test_constant_parameters_want_gradients_again() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(KeyError), constant([weight]):
        assert not weight.requires_grad
        raise KeyError
    assert weight.requires_grad


def weights(run: Path) -> dict[str, torch.Tensor]:
    state, _ = load_last(run / "checkpoints")
    return state["model"]


@pytest.mark.parametrize(
    "economy",
    [
        {"train.micro_batch": "3"},
        {"train.activation_checkpointing": "true"},
        {"train.micro_batch": "16"},
        {"train.micro_batch": "auto"},
    ],
)
def test_economies_change_no_result(recipe: Path, tmp_path: Path, economy: dict[str, str]) -> None:
    """Attack, losses and weights of batches computed in parts, or with recomputed activations."""
    # L_feat has no slope at the first step, where the model is the original: it would be a direction of rounding.
    base = {"optim.name": "sgd", "optim.lr": "0.05", "train.max_steps": "4", "method.feature_weight": "0"}
    with models_in_float64():
        train(recipe, base, out=tmp_path / "plain")
        train(recipe, {**base, **economy}, out=tmp_path / "economy")
    assert_equal64(weights(tmp_path / "economy"), weights(tmp_path / "plain"))


def test_a_tower_without_blocks_says_so(recipe: Path, tmp_path: Path, tiny_rn_folder: Path) -> None:
    overrides = {"model.name": str(tiny_rn_folder), "train.activation_checkpointing": "true"}
    with pytest.raises(ValueError, match="has no blocks to recompute; use train.micro_batch"):
        train(recipe, overrides, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_economies_that_exclude_each_other(recipe: Path) -> None:
    with pytest.raises(ValueError, match="cannot be combined with train.batch_norm = 'update'"):
        read_recipe(recipe, {"train.micro_batch": "4", "train.batch_norm": "update"})
    for other in ({"train.compile": True}, {"train.micro_batch": 4}, {"train.parallel": "fsdp"}):
        with pytest.raises(ValueError, match=f"train.graphs cannot be combined with {next(iter(other))}"):
            read_recipe(recipe, {"train.graphs": True, **other})
    with pytest.raises(ValueError, match="cannot be combined with train.parallel = 'fsdp'"):
        read_recipe(recipe, {"train.micro_batch": "auto", "train.parallel": "fsdp"})
    with pytest.raises(ValueError, match="train.micro_batch must be a whole number, not 'most'"):
        read_recipe(recipe, {"train.micro_batch": "most"})


def test_the_attack_computes_no_gradient_of_a_weight(recipe: Path, tmp_path: Path) -> None:
    """Nothing is kept for one either: the weights of the tower do not appear among what autograd saves of inputs."""
    run = build(read_recipe(recipe), tmp_path / "run")
    batch = next(iter(run.pairs.epoch(0)))
    batch = run.add_texts(batch)
    asked: list[bool] = []
    real = run.method.attack_loss

    def loss(images: torch.Tensor, batch: dict) -> torch.Tensor:
        asked.append(any(p.requires_grad for p in run.parameters))
        return real(images, batch)

    run.method.attack_loss = loss  # type: ignore[method-assign]
    find_adversarial(run, batch)
    assert asked == [False, False]
    assert all(p.requires_grad and p.grad is None for p in run.parameters)


SHARED = {"attack.steps": "1", "attack.start": "zero", "attack.share_clean_forward": "true"}


@pytest.mark.parametrize(
    "economy", [{}, {"train.micro_batch": "3"}, {"train.activation_checkpointing": "true"}]
)
def test_a_shared_forward_changes_no_result(recipe: Path, tmp_path: Path, economy: dict[str, str]) -> None:
    """The perturbation of one step from the images, the losses and the weights; with less arithmetic."""
    base = {"optim.name": "sgd", "optim.lr": "0.05", "train.max_steps": "4", "method.feature_weight": "0"}
    apart = {**base, **SHARED, "attack.share_clean_forward": "false"}
    with models_in_float64():
        train(recipe, apart, out=tmp_path / "apart")
        train(recipe, {**base, **SHARED, **economy}, out=tmp_path / "shared")
    assert_equal64(weights(tmp_path / "shared"), weights(tmp_path / "apart"))


@pytest.mark.parametrize("name", ["tecoa", "pmg_aft", "flyp"])
def test_other_methods_share_their_forward(name: str, tmp_path: Path, tiny_folder: Path) -> None:
    class_tree(tmp_path / "classes", 64)
    text = RECIPE.format(model=tiny_folder, data=tmp_path / "classes").replace('"advflyp"', f'"{name}"')
    if name == "pmg_aft":
        text = text.replace("feature_weight = 1.0\nlogit_weight = 1.0\n", "")
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    base = {"optim.name": "sgd", "optim.lr": "0.05", "train.max_steps": "3"}
    base |= {"method.feature_weight": "0"} if name != "pmg_aft" else {}
    with models_in_float64():
        train(path, {**base, **SHARED, "attack.share_clean_forward": "false"}, out=tmp_path / "apart")
        train(path, {**base, **SHARED}, out=tmp_path / "shared")
    assert_equal64(weights(tmp_path / "shared"), weights(tmp_path / "apart"))


class Cost(NamedTuple):
    """Operations: of one update of 8 images, of a forward pass, of its attention and its first layer."""

    update: float
    forward: float
    attention: float
    first: float


def cost(recipe: Path, overrides: dict[str, str], out: Path) -> Cost:
    run = build(read_recipe(recipe, {**overrides, "data.batch_size": "8"}), out)
    batch = next(iter(run.pairs.epoch(0)))
    with torch.no_grad(), Flops() as forward:
        run.model.encode_image(batch.images)
    update(run, batch)
    assert run.meter.flops_of_last is not None
    tower: Any = run.model.net.visual
    (rows, columns), width = tower.grid_size, tower.conv1.out_channels
    places, blocks = rows * columns + 1, len(tower.transformer.resblocks)
    # Of the class token alone in the last block.
    attention = 2 * 8 * 2 * width * places * ((blocks - 1) * places + 1)
    first = 2 * 8 * rows * columns * tower.conv1.weight.numel()
    return Cost(run.meter.flops_of_last, forward.total, attention, first)


# Forward passes of an update: with two steps 11, with one from a random start 9, with one that shares the clean pass 8;
# for attention, whose backward pass has five products where the forward pass has two; and what is left out of the first
# layer, whose gradient by the pixels is wanted by an attack alone.
FULL_COSTS = [
    ({"attack.steps": "2"}, 11, 4, 2),
    ({"attack.steps": "1"}, 9, 2.5, 2),
    (SHARED, 8, 2.5, 1),
]
BASIC_COSTS = [({"attack.steps": "2"}, 7, 3.5, 1), ({"attack.steps": "1"}, 5, 2, 1)]


@pytest.mark.parametrize("regularised", [True, False])
def test_what_a_step_costs(recipe: Path, tmp_path: Path, regularised: bool) -> None:
    basic = {} if regularised else {"method.feature_weight": "0", "method.logit_weight": "0"}
    for number, (keys, passes, attention, first) in enumerate(FULL_COSTS if regularised else BASIC_COSTS):
        found = cost(recipe, {**basic, **keys}, tmp_path / str(number))
        expected = passes * found.forward + attention * found.attention - first * found.first
        assert found.update == pytest.approx(expected, rel=0.005)


def test_where_the_attack_begins(recipe: Path, tmp_path: Path) -> None:
    """One step from the image ends at ±α wherever there is a slope; N-FGSM's beyond ε, in 2ε + α at the most."""
    eps = 0.03
    found = {}
    for start in ("zero", "noise", "random"):
        overrides = {"attack.steps": "1", "attack.start": start, "attack.eps": eps, "attack.step_size": eps}
        run = build(read_recipe(recipe, overrides), tmp_path / start)
        batch = next(iter(run.pairs.epoch(0)))
        images = batch.images * 0.5 + 0.25  # so that nothing is clamped
        batch = replace(batch, images=images)
        batch = run.add_texts(batch)
        found[start] = find_adversarial(run, batch).images - images
        assert torch.equal(find_adversarial(run, batch).images - images, found[start])
    zero, noise, random = found["zero"].abs(), found["noise"].abs(), found["random"].abs()
    assert torch.allclose(zero[zero > 0], torch.tensor(eps), atol=1e-6) and (zero > 0).float().mean() > 0.9
    assert random.max() <= eps + 1e-6 and random.unique().numel() > 100
    assert 2.9 * eps < noise.max() <= 3 * eps + 1e-6
    # (2ε·u + ε·s) is beyond ε for u above 0 of the slope's sign: half of all pixels.
    assert (noise > eps).float().mean() == pytest.approx(0.5, abs=0.05)
    # And beyond 2ε for u above ½ of it: a quarter.
    assert (noise > 2 * eps).float().mean() == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"attack.start": "noise"}, "is for one step; set attack.steps = 1"),
        ({"attack.share_clean_forward": "true"}, "set attack.steps = 1 and attack.start = 'zero'"),
        ({**SHARED, "train.compile": "true"}, "cannot be combined with train.compile"),
        ({**SHARED, "train.batch_norm": "update"}, "cannot be combined with train.batch_norm = 'update'"),
        ({**SHARED, "method.reference": "frozen"}, "has no clean forward pass to share"),
        ({**SHARED, "attack.overfitting_gap": "0"}, "above 0 and at most 1"),
        (
            {"train.activation_checkpointing": "true", "train.batch_norm": "update"},
            "train.activation_checkpointing cannot be combined with train.batch_norm = 'update'",
        ),
        ({"data.schedule": "[[24, 0.5], [32, 0.4]]"}, "must add up to 1"),
        ({"data.schedule": "[[0, 0.5], [32, 0.5]]"}, "sizes must be at least 1 pixel"),
        ({"data.schedule": "[[32, 0.5], [32]]"}, "must be a list of 2"),
        ({"data.schedule": "[32, 0.5"}, "must be a list such as"),
        ({"data.schedule": "[[30, 0.5], [32, 0.5]]"}, "multiples of 8 pixels, not 30 × 30"),
    ],
)
def test_settings_that_cannot_be(
    overrides: dict[str, str], message: str, recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        train(recipe, overrides, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_methods_that_cannot(tmp_path: Path, tiny_folder: Path) -> None:
    class_tree(tmp_path / "classes", 64)
    for name, overrides, message in (
        ("fare", {"attack.steps": "1", "attack.start": "zero"}, "has no gradient at the clean images"),
        ("tga_zsr", {"data.schedule": "[[24, 1]]"}, "takes images of the model's own size only"),
    ):
        text = RECIPE.format(model=tiny_folder, data=tmp_path / "classes").replace('"advflyp"', f'"{name}"')
        path = tmp_path / f"{name}.toml"
        path.write_text(text.replace("feature_weight = 1.0\nlogit_weight = 1.0\n", ""))
        with pytest.raises(ValueError, match=re.escape(message)):
            train(path, overrides, out=tmp_path / "run")


def test_sizes_change_over_a_run(recipe: Path, tmp_path: Path) -> None:
    """Which size a step has is a function of its number: a resumed run goes on as an undisturbed one."""
    overrides = {"data.schedule": "[[16, 0.5], [24, 0.25], [32, 0.25]]", "train.deterministic": "true"}
    overrides |= {"checkpoint.every": "1", "checkpoint.keep": "100", "log.every": "1"}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(recipe, overrides, out=whole)
    shutil.copytree(whole, stopped)
    for path in checkpoints(stopped / "checkpoints"):
        if step_of(path) > 5:
            path.unlink()
    shutil.rmtree(stopped / "best")
    train(recipe, overrides, out=stopped, resume=True)
    assert all(
        torch.equal(a, b) for a, b in zip(weights(stopped).values(), weights(whole).values(), strict=True)
    )
    lines = [
        [line["pflops"] for line in read_metrics(run) if line["kind"] == "train"] for run in (whole, stopped)
    ]
    assert lines[0] == lines[1]
    each = [b - a for a, b in itertools.pairwise([0.0, *lines[0]])]
    assert each[0] == pytest.approx(each[3]) and each[0] < each[4] < each[6]
    # Tokens: 1 + 4, 1 + 9, 1 + 16; attention adds a little more.
    assert each[4] / each[0] == pytest.approx(2, rel=0.1) and each[6] / each[0] == pytest.approx(3.4, rel=0.1)


def test_two_steps_in_place_of_one_begin_at_random(recipe: Path, tmp_path: Path) -> None:
    """Only a single step may begin at the image and share its forward pass with the losses."""
    run = build(read_recipe(recipe, SHARED), tmp_path / "run")
    run.state.attack_steps = 2
    assert attack_config(run) == read_recipe(recipe, {"attack.steps": "2", "attack.start": "random"}).attack
    found = find_adversarial(run, run.add_texts(next(iter(run.pairs.epoch(0)))))
    assert found.clean_embeddings is None


@pytest.mark.long
def test_one_step_that_is_not_enough(recipe: Path, tmp_path: Path) -> None:
    """The model resists one step more often than ten: the run says so, and goes on with two steps, resumed ones too."""
    set_ = {
        "validate.set": "mini/fashion",
        "validate.limit": "60",
        "model.name": "mini-vit",
        "attack.eps": "4/255",
        # The weights stay what they are: the gap below is the original's, whatever a processor rounds to.
        "optim.lr": "1e-12",
    }
    overrides = {**set_, "attack.steps": "1", "attack.start": "zero", "attack.overfitting_gap": "1e-3"}
    overrides |= {"train.epochs": "2", "train.max_steps": "2", "data.limit": "16", "log.every": "1"}
    overrides |= {"checkpoint.last": "true"}
    said = io.StringIO()
    train(recipe, overrides, out=tmp_path / "run", console=Console(file=said, width=200))
    assert "the model overfits to one step; further updates attack with two" in said.getvalue()
    first, second = (line["pflops"] for line in read_metrics(tmp_path / "run") if line["kind"] == "train")
    # 9 forward passes, then 11.
    assert second / first - 1 == pytest.approx(11 / 9, rel=0.03)
    state, _ = load_last(tmp_path / "run" / "checkpoints")
    assert state["progress"]["attack_steps"] == 2
    # The best weights are those of the first step, which had one.
    assert read_card(tmp_path / "run/last")["attack_steps"] == 2 and "attack_steps" not in read_card(
        tmp_path / "run"
    )
    accuracies = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "validate"]
    assert ["fgsm" in line for line in accuracies] == [True, True, False]
    page = (Path(__file__).parents[2] / "docs/training.md").read_text().partition("## metrics.jsonl")[2]
    written = {re.sub("loss/.*", "loss/NAME", key) for line in read_metrics(tmp_path / "run") for key in line}
    assert written <= set(re.findall(r"`([\w/]+)`", page)), "what a run writes is documented"


def test_running_statistics_are_those_of_all_ranks(tiny_rn_folder: Path) -> None:
    """Otherwise each rank would validate a model of its own, and a resumed run go on with rank 0's."""
    model = load_model(tiny_rn_folder)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    ranks = SimpleNamespace(size=2, all_reduce_sum=lambda own: own + (own + 2))
    _share_statistics(SimpleNamespace(ranks=ranks, model=model))  # type: ignore[arg-type]
    statistics = 0
    for name, buffer in model.named_buffers():
        shared = "running_" in name
        statistics += shared
        assert torch.equal(buffer, before[name] + shared), name
    assert statistics > 0 and "mean" in before
