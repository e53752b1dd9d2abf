"""Every method's learning rate from the same small search, on validation images only.

One short training at each rate of the grid; the score is the mean of clean and PGD-10 accuracy (ε = 2/255) on images
of `mini/val`, an emoji family in neither training nor any test set. The best rate wins; ties go to the smaller one.
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
from advflyp.errors import RunError
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
    """
    with lock(folder / "locks" / f"tune-{name}", wait=math.inf):
        scores = read_tuning(folder).get(name, {})
        for rate in grid:
            if f"{rate:g}" in scores:
                continue
            out = folder / "tuning" / f"{name}-{rate:g}"
            # The weights of the last update are scored.
            own = {"train.max_steps": UPDATES, "train.seed": SEED, "optim.lr": rate, "validate.set": "none"}
            keys = dict(overrides) | own
            # A training that an interrupted search left is too short to be worth resuming.
            _remove(out)
            if not train(recipe, keys, out=out).finished:
                raise RunError(f"a signal stopped the search for the learning rate of {name}; start it again")
            scores[f"{rate:g}"] = _score(out, overrides["train.precision"])
            _remove(out)
            _keep(folder, name, scores)
            console.print(
                for_rich(f"  {name}: learning rate {rate:g} scores {scores[f'{rate:g}']['score']:.3f}")
            )
    return max(grid, key=lambda rate: (scores[f"{rate:g}"]["score"], -rate))


def read_tuning(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Run → rate → {"clean", "robust", "score"}, accuracies from 0 to 1."""
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
