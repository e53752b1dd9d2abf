"""Result cells arranged for reading: by model, set and condition, with intervals, or over seeds."""

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from advflyp.evaluation.compare import matched_pairs, mean_difference_interval
from advflyp.evaluation.results import DEFAULT_PROTOCOL, Cell, configs_of, labels, mean_interval
from advflyp.report.measure.estimates import Condition, Estimate, aggregate_seeds
from advflyp.report.measure.repeated import check_same

Key = tuple[str, str, Condition]
Checkpoint = tuple[str, str]  # a model and the hash of its weights
Drawn = TypeVar("Drawn", Estimate, Estimate | None)


class Results:
    """Cells by model, set and condition, each in the order of its first appearance (ε ascending).

    Results of different protocols are kept apart: a model measured under another protocol than ours is named
    "model [protocol]". `protocol` is the one that all results follow; empty if that is ours, or if there are several
    (`mixes_protocols`).

    Args:
        seeds: Whether the checkpoints of one name are training seeds of one method, shown as mean ± standard deviation.
            If not, a name with several checkpoints is split: "run" becomes "run (3f2a91c0)" and "run (77b1…)".
        models: The models to show, in this order, measured or not; by default all measured ones.
        stores: Result files beside which per-image outcomes may be stored; changes get their intervals from these.
        largest: Whether, of several measurements that no table could tell apart, the one with the most images counts,
            and of those the last: the measures of a study overlap.

    Raises:
        ValueError: If a measurement is present twice with different settings, so that no table can hold both, unless
            `largest`.
    """

    def __init__(
        self,
        cells: Iterable[Cell],
        *,
        seeds: bool = False,
        models: Sequence[str] = (),
        stores: Sequence[Path] = (),
        largest: bool = False,
    ) -> None:
        cells = list(cells)
        self.stores = list(stores)
        self.pairs: dict[tuple[Checkpoint, Checkpoint, str, Condition], tuple[int, int, int] | None] = {}
        protocols = {cell.protocol for cell in cells}
        self.mixes_protocols = len(protocols) > 1
        only = DEFAULT_PROTOCOL if self.mixes_protocols or not protocols else protocols.pop()
        self.protocol = "" if only == DEFAULT_PROTOCOL else only
        self.runs = self._by_checkpoint(cells, seeds, largest)
        self.models = list(models) or list(dict.fromkeys(model for model, _, _ in self.runs))
        self.sets = list(dict.fromkeys(name for _, name, _ in self.runs))
        self.hashes: dict[str, list[str]] = {model: [] for model in self.models}
        for (model, _, _), runs in self.runs.items():
            if model in self.hashes:
                self.hashes[model] += [sha for sha in runs if sha not in self.hashes[model]]
        # A prefix that all names share ("mini/") is said once, in a heading.
        prefixes = {name.partition("/")[0] for name in self.sets if "/" in name[:-1]}
        shared = len(prefixes) == 1 and "" not in prefixes and all("/" in name[:-1] for name in self.sets)
        self.group = prefixes.pop() if shared else None
        self.short = {name: name.partition("/")[2] if shared else name for name in self.sets}
        # Clean first, then attack by attack.
        conditions = list(dict.fromkeys(condition for _, _, condition in self.runs))
        attacks = list(dict.fromkeys((c.attack, c.norm) for c in conditions))
        self.conditions = sorted(
            conditions, key=lambda c: (c.norm is not None, attacks.index((c.attack, c.norm)), c.eps)
        )
        self.common_sets = self._common_sets()
        # The mean of one set among several would be mistaken for that of all.
        self.mean_sets = self.common_sets if len(self.common_sets) > 1 or len(self.sets) == 1 else []

    def _by_checkpoint(self, cells: Sequence[Cell], seeds: bool, largest: bool) -> dict[Key, dict[str, Cell]]:
        names = [self._model(cell) for cell in cells]
        for (name, _), configs in configs_of(cells, names).items():
            if seeds and len(configs) > 1:
                raise ValueError(
                    f"the results hold the same weights of {name} in {len(configs)} configurations, which are not "
                    "seeds; give the report one of them"
                )
        found: dict[Key, dict[str, Cell]] = {}
        for name, label, cell in zip(names, labels(cells, names), cells, strict=True):
            runs = found.setdefault((name if seeds else label, cell.set, Condition.of(cell)), {})
            known = runs.get(cell.checkpoint_sha256, cell)
            if not largest:
                check_same(label, known, cell)
            runs[cell.checkpoint_sha256] = known if known.n > cell.n else cell
        return found

    def _common_sets(self) -> list[str]:
        """Sets measured for every model and condition. Means are over these, so that they can be compared."""
        measured = [
            (model, condition)
            for model in self.models
            for condition in self.conditions
            if any((model, name, condition) in self.runs for name in self.sets)
        ]
        return [name for name in self.sets if all((model, name, c) in self.runs for model, c in measured)]

    def pflops(self, model: str) -> float | None:
        """Arithmetic of a model's finetuning in 10¹⁵ operations; the mean over the seeds for which it is known."""
        known = {
            cell.checkpoint_sha256: cell.pflops
            for (name, _, _), cell in self.every
            if name == model and cell.pflops is not None
        }
        return sum(known.values()) / len(known) if known else None

    def _model(self, cell: Cell) -> str:
        is_apart = cell.protocol not in (DEFAULT_PROTOCOL, self.protocol)
        return f"{cell.model} [{cell.protocol}]" if is_apart else cell.model

    def get(self, model: str, set_name: str, condition: Condition) -> Estimate | None:
        runs = self.runs.get((model, set_name, condition), {}).values()
        return aggregate_seeds(
            [Estimate(cell.accuracy, *cell.ci95, flagged=is_flagged(cell)) for cell in runs]
        )

    def mean(self, model: str, condition: Condition, sets: Sequence[str] | None = None) -> Estimate | None:
        """The mean over `sets` (default: `mean_sets`), without seeds that lack one of them; None if all do."""
        return aggregate_seeds(list(self.means(model, condition, sets).values()))

    def means(
        self, model: str, condition: Condition, sets: Sequence[str] | None = None
    ) -> dict[str, Estimate]:
        """The mean over sets for each seed, by the hash of its weights."""
        names = self.mean_sets if sets is None else list(sets)
        found = {}
        for sha in self.hashes.get(model, []):
            cells = [self.runs.get((model, name, condition), {}).get(sha) for name in names]
            known = [cell for cell in cells if cell is not None]
            if known and len(known) == len(names):
                value, (low, high) = mean_interval(known)
                if len(known) == 1:
                    low, high = known[0].ci95
                found[sha] = Estimate(value, low, high, flagged=any(map(is_flagged, known)))
        return found

    def change(
        self, before: str, after: str, condition: Condition, set_name: str | None = None
    ) -> Estimate | None:
        """From one model to another, on one set or of the mean over `mean_sets`; None if either was not measured.

        Single checkpoints get the matched-pairs interval of `advflyp compare`, or none if per-image outcomes on the
        same images are not stored: an interval for independent samples would be too wide. With several seeds the
        spread is one standard deviation of the difference of two independent runs; a single checkpoint adds nothing
        to it.
        """
        sets = self.mean_sets if set_name is None else [set_name]
        runs = [self.means(model, condition, sets) for model in (before, after)]
        one, two = (aggregate_seeds(list(found.values())) for found in runs)
        if one is None or two is None:
            return None
        value = two.value - one.value
        if spreads := [found.deviation for found in (one, two) if found.seeds > 1]:
            spread, seeds = math.hypot(*spreads), max(one.seeds, two.seeds)
            return Estimate(value, value - spread, value + spread, seeds=seeds, is_change=True)
        (sha,), (other,) = runs
        counts = [self._matched((before, sha), (after, other), name, condition) for name in sets]
        known = [count for count in counts if count is not None]
        if len(known) < len(counts):
            return Estimate(value, is_change=True)
        return Estimate(value, *mean_difference_interval(known), is_change=True)

    def _matched(
        self, before: Checkpoint, after: Checkpoint, set_name: str, condition: Condition
    ) -> tuple[int, int, int] | None:
        key = (before, after, set_name, condition)
        if key not in self.pairs:
            a, b = (self.runs[model, set_name, condition][sha] for model, sha in (before, after))
            self.pairs[key] = matched_pairs(a, b, self.stores)
        return self.pairs[key]

    def drawn(self, value: Drawn) -> Drawn:
        """The estimate as a figure shows it, all bars being of one kind.

        If any model has several seeds, bars are standard deviations over seeds, and a single checkpoint has none.
        """
        if value is None or not self.replicated or value.seeds > 1:
            return value
        return replace(value, low=value.value, high=value.value)

    def images(self, set_name: str, model: str | None = None) -> str:
        """How many images of the set were evaluated ("150", or "100, 150" if it varies), with one model or with any."""
        return ", ".join(map(str, self.counts(set_name, model)))

    def counts(self, set_name: str, model: str | None = None) -> list[int]:
        """The numbers of images of the set on which a model, or any, was evaluated."""
        return sorted(
            {cell.n for (one, name, _), cell in self.every if name == set_name and model in (None, one)}
        )

    @property
    def every(self) -> Iterator[tuple[Key, Cell]]:
        """Every measurement with its key; as many for a key as it has seeds."""
        return ((key, cell) for key, runs in self.runs.items() for cell in runs.values())

    @property
    def replicated(self) -> bool:
        """Whether some model has several seeds."""
        return any(len(hashes) > 1 for hashes in self.hashes.values())

    @property
    def clean(self) -> Condition | None:
        return next((c for c in self.conditions if c.norm is None), None)

    @property
    def attacked(self) -> list[Condition]:
        return [c for c in self.conditions if c.norm is not None]

    def strongest(self, eps: float | None = None) -> Condition | None:
        """The attack with the lowest mean accuracy at this ε, by default the smallest ε measured.

        If every model was measured under some attack, only such attacks count.
        """
        attacked = self.attacked
        # The radii of different norms cannot be compared: only the first norm measured counts.
        attacked = [c for c in attacked if c.norm == attacked[0].norm]
        target = min((c.eps for c in attacked), default=0) if eps is None else eps
        near = [c for c in attacked if math.isclose(c.eps, target, rel_tol=1e-6)]
        measured = {c: {(model, name) for model, name, other in self.runs if other == c} for c in near}
        # An attack that only some models were measured under cannot compare them.
        of_all = [c for c in near if {model for model, _ in measured[c]} >= {*self.models}]
        near = of_all or near
        shared = set.intersection(*(measured[c] for c in near)) if near else set()

        def left(condition: Condition) -> float:
            """Mean over models and sets, each the mean of its seeds."""
            found = (self.runs[model, name, condition] for model, name in shared or measured[condition])
            return statistics.fmean(
                statistics.fmean(cell.accuracy for cell in runs.values()) for runs in found
            )

        return min(near, key=left, default=None)


def is_flagged(cell: Cell) -> bool:
    """Whether the cell was checked for masked gradients and failed."""
    return cell.sanity is not None and not cell.sanity["passed"]
