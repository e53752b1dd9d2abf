"""AdvFLYP's mixture of targets, `method.soft_targets`, chosen on validation images alone.

    python benchmarks/soft_targets.py --out mixture                    # 0, 0.25, 0.5, 0.75; two seeds each
    python benchmarks/soft_targets.py --out mixture --mixtures 0 0.5 --seeds 1000

A short training for each mixture and seed, in a folder of its own below --out; the score is the mean of clean and
robust accuracy on the recipe's validation set after the last step, never on a test set. Finished trainings are only
read, and interrupted ones are resumed. A mixture of 0 is AdvFLYP.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from advflyp.training.loop import train
from advflyp.training.runlog import read_metrics


@dataclass(kw_only=True)
class Arguments:
    """What to try."""

    out: Path
    """Folder for the trainings."""
    mixtures: tuple[float, ...] = (0, 0.25, 0.5, 0.75)
    seeds: tuple[int, ...] = (1000, 1001)
    """Random seeds; none of those used in the comparison."""
    recipe: str = "mini/advflyp_soft"
    model: str = "mini-vit"
    rate: float = 1e-3
    """Peak learning rate of all trainings."""
    steps: int = 40


def score(arguments: Arguments, mixture: float, seed: int) -> tuple[float, float]:
    """Clean and robust accuracy (0–1) on the validation set after a training, which is run if need be."""
    folder = arguments.out / f"{mixture:g}-{seed}"
    keys = {
        "model.name": arguments.model,
        "method.soft_targets": mixture,
        "optim.lr": arguments.rate,
        "train.max_steps": arguments.steps,
        "train.seed": seed,
    }
    if (found := last(folder, arguments.steps)) is None:
        train(arguments.recipe, keys, out=folder, resume=True)
        found = last(folder, arguments.steps)
    if found is None:
        raise SystemExit(
            f"{folder} has no validation after step {arguments.steps}; the same command resumes it"
        )
    return found


def last(folder: Path, steps: int) -> tuple[float, float] | None:
    """(clean, robust) after step `steps`, from the run's metrics; None if it has not got that far."""
    found = [
        (line["clean"], line["robust"])
        for line in read_metrics(folder)
        if line["kind"] == "validate" and line["step"] == steps
    ]
    return found[-1] if found else None


def chosen(scores: Mapping[float, Sequence[tuple[float, float]]]) -> float:
    """The mixture with the best mean of clean and robust accuracy over its seeds; ties go to the smallest."""
    return max(sorted(scores), key=lambda mixture: statistics.mean(sum(one) / 2 for one in scores[mixture]))


def main(arguments: Arguments) -> None:
    scores: dict[float, list[tuple[float, float]]] = {mixture: [] for mixture in arguments.mixtures}
    print(f"{'mixture':>8} {'seed':>6} {'clean':>7} {'robust':>7} {'score':>7}")
    for seed in arguments.seeds:
        for mixture in arguments.mixtures:
            clean, robust = score(arguments, mixture, seed)
            scores[mixture].append((clean, robust))
            values = (100 * value for value in (clean, robust, (clean + robust) / 2))
            print(f"{mixture:8g} {seed:6d}", *(f"{value:7.2f}" for value in values), flush=True)
    print(f"method.soft_targets = {chosen(scores):g}")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
