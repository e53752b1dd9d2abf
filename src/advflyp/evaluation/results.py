"""Result cells: a model on a dataset under an attack at an ε, with intervals, in crash-safe JSON lines."""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar, TypeVar

from advflyp.config import convert, fill
from advflyp.documents import parse_json
from advflyp.errors import SkippedSample
from advflyp.files import append, open_locked
from advflyp.limits import MAX_RESULTS_BYTES, open_regular, read_bounded

M = TypeVar("M", bound="Measurement")

# Quantile of the normal distribution for 95 % intervals.
Z = 1.959964
# The arguments of an attack that a report computes with.
SHOWN_ARGUMENTS: dict[str, type] = {"steps": int, "step_size": float, "restarts": int}

DEFAULT_PROTOCOL = "advflyp"
OF_PROTOCOL = ("protocol", "settings")

BLOCK = 1 << 16
# Folders beside results.jsonl for what belongs to it: results.samples, results.unfinished.
SAMPLES, UNFINISHED = ".samples", ".unfinished"
# Every record begins with the model's name, which tells a cut-off line from a file that holds something else.
BEGINNING = b'{"model": "'


class Measurement:
    """What classification and retrieval cells have in common: the identity of their measurement."""

    # Fields that do not identify the measurement, such as its outcome.
    OUTCOME: ClassVar[tuple[str, ...]]
    # Fields whose values form its file names.
    SLUG: ClassVar[tuple[str, ...]]
    model: str
    checkpoint_sha256: str
    config_sha256: str
    eps: float

    def key(self) -> tuple[str, ...]:
        """Equal for two cells of the same measurement, whoever ran it and however long it took."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        # Results that are older than protocols keep their key, and with it the names of their files.
        late = {name: values.pop(name) for name in OF_PROTOCOL if name in values}
        if late.get("settings") or late.get("protocol", DEFAULT_PROTOCOL) != DEFAULT_PROTOCOL:
            values |= late
        if not values["config_sha256"]:
            del values["config_sha256"]
        return tuple(
            json.dumps(value, sort_keys=True) for name, value in values.items() if name not in self.OUTCOME
        )

    def slug(self) -> str:
        """A file name for this measurement of this model: readable, and made unique by a hash."""
        words = [getattr(self, name) for name in self.SLUG] + ([f"{self.eps * 255:g}"] if self.eps else [])
        digest = hashlib.sha256("\n".join(self.key()).encode()).hexdigest()
        return re.sub(r"[^A-Za-z0-9.]+", "-", "_".join(words)).strip("-")[-80:] + "-" + digest[:12]


@dataclass(frozen=True, kw_only=True)
class Cell(Measurement):
    """Zero-shot classification: what was measured and everything needed to measure it again.

    Attributes:
        eps: Radius in pixels of [0, 1]; 0 for clean images. The perturbation has the model's resolution, unless
            `settings` says otherwise.
        subset: {"of": images in the dataset}, or {"of", "limit", "seed"} for a class-balanced subset.
        n: How many images were read and classified.
        correct: How many of them were classified correctly.
        accuracy: correct / n.
        ci95: Wilson 95 % interval of the accuracy.
        per_class: Class index → [correct, n], for classes with images.
        unreadable: Images that could not be read, by name; not counted in `n`.
        sanity: Verdict of the checks for masked gradients, if requested.
        seen: Whether the model was finetuned on this data, according to its card.
        pflops: Compute of the model's finetuning, in 10¹⁵ operations, according to its card.
        precision_reason: Why `precision` was chosen; empty for clean images.
        protocol: The protocol that it follows, with the user's changes in brackets.
        settings: What the protocol changes about images and class names, for this model and dataset: resize,
            interpolation, perturbation, upsampling, classnames_sha256, repeated_classes (never predicted). For a user's
            own set also `LabelledSet.sha256`, as set_sha256.
        config_sha256: A hash of the model's architecture, preprocessing and tokenizer; empty in results of versions
            that did not record it.
    """

    OUTCOME: ClassVar[tuple[str, ...]] = (
        "model", "n", "correct", "accuracy", "ci95", "seconds", "per_class", "unreadable", "sanity",
        "precision_reason", "seen", "pflops",
    )  # fmt: skip
    SLUG: ClassVar[tuple[str, ...]] = ("model", "set", "attack")

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
    config_sha256: str = ""


def labels(cells: Sequence[Measurement], names: Sequence[str]) -> list[str]:
    """The name of each cell's model, with the start of a hash where a name stands for several models."""
    weights: dict[str, set[str]] = {}
    for name, cell in zip(names, cells, strict=True):
        weights.setdefault(name, set()).add(cell.checkpoint_sha256)
    configs = configs_of(cells, names)
    result = []
    for name, cell in zip(names, cells, strict=True):
        alike, told = configs[name, cell.checkpoint_sha256], []
        if len(weights[name]) > 1:
            told.append(cell.checkpoint_sha256[: _telling(weights[name])])
        if len(alike) > 1:
            told.append(f"config {cell.config_sha256[: _telling(alike)] or 'unknown'}")
        result.append(f"{name} ({', '.join(told)})" if told else name)
    return result


def configs_of(cells: Sequence[Measurement], names: Sequence[str]) -> dict[tuple[str, str], set[str]]:
    """The configurations that were recorded for each model and its weights."""
    found: dict[tuple[str, str], set[str]] = {}
    for name, cell in zip(names, cells, strict=True):
        found.setdefault((name, cell.checkpoint_sha256), set()).update({cell.config_sha256} - {""})
    return found


def _telling(hashes: Collection[str]) -> int:
    """How many characters tell these hashes apart, at least 8: two files that strangers made may share as many."""
    return next(n for n in itertools.count(8) if len({one[:n] for one in hashes}) == len(hashes))


def wilson(correct: float, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of `correct` successes in `n` trials (n ≥ 1)."""
    p = correct / n
    centre = p + Z * Z / (2 * n)
    spread = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def mean_interval(cells: Iterable[Cell]) -> tuple[float, tuple[float, float]]:
    """Mean accuracy over datasets and its 95 % interval, with the datasets as independent samples."""
    cells = list(cells)
    mean = sum(cell.accuracy for cell in cells) / len(cells)
    # Agresti–Coull proportions keep a set with 0 or n correct from claiming certainty.
    adjusted = [((c.correct + Z * Z / 2) / (c.n + Z * Z), c.n + Z * Z) for c in cells]
    half = Z * math.sqrt(sum(p * (1 - p) / n for p, n in adjusted)) / len(cells)
    return mean, (max(0.0, mean - half), min(1.0, mean + half))


def _checked(record: Any) -> Cell:
    """A cell from an untrusted file; ValueError for values that no measurement gives."""
    cell = fill(Cell, record)
    if not 0 <= cell.correct <= cell.n or cell.n == 0:
        raise ValueError(f"{cell.correct} of {cell.n} images cannot be correct")
    if not all(0 <= share <= 1 for share in (cell.accuracy, *cell.ci95)):
        raise ValueError("an accuracy is not from 0 to 1")
    if cell.eps < 0:
        raise ValueError(f"eps must be at least 0, not {cell.eps:g}")
    for name in cell.attack_args.keys() & SHOWN_ARGUMENTS.keys():
        # A user's own attack may have a setting of this name that is None.
        kind = SHOWN_ARGUMENTS[name] | None
        cell.attack_args[name] = convert(cell.attack_args[name], kind, f"attack_args.{name}")
    if cell.sanity is not None:
        convert(cell.sanity.get("passed"), bool, "sanity.passed")
        convert(cell.sanity.get("n"), int, "sanity.n")
        convert(cell.sanity.get("failed"), list[str], "sanity.failed")
    if any(len(counts) != 2 for counts in cell.per_class.values()):
        raise ValueError("per_class must hold [correct, n] of each class")
    return cell


def read_cells(path: Path) -> list[Cell]:
    """Every cell of a JSON-lines file, as `read_store` gives them."""
    return read_store(path, _checked)


def known_cells(store: Path | None, read: Callable[[Path], list[M]]) -> dict[tuple[str, ...], M]:
    """The cells of a store, which `read` reads, by key; none without a store.

    ValueError if a file is where the results need a folder: measuring is slow, so this is checked early.
    """
    if store is None:
        return {}
    if not store.name:
        raise ValueError(f"{store} is a folder; name a file, for example results.jsonl")
    if store.suffix in (SAMPLES, UNFINISHED):
        raise ValueError(
            f"{store} is what results call a folder of theirs; give the file another ending, as in "
            f"{store.with_suffix('.jsonl')}"
        )
    for folder in (store.with_suffix(SAMPLES), store.with_suffix(UNFINISHED)):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file where {store} needs a folder; move it away")
    return {cell.key(): cell for cell in read(store)}


def find_known(known: dict[tuple[str, ...], M], blank: M) -> M | None:
    """The stored cell of a measurement, maybe one of a version that did not record the configuration."""
    older: Any = dataclasses.replace(blank, config_sha256="")  # type: ignore[call-arg]
    return known.get(blank.key()) or known.get(older.key())


def append_cell(path: Path, cell: Any) -> None:
    """Append a cell to a JSON-lines file, made if missing; several processes may do so at once."""
    with open_locked(path) as file:
        end = _end_of_lines(file)
        file.seek(end)
        rest = file.read()
        line = json.dumps(dataclasses.asdict(cell)).encode() + b"\n"
        if _cut_off(rest):
            # Otherwise it would swallow the new line.
            file.truncate(end)
        elif _is_json(rest):
            line = b"\n" + line
        else:
            raise ValueError(f"{path} does not hold results; name another file for them")
        append(file, line)


def _end_of_lines(file: IO[bytes]) -> int:
    """The end of the last whole line, searched from the end of the file, without reading what comes before."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(0, end - BLOCK)
        file.seek(begin)
        place = file.read(end - begin).rfind(b"\n")
        if place >= 0:
            return begin + place + 1
        end = begin
    return 0


def read_store(path: Path, make: Callable[[Any], M]) -> list[M]:
    """The cells that `make` makes of the records of a JSON-lines file; an empty list if there is no file.

    A measurement that was written again (with a sanity check, say) counts once, in its last version. A last line that a
    crash cut off is ignored. ValueError if `path` is a folder or too large, or, naming the line, if a line is not JSON
    or `make` raises one.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file, for example {path / 'results.jsonl'}")
    lines = _read(path).split(b"\n") if path.is_file() else [b""]
    if _cut_off(lines[-1]):
        lines.pop()
    cells: dict[tuple[str, ...], M] = {}
    for number, line in enumerate(lines, 1):
        try:
            cell = make(parse_json(line))
            cells[cell.model, *cell.key()] = cell
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number} is not a result that can be used here: {error} (`eval` and `retrieval` write "
                "different results)"
            ) from None
    return list(cells.values())


def _read(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return read_bounded(file, MAX_RESULTS_BYTES)
    except SkippedSample as reason:
        raise ValueError(f"{path} {reason}; name the results that you mean") from None


def _cut_off(line: bytes) -> bool:
    """Whether to ignore a last line without a newline: it is empty, or an incomplete record of ours."""
    return BEGINNING.startswith(line[: len(BEGINNING)]) and not _is_json(line)


def _is_json(line: bytes) -> bool:
    try:
        parse_json(line)
    except ValueError:
        return False
    return True
