"""Run folders as reports show them: the recipe as data, and the training in one sentence."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from advflyp.config import convert, read_toml
from advflyp.method import METHODS
from advflyp.report.measure.estimates import radius
from advflyp.training.folder import RECIPE_FILE
from advflyp.training.runlog import duration
from advflyp.wording import counted

# The keys that reports show or compute with, and their types; other keys are not checked.
SHOWN_KEYS: dict[str, Any] = {
    "attack": {"eps": float, "steps": int, "norm": str},
    "data": {"batch_size": int, "train": str, "also": str},
    "method": {"name": str},
    "model": {"name": str},
    "optim": {"lr": float, "name": str},
    "train": {"epochs": int, "patience": int, "seed": int},
}


def read_recipe_tree(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the recipe of a run folder, possibly of another version, as nested tables.

    Returns:
        The tables; an empty mapping if the folder has no recipe.

    Raises:
        ValueError: If the file is not a recipe.
    """
    path = folder / RECIPE_FILE
    tree = read_toml(path) if path.is_file() else {}
    for name, table in tree.items():
        if not isinstance(table, dict):
            raise ValueError(f"{path}: '{name}' must be a table, [{name}]")
        for key, hint in SHOWN_KEYS.get(name, {}).items():
            if key in table:
                table[key] = convert(table[key], hint, f"{path}: {name}.{key}")
    return tree


def run_summary(entries: Sequence[Mapping[str, Any]], recipe: Mapping[str, Any]) -> str:
    """One line: what was trained on what, for how long.

    Args:
        entries: Lines of the run's metrics.jsonl.
        recipe: As `read_recipe_tree` returns it.
    """
    steps = max((entry["step"] for entry in entries), default=0)
    seen = max((entry.get("seen", 0) for entry in entries), default=0)
    lost = [entry["step"] for entry in entries if any(map(_is_lost, entry.values()))]
    speeds = [entry["pairs_per_second"] for entry in entries if "pairs_per_second" in entry]
    parts = [f"{counted(steps, 'step')}, {seen:,} {samples(recipe)}"]
    data, attack, optim = (recipe.get(table, {}) for table in ("data", "attack", "optim"))
    if data.get("batch_size"):
        parts.append(f"batches of {data['batch_size']}")
    if eps := training_eps(recipe):
        parts.append(f"training attack PGD-{attack['steps']} at ε = {eps}")
    elif recipe:
        parts.append("no attack in training")
    if optim.get("lr"):
        parts.append(f"{optim.get('name', 'optimiser')} with a peak learning rate of {optim['lr']:g}")
    if "seed" in recipe.get("train", {}):
        parts.append(f"seed {recipe['train']['seed']}")
    if speeds:
        parts.append(f"{statistics.median(speeds):.0f} images/s")
    parts.append(duration(trained_seconds(entries)))
    if lost:
        parts.append(f"with numbers that are not finite from step {min(lost):,} to step {max(lost):,}")
    return ", ".join(parts) + "."


def _is_lost(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def training_eps(recipe: Mapping[str, Any]) -> str:
    """The radius of the training attack; "" without an attack, "?" if the (possibly foreign) recipe has no number."""
    attack = recipe.get("attack", {})
    eps = attack.get("eps")
    known = radius(eps, attack.get("norm")) if isinstance(eps, int | float) else "?"
    return known if attack.get("steps") else ""


def samples(recipe: Mapping[str, Any]) -> str:
    """What the recipe's method is trained on; "images" for a method that is not part of the package."""
    method = METHODS.get(str(recipe.get("method", {}).get("name")))
    words = {"pairs": "image–text pairs", "labelled": "labelled images", "images": "images"}
    return words[method[0].trains_on if method else "images"]


def trained_seconds(entries: Sequence[Mapping[str, Any]]) -> float:
    """Seconds in the training loop; the logged clock restarts at zero whenever a run is resumed."""
    total = previous = 0.0
    for entry in entries:
        if entry["time"] < previous:
            total += previous
        previous = entry["time"]
    return total + previous
