"""`advflyp reproduce --dry-run`: the remaining steps and their estimated costs, from stated constants."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from advflyp.data.sets.labelled import set_names
from advflyp.evaluation.attacks import find_attack
from advflyp.paper.plan import Plan, Run
from advflyp.paper.steps import FINISHED, is_done, recipe_file, steps_of
from advflyp.paper.tuning import IMAGES, UPDATES, read_tuning
from advflyp.training.recipe import Recipe, read_recipe

# Forward passes of the image tower per second: mini-vit in bf16 on one processor core; ViT-B/32 (8.8 GFLOP) at
# 100 TFLOP/s, what one accelerator sustains.
FORWARDS_A_SECOND = {"mini": 600.0, "paper": 11_000.0}
# Forward passes of AutoAttack's four members on an image that stays robust, and the share of such images.
AUTOATTACK = 10_000
STANDING = 0.35
# Samples that a recipe at paper scale trains on: the paper's million of pairs, or ImageNet's, which are slightly more.
SAMPLES = 1_000_000
MEGABYTES_A_RUN = {"mini": 80.0, "paper": 3000.0}


@dataclass(frozen=True)
class Cost:
    """hours: of one processor core (mini) or one accelerator (paper);  megabytes: on disk."""

    hours: float
    megabytes: float


def cost(plan: Plan, folder: Path, images: Callable[[str], int]) -> list[tuple[str, Cost]]:
    """The remaining steps in order, with their estimated costs.

    Args:
        images: The number of images of a set, by its name.
    """
    speed = FORWARDS_A_SECOND[plan.scale]
    found: dict[str, Cost] = {}
    tuned = {name for name, rates in read_tuning(folder).items() if len(rates) >= len(plan.grid)}
    for step in steps_of(plan):
        if is_done(step, folder):
            continue
        rate_of, training = step.run.rate_of or step.run.trained_as, f"train {step.training}"
        is_finished = (folder / "runs" / step.training / FINISHED).is_file()
        if step.run.recipe and training not in found and not is_finished:
            if plan.grid and rate_of not in tuned:
                tuned.add(rate_of)
                one = UPDATES * _training_passes(_recipe(plan, plan.run(rate_of)))
                passes = len(plan.grid) * (one + IMAGES * (1 + _attack_passes("pgd10")))
                found[f"tune {rate_of}"] = Cost(passes / speed / 3600, 0)
            recipe = _recipe(plan, step.run)
            samples = min(recipe.data.limit or SAMPLES, SAMPLES)
            updates = recipe.train.max_steps or math.ceil(
                samples / recipe.data.batch_size * recipe.train.epochs
            )
            passes = updates * _training_passes(recipe) + _validation_passes(recipe, updates)
            found[training] = Cost(passes / speed / 3600, MEGABYTES_A_RUN[plan.scale])
        m = step.measure
        n = sum(min(m.limit or images(name), images(name)) for name in set_names(list(m.sets)))
        passes = n * sum(
            _attack_passes(attack) * (len(m.eps) if attack != "clean" else 1) for attack in m.attacks
        )
        found[f"measure {step}"] = Cost(passes / speed / 3600, 0.1)
    return list(found.items())


def _training_passes(recipe: Recipe) -> float:
    """Forward-pass equivalents of one update.

    Each image takes 2 per attack step, 3 in the outer step, and 3 + 1 for the regularisers' clean and frozen branches;
    a shared clean pass saves 1. Passes over smaller images cost in proportion to their pixels.
    """
    extra = 4 if any(getattr(recipe.method, f"{name}_weight", 0) for name in ("feature", "logit")) else 0
    passes = 2 * recipe.attack.steps + 3 + extra - recipe.attack.share_clean_forward
    schedule = recipe.data.schedule or ((1, 1.0),)
    largest = max(side for side, _ in schedule)
    share = sum(part * (side / largest) ** 2 for side, part in schedule)
    return recipe.data.batch_size * passes * share


def _validation_passes(recipe: Recipe, updates: int) -> float:
    """Forward passes of all validations; 0 unless the recipe sets their dataset, limit and interval."""
    validate = recipe.validate
    if validate.set is None or validate.limit is None or validate.every is None:
        return 0
    times = 1 + math.ceil(updates / validate.every)
    return times * validate.limit * (1 + _attack_passes(validate.attack))


def _attack_passes(attack: str) -> float:
    if attack == "autoattack":
        return AUTOATTACK * STANDING
    parsed = find_attack(attack)
    return 2 * getattr(parsed, "steps", 0) + 1


def _recipe(plan: Plan, run: Run) -> Recipe:
    return read_recipe(recipe_file(plan, run), run.overrides)
