"""The start-up time of a command: a training of one step, compared with the imports alone.

    python benchmarks/start.py
    python benchmarks/start.py --batch-size 128      # the recipe's own; its step is most of the difference

Both run as separate programs, since starting one is what is measured. The training reads the embedded corpus,
takes its step in float32 and writes what every run does: two checkpoints and the weights.
"""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tyro
from timing import Record, describe_machine, interleaved, medians

IMPORTS = ("-c", "import torch, open_clip")


@dataclass
class Arguments:
    """What to time."""

    recipe: str = "mini/advflyp_full"
    batch_size: int = 8
    repeats: int = 5
    """Timed runs of both."""
    json: Path | None = None
    """File for the results."""


def run(*words: str) -> None:
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)


def train(recipe: str, batch_size: int) -> None:
    keys = {
        "train.max_steps": 1,
        "data.batch_size": batch_size,
        "train.precision": "fp32",
        "validate.set": "none",
    }
    words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    with tempfile.TemporaryDirectory() as folder:
        run("-m", "advflyp", "train", recipe, *words, "--out", f"{folder}/run")


def main() -> None:
    arguments = tyro.cli(Arguments)
    runs = {
        "imports": partial(run, *IMPORTS),
        "one step": partial(train, arguments.recipe, arguments.batch_size),
    }
    seconds = interleaved(runs, arguments.repeats)
    found = medians(seconds)
    ratio = found["one step"] / found["imports"]
    record = Record("start", arguments.json, arguments, describe_machine("cpu"))
    record.add(**found, ratio=ratio)
    print(
        f"import torch, open_clip: {found['imports']:.2f} s; `advflyp train {arguments.recipe}` for one step of "
        f"{arguments.batch_size}: {found['one step']:.2f} s, {ratio:.2f} times as long; medians of {arguments.repeats} "
        "interleaved runs"
    )


if __name__ == "__main__":
    main()
