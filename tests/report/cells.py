"""Synthetic results; no two numbers alike."""

from collections.abc import Iterator

from advflyp.evaluation.results import Cell, wilson

SETS = ("mini/food", "mini/flags", "mini/<b>icons</b>")
PGD = {"steps": 10, "step_size": 1 / 255, "restarts": 1, "random_start": True}


def cell(model: str, set_name: str, grey: float, correct: int, n: int = 97, **changes: object) -> Cell:
    """One result; `grey` is ε in grey levels, 0 is clean."""
    values = {
        "model": model,
        "checkpoint_sha256": model.encode("utf-8", "surrogatepass").hex().ljust(64, "0")[:64],
        "set": set_name,
        "split": "test",
        "n": n,
        "prompt": "a picture of a {}.",
        "attack": "pgd10" if grey else "clean",
        "attack_args": PGD if grey else {},
        "norm": "linf" if grey else None,
        "eps": grey / 255,
        "precision": "fp32",
        "seed": 0,
        "version": "0.1.0",
        "correct": correct,
        "accuracy": correct / n,
        "ci95": wilson(correct, n),
        "seconds": 1.5,
    }
    return Cell(**{**values, **changes})


def measured(models: tuple[str, ...] = ("mini", "mini + robust")) -> Iterator[Cell]:
    """Every model on every set, clean and at 1, 2 and 4 grey levels, no two numbers alike."""
    number = 3
    for model in models:
        for name in SETS:
            for grey in (0, 1, 2, 4):
                number += 2
                yield cell(model, name, grey, number)
