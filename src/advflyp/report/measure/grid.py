"""The table of a comparison: methods down, sets and their means across, a block for each attack at each ε."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from advflyp.data.mini import full_corpus_folder, mini_sets
from advflyp.report.measure.estimates import Condition
from advflyp.report.measure.results import Results, is_flagged
from advflyp.report.measure.tables import Table, Value
from advflyp.wording import counted

IN, OUT = "in proxy", "out of proxy"
MARKS = "Bold: best of a block; underlined: second best; ties share the mark."
MIXED = "Only methods with the most training seeds are ranked: a mean over several is not compared with a single run."
# What may differ between cells that stand in one column, so that the reader has to be told.
TOLD = {
    "prompt": "prompts",
    "attack_args": "settings of the attack",
    "precision": "precision",
    "split": "splits",
}


@cache
def _in_proxy() -> dict[str, bool]:
    known = {**mini_sets(full_corpus_folder()), **mini_sets()}
    return {f"mini/{name}": info["in_proxy"] for name, info in known.items() if "in_proxy" in info}


def sides(sets: Sequence[str]) -> dict[str, list[str]]:
    """The sets whose concepts the labelled proxy covers and those whose concepts it does not.

    Empty where it is not known of every set, or all are on one side: there is nothing to tell apart.
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

    A mean is over all sets that the block has any results on; a model that lacks one of these has none.

    Args:
        conditions: The blocks, by default all measured ones; those without results are in the note only.
        sets: The columns, by default all measured ones.
        unranked: Models that are shown and not ranked.
    """
    chosen = list(sets or results.sets)
    wanted = list(conditions or results.conditions)
    found = [c for c in wanted if any((m, s, c) in results.cells for m in results.models for s in chosen)]
    split = sides(chosen)
    columns = [*split[IN], *split[OUT]] if split else chosen
    means = {"mean": columns, **split} if len(columns) > 1 else {}
    rows: list[list[Value]] = []
    blocks = []
    for condition in found:
        here = _measured(results, condition, columns)
        for model in results.models:
            row: list[Value] = [model, *_seeds(results, model, [condition], columns)]
            row += [results.get(model, name, condition) for name in columns]
            row += [
                results.mean(model, condition, part) if (part := [s for s in names if s in here]) else None
                for names in means.values()
            ]
            rows.append(row)
        title_of = "clean images" if condition.norm is None else condition.title
        blocks.append((title_of, len(results.models)))
    first = ["method", *(["seeds"] if results.replicated else [])]
    groups = [("", len(first)), *((side, len(names)) for side, names in split.items())]
    groups += [("mean over sets", len(means))] if split else []
    headings = [
        (f"all\n({len(names)})" if split else f"mean of {len(names)}")
        if name == "mean"
        else f"{name}\n({len(names)})"
        for name, names in means.items()
    ]
    table = Table(
        title=title,
        columns=[*first, *(_short(results, name) for name in columns), *headings],
        rows=rows,
        groups=groups if split else [],
        blocks=blocks,
        best=True,
        unranked=unranked,
        note=" ".join([*_about(results, wanted, found, columns), *_partial(results, found, columns)]),
    )
    return _told_of_seeds(table)


def means_table(
    results: Results,
    conditions: Sequence[Condition] | None = None,
    *,
    title: str = "Mean zero-shot accuracy in %",
    sets: Sequence[str] | None = None,
    unranked: Sequence[str] = (),
) -> Table:
    """A row for each of `results.models`, for each condition its means over all sets and over each kind of set.

    What the finetuning took in arithmetic stands before them, where it is known of any model.
    """
    chosen = list(sets or results.sets)
    wanted = list(conditions or results.conditions)
    found = [c for c in wanted if any((m, s, c) in results.cells for m in results.models for s in chosen)]
    kinds = {"all": chosen, **sides(chosen)}
    costs = {model: cost for model in results.models if (cost := results.pflops(model)) is not None}
    rows: list[list[Value]] = []
    for model in results.models:
        row: list[Value] = [model, *_seeds(results, model, found, chosen)]
        if costs:
            row.append(f"{costs[model]:.3g}" if model in costs else None)
        for condition in found:
            here = _measured(results, condition, chosen)
            row += [
                results.mean(model, condition, [s for s in names if s in here]) for names in kinds.values()
            ]
        rows.append(row)
    first = ["method", *(["seeds"] if results.replicated else []), *(["PFLOPs"] if costs else [])]
    titles = ["clean" if c.norm is None else c.title for c in found]
    columns = [
        (title.replace(", ", "\n") if len(kinds) == 1 else f"{kind}\n({len(names)})")
        for title in titles
        for kind, names in kinds.items()
    ]
    table = Table(
        title=title,
        columns=[*first, *columns],
        rows=rows,
        groups=[("", len(first)), *((t, len(kinds)) for t in titles)] if len(kinds) > 1 else [],
        best=True,
        unranked=unranked,
        note=" ".join([*_about(results, wanted, found, chosen), *_partial(results, found, chosen)]),
    )
    return _told_of_seeds(table)


def _told_of_seeds(table: Table) -> Table:
    return replace(table, note=f"{table.note} {MIXED}") if table.mixes_seeds() else table


def _short(results: Results, name: str) -> str:
    """As the results shorten it; a set that nobody was measured on likewise."""
    return results.short.get(name, name.removeprefix(f"{results.group}/"))


def _measured(results: Results, condition: Condition, sets: Sequence[str]) -> list[str]:
    return [s for s in sets if any((m, s, condition) in results.cells for m in results.models)]


def _seeds(results: Results, model: str, conditions: Sequence[Condition], sets: Sequence[str]) -> list[Value]:
    """How many seeds of the model were measured, in tables where some have several."""
    if not results.replicated:
        return []
    found = {sha for s in sets for c in conditions for sha in results.runs.get((model, s, c), ())}
    return [str(len(found)) if found else None]


def _partial(results: Results, found: Sequence[Condition], sets: Sequence[str]) -> list[str]:
    return [
        f"{c.title}: means over {len(here)} of {counted(len(sets), 'set')}, those measured."
        for c in found
        if len(here := _measured(results, c, sets)) < len(sets)
    ]


def sanity_table(results: Results) -> Table | None:
    """A row for each result that failed a check for masked gradients; None where nothing was checked."""
    checked = [cell for runs in results.runs.values() for cell in runs.values() if cell.sanity is not None]
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
        for (model, name, condition), runs in results.runs.items()
        for cell in runs.values()
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


def _about(
    results: Results, wanted: Sequence[Condition], found: Sequence[Condition], sets: Sequence[str]
) -> list[str]:
    """What a reader has to know of the numbers: how spread is given, what is missing, what was not the same."""
    shown = {
        key: runs
        for key, runs in results.runs.items()
        if key[0] in results.hashes and key[1] in sets and key[2] in wanted
    }
    total = len(results.models) * len(sets) * len(wanted)
    lines = [f"Protocol: {results.protocol}."] if results.protocol else []
    if len(results.models) > 1:
        lines.append(MARKS)
    if any(len(runs) > 1 for runs in shown.values()):
        lines.append("±: one sample standard deviation over training seeds.")
    if any(len(runs) == 1 for runs in shown.values()):
        lines.append("Ranges: 95 % intervals of one checkpoint.")
    if len(shown) < total:
        missing = f"{total - len(shown):,} of {counted(total, 'result')} missing (–)"
        absent = [c.title for c in wanted if c not in found]
        lines.append(missing + (f", among them all of {', '.join(absent)}." if absent else "."))
    lines += _seeds_missing(results, shown)
    lines += _images(results, shown, sets)
    for name, words in TOLD.items():
        places: dict[tuple[str, Condition], set[str]] = {}
        for (_, set_name, condition), runs in shown.items():
            values = {str(getattr(cell, name)) for cell in runs.values()}
            places.setdefault((set_name, condition), set()).update(values)
        different = dict.fromkeys(results.short[s] for (s, _), values in places.items() if len(values) > 1)
        if different:
            lines.append(f"Measured with different {words}: {', '.join(different)}.")
    if any(is_flagged(cell) for runs in shown.values() for cell in runs.values()):
        lines.append("†: the gradients look masked; do not trust this accuracy.")
    return lines


Shown = dict[tuple[str, str, Condition], dict]


def _seeds_missing(results: Results, shown: Shown) -> list[str]:
    """Attacks that were made with fewer seeds by everybody, and who else lacks some."""
    lines, fewer = [], {}
    conditions = dict.fromkeys(condition for _, _, condition in shown)
    most = max(map(len, shown.values()), default=0)
    for condition in conditions:
        counts = {key: len(runs) for key, runs in shown.items() if key[2] == condition}
        here = max(counts.values())
        if here < most:
            lines.append(f"{condition.title}: {counted(here, 'seed')} only.")
        for (model, _, _), count in counts.items():
            if count < min(here, len(results.hashes[model])):
                fewer[model] = fewer.get(model, 0) + 1
    names = ", ".join(f"{model} ({counted(count, 'result')})" for model, count in fewer.items())
    return lines + ([f"Seeds missing: {names}."] if fewer else [])


def _images(results: Results, shown: Shown, sets: Sequence[str]) -> list[str]:
    """Sets of which only a part was evaluated, and those on which not everybody saw as many images."""
    uneven, parts = [], []
    every: dict[str, list[int]] = {}
    for name in sets:
        cells = [cell for (_, s, _), runs in shown.items() if s == name for cell in runs.values()]
        counts = sorted({cell.n for cell in cells})
        every[name] = counts
        limited = [cell for cell in cells if "limit" in cell.subset]
        if len(counts) > 1:
            uneven.append(f"{results.short[name]} ({', '.join(map(str, counts))})")
        elif limited:
            parts.append(f"{results.short[name]} ({counts[0]} of {limited[0].subset.get('of', 'more')})")
    alike = len(sets) > 1 and len({tuple(counts) for counts in every.values()}) == 1
    if alike and len(uneven) == len(sets):
        numbers = " or ".join(map(str, every[sets[0]]))
        return [f"The number of images varies: {numbers} of each set."]
    if alike and len(parts) == len(sets):
        return [f"{counted(every[sets[0]][0], 'class-balanced image')} of each set."]
    lines = [f"The number of images varies: {', '.join(uneven)}."] if uneven else []
    return lines + ([f"Class-balanced subsets: {', '.join(parts)}."] if parts else [])
