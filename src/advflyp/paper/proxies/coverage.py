"""How much of a test set a proxy's labels cover: by name, and by the distance of class names in the text tower."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advflyp.config import convert, fill
from advflyp.data.mini import ON_DEMAND, full_corpus_folder, mini_sets
from advflyp.data.pairs.images import ImageReader
from advflyp.data.sets.labelled import LabelledSet, load_set
from advflyp.data.training import LabelledBatches, open_training
from advflyp.documents import read_json
from advflyp.files import write_text
from advflyp.model.clip import CLIP
from advflyp.model.load import load_model
from advflyp.model.zeroshot import class_embeddings
from advflyp.paper.proxies.plan import Cell, cell_keys
from advflyp.training.recipe import read_recipe

FILE = "coverage.json"
# Bare names on both sides, so that prompts add no distance.
TEMPLATE = "{}"


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How far the labels of a proxy, as one seed draws it, cover a test set.

    Attributes:
        data: The proxy, as `Cell.name` calls it.
        seed: The training's seed, which draws classes and images.
        set: Name of the test set.
        share: Share of the set's images whose class is a label of the proxy, ignoring case.
        distance: 1 − cos between the embeddings of a class and its nearest label, averaged over the set's images.
        covered: Indices of the set's classes that are labels of the proxy.
    """

    data: str
    seed: int
    set: str
    share: float
    distance: float
    covered: list[int]

    @property
    def key(self) -> tuple[str, int, str]:
        return self.data, self.seed, self.set


def covered_classes(classes: Sequence[str], labels: Iterable[str]) -> list[int]:
    """Indices of the classes whose names are among the labels, ignoring case."""
    known = {label.casefold() for label in labels}
    return [place for place, name in enumerate(classes) if name.casefold() in known]


def nearest_distances(classes: Tensor, labels: Tensor) -> Tensor:
    """(K, d) and (L, d) unit-norm embeddings → (K,): 1 − cos between each class and its nearest label."""
    return 1 - (classes @ labels.T).amax(1)


def measure_coverage(
    model: CLIP, proxies: Mapping[tuple[str, int], Sequence[str]], sets: Sequence[LabelledSet]
) -> list[Coverage]:
    """The coverage of every set by every proxy.

    Args:
        model: Its text tower embeds the names.
        proxies: (name, seed) → labels.
        sets: The test sets.
    """
    names = [*(name for labels in proxies.values() for name in labels), *(n for s in sets for n in s.classes)]
    row = {name: place for place, name in enumerate(dict.fromkeys(names))}
    embeddings = class_embeddings(model, list(row), [TEMPLATE]).cpu().double()

    def embedded(some: Sequence[str]) -> Tensor:
        return embeddings[[row[name] for name in some]]

    found = []
    for (data, seed), labels in proxies.items():
        for one in sets:
            covered = covered_classes(one.classes, labels)
            distances = nearest_distances(embedded(one.classes), embedded(labels))
            is_covered = torch.isin(one.labels, torch.tensor(covered, dtype=one.labels.dtype))
            found.append(
                Coverage(
                    data=data,
                    seed=seed,
                    set=one.name,
                    share=is_covered.double().mean().item(),
                    distance=max(0.0, distances[one.labels].mean().item()),
                    covered=covered,
                )
            )
    return found


def labels_of(cell: Cell, seed: int, model: CLIP) -> list[str]:
    """The classes that a training on this data has images of; ValueError if the data is not on this machine."""
    overrides = {key.replace("__", "."): value for key, value in cell_keys(cell).items()}
    config = read_recipe("mini/tecoa", overrides).data
    reader = ImageReader(model.config["preprocess_cfg"], config.resize, config.interpolation)
    batches = open_training(config, "labelled", reader, seed=seed, device=torch.device("cpu"))
    assert isinstance(batches, LabelledBatches)
    return batches.represented


def add_coverage(
    path: Path, model: str, cells: Collection[tuple[Cell, int]], sets: Sequence[str]
) -> list[Coverage]:
    """Read the file, measure what it lacks for these proxies and sets, and store that there.

    Data that is not on this machine is skipped.

    Args:
        path: JSON file, which need not exist yet.
        model: Name of the model before the finetuning.
        cells: (proxy, seed of a training on it).
        sets: Names of test sets.
    """
    known = read_coverage(path)
    there = {one.key for one in known}
    missing = [
        (cell, seed)
        for cell, seed in cells
        if any((cell.name, seed, name) not in there for name in sets if _is_here(name))
        and _is_here(str(cell_keys(cell).get("data__train", "mini/proxy")))
    ]
    if not missing:
        return known
    original = load_model(model)
    labels = {(cell.name, seed): labels_of(cell, seed, original) for cell, seed in missing}
    measured = measure_coverage(original, labels, [load_set(name) for name in sets if _is_here(name)])
    every = [*{one.key: one for one in [*known, *measured]}.values()]
    write_text(path, json.dumps([asdict(one) for one in every]) + "\n")
    return every


def read_coverage(path: Path) -> list[Coverage]:
    """The stored coverage; empty if there is no such file."""
    if not path.is_file():
        return []
    records = convert(
        read_json(path, "; remove it, and it is measured again"), list[dict[str, Any]], path.name
    )
    return [fill(Coverage, record) for record in records]


def _is_here(name: str) -> bool:
    """Whether a set of the mini corpus is on this machine."""
    short = name.removeprefix("mini/")
    folder = {"folder": full_corpus_folder()} if short in ON_DEMAND else {}
    return short == "proxy" or short in mini_sets(**folder)
