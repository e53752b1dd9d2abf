"""The accuracies of the experiment `proxies`, by run, seed and set: means, differences and their intervals."""

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from advflyp.evaluation.results import Cell as Result
from advflyp.evaluation.samples import Samples, has_samples, read_samples
from advflyp.paper.efficiency import Seeds, mean_of_seeds
from advflyp.paper.proxies.bootstrap import interval
from advflyp.paper.proxies.coverage import Coverage
from advflyp.paper.proxies.plan import BEST, OUTSIDE
from advflyp.paper.study import RESULTS, Exhibit, Study
from advflyp.report.measure.estimates import Estimate

CLEAN, ROBUST = "clean", "pgd10"
HEADLINE_IMAGES = 200
# With fewer images on one side of the coverage, an accuracy says nothing.
FEWEST_IMAGES = 10
# run → seed → (set, attack) → result
ByRun = Mapping[str, Mapping[int, Mapping[tuple[str, str], Result]]]


def by_run(study: Study, exhibit: Exhibit) -> dict[str, dict[int, dict[tuple[str, str], Result]]]:
    """The results of an exhibit, by the names of the plan's runs."""
    names = {label: str(planned.get("name", label)) for label, planned in study.planned.items()}
    found: dict[str, dict[int, dict[tuple[str, str], Result]]] = {}
    for cell in exhibit.cells(study):
        seeds = found.setdefault(names.get(cell.model, cell.model), {})
        seeds.setdefault(study.seed_of[cell.checkpoint_sha256], {})[cell.set, cell.attack] = cell
    return found


def accuracy_on_side(cell: Result, covered: Collection[int], inside: bool) -> float | None:
    """Accuracy on the images whose class is covered, or on the others; None if there are too few of them."""
    counts = [count for label, count in cell.per_class.items() if (int(label) in covered) == inside]
    images = sum(n for _, n in counts)
    return sum(correct for correct, _ in counts) / images if images >= FEWEST_IMAGES else None


@dataclass(frozen=True)
class Side:
    """The images whose class a proxy has, or the others; `proxy` is a `Cell.name`."""

    proxy: str
    inside: bool


@dataclass
class Numbers:
    """The numbers for tables and figures. Every mean is over the headline's sets.

    Attributes:
        results: By run.
        sets: The headline's sets: 200 images or more, and not among `OUTSIDE`.
        coverage: By (proxy, seed, set).
        folder: The study's folder, where per-image outcomes may be stored.
    """

    results: ByRun
    sets: Sequence[str]
    coverage: Mapping[tuple[str, int, str], Coverage]
    folder: Path
    _known: dict[tuple[str, str, tuple[int, ...]], Estimate] = field(default_factory=dict)
    _read: dict[tuple[str, int, str, str], Samples] = field(default_factory=dict)

    @classmethod
    def of(cls, study: Study, exhibit: Exhibit, coverage: Iterable[Coverage]) -> "Numbers":
        """The numbers of a study."""
        results = by_run(study, exhibit)
        every = (cell for seeds in results.values() for cells in seeds.values() for cell in cells.values())
        sizes = {cell.set: cell.subset.get("of", cell.n) for cell in every}
        sets = [s for s in exhibit.sets if sizes.get(s, 0) >= HEADLINE_IMAGES and s not in OUTSIDE]
        return cls(results, sets, {one.key: one for one in coverage}, study.folder)

    def column(self, *, best: bool) -> dict[str, dict[str, Seeds]]:
        """attack → run → seed → accuracy, for the last weights or for those at the best validation."""
        end = BEST if best else ""
        runs = [run for run in self.results if not run.endswith(BEST)]
        return {attack: {run: self.by_seed(run + end, attack) for run in runs} for attack in (ROBUST, CLEAN)}

    def by_seed(self, run: str, attack: str) -> Seeds:
        """Seed → mean accuracy over the sets, for seeds that have all of them."""
        found = {}
        for seed, cells in self.results.get(run, {}).items():
            known = [cells[name, attack].accuracy for name in self.sets if (name, attack) in cells]
            if known and len(known) == len(self.sets):
                found[seed] = statistics.fmean(known)
        return found

    def spread(self, run: str, attack: str) -> Estimate | None:
        """The mean over seeds with their standard deviation, as figures show it."""
        return mean_of_seeds(self.by_seed(run, attack))

    def accuracy(self, run: str, attack: str, seeds: Collection[int] | None = None) -> Estimate | None:
        """The mean over these seeds, by default all, with its bootstrap interval if per-image outcomes are stored."""
        found = {s: value for s, value in self.by_seed(run, attack).items() if seeds is None or s in seeds}
        if not found:
            return None
        key = (run, attack, tuple(sorted(found)))
        if key not in self._known:
            value = statistics.fmean(found.values())
            low, high = self.resampled([(1, run)], attack, sorted(found)) or (value, value)
            self._known[key] = Estimate(value, low, high)
        return self._known[key]

    def on_set(self, run: str, name: str, attack: str) -> Estimate | None:
        """The mean over seeds of the accuracy on one set, in the headline or not, with their standard deviation."""
        cells = {seed: cells.get((name, attack)) for seed, cells in self.results.get(run, {}).items()}
        return mean_of_seeds({seed: cell.accuracy for seed, cell in cells.items() if cell is not None})

    def on_side(self, run: str, attack: str, side: Side) -> dict[int, float]:
        """Seed → accuracy on one side of the coverage, averaged over the sets that have enough such images.

        Args:
            run: Name of a run, which need not be trained on the side's proxy.
            attack: "clean" or "pgd10".
            side: Which images.
        """
        found = {}
        for seed, cells in self.results.get(run, {}).items():
            known = [
                accuracy
                for name in self.sets
                if (name, attack) in cells
                and (one := self.coverage.get((side.proxy, seed, name))) is not None
                and (accuracy := accuracy_on_side(cells[name, attack], one.covered, side.inside)) is not None
            ]
            if known:
                found[seed] = statistics.fmean(known)
        return found

    def resampled(
        self, terms: Sequence[tuple[int, str]], attack: str, seeds: Sequence[int], side: Side | None = None
    ) -> tuple[float, float] | None:
        """The 95 % bootstrap interval of a signed sum of runs' accuracies, over seeds, sets and images.

        None if per-image outcomes are missing or are not of the same images.

        Args:
            terms: (sign, run).
            attack: "clean" or "pgd10".
            seeds: Seeds that all of the runs have.
            side: Only these images; by default all.
        """
        outcomes = []
        for name in self.sets:
            some = [[self._samples(run, seed, name, attack) for seed in seeds] for _, run in terms]
            known = [one for of_run in some for one in of_run if one is not None]
            if len(known) < len(terms) * len(seeds) or len({one.index.tobytes() for one in known}) != 1:
                return None
            correct = np.array([one.correct for one in known], dtype=float).reshape(
                len(terms), len(seeds), -1
            )
            values = np.tensordot([sign for sign, _ in terms], correct, 1)
            if side is not None:
                values[~self._is_on(side, name, seeds, known[0].label)] = np.nan
            if not np.isnan(values).all():
                outcomes.append(values)
        return interval(outcomes) if outcomes else None

    def _is_on(self, side: Side, name: str, seeds: Sequence[int], labels: np.ndarray) -> np.ndarray:
        """(seeds, images): whether an image is on that side; all False for a seed with too few such images."""
        coverage = [self.coverage.get((side.proxy, seed, name)) for seed in seeds]
        rows = [
            np.isin(labels, one.covered) == side.inside if one else np.zeros(len(labels), bool)
            for one in coverage
        ]
        return np.stack([row if row.sum() >= FEWEST_IMAGES else np.zeros_like(row) for row in rows])

    def _samples(self, run: str, seed: int, name: str, attack: str) -> Samples | None:
        """Per-image outcomes in the order of evaluation; None if they are not stored."""
        cell = self.results.get(run, {}).get(seed, {}).get((name, attack))
        store = self.folder / RESULTS / f"{run}-s{seed}.jsonl"
        if cell is None or not has_samples(store, cell):
            return None
        key = (run, seed, name, attack)
        if key not in self._read:
            self._read[key] = read_samples(store, cell)
        return self._read[key]
