"""The parts of a step."""

from pathlib import Path

import pytest
import torch

import advflyp.training.step as step_module
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.data.stream import Share
from advflyp.training.checkpoint import load_last
from advflyp.training.recipe import read_recipe
from advflyp.training.step import constant, derive_seed, random_start
from advflyp.training.trainer import Trainer, train
from helpers import assert_equal64, models_in_float64


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
    [{"train.micro_batch": "3"}, {"train.activation_checkpointing": "true"}, {"train.micro_batch": "16"}],
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
    with pytest.raises(ValueError, match="does not go with train.batch_norm = 'update'"):
        read_recipe(recipe, {"train.micro_batch": "4", "train.batch_norm": "update"})
    with pytest.raises(ValueError, match="does not go with train.parallel = 'fsdp'"):
        read_recipe(recipe, {"train.micro_batch": "4", "train.parallel": "fsdp"})


def test_the_attack_computes_no_gradient_of_a_weight(recipe: Path, tmp_path: Path) -> None:
    """Nothing is kept for one either: the weights of the tower do not appear among what autograd saves of inputs."""
    trainer = Trainer(read_recipe(recipe), tmp_path / "run")
    batch = next(iter(trainer.pairs.epoch(0)))
    trainer.embed_texts(batch)
    asked: list[bool] = []
    real = trainer.method.attack_loss

    def loss(images: torch.Tensor, batch: dict) -> torch.Tensor:
        asked.append(any(p.requires_grad for p in trainer.parameters))
        return real(images, batch)

    trainer.method.attack_loss = loss  # type: ignore[method-assign]
    trainer.attack(batch["images"], batch)
    assert asked == [False, False]
    assert all(p.requires_grad and p.grad is None for p in trainer.parameters)
