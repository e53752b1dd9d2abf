import math
from copy import deepcopy
from pathlib import Path
from typing import Literal

import pytest
import torch

from advflyp.training.optim import OptimConfig, learning_rate, make_optimizer
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


def test_a_warm_up_as_long_as_it_is_asked_for() -> None:
    config = OptimConfig(lr=0.1, warmup_steps=8, warmup_share=1)
    assert rates(config, 10)[:9] == pytest.approx([0.1 * step / 8 for step in range(1, 9)] + [0.1])
    assert rates(OptimConfig(lr=0.1, warmup_steps=8, warmup_share=0), 10)[0] == 0.1


def test_the_cosine_of_a_long_run_has_hardly_begun_after_ten_epochs() -> None:
    """The paper's 100 epochs of a million pairs: 9.8e-5 at the end of the tenth, the released code's."""
    config = read_recipe("advflyp_full")
    an_epoch = math.ceil(1_000_000 / config.data.batch_size)
    rate = learning_rate(config.optim, 10 * an_epoch, config.train.epochs * an_epoch)
    # Cosine from the end of the warm-up, as the equation says.
    done = (10 * an_epoch - 1000) / (100 * an_epoch - 1000)
    assert rate == pytest.approx(1e-4 * 0.5 * (1 + math.cos(math.pi * done)), rel=1e-12)
    assert rate == pytest.approx(9.8e-5, abs=5e-7)


def test_adamw_by_hand() -> None:
    """One step with torch's own β₂ and ε and decay of every parameter, and one with CLIP's."""
    for decayed, beta2, epsilon in (("all", 0.999, 1e-8), ("matrices", 0.98, 1e-6)):
        config = OptimConfig(
            name="adamw",
            lr=0.1,
            beta2=beta2,
            epsilon=epsilon,
            weight_decay=0.5,
            decayed=decayed,  # pyright: ignore
        )
        weights = [torch.ones(2, 2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)]
        weights = [torch.nn.Parameter(weight) for weight in weights]
        optimizer = make_optimizer(weights, config)
        for slope in (0.3, 0.4):
            for weight in weights:
                weight.grad = torch.full_like(weight, slope)
            optimizer.step()
        for weight in weights:
            decay = 0.5 if decayed == "all" or weight.ndim == 2 else 0
            expected, m, v = 1.0, 0.0, 0.0
            for t, slope in enumerate((0.3, 0.4), 1):
                m, v = 0.9 * m + 0.1 * slope, beta2 * v + (1 - beta2) * slope**2
                step = (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - beta2**t)) + epsilon)
                expected = expected * (1 - 0.1 * decay) - 0.1 * step
            assert weight.detach().flatten().tolist() == pytest.approx([expected] * weight.numel(), rel=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weights_are_moved_together_as_one_after_another(name: Literal["sgd", "adamw"]) -> None:
    """To the last bit, in float32."""
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in ((30, 20), (7,), (), (3, 5, 2))]
    others = deepcopy(weights)
    config = OptimConfig(name=name, lr=0.03, weight_decay=0.1)
    together, apart = make_optimizer(weights, config), make_optimizer(others, config)
    for group in apart.param_groups:
        group["foreach"] = False
    for _ in range(5):
        for weight, other in zip(weights, others, strict=True):
            weight.grad = torch.randn_like(weight)
            other.grad = weight.grad.clone()
        together.step()
        apart.step()
    assert together.param_groups[0]["foreach"]
    assert all(torch.equal(*pair) for pair in zip(weights, others, strict=True))


@pytest.mark.parametrize(
    ("key", "value"),
    [("beta2", 1), ("beta2", -0.1), ("epsilon", 0), ("warmup_share", 1.5), ("warmup_share", -1)],
)
def test_impossible_values(key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"optim\.{key} must be"):
        OptimConfig(**{key: value})


def test_a_run_shorter_than_the_rate_is_meant_for() -> None:
    config = OptimConfig(lr=0.3, lr_steps=150, warmup_steps=0, schedule="constant")
    assert learning_rate(config, 0, 15) == pytest.approx(0.03)
    assert learning_rate(config, 0, 150) == learning_rate(config, 0, 600) == 0.3


def test_a_rate_given_by_hand_is_taken_as_it_is(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("[optim]\n", "[optim]\nlr_steps = 150\n"))
    assert read_recipe(recipe).optim.lr_steps == 150
    assert read_recipe(recipe, {"optim.lr": "0.1"}).optim.lr_steps is None
    assert read_recipe(recipe, {"optim.lr": "0.1", "optim.lr_steps": "20"}).optim.lr_steps == 20
