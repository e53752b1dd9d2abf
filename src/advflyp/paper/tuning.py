"""Every method's learning rate from the same small search, on validation images only.

One short training at each rate of the grid; the score is the mean of clean and PGD-10 accuracy (ε = 2/255) on images
of `mini/val`, an emoji family in neither training nor any test set. The best rate wins; ties go to the smaller one.
A rate at which the training diverges scores 0 and never wins.
"""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from advflyp.attack.threat import Threat
from advflyp.config import convert
from advflyp.data.sets.labelled import load_set
from advflyp.documents import read_json
from advflyp.errors import Diverged, RunError
from advflyp.escape import for_rich
from advflyp.evaluation.attacks import find_attack
from advflyp.evaluation.evaluator import Evaluator
from advflyp.files import lock, write_text
from advflyp.model.load import load_model, pick_device
from advflyp.model.precision import Precision
from advflyp.training.loop import train

TUNING_FILE = "tuning.json"
UPDATES = 40
SEED = 1000
SET, IMAGES = "mini/val", 200
EPS = 2 / 255
# The mark tells it from a training that ends with an accuracy of 0.
DIVERGED = {"clean": 0.0, "robust": 0.0, "score": 0.0, "diverged": 1.0}


def tuned_rate(
    name: str,
    recipe: Path,
    overrides: Mapping[str, Any],
    grid: Sequence[float],
    folder: Path,
    console: Console,
) -> float:
    """The learning rate for the run `name`, searched once and kept in `folder`/tuning.json.

    Args:
        overrides: Recipe keys of the run's own training, "train.precision" among them.
        grid: Rates to try, ascending.

    Raises:
        Diverged: The training diverges at every rate.
    """
    with lock(folder / "locks" / f"tune-{name}", wait=math.inf):
        scores = read_tuning(folder).get(name, {})
        for rate in grid:
            if f"{rate:g}" in scores:
                continue
            score = scores[f"{rate:g}"] = _try(name, recipe, overrides, rate, folder)
            _keep(folder, name, scores)
            what = "diverges and scores" if "diverged" in score else "scores"
            console.print(for_rich(f"  {name}: learning rate {rate:g} {what} {score['score']:.3f}"))
    usable = [rate for rate in grid if "diverged" not in scores[f"{rate:g}"]]
    if not usable:
        raise Diverged(
            f"the training of {name} diverges at every learning rate that was tried "
            f"({', '.join(f'{rate:g}' for rate in grid)}), so it cannot be measured; to search again, remove {name} "
            f"from {folder / TUNING_FILE}"
        )
    return max(usable, key=lambda rate: (scores[f"{rate:g}"]["score"], -rate))


def _try(
    name: str, recipe: Path, overrides: Mapping[str, Any], rate: float, folder: Path
) -> dict[str, float]:
    """The scores of a short training at this rate."""
    out = folder / "tuning" / f"{name}-{rate:g}"
    # The weights of the last update are scored.
    own = {"train.max_steps": UPDATES, "train.seed": SEED, "optim.lr": rate, "validate.set": "none"}
    # A training that an interrupted search left is too short to be worth resuming.
    _remove(out)
    try:
        if not train(recipe, dict(overrides) | own, out=out).finished:
            raise RunError(f"a signal stopped the search for the learning rate of {name}; start it again")
        score = _score(out, overrides["train.precision"])
    except Diverged:
        score = DIVERGED
    _remove(out)
    return score


def read_tuning(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Run → rate → {"clean", "robust", "score"}, accuracies from 0 to 1; with "diverged" if the training did."""
    path = folder / TUNING_FILE
    if not path.is_file():
        return {}
    advice = "; remove it, and the rates are searched again"
    return convert(read_json(path, advice), dict[str, dict[str, dict[str, float]]], path.name)


def _score(run: Path, precision: Precision) -> dict[str, float]:
    evaluator = Evaluator(load_model(run, device=pick_device("auto")), load_set(SET), limit=IMAGES)
    clean = evaluator.run(find_attack("clean"), None).accuracy
    robust = evaluator.run(find_attack("pgd10"), Threat(eps=EPS), precision=precision).accuracy
    return {"clean": clean, "robust": robust, "score": (clean + robust) / 2}


def _keep(folder: Path, name: str, scores: Mapping[str, Any]) -> None:
    with lock(folder / "locks" / "tuning", wait=math.inf):
        everything = read_tuning(folder) | {name: dict(scores)}
        write_text(folder / TUNING_FILE, json.dumps(everything, indent=1, sort_keys=True) + "\n")


def _remove(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)
