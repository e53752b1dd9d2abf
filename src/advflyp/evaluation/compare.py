"""Compare two models on the same images: McNemar's exact test, and differences with intervals for matched pairs."""

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from advflyp.config import suggest
from advflyp.evaluation.results import DEFAULT_PROTOCOL, Cell, Z, labels, read_cells
from advflyp.evaluation.samples import Samples, has_samples, read_samples

# Settings in which two cells may differ and still be compared; such differences are reported.
SETTINGS = ("protocol", "settings", "prompt", "precision", "seed", "version")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Models A and B on the same images, under the same attack.

    Attributes:
        sets: "set (split)"; several if the row is a mean over datasets.
        attack: Attack, norm and eps as in `Cell`.
        n: Images on which both models were measured; n_a and n_b count all images of each model.
        accuracy_a: A's accuracy on the n images; over datasets, the mean of their accuracies. Likewise accuracy_b.
        difference: accuracy_b − accuracy_a.
        ci95: Its 95 % confidence interval, by Agresti & Min (2005) for matched pairs.
        only_a: Images that A alone classifies correctly (b of McNemar's table); over datasets, the sum.
        only_b: Images that B alone classifies correctly (c of McNemar's table); over datasets, the sum.
        p: Exact two-sided McNemar test of only_a = only_b.
        p_holm: `p` adjusted by Holm's method for all rows that `compare` returns.
        differing: Those of SETTINGS in which the two measurements differ.
        protocol: The protocol of both, or "A / B" if no protocol is common to both (`differing` then lists it).
    """

    model_a: str
    model_b: str
    sets: list[str]
    attack: str
    norm: str | None
    eps: float
    n: int
    n_a: int
    n_b: int
    accuracy_a: float
    accuracy_b: float
    difference: float
    ci95: tuple[float, float]
    only_a: int
    only_b: int
    p: float
    p_holm: float
    differing: list[str]
    protocol: str = DEFAULT_PROTOCOL


def compare(a: str | Path, b: str | Path) -> list[Comparison]:
    """A row for every dataset × attack × ε that both have; for each attack × ε on several datasets, also their mean.

    Protocols are kept apart: each protocol that both have gets its own rows and means. There is no mean where a set has
    several rows, as for two attacks of one name: it would count the same images more than once.

    Args:
        a: "results.jsonl", or "results.jsonl::MODEL" if the file holds several models.
        b: The same for the other model.

    Raises:
        ValueError: A model has to be named or is unknown, the two have no dataset and attack or no image in common,
            labels or image names differ, or the per-image predictions are missing.
    """
    name_a, store_a, cells_a = _choose(str(a))
    name_b, store_b, cells_b = _choose(str(b))
    if name_a == name_b:
        name_a, name_b = str(a), str(b)
    common = [key for key in cells_a if key in cells_b]
    if not common:
        raise ValueError(
            f"{name_a} and {name_b} have no set with the same attack in common ({_contents(cells_a)}; "
            f"{_contents(cells_b)}); evaluate both with the same --sets, --attacks and --eps"
        )
    groups: dict[tuple[str, str | None, float, str], dict[str, list[Comparison]]] = {}
    stores = store_a, store_b
    for cell_a, cell_b in (pair for key in common for pair in _pairs(cells_a[key], cells_b[key], stores)):
        right_a, right_b = _common_images(
            cell_a, read_samples(store_a, cell_a), cell_b, read_samples(store_b, cell_b)
        )
        only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
        n = len(right_a)
        row = Comparison(
            model_a=name_a,
            model_b=name_b,
            sets=[f"{cell_a.set} ({cell_a.split})"],
            attack=cell_a.attack,
            norm=cell_a.norm,
            eps=cell_a.eps,
            n=n,
            n_a=cell_a.n,
            n_b=cell_b.n,
            accuracy_a=float(right_a.mean()),
            accuracy_b=float(right_b.mean()),
            difference=(only_b - only_a) / n,
            ci95=mean_difference_interval([(only_a, only_b, n)]),
            only_a=only_a,
            only_b=only_b,
            p=mcnemar(only_a, only_b),
            p_holm=1.0,
            differing=[name for name in SETTINGS if getattr(cell_a, name) != getattr(cell_b, name)],
            protocol=" / ".join(dict.fromkeys((cell_a.protocol, cell_b.protocol))),
        )
        groups.setdefault((row.attack, row.norm, row.eps, row.protocol), {}).setdefault(
            cell_a.set, []
        ).append(row)
    rows = [row for sets in groups.values() for row in _with_mean(sets)]
    adjusted = holm([row.p for row in rows])
    return [replace(row, p_holm=p) for row, p in zip(rows, adjusted, strict=True)]


def matched_pairs(a: Cell, b: Cell, stores: Sequence[Path]) -> tuple[int, int, int] | None:
    """(only_a, only_b, n): how many images only A and only B classify correctly, of the n that both were measured on.

    None if they were measured on different images, or if none of the files `stores` has the per-image predictions.
    """
    found = []
    for cell in (a, b):
        store = next((store for store in stores if has_samples(store, cell)), None)
        if store is None:
            return None
        samples = read_samples(store, cell)
        order = samples.index.argsort()
        found.append(Samples(*(values[order] for values in samples)))
    one, two = found
    if not np.array_equal(one.index, two.index) or _are_different(one, two):
        return None
    only_a, only_b = one.correct & ~two.correct, two.correct & ~one.correct
    return int(only_a.sum()), int(only_b.sum()), len(one.index)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value of the split of the discordant images, if each were equally likely to favour A or B."""
    discordant = only_a + only_b
    return float(binomtest(only_a, discordant, 0.5).pvalue) if discordant else 1.0


def mean_difference_interval(counts: Sequence[tuple[int, int, int]]) -> tuple[float, float]:
    """95 % confidence interval of accuracy B − accuracy A, averaged over datasets.

    For one dataset it is Agresti & Min's "Wald + 2" (Statistics in Medicine 24, 2005): half an image is added to each
    of the four cells of the table, so that the interval is not too narrow if there are few discordant images.

    Args:
        counts: (only_a, only_b, n) for each dataset; the datasets are independent samples.
    """
    centre = variance = 0.0
    for only_a, only_b, n in counts:
        size = n + 2
        centre += (only_b - only_a) / size
        variance += (only_a + only_b + 1 - (only_b - only_a) ** 2 / size) / size**2
    half = Z * math.sqrt(variance) / len(counts)
    centre /= len(counts)
    return max(-1.0, centre - half), min(1.0, centre + half)


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted so that all those below α are significant together at level α (Holm 1979)."""
    order = sorted(range(len(p)), key=p.__getitem__)
    adjusted = [0.0] * len(p)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted


def _with_mean(sets: dict[str, list[Comparison]]) -> list[Comparison]:
    """The rows of each set, then their mean if each of several sets has one."""
    rows = [row for of_set in sets.values() for row in of_set]
    return [*rows, _over_sets(rows)] if 1 < len(rows) == len(sets) else rows


def _over_sets(group: list[Comparison]) -> Comparison:
    def mean(name: str) -> float:
        return sum(getattr(row, name) for row in group) / len(group)

    total = {
        name: sum(getattr(row, name) for row in group) for name in ("n", "n_a", "n_b", "only_a", "only_b")
    }
    return replace(
        group[0],
        **total,
        sets=[name for row in group for name in row.sets],
        accuracy_a=mean("accuracy_a"),
        accuracy_b=mean("accuracy_b"),
        difference=mean("difference"),
        ci95=mean_difference_interval([(row.only_a, row.only_b, row.n) for row in group]),
        p=mcnemar(total["only_a"], total["only_b"]),
        differing=[name for name in SETTINGS if any(name in row.differing for row in group)],
    )


Key = tuple[str, ...]


def _choose(spec: str) -> tuple[str, Path, dict[Key, list[Cell]]]:
    """ "FILE" or "FILE::MODEL" → the model's name, the file, and its cells, grouped by what is compared."""
    file, _, wanted = spec.partition("::")
    store = Path(file)
    models: dict[str, list[Cell]] = {}
    cells = read_cells(store)
    if not cells:
        raise ValueError(
            f"there are no results in {store}; write them with `advflyp eval MODEL --out {store}`"
        )
    for label, cell in zip(labels(cells, [cell.model for cell in cells]), cells, strict=True):
        models.setdefault(label, []).append(cell)
    if not wanted and len(models) > 1:
        names = ", ".join(f"'{file}::{model}'" for model in models)
        raise ValueError(f"{file} holds several models; name one: {names}")
    name = wanted or next(iter(models))
    if name not in models:
        raise ValueError(f"{file} has no results of {name}{suggest(name, models)}")
    by_key: dict[Key, list[Cell]] = {}
    for cell in models[name]:
        compared = (cell.set, cell.split, cell.attack, cell.attack_args, cell.norm, cell.eps)
        by_key.setdefault(tuple(json.dumps(value, sort_keys=True) for value in compared), []).append(cell)
    return name, store, by_key


def _pairs(some: list[Cell], others: list[Cell], stores: tuple[Path, Path]) -> list[tuple[Cell, Cell]]:
    """The two cells to compare for each common protocol; if there is none, two cells of different protocols."""
    parts = [
        ([one for one in some if one.protocol == name], [other for other in others if other.protocol == name])
        for name in dict.fromkeys(cell.protocol for cell in some)
    ]
    both = [part for part in parts if part[1]] or [(some, others)]
    return [_best_match(*part, stores) for part in both]


def _best_match(some: list[Cell], others: list[Cell], stores: tuple[Path, Path]) -> tuple[Cell, Cell]:
    """Among cells that differ in limits or seeds, the two with the most images in common, then with the most equal
    settings.
    """
    if len(some) == len(others) == 1:
        return some[0], others[0]
    # Each file is read once, and most cells are of the same images.
    images: dict[bytes, np.ndarray] = {}
    seen: list[list[bytes]] = []
    for store, cells in zip(stores, (some, others), strict=True):
        indices = [np.sort(read_samples(store, cell).index) for cell in cells]
        seen.append([index.tobytes() for index in indices])
        images |= zip(seen[-1], indices, strict=True)
    common = {
        pair: len(np.intersect1d(*(images[one] for one in pair), assume_unique=True))
        for pair in itertools.product(set(seen[0]), set(seen[1]))
    }

    def rank(pair: tuple[int, int]) -> tuple[int, int]:
        one, two = some[pair[0]], others[pair[1]]
        alike = sum(getattr(one, name) == getattr(two, name) for name in SETTINGS)
        return common[seen[0][pair[0]], seen[1][pair[1]]], alike

    best = max(itertools.product(range(len(some)), range(len(others))), key=rank)
    return some[best[0]], others[best[1]]


def _common_images(a: Cell, of_a: Samples, b: Cell, of_b: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Whether A and B are correct, (n,) bool each, on the images on which both were measured."""
    what = f"{a.set} ({a.split}, {a.attack})"
    _, in_a, in_b = np.intersect1d(of_a.index, of_b.index, assume_unique=True, return_indices=True)
    if not len(in_a):
        raise ValueError(
            f"{a.model} and {b.model} have no image of {what} in common; evaluate both with the same --limit "
            "and --seed"
        )
    of_a, of_b = (Samples(*(values[some] for values in of)) for of, some in ((of_a, in_a), (of_b, in_b)))
    if _are_different(of_a, of_b):
        raise ValueError(
            f"{a.model} and {b.model} were measured on different sets called {what}: labels or names of images "
            "differ; evaluate both on the same one"
        )
    return of_a.correct, of_b.correct


def _are_different(one: Samples, two: Samples) -> bool:
    """Whether labels or names differ, so that these are images of two sets; both have the same `index`."""
    named = all(key is not None for key in (*one.key, *two.key))
    return bool((one.label != two.label).any() or (named and (one.key != two.key).any()))


def _contents(cells: Iterable[Key]) -> str:
    """A short list of what a model was measured on: "mini/food clean, mini/food pgd10"."""
    names = [f"{json.loads(key[0])} {json.loads(key[2])}" for key in cells]
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
