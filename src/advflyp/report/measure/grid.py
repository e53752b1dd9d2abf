"""The table of a comparison: methods down, sets and their means across, a block for each attack at each ε."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from advflyp.data.mini import full_corpus_folder, mini_sets
from advflyp.report.measure.estimates import Condition
from advflyp.report.measure.results import Results, is_flagged
from advflyp.report.measure.tables import Table, Value, images_notes, seeds_notes, settings_notes
from advflyp.wording import counted

IN, OUT = "in proxy", "out of proxy"
MARKS = "Bold: best of a block; underlined: second best; ties share the mark."
MIXED = "Only methods with the most training seeds are ranked: a mean over several is not compared with a single run."


@cache
def _in_proxy() -> dict[str, bool]:
    known = {**mini_sets(full_corpus_folder()), **mini_sets()}
    return {f"mini/{name}": info["in_proxy"] for name, info in known.items() if "in_proxy" in info}


def sides(sets: Sequence[str]) -> dict[str, list[str]]:
    """The sets whose concepts the labelled proxy covers and those whose concepts it does not.

    Empty if this is unknown for any set, or if all sets are on one side.
    """
    known = _in_proxy()
    if not all(name in known for name in sets):
        return {}
    found = {IN: [s for s in sets if known[s]], OUT: [s for s in sets if not known[s]]}
    return found if all(found.values()) else {}


def methods_table(
    results: Results,
    conditions: Sequence[Condition] | None = None,
    *,
    title: str = "Zero-shot accuracy in %",
    sets: Sequence[str] | None = None,
    unranked: Sequence[str] = (),
) -> Table:
    """A row for each of `results.models` in each block, the best and second best of a block marked.

    Means are over all sets with any result in the block; a model that lacks one of them has no mean.

    Args:
        conditions: The blocks, by default all measured ones; those without results appear only in the note.
        sets: The columns, by default all measured ones.
        unranked: Models that are shown but not ranked.
    """
    split = sides(sets or results.sets)
    columns = [*split[IN], *split[OUT]] if split else list(sets or results.sets)
    shown = _Selection(results, conditions, columns)
    kinds = shown.kinds if len(columns) > 1 else {}
    rows = [
        [
            *shown.beginning(model, [condition]),
            *(results.get(model, name, condition) for name in columns),
            *shown.means(model, condition, kinds),
        ]
        for condition in shown.conditions
        for model in results.models
    ]
    if split:
        headings = [f"{kind}\n({len(names)})" for kind, names in kinds.items()]
    else:
        headings = [f"mean of {len(names)}" for names in kinds.values()]
    # Short names as in `results`, also for sets without any result.
    names = [results.short.get(name, name.removeprefix(f"{results.group}/")) for name in columns]
    groups = [*((side, len(names)) for side, names in split.items()), ("mean over sets", len(kinds))]
    titles = ["clean images" if c.norm is None else c.title for c in shown.conditions]
    return shown.table(
        title=title,
        columns=[*shown.first, *names, *headings],
        rows=rows,
        groups=[("", len(shown.first)), *groups] if split else [],
        blocks=[(title, len(results.models)) for title in titles],
        unranked=unranked,
    )


def means_table(
    results: Results,
    conditions: Sequence[Condition] | None = None,
    *,
    title: str = "Mean zero-shot accuracy in %",
    sets: Sequence[str] | None = None,
    unranked: Sequence[str] = (),
) -> Table:
    """A row for each of `results.models`: for each condition, its means over all sets and over each kind of set.

    The arithmetic of the finetuning comes before the means if it is known for any model. The arguments are those of
    `methods_table`.
    """
    shown = _Selection(results, conditions, sets or results.sets)
    kinds = shown.kinds
    costs = {model: cost for model in results.models if (cost := results.pflops(model)) is not None}
    rows: list[list[Value]] = []
    for model in results.models:
        row = shown.beginning(model, shown.conditions)
        if costs:
            row.append(f"{costs[model]:.3g}" if model in costs else None)
        for condition in shown.conditions:
            row += shown.means(model, condition, kinds)
        rows.append(row)
    first = [*shown.first, *(["PFLOPs"] if costs else [])]
    titles = ["clean" if c.norm is None else c.title for c in shown.conditions]
    several = len(kinds) > 1
    headings = [f"{kind}\n({len(names)})" for kind, names in kinds.items()] * len(titles)
    return shown.table(
        title=title,
        columns=[*first, *(headings if several else (title.replace(", ", "\n") for title in titles))],
        rows=rows,
        groups=[("", len(first)), *((title, len(kinds)) for title in titles)] if several else [],
        unranked=unranked,
    )


class _Selection:
    """The part of results that a table shows."""

    def __init__(self, results: Results, conditions: Sequence[Condition] | None, sets: Sequence[str]) -> None:
        self.results, self.sets = results, list(sets)
        self.kinds = {"all": self.sets, **sides(self.sets)}
        self.wanted = list(conditions or results.conditions)
        # For each condition, the sets with any result.
        self.measured = {
            c: [s for s in self.sets if any((m, s, c) in results.runs for m in results.models)]
            for c in self.wanted
        }
        self.conditions = [c for c in self.wanted if self.measured[c]]
        self.runs = {
            (model, name, condition): runs
            for (model, name, condition), runs in results.runs.items()
            if model in results.hashes and name in self.sets and condition in self.wanted
        }
        self.first = ["method", "seeds"] if results.replicated else ["method"]

    def beginning(self, model: str, conditions: Sequence[Condition]) -> list[Value]:
        """The model and, if any model has several seeds, how many of its seeds were measured."""
        if not self.results.replicated:
            return [model]
        seeds = {sha for s in self.sets for c in conditions for sha in self.runs.get((model, s, c), ())}
        return [model, str(len(seeds)) if seeds else None]

    def means(self, model: str, condition: Condition, kinds: Mapping[str, Sequence[str]]) -> list[Value]:
        here = self.measured[condition]
        return [
            self.results.mean(model, condition, [s for s in names if s in here]) for names in kinds.values()
        ]

    def table(self, **layout: Any) -> Table:
        table = Table(**layout, best=True, note=" ".join(_notes(self)))
        return replace(table, note=f"{table.note} {MIXED}") if table.mixes_seeds() else table


def _notes(shown: _Selection) -> Iterator[str]:
    """What a reader has to know about the numbers: how spread is given, what is missing, which settings differ."""
    results, runs = shown.results, shown.runs
    total = len(results.models) * len(shown.sets) * len(shown.wanted)
    if results.protocol:
        yield f"Protocol: {results.protocol}."
    if len(results.models) > 1:
        yield MARKS
    if any(len(some) > 1 for some in runs.values()):
        yield "±: one sample standard deviation over training seeds."
    if any(len(some) == 1 for some in runs.values()):
        yield "Ranges: 95 % intervals of one checkpoint."
    if len(runs) < total:
        absent = [c.title for c in shown.wanted if c not in shown.conditions]
        among = f", among them all of {', '.join(absent)}" if absent else ""
        yield f"{total - len(runs):,} of {counted(total, 'result')} missing (–){among}."
    yield from seeds_notes(runs, results)
    yield from images_notes(runs, results)
    yield from settings_notes(runs, results)
    if any(is_flagged(cell) for some in runs.values() for cell in some.values()):
        yield "†: the gradients look masked; do not trust this accuracy."
    for condition in shown.conditions:
        if (here := len(shown.measured[condition])) < (sets := len(shown.sets)):
            yield f"{condition.title}: means over {here} of {counted(sets, 'set')}, those measured."


def sanity_table(results: Results) -> Table | None:
    """A row for each result that failed a check for masked gradients; None where nothing was checked."""
    checked = [cell for _, cell in results.every if cell.sanity is not None]
    if not checked:
        return None
    rows: list[list[Value]] = [
        [
            model,
            results.short[name],
            condition.title,
            str(cell.sanity["n"]),
            "; ".join(cell.sanity["failed"]),
        ]
        for (model, name, condition), cell in results.every
        if cell.sanity is not None and is_flagged(cell)
    ]
    fine = f"{len(checked) - len(rows)} of {counted(len(checked), 'checked result')}"
    passed = f"No sign of masked gradients: {fine}."
    return Table(
        title="Checks for masked gradients",
        columns=["model", "set", "attack", "images", "failed"],
        rows=rows,
        note=passed + (" Do not trust the others, listed here and marked † in the tables." if rows else ""),
    )
