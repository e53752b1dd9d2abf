"""Result cells of large vision-language models, and the answers stored beside them."""

import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from advflyp.config import fill
from advflyp.evaluation.results import SAMPLES, Measurement, read_store, wilson
from advflyp.files import write_atomically
from advflyp.limits import MAX_DOCUMENT_BYTES

# Pixels; no model takes larger images.
MAX_SIDE = 8192
# What reading a damaged npz file raises; RuntimeError if it is encrypted, or compressed in a way unknown to zipfile.
DAMAGE = (OSError, ValueError, KeyError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error)

# Number of samples whose images are kept for the report.
SHOWN = 8
RESAMPLES = 2_000
BLOCK = 1 << 20  # random numbers at a time: VQAv2's 214,354 questions would take 7 GB at once


@dataclass(frozen=True, kw_only=True)
class AnswerCell(Measurement):
    """A large vision-language model on one task, clean or under one protocol.

    Attributes:
        vision: The model that its image tower comes from.
        checkpoint_sha256: Hash of all weights.
        config_sha256: Hash of its settings, prompt template and tokenizer; empty in results that did not record it.
        task: The name, as in `load_task`.
        metric: "cider" (CIDEr-D), "vqa" (accuracy) or "yes-no" (accuracy), each times 100.
        samples_sha256: Hash of the samples' names, questions and references.
        subset: {"of"} or {"of", "limit", "seed"}.
        attack: The protocol, or "clean".
        attack_args: The attack, its rounds, and the score below which a sample is not attacked any further.
        precision: Precision of the search; "bf16+fp32" if rounds differ. Answers are generated in float32.
        n: Number of evaluated samples.
        score: Mean over samples of the worst score.
        ci95: 95 % interval: Wilson's for "yes-no", else the percentile bootstrap over samples.
        clean: Mean score of the clean answers to the same samples.
        idf_images: Number of images over which CIDEr's n-gram rarity is computed; 0 for other metrics.
        reached: Target string → the number of worst answers that contain it.
        unreadable: {name: reason} for skipped samples.
    """

    OUTCOME: ClassVar[tuple[str, ...]] = (
        "model", "n", "score", "ci95", "clean", "reached", "unreadable", "seconds",
    )  # fmt: skip
    SLUG: ClassVar[tuple[str, ...]] = ("model", "task", "attack")

    model: str
    vision: str
    checkpoint_sha256: str
    task: str
    metric: str
    samples_sha256: str
    subset: dict[str, int]
    attack: str
    attack_args: dict[str, Any]
    norm: str | None
    eps: float
    precision: str
    seed: int
    version: str
    n: int = 0
    score: float = 0.0
    ci95: tuple[float, float] = (0.0, 0.0)
    clean: float = 0.0
    idf_images: int = 0
    reached: dict[str, int] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    config_sha256: str = ""


def interval(scores: Sequence[float], metric: str) -> tuple[float, float]:
    """The 95 % interval of the mean of scores in per cent."""
    values = np.asarray(scores, dtype=np.float64)
    if metric == "yes-no":
        low, high = wilson(float(values.sum()) / 100, len(values))
        return 100 * low, 100 * high
    generator, rows = np.random.default_rng(0), max(1, BLOCK // len(values))
    means = []
    for done in range(0, RESAMPLES, rows):
        draws = generator.integers(len(values), size=(min(rows, RESAMPLES - done), len(values)))
        means.append(values[draws].mean(1))
    low, high = np.percentile(np.concatenate(means), (2.5, 97.5))
    return float(low), float(high)


def read_answer_cells(path: Path) -> list[AnswerCell]:
    """Every cell of a JSON-lines file, as `read_store` gives them."""
    return read_store(path, _checked)


def _checked(record: Any) -> AnswerCell:
    """A cell from a file of any origin; ValueError for values that no measurement gives."""
    cell = fill(AnswerCell, record)
    if cell.n < 1:
        raise ValueError("n must be at least 1")
    if not all(
        math.isfinite(value) and value >= 0 for value in (cell.score, cell.clean, *cell.ci95, cell.eps)
    ):
        raise ValueError("a score must be a number of at least 0")
    return cell


def answers_path(store: Path, cell: AnswerCell) -> Path:
    """The path of a cell's answers: results.samples/NAME.answers.npz."""
    return store.with_suffix(SAMPLES) / f"{cell.slug()}.answers.npz"


def save_answers(store: Path, cell: AnswerCell, arrays: Mapping[str, Any]) -> None:
    """Store keys, prompts, answers, scores and the first samples' images beside the results."""
    with write_atomically(answers_path(store, cell)) as file:
        np.savez_compressed(file, **arrays)


def read_answers(store: Path, cell: AnswerCell) -> dict[str, np.ndarray] | None:
    """The stored keys, prompts, answers and images; None if there is no file, ValueError if it is damaged."""
    path = answers_path(store, cell)
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as packed:
            if sum(one.file_size for one in packed.infolist()) > MAX_DOCUMENT_BYTES:
                raise ValueError("it is too large")
        with np.load(path, allow_pickle=False) as arrays:
            found = {
                name: arrays[name] for name in ("keys", "prompts", "clean", "answers", "before", "after")
            }
    except DAMAGE as error:
        raise ValueError(f"{path} is damaged ({error}); remove it") from None
    count = len(found["keys"])
    images = (found["before"], found["after"])
    if any(len(found[name]) != count for name in ("prompts", "clean", "answers")) or any(
        one.ndim != 4
        or one.shape[1] != 3
        or one.dtype != np.uint8
        or len(one) > count
        or not all(1 <= side <= MAX_SIDE for side in one.shape[2:])
        for one in images
    ):
        raise ValueError(f"{path} is damaged (its arrays do not fit); remove it")
    return found
