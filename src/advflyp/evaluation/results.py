"""One result cell: a model on a set under an attack at an ε; JSON lines on disk, with confidence intervals."""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from advflyp.config import convert, fill
from advflyp.evaluation.jsonl import append_line, read_lines

OUTCOME = (
    "model", "n", "correct", "accuracy", "ci95", "seconds", "per_class", "unreadable", "sanity", "precision_reason",
    "seen", "pflops",
)  # fmt: skip
# Of the arguments of an attack, those that a report computes with.
SHOWN_ARGUMENTS: dict[str, type] = {"steps": int, "step_size": float, "restarts": int}

DEFAULT_PROTOCOL = "advflyp"
OF_PROTOCOL = ("protocol", "settings")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What was measured and everything needed to measure it again.

    eps:        radius in pixels of [0, 1]; 0 for clean images. The perturbation lives at the model's resolution, but
                where `settings` has another one
    subset:     {"of": images in the set} or {"of", "limit", "seed"} for a class-balanced part of it
    n:          how many images were read and classified
    correct:    how many of them correctly
    accuracy:   correct / n
    ci95:       Wilson 95 % interval of the accuracy
    per_class:  [correct, n] of each class that has images, by its index
    unreadable: pictures that could not be read, by name; they are not among the n
    sanity:     verdict of the checks for masked gradients, where they were asked for
    seen:       whether the model was finetuned on this data, as far as its card says
    pflops:     10¹⁵ operations that the model's finetuning took, as far as its card says
    precision_reason: why `precision` was chosen; empty where nothing was searched for
    protocol:   the name of the protocol that it follows, with what the user changed in brackets
    settings:   what the protocol changes of images and class names, as it was for this model and set: resize,
                interpolation, perturbation, upsampling, classnames_sha256, repeated_classes (never predicted)
    """

    model: str
    checkpoint_sha256: str
    set: str
    split: str
    n: int
    prompt: str
    attack: str
    attack_args: dict[str, Any]
    norm: str | None
    eps: float
    precision: str
    seed: int
    version: str
    correct: int
    accuracy: float
    ci95: tuple[float, float]
    seconds: float
    subset: dict[str, int] = field(default_factory=dict)
    per_class: dict[str, list[int]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    sanity: dict[str, Any] | None = None
    precision_reason: str = ""
    seen: bool = False
    pflops: float | None = None
    protocol: str = DEFAULT_PROTOCOL
    settings: dict[str, Any] = field(default_factory=dict)

    def key(self) -> tuple[str, ...]:
        """What makes two cells the same measurement, whoever ran it and however long it took."""
        values = [
            getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in (*OUTCOME, *OF_PROTOCOL)
        ]
        # Results from before there were protocols keep their key, and with it the name of their files.
        if self.protocol != DEFAULT_PROTOCOL or self.settings:
            values += [getattr(self, name) for name in OF_PROTOCOL]
        return tuple(json.dumps(value, sort_keys=True) for value in values)

    def slug(self) -> str:
        """A file name for what belongs to this measurement of this model: readable, and unique by a hash."""
        return slug(self.model, self.set, self.attack, eps=self.eps, key=self.key())


def slug(*words: str, eps: float, key: tuple[str, ...]) -> str:
    """A file name of words, ε in grey levels and a hash of `key`."""
    words += (f"{eps * 255:g}",) if eps else ()
    digest = hashlib.sha256("\n".join(key).encode()).hexdigest()
    return re.sub(r"[^A-Za-z0-9.]+", "-", "_".join(words)).strip("-")[-80:] + "-" + digest[:12]


def wilson(correct: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval of `correct` successes in `n` trials (n ≥ 1); 95 % by default."""
    p = correct / n
    centre = p + z * z / (2 * n)
    spread = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def mean_interval(cells: Iterable[Cell], z: float = 1.959964) -> tuple[float, tuple[float, float]]:
    """Mean accuracy over sets and its 95 % interval, the sets' images being independent samples."""
    cells = list(cells)
    mean = sum(cell.accuracy for cell in cells) / len(cells)
    # Agresti–Coull proportions keep a set with 0 or n correct from claiming certainty.
    adjusted = [((c.correct + z * z / 2) / (c.n + z * z), c.n + z * z) for c in cells]
    half = z * math.sqrt(sum(p * (1 - p) / n for p, n in adjusted)) / len(cells)
    return mean, (max(0.0, mean - half), min(1.0, mean + half))


def append_cell(path: Path, cell: Cell) -> None:
    """Add one line to a JSON-lines file, made if it is not there."""
    append_line(path, dataclasses.asdict(cell))


def _checked(record: Any) -> Cell:
    """A cell of a file that need not be ours; ValueError for what no measurement gives."""
    cell = fill(Cell, record)
    if not 0 <= cell.correct <= cell.n or cell.n == 0:
        raise ValueError(f"{cell.correct} of {cell.n} images cannot be correct")
    if not all(0 <= share <= 1 for share in (cell.accuracy, *cell.ci95)):
        raise ValueError("an accuracy is not from 0 to 1")
    if cell.eps < 0:
        raise ValueError(f"eps must be at least 0, not {cell.eps:g}")
    for name in cell.attack_args.keys() & SHOWN_ARGUMENTS.keys():
        convert(cell.attack_args[name], SHOWN_ARGUMENTS[name], f"attack_args.{name}")
    if cell.sanity is not None:
        convert(cell.sanity.get("passed"), bool, "sanity.passed")
        convert(cell.sanity.get("n"), int, "sanity.n")
        convert(cell.sanity.get("failed"), list[str], "sanity.failed")
    if any(len(counts) != 2 for counts in cell.per_class.values()):
        raise ValueError("per_class must hold [correct, n] of each class")
    return cell


def read_cells(path: Path) -> list[Cell]:
    """Every cell of a JSON-lines file; ValueError naming the line that is not one.

    A measurement that was written again (with a sanity check, say) counts once, as it was written last. A last line
    without its newline was cut off by a crash and is left out.
    """
    cells = read_lines(path, _checked)
    return list({(cell.model, *cell.key()): cell for cell in cells}.values())
