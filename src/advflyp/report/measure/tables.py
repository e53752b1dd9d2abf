"""Tables as plain data, whatever the output format: of one model, of two, and of the means of many.

report/measure/grid.py has the table of many methods on many sets. Renderers: report/console.py (terminal),
report/measure/render.py (Markdown, CSV, LaTeX), report/pages/templates/elements.html (HTML).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from advflyp.evaluation.results import Cell
from advflyp.report.measure.estimates import Condition, Estimate, competitors
from advflyp.report.measure.results import Key, Results
from advflyp.wording import counted

Value = str | Estimate | None
Blocks = list[tuple[str, list[list[Value]]]]
Runs = Mapping[Key, Mapping[str, Cell]]
# What may differ between cells of one column; a note then says so.
TOLD: dict[str, Callable[[Cell], Any]] = {
    "prompts": lambda cell: cell.prompt,
    "settings of the attack": lambda cell: cell.attack_args,
    "precision": lambda cell: cell.precision,
    "splits": lambda cell: cell.split,
    "random images": lambda cell: cell.subset.get("seed"),
    "images or class names": lambda cell: cell.settings.get("set_sha256"),
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of one value per column; None is a missing measurement and prints as a dash.

    Attributes:
        columns: Headings, which may have several lines.
        groups: Headings above the columns, each with the number of columns it spans; together they span all.
        blocks: Titles of parts of the table, each with its number of rows; together they hold all rows.
        best: Whether to mark the best and the second-best value of a column in each block (`ranks`).
        unranked: Rows, by their first value, that are never marked: references, not competitors.
        words: Whether the columns hold text, which is left-aligned.
    """

    title: str
    columns: list[str]
    rows: list[list[Value]]
    footer: list[Value] = field(default_factory=list)
    note: str = ""
    groups: list[tuple[str, int]] = field(default_factory=list)
    blocks: list[tuple[str, int]] = field(default_factory=list)
    best: bool = False
    unranked: Sequence[str] = ()
    words: bool = False

    def parts(self) -> list[tuple[str, int, list[list[Value]]]]:
        """Each block's title, the index of its first row and its rows; without blocks, one untitled part."""
        result, start = [], 0
        for title, count in self.blocks or [("", len(self.rows))]:
            result.append((title, start, self.rows[start : start + count]))
            start += count
        assert start == len(self.rows)
        return result

    def flat_columns(self) -> list[str]:
        """One-line headings for formats without groups; a repeated heading is prefixed with its group's title."""
        names = [column.replace("\n", " ") for column in self.columns]
        over = [title for title, count in self.groups for _ in range(count)] or [""] * len(names)
        repeated = {name for name in names if names.count(name) > 1}
        return [
            f"{title}: {name}" if title and name in repeated else name
            for title, name in zip(over, names, strict=True)
        ]

    def ranks(self) -> dict[tuple[int, int], int]:
        """(row, column) → 1 for a block's best value of a column, 2 for its second best.

        Values that print alike share a rank: no reader could tell why only one is marked. A single value gets no
        rank, and of two only the best is marked. Only values with the most seeds are ranked (`competitors`).
        """
        marks: dict[tuple[int, int], int] = {}
        for _, start, rows in self.parts() if self.best else []:
            for column in range(len(self.columns)):
                found = competitors(self._ranked(rows, column))
                if len(found) < 2:
                    continue
                values = {start + place: float(value.number) for place, value in found.items()}
                order = sorted(set(values.values()), reverse=True)[: 2 if len(values) > 2 else 1]
                for row, value in values.items():
                    if value in order:
                        marks[row, column] = 1 + order.index(value)
        return marks

    def mixes_seeds(self) -> bool:
        """Whether methods with fewer trainings than others are left out of some column's ranking."""
        return self.best and any(
            len(competitors(found := self._ranked(rows, column))) < len(found)
            for _, _, rows in self.parts()
            for column in range(len(self.columns))
        )

    def _ranked(self, rows: Sequence[Sequence[Value]], column: int) -> dict[int, Estimate]:
        """A column's values in the rows that compete, by their place in the block."""
        return {
            place: value
            for place, row in enumerate(rows)
            if isinstance(value := row[column], Estimate) and row[0] not in self.unranked
        }


def in_blocks(blocks: Blocks) -> dict[str, Any]:
    """The `rows` and `blocks` of a `Table`, from the titles of the blocks and their rows."""
    return {
        "rows": [row for _, rows in blocks for row in rows],
        "blocks": [(title, len(rows)) for title, rows in blocks],
    }


def accuracy_table(results: Results, model: str, *, name_model: bool = True) -> Table:
    """One model: a row for each set, a column for each condition, the mean over sets last."""
    conditions = [c for c in results.conditions if any(results.get(model, s, c) for s in results.sets)]
    rows: list[list[Value]] = [
        [results.short[name], results.images(name, model), *(results.get(model, name, c) for c in conditions)]
        for name in results.sets
    ]
    return Table(
        title=f"Zero-shot accuracy{f' of {model}' if name_model else ''} in %",
        columns=[set_heading(results), "n", *(_heading(c) for c in conditions)],
        rows=rows,
        footer=_footer(results, ["", *(results.mean(model, c) for c in conditions)]),
        note=mean_note(results, model),
    )


def models_table(results: Results) -> Table:
    """A row for each model, a column for each condition: means over sets."""
    count = len(results.mean_sets)
    return Table(
        title=f"Mean zero-shot accuracy in % over {counted(count, 'set')}",
        columns=["model", *(_heading(c) for c in results.conditions)],
        rows=[[model, *(results.mean(model, c) for c in results.conditions)] for model in results.models],
        note=mean_note(results),
    )


def comparison_table(
    results: Results, before: str, after: str, conditions: Sequence[Condition], *, intervals: bool = True
) -> Table:
    """A row for each set: before, after and the change in points, at each condition.

    Args:
        intervals: Whether the changes have intervals, which makes the table wide.
    """

    def values(name: str | None) -> list[Value]:
        """The values of a set, or the means for None."""
        found: list[Value] = []
        for condition in conditions:
            found += [
                results.mean(model, condition) if name is None else results.get(model, name, condition)
                for model in (before, after)
            ]
            change = results.change(before, after, condition, name)
            found.append(change if intervals or change is None else change.number)
        return found

    return Table(
        title=f"Zero-shot accuracy in %: {before} (before) and {after} (after)",
        columns=[
            set_heading(results),
            *(f"{_heading(c)}\n{part}" for c in conditions for part in ("before", "after", "change")),
        ],
        rows=[[results.short[name], *values(name)] for name in results.sets],
        footer=_footer(results, values(None)),
        note=mean_note(results, before, after),
    )


def check_models(results: Results, *names: str) -> None:
    """ValueError for a model without results."""
    for name in names:
        if name not in results.models:
            raise ValueError(
                f"there are no results of {name}, only of {', '.join(results.models) or 'nothing'}"
            )


def mean_note(results: Results, *models: str) -> str:
    """What the means lack, the protocol if it is not ours, and in what the results of `models` differ.

    Without `models` the note is on all of them. That on one says of which sets only a part was evaluated, too.
    """
    notes = [f"Protocol: {results.protocol}."] if results.protocol else []
    missing = [name for name in results.sets if name not in results.mean_sets]
    if missing and not results.mean_sets:
        shared = ", ".join(results.short[name] for name in results.common_sets)
        who = f"Only {shared}" if shared else "No set"
        notes.append(f"{who} was measured for every model and attack shown, so there is no mean.")
    elif missing:
        names = ", ".join(results.short[name] for name in missing)
        notes.append(f"Means leave out {names}: not measured for every model and attack shown.")
    runs = {key: some for key, some in results.runs.items() if key[0] in (models or results.models)}
    of_images = images_notes(runs, results, parts=len(models) == 1)
    return " ".join([*notes, *seeds_notes(runs, results), *of_images, *settings_notes(runs, results)])


def seeds_notes(runs: Runs, results: Results) -> Iterator[str]:
    """Attacks run with fewer seeds for all models, and models that lack further seeds."""
    fewer: Counter[str] = Counter()
    most = max(map(len, runs.values()), default=0)
    for condition in dict.fromkeys(condition for _, _, condition in runs):
        counts = {key: len(some) for key, some in runs.items() if key[2] == condition}
        here = max(counts.values())
        if here < most:
            yield f"{condition.title}: {counted(here, 'seed')} only."
        fewer.update(
            model for (model, _, _), count in counts.items() if count < min(here, len(results.hashes[model]))
        )
    if fewer:
        names = (f"{model} ({counted(count, 'result')})" for model, count in fewer.items())
        yield f"Seeds missing: {', '.join(names)}."


def settings_notes(runs: Runs, results: Results) -> Iterator[str]:
    """In which settings cells of one set under one attack differ."""
    for words, get in TOLD.items():
        places: dict[tuple[str, Condition], set[str]] = {}
        for (_, set_name, condition), some in runs.items():
            places.setdefault((set_name, condition), set()).update(str(get(cell)) for cell in some.values())
        different = dict.fromkeys(results.short[s] for (s, _), values in places.items() if len(values) > 1)
        if different:
            yield f"Measured with different {words}: {', '.join(different)}."


def images_notes(runs: Runs, results: Results, *, parts: bool = True) -> Iterator[str]:
    """Sets where the number of images varies between results and, with `parts`, of which only a part was evaluated."""
    uneven, limited = [], []
    every: dict[str, list[int]] = {}
    for name in [name for name in results.sets if any(s == name for _, s, _ in runs)]:
        cells = [cell for (_, s, _), some in runs.items() if s == name for cell in some.values()]
        counts = every[name] = sorted({cell.n for cell in cells})
        of = next((cell.subset.get("of", "more") for cell in cells if "limit" in cell.subset), None)
        if len(counts) > 1:
            uneven.append(f"{results.short[name]} ({', '.join(map(str, counts))})")
        elif parts and of is not None:
            limited.append(f"{results.short[name]} ({counts[0]} of {of})")
    first = next(iter(every.values()), [])
    alike = len(every) > 1 and all(counts == first for counts in every.values())
    if alike and len(uneven) == len(every):
        yield f"The number of images varies: {' or '.join(map(str, first))} of each set."
    elif alike and len(limited) == len(every):
        yield f"{counted(first[0], 'class-balanced image')} of each set."
    else:
        if uneven:
            yield f"The number of images varies: {', '.join(uneven)}."
        if limited:
            yield f"Class-balanced subsets: {', '.join(limited)}."


def set_heading(results: Results) -> str:
    """ "mini set" if the names below it have lost their "mini/"; else "set"."""
    return f"{results.group} set" if results.group else "set"


def _heading(condition: Condition) -> str:
    return condition.title.replace(", ", "\n")


def _footer(results: Results, means: list[Value]) -> list[Value]:
    """The mean row; a single set has none of its own."""
    return (
        [f"mean of {len(results.mean_sets)}", *means] if len(results.sets) > 1 and results.mean_sets else []
    )
