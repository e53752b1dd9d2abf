"""The cost of a training step of several recipes, interleaved in one process: seconds and arithmetic.

    python benchmarks/recipes.py                       # AdvFLYP_full and its cheaper twin on ViT-B/32, batch 16
    python benchmarks/recipes.py --recipes mini/advflyp_full mini/advflyp_fast --model mini-vit --batch-size 128

Each recipe trains a model of its own on the embedded pairs. A recipe with a schedule of image sizes (`data.schedule`)
is timed at each size, and its mean is weighted by their shares of the run.
"""

import logging
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import tyro
from timing import Record, describe_machine

from advflyp.data.batch import Batch
from advflyp.model.load import pick_device
from advflyp.training.build import TrainingRun, build
from advflyp.training.recipe import read_recipe
from advflyp.training.update import update


@dataclass
class Arguments:
    """What to time."""

    recipes: tuple[str, ...] = ("advflyp_full", "advflyp_fast")
    """The others are compared with the first."""
    model: str = "ViT-B-32/random"
    batch_size: int = 16
    precision: str = "auto"
    steps: int = 5
    """Timed steps of each recipe at each of its sizes."""
    warmup: int = 2
    """Warm-up steps of each recipe at each of its sizes."""
    device: str = "auto"
    json: Path | None = None
    """File for the results."""


def opened(recipe: str, arguments: Arguments, folder: Path) -> TrainingRun:
    keys = {
        "model.name": arguments.model,
        "data.train": "mini",
        "data.batch_size": arguments.batch_size,
        "validate.set": "none",
        "train.precision": arguments.precision,
        "train.device": arguments.device,
        "train.max_steps": 100,
        "train.epochs": 1000,
    }
    return build(read_recipe(recipe, keys), folder)


def sizes(run: TrainingRun) -> dict[int, tuple[float, int]]:
    """Image size → its share of the run, and the first step at that size."""
    found, done = {}, 0.0
    for size, share in run.recipe.data.schedule or ((max(run.model.image_size), 1.0),):
        found[size] = share, round(done * run.total_steps)
        done += share
    return found


def timed_step(run: TrainingRun, batch: Batch, number: int) -> float:
    """Seconds of one update, taken as step `number`."""
    run.state.step = number
    begun = perf_counter()
    update(run, batch).metrics["loss"].item()
    return perf_counter() - begun


def main() -> None:
    arguments = tyro.cli(Arguments)
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns of every random initialisation
    device = str(pick_device(arguments.device))
    record = Record("recipes", arguments.json, arguments, describe_machine(device))
    about = record.machine
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            name: opened(name, arguments, Path(folder) / str(i)) for i, name in enumerate(arguments.recipes)
        }
        batch = next(iter(next(iter(runs.values())).pairs.epoch(0)))
        parts = {(name, size): part for name, run in runs.items() for size, part in sizes(run).items()}
        operations: dict[tuple[str, int], float] = {}
        seconds: dict[tuple[str, int], list[float]] = {part: [] for part in parts}
        for index in range(arguments.warmup + arguments.steps):
            for (name, size), (_, number) in parts.items():
                took = timed_step(runs[name], batch, number)
                operations[name, size] = runs[name].meter.flops_of_last
                if index >= arguments.warmup:
                    seconds[name, size].append(took)
        for run in runs.values():
            run.close()
    print(
        f"{arguments.model}, batch {arguments.batch_size}, {about['device']}, {about['processor']}, "
        f"{about['threads']} thread(s), torch {about['torch']}, medians of {arguments.steps} steps"
    )
    found = {part: statistics.median(times) for part, times in seconds.items()}
    first: tuple[float, float] | None = None
    for name in arguments.recipes:
        own = {size: share for (recipe, size), (share, _) in parts.items() if recipe == name}
        time = sum(share * found[name, size] for size, share in own.items())
        spent = sum(share * operations[name, size] for size, share in own.items())
        first = first or (time, spent)
        each = ", ".join(f"{found[name, size]:.3f} s at {size} px" for size in own)
        record.add(
            recipe=name, seconds=time, flops=spent, ratio=time / first[0], flops_ratio=spent / first[1]
        )
        print(
            f"{name:22} {time:7.3f} s a step ({time / first[0]:.2f})   {spent / 1e9:8.1f} GFLOPs "
            f"({spent / first[1]:.2f})   {each}"
        )


if __name__ == "__main__":
    main()
