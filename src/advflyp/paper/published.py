"""The figures that the paper states in its text (arXiv 2604.11576), each with its setting, and ours beside them.

Accuracies are means over the 14 downstream sets; robust ones also over PGD-10, CW-10 and AutoAttack. ViT-B/32,
finetuned with PGD-2 at ε = 1/255.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from advflyp.evaluation.results import Cell
from advflyp.report.figures.embedding import TSNEResult
from advflyp.report.measure.results import Results
from advflyp.report.measure.tables import Table, Value
from advflyp.wording import counted

ROBUST = ("pgd10", "cw10", "autoattack")
CLEAN = ("clean",)


@dataclass(frozen=True)
class Published:
    """value: in %;  eps: of the evaluation, in pixels of [0, 1]."""

    method: str
    value: float
    attacks: tuple[str, ...]
    eps: float


ACCURACIES = (
    # Sec. 4.3
    Published("AdvFLYP", 35.61, ROBUST, 1 / 255),
    Published("AdvFLYP_full", 38.39, ROBUST, 1 / 255),
    Published("AdvFLYP_full", 55.84, CLEAN, 0.0),
    # Sec. 8.1
    Published("AdvFLYP", 20.07, ROBUST, 2 / 255),
    Published("AdvFLYP_full", 21.69, ROBUST, 2 / 255),
    Published("PMG-AFT", 18.31, ROBUST, 2 / 255),
    Published("AdvFLYP", 5.87, ROBUST, 4 / 255),
    Published("AdvFLYP_full", 5.93, ROBUST, 4 / 255),
    Published("PMG-AFT", 4.00, ROBUST, 4 / 255),
)
# Sec. 10: the mean cosine deviation φ (Eq. 14) of 256 images of ImageNet.
ANGLES = {"original": 0.5859, "AdvFLYP": 0.1191, "AdvFLYP_full": 0.0983}


def published_table(cells: Iterable[Cell], sets: Sequence[str], embedded: Iterable[TSNEResult] = ()) -> Table:
    """The paper's figures, with ours (the mean over seeds) beside them if everything that they need was measured.

    Args:
        sets: The 14 downstream sets.
        embedded: The embeddings of Fig. 5, if there are any.
    """
    cells = list(cells)
    angles = {one.label: _angle(one) for one in embedded}
    rows: list[list[Value]] = []
    for one in ACCURACIES:
        setting = "clean" if one.attacks == CLEAN else f"PGD-10, CW-10, AutoAttack, ε = {255 * one.eps:g}/255"
        ours = _mean(one, cells, sets)
        value = "–" if ours is None else f"{100 * ours:.2f} %"
        rows.append([one.method, setting, f"{one.value:.2f} %", value])
    for method, angle in ANGLES.items():
        rows.append([method, "φ, radians, 256 images of ImageNet", f"{angle:.4f}", angles.get(method, "–")])
    return Table(
        title="The figures that the paper states in its text",
        columns=["method", "setting", "published", "ours"],
        rows=rows,
        note="Means over the 14 downstream sets, and over the attacks named.",
    )


def _angle(one: TSNEResult) -> str:
    """φ; with the images that it is a mean over, if they are not the paper's."""
    kinds = {name.partition("@")[0] for name in one.sets}
    of = (
        ""
        if kinds == {"imagenet"}
        else f" ({counted(len(one.sets), 'image')} of {counted(len(kinds), 'set')})"
    )
    return f"{one.mean_phi:.4f}{of}"


def _mean(one: Published, cells: Sequence[Cell], sets: Sequence[str]) -> float | None:
    """The mean over sets, attacks and the seeds that have every set and attack; None if no seed has."""
    own = [
        cell
        for cell in cells
        if cell.model == one.method and cell.attack in one.attacks and math.isclose(cell.eps, one.eps)
    ]
    results = Results(own, seeds=True, largest=True)
    by_seed: dict[str, dict[str, float]] = {}
    for condition in results.conditions:
        for sha, mean in results.means(one.method, condition, sets).items():
            by_seed.setdefault(sha, {})[condition.attack] = mean.value
    whole = [fmean(means.values()) for means in by_seed.values() if len(means) == len(one.attacks)]
    return fmean(whole) if whole else None
