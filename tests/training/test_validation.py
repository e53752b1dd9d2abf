from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from advflyp.training.recipe import Recipe, read_recipe
from advflyp.training.state import TrainState
from advflyp.training.validation import _watch_overfitting, changes

BEFORE = {"clean": 0.305, "robust": 0.01}


@pytest.fixture
def read(recipe: Path) -> Recipe:
    keys = {"validate.set": "mini/val", "optim.lr": 3e-4, "attack.eps": "2/255"}
    return read_recipe(recipe, keys)


def test_a_run_that_did_good(read: Recipe) -> None:
    assert changes(BEFORE, {"clean": 0.28, "robust": 0.21}, read, 3e-4) == [
        "mini/val before and after: clean 30.5 → 28.0 % (-2.5), robust 1.0 → 21.0 % (+20.0)"
    ]


def test_a_run_that_ruined_the_model(read: Recipe) -> None:
    _, clean, robust = changes(BEFORE, {"clean": 0.035, "robust": 0.005}, read, 3e-4)
    assert clean == (
        "warning: clean accuracy fell by 27.0 points; a lower optim.lr (it was 0.0003) or attack.eps (it was 2/255) "
        "keeps more of it"
    )
    end = "it needs more steps, more data or a lower optim.lr (it was 0.0003)"
    assert robust == f"warning: the run made the model no more robust; {end}"


def test_a_run_too_short_for_its_rate(read: Recipe) -> None:
    """Which was lowered for it, and is what the messages name."""
    _, robust = changes(BEFORE, {"clean": 0.30, "robust": 0.01}, read, 2e-5)
    assert robust.endswith("more steps, more data or a higher optim.lr (it was 2e-05)")
    _, clean, robust = changes(BEFORE, {"clean": 0.035, "robust": 0.01}, read, 2e-5)
    assert "a lower optim.lr (it was 2e-05)" in clean
    assert robust.endswith("a lower optim.lr (it was 2e-05)")


def test_training_on_clean_images_promises_no_robustness(recipe: Path) -> None:
    read = read_recipe(recipe, {"validate.set": "mini/val", "attack.steps": 0})
    assert len(changes(BEFORE, {"clean": 0.31, "robust": 0.0}, read, 3e-4)) == 1
    assert "attack.eps" not in changes(BEFORE, {"clean": 0.1, "robust": 0.0}, read, 3e-4)[1]


def test_nothing_to_compare(read: Recipe) -> None:
    assert changes(None, None, read, 3e-4) == []


@pytest.mark.parametrize(("fgsm", "steps"), [(0.39, None), (0.41, 2)])
def test_a_model_overfits_if_it_resists_one_step_but_not_several(
    recipe: Path, fgsm: float, steps: int | None
) -> None:
    """Whatever its clean accuracy is."""
    said: list[str] = []
    run: Any = SimpleNamespace(
        recipe=read_recipe(recipe, {"attack.overfitting_gap": 0.1}), state=TrainState()
    )
    log: Any = SimpleNamespace(say=said.append)
    _watch_overfitting(run, {"clean": 0.9, "robust": 0.3, "fgsm": fgsm}, log)
    assert run.state.attack_steps == steps
    assert len(said) == (steps is not None) and all(
        "under one step is 11.0 points above" in line for line in said
    )
