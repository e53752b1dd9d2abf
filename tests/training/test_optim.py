import math
from pathlib import Path

import pytest

from advflyp.training.optim import OptimConfig, learning_rate
from advflyp.training.recipe import read_recipe


def rates(config: OptimConfig, steps: int) -> list[float]:
    return [learning_rate(config, step, steps) for step in range(steps)]


def test_warm_up_then_cosine() -> None:
    found = rates(OptimConfig(lr=0.1, warmup_steps=4), 20)
    assert found[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert found[4:] == pytest.approx([0.05 * (1 + math.cos(math.pi * k / 16)) for k in range(16)])


def test_warm_up_takes_a_fifth_of_a_short_run() -> None:
    """1000 steps of warm-up would be more than the whole run."""
    assert rates(OptimConfig(lr=0.1, warmup_steps=1000), 10)[:3] == pytest.approx([0.05, 0.1, 0.1])
    assert rates(OptimConfig(lr=0.1, warmup_steps=1000, schedule="constant"), 4) == [0.1] * 4
    assert rates(OptimConfig(lr=0.1, warmup_steps=1000), 5000)[999] == 0.1, "the paper's, where it fits"


def test_a_run_shorter_than_the_rate_is_meant_for() -> None:
    config = OptimConfig(lr=0.3, lr_steps=150, warmup_steps=0, schedule="constant")
    assert learning_rate(config, 0, 15) == pytest.approx(0.03)
    assert learning_rate(config, 0, 150) == learning_rate(config, 0, 600) == 0.3


def test_a_rate_given_by_hand_is_taken_as_it_is(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("[optim]\n", "[optim]\nlr_steps = 150\n"))
    assert read_recipe(recipe).optim.lr_steps == 150
    assert read_recipe(recipe, {"optim.lr": "0.1"}).optim.lr_steps is None
    assert read_recipe(recipe, {"optim.lr": "0.1", "optim.lr_steps": "20"}).optim.lr_steps == 20
