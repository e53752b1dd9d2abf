"""What the experiment `proxies` says: verdicts, accuracies by number and kind of data, coverage. Tables and figures."""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

from advflyp.paper.efficiency import paired
from advflyp.paper.proxies.numbers import CLEAN, ROBUST, Numbers, Side
from advflyp.paper.proxies.plan import (
    BASIC,
    BEST,
    CELLS,
    CORNERS,
    EVERY_PAIR,
    LABELLED,
    LONGER,
    NEAR,
    NUMBERS,
    OTHER_NUMBERS,
    OUTSIDE,
    PAIRS,
    SAME,
    TRAINED_LONGER,
    UNTRAINED,
    WORDS,
    Cell,
    with_spaces,
)
from advflyp.paper.proxies.rules import HYPOTHESES, Decision, Verdict, all_of, by_seed, decide
from advflyp.report.figures.number import against_number, by_kind
from advflyp.report.figures.plots import Look, svg
from advflyp.report.measure.estimates import Estimate
from advflyp.report.measure.tables import Blocks, Table, Value, in_blocks
from advflyp.wording import counted

METHODS = {
    PAIRS: "AdvFLYP_full on pairs",
    BASIC: "AdvFLYP on pairs",
    **LABELLED,
    SAME: "AdvFLYP_full on labelled images",
}
INTERVALS = "Ranges: 95 % bootstrap intervals over seeds, sets and images, if the outcomes of single images were kept."
ABOUT_VERDICTS = (
    "Differences are means over the headline's sets, paired by seed; their 95 % interval of Student's t over seeds "
    "decides. Bootstrap: 95 % interval over seeds, sets and images, which decides nothing; it needs the outcomes of "
    "single images."
)
ABOUT_GRID = (
    f"Means over the headline's sets. {INTERVALS} Corners of the grid have several seeds, the rest one. Pairs are of "
    "one kind: their rows repeat the same values for every kind of labelled data of that number."
)
ABOUT_SIDES = (
    f"Means over the headline's sets with 10 such images or more. {INTERVALS} Differences, in points, to training on "
    "as many pairs, on the same test images: paired by seed, 95 % interval of Student's t. A class is in the proxy if "
    "its name is."
)
ABOUT_COVERAGE = (
    "Means over seeds; each draws its own classes and images. A class is in the proxy if its name is; concepts behind "
    "other names (`proxy_share` of docs/mini.md) are not counted. Distance: 1 − cos of the embeddings of a class's "
    "name and of the nearest of the proxy's, in the original's text tower; the mean over the set's images."
)
ABOUT_OUTSIDE = (
    "Means over seeds, ± their standard deviation if there are several. fashion is of the family of the foreign "
    "training images, photos of CIFAR-10's: on them, a model trained on that data is in its own domain."
)
OUTSIDE_NUMBER = 2200


def verdicts(numbers: Numbers, *, best: bool) -> dict[str, tuple[Verdict, list[Decision]]]:
    """Hypothesis → its verdict and the decisions on its statements."""
    column = numbers.column(best=best)
    found = {
        one.id: [decide(statement, column[ROBUST], column[CLEAN]) for statement in one.statements]
        for one in HYPOTHESES
    }
    return {id: (all_of([one.verdict for one in some]), some) for id, some in found.items()}


def summary(numbers: Numbers) -> str:
    """ "H1 holds, H2 undecided, …" for the last weights, and where the best-validation weights differ."""
    last, best = (verdicts(numbers, best=best) for best in (False, True))
    text = ", ".join(f"{id} {verdict}" for id, (verdict, _) in last.items()) + "."
    other = [f"{id} {best[id][0]}" for id in last if best[id][0] != last[id][0]]
    return text + (f" With the weights at the best validation: {', '.join(other)}." if other else "")


def verdict_table(numbers: Numbers) -> Table:
    """A block for each hypothesis, a row for each of its statements."""
    last, best = (verdicts(numbers, best=best) for best in (False, True))
    blocks: Blocks = []
    for hypothesis in HYPOTHESES:
        heading = f"{hypothesis.id} {last[hypothesis.id][0]}: {hypothesis.words}"
        rows: list[list[Value]] = [
            [
                one.statement.words,
                str(one.seeds),
                one.difference,
                _bootstrap(numbers, one),
                one.verdict,
                other.difference,
                other.verdict,
            ]
            for one, other in zip(last[hypothesis.id][1], best[hypothesis.id][1], strict=True)
        ]
        blocks.append((heading, rows))
    return Table(
        title="Hypotheses: differences in points",
        columns=[
            "statement", "seeds", "difference", "bootstrap", "verdict", "at the best\nvalidation", "verdict\nthere"
        ],
        **in_blocks(blocks),
        note=f"{ABOUT_VERDICTS} Headline: {', '.join(numbers.sets) or 'no set yet'}.",
    )  # fmt: skip


def grid_table(numbers: Numbers, cells: Sequence[Cell], title: str) -> Table:
    """A row for each method, a column for each grid cell; blocks for robust and clean, last and best weights."""
    blocks: Blocks = []
    for attack, words in ((ROBUST, "PGD-10, ε = 1/255"), (CLEAN, "clean images")):
        for end, which in (("", "last weights"), (BEST, "best validation")):
            rows: list[list[Value]] = [
                [label, *(numbers.accuracy(cell.run(method) + end, attack) for cell in cells)]
                for method, label in METHODS.items()
            ]
            if measured := list(filter(_is_measured, rows)):
                blocks.append((f"{words}, {which}", measured))
    one_kind = len({cell.data for cell in cells}) == 1
    counts = Counter(f"{with_spaces(cell.number)} images" for cell in cells)
    return Table(
        title=title,
        columns=["method", *(with_spaces(c.number) if one_kind else WORDS[c.data] for c in cells)],
        **in_blocks(blocks),
        groups=[] if one_kind else [("", 1), *counts.items()],
        note=ABOUT_GRID + (_worth_of_validation(numbers) if one_kind else ""),
    )


def sides_table(numbers: Numbers) -> Table:
    """A block for each proxy: methods on images whose class is in it and on the others, compared with pairs."""
    blocks: Blocks = []
    for cell in CELLS:
        rows: list[list[Value]] = [
            [label, *_sides(numbers, cell, method)] for method, label in METHODS.items()
        ]
        if any(map(_is_measured, rows)):
            blocks.append((cell.words, rows))
    return Table(
        title="In and out of coverage: accuracy in % under PGD-10 at 1/255",
        columns=["method", *["accuracy", "− pairs"] * 2],
        groups=[("", 1), ("class in the proxy", 2), ("class not in the proxy", 2)],
        **in_blocks(blocks),
        note=ABOUT_SIDES,
    )


def coverage_table(numbers: Numbers, sets: Sequence[str]) -> Table:
    """What share of each set's images each proxy has a label for, and how far the classes are from its labels."""
    known = [cell for cell in CELLS if any(key[0] == cell.name for key in numbers.coverage)]
    columns = [name for name in sets if any(key[2] == name for key in numbers.coverage)]

    def row(cell: Cell, get: Callable[[Any], float], digits: int) -> list[Value]:
        values: list[Value] = [cell.words]
        for name in columns:
            found = [
                get(one) for (data, _, s), one in numbers.coverage.items() if (data, s) == (cell.name, name)
            ]
            values.append(f"{statistics.fmean(found):.{digits}f}" if found else None)
        return values

    shares = [row(cell, lambda one: 100 * one.share, 0) for cell in known]
    distances = [row(cell, lambda one: one.distance, 2) for cell in known]
    return Table(
        title="Coverage of the test sets by the proxies",
        columns=["proxy", *(name.removeprefix("mini/") for name in columns)],
        **in_blocks([("images whose class is in the proxy (%)", shares), ("distance of class names", distances)]),
        note=ABOUT_COVERAGE,
    )  # fmt: skip


def longer_table(numbers: Numbers) -> Table:
    """Trainings on the most data: with the usual number of updates, and with four times as many."""
    rows: list[list[Value]] = []
    for method, cell in TRAINED_LONGER:
        run = cell.run(method)
        seeds = numbers.by_seed(run + LONGER, ROBUST)
        usual, longer = (
            [numbers.accuracy(run + end, attack, seeds) for attack in (ROBUST, CLEAN)] for end in ("", LONGER)
        )
        if longer[0] is not None:
            rows.append([f"{METHODS[method]}, {with_spaces(cell.number)}", *usual, *longer])
    return Table(
        title="Four times the updates: mean accuracy in %",
        columns=["method and images", *["PGD-10,\nε = 1/255", "clean"] * 2],
        groups=[("", 1), ("usual updates", 2), ("four times as many", 2)],
        rows=rows,
        note=f"Means over the headline's sets. {INTERVALS} Both are of the first seed.",
    )


def regularisers_table(numbers: Numbers) -> Table:
    """What AdvFLYP gains without its regularisers: a row for each number of pairs."""
    rows: list[list[Value]] = []
    for number in (*NUMBERS, EVERY_PAIR):
        without, full = (Cell(number, "near").run(method) for method in (BASIC, PAIRS))
        gains = [
            paired(numbers.by_seed(without + end, attack), numbers.by_seed(full + end, attack))
            for attack in (ROBUST, CLEAN)
            for end in ("", BEST)
        ]
        if gains[0] is not None:
            rows.append([with_spaces(number), *gains])
    return Table(
        title="AdvFLYP without regularisers − AdvFLYP_full, on the same pairs: differences in points",
        columns=["pairs", *["last weights", "best validation"] * 2],
        groups=[("", 1), ("PGD-10, ε = 1/255", 2), ("clean images", 2)],
        rows=rows,
        note="Differences are means over the headline's sets, paired by seed; 95 % interval of Student's t over seeds.",
    )


def outside_table(numbers: Numbers) -> Table:
    """A column for each set outside the headline and attack, a block for each kind of training data."""
    names = [name for name in OUTSIDE if numbers.on_set(UNTRAINED, name, CLEAN) is not None]

    def row(label: str, run: str) -> list[Value]:
        return [label, *(numbers.on_set(run, name, attack) for name in names for attack in (ROBUST, CLEAN))]

    blocks = [("no finetuning", [row("the original", UNTRAINED)])]
    for data in WORDS:
        cell = Cell(OUTSIDE_NUMBER, data)
        rows = [
            row(label, cell.run(method))
            for method, label in METHODS.items()
            if data == "near" or method not in (PAIRS, BASIC)
        ]
        if measured := list(filter(_is_measured, rows)):
            blocks.append((cell.words, measured))
    return Table(
        title="Sets outside the headline: accuracy in %",
        columns=["method", *["PGD-10,\nε = 1/255", "clean"] * len(names)],
        groups=[("", 1), *((name.removeprefix("mini/"), 2) for name in names)],
        **in_blocks(blocks),
        note=ABOUT_OUTSIDE,
    )  # fmt: skip


def tables(numbers: Numbers, sets: Sequence[str]) -> dict[str, Table]:
    """All tables, by the ends of their file names."""
    kinds = [Cell(n, data) for n in OTHER_NUMBERS for data in WORDS]
    found = {
        "verdicts": verdict_table(numbers),
        "number": grid_table(
            numbers, [*NEAR, Cell(EVERY_PAIR, "near")], "By number of images: mean accuracy in %"
        ),
        "kinds": grid_table(numbers, kinds, "By breadth and distance of the data: mean accuracy in %"),
    }
    if (regularisers := regularisers_table(numbers)).rows:
        found["regularisers"] = regularisers
    if (longer := longer_table(numbers)).rows:
        found["longer"] = longer
    if len((outside := outside_table(numbers)).columns) > 1:
        found["outside"] = outside
    if numbers.coverage:
        found |= {"sides": sides_table(numbers), "coverage": coverage_table(numbers, sets)}
    return found


def figures(numbers: Numbers) -> dict[str, Any]:
    """The look of the methods, and figures by number of images, by kind of data, and in and out of coverage."""
    look = Look.of(list(METHODS.values()))
    return {
        "look": look,
        "number": _against_number(numbers, look),
        "kinds": _by_kind(numbers, look),
        "sides": _by_side(numbers, look),
    }


def _against_number(numbers: Numbers, look: Look) -> list[Markup]:
    plots = []
    for attack, end, title in (
        (ROBUST, "", "PGD-10, ε = 1/255"),
        (CLEAN, "", "clean images"),
        (ROBUST, BEST, "PGD-10, ε = 1/255, best validation"),
    ):
        lines: dict[str, list[tuple[float, Estimate]]] = {}
        for method, label in METHODS.items():
            for number in (*NUMBERS, EVERY_PAIR):
                run = Cell(number, "near").run(method) + end
                if (value := numbers.spread(run, attack)) is not None:
                    lines.setdefault(label, []).append((number, value))
        if lines:
            figure = against_number(lines, look, what="training images", title=title)
            plots.append(svg(figure, f"accuracy against the number of images, {title}"))
    return plots


def _by_kind(numbers: Numbers, look: Look) -> list[Markup]:
    plots = []
    for number in OTHER_NUMBERS:
        points = {
            WORDS[data].replace(" ", "\n"): {
                label: value
                for method, label in METHODS.items()
                if method not in (PAIRS, BASIC)
                and (value := numbers.spread(Cell(number, data).run(method), ROBUST)) is not None
            }
            for data in WORDS
        }
        if any(points.values()):
            pairs = numbers.spread(Cell(number, "near").run(PAIRS), ROBUST)
            title = f"{number:,} images, PGD-10, ε = 1/255"
            reference = None if pairs is None else (METHODS[PAIRS], pairs)
            figure = by_kind(points, look, title=title, reference=reference)
            plots.append(svg(figure, f"robust accuracy by kind of data, {number:,} images"))
    return plots


def _by_side(numbers: Numbers, look: Look) -> list[Markup]:
    """The lead of each method over the same number of pairs, at the corners of the grid."""
    plots = []
    corners = [cell for cell in CELLS if cell in CORNERS]
    for inside, words in ((True, "class in the proxy"), (False, "class not in the proxy")):
        points = {
            f"{WORDS[cell.data]}\n{cell.number:,}": {
                label: value
                for method, label in METHODS.items()
                if (value := _lead(numbers, cell, method, Side(cell.name, inside))) is not None
            }
            for cell in corners
        }
        if any(points.values()):
            figure = by_kind(points, look, title=f"{words}: lead over as many pairs")
            plots.append(svg(figure, f"robust accuracy beside that of as many pairs, {words}"))
    return plots


def _is_measured(row: list[Value]) -> bool:
    """Whether any value follows the name of the row."""
    return any(value is not None for value in row[1:])


def _sides(numbers: Numbers, cell: Cell, method: str) -> list[Value]:
    values: list[Value] = []
    for inside in (True, False):
        side = Side(cell.name, inside)
        seeds = numbers.on_side(cell.run(method), ROBUST, side)
        if not seeds:
            values += [None, None]
            continue
        value = statistics.fmean(seeds.values())
        low, high = numbers.resampled([(1, cell.run(method))], ROBUST, sorted(seeds), side) or (value, value)
        values += [Estimate(value, low, high), _lead(numbers, cell, method, side)]
    return values


def _lead(numbers: Numbers, cell: Cell, method: str, side: Side) -> Estimate | None:
    """The lead over the same number of pairs, on the same images; None for pairs themselves."""
    if method == PAIRS:
        return None
    own, pairs = (numbers.on_side(cell.run(name), ROBUST, side) for name in (method, PAIRS))
    return paired(own, pairs)


def _worth_of_validation(numbers: Numbers) -> str:
    """What the weights at the best validation gain over the last ones, in all trainings of which both were measured."""
    gains = [
        100 * (accuracy - last[seed])
        for run in numbers.results
        for last in [numbers.by_seed(run, ROBUST)]
        for seed, accuracy in numbers.by_seed(run + BEST, ROBUST).items()
        if seed in last
    ]
    if not gains:
        return ""
    better, worse = (sum(sign * gain > 0.05 for gain in gains) for sign in (1, -1))
    return (
        f" Of {counted(len(gains), 'training')}, the weights at the best validation are more robust than the last ones "
        f"in {better}, by at most {max(0.0, *gains):.1f} points, and less robust in {worse}, by up to "
        f"{max(0.0, -min(gains)):.1f}."
    )


def _bootstrap(numbers: Numbers, decision: Decision) -> str | None:
    if decision.difference is None:
        return None
    statement = decision.statement
    attack = CLEAN if statement.clean else ROBUST
    seeds = sorted(by_seed(statement, numbers.column(best=False)[attack]))
    found = numbers.resampled(statement.terms, attack, seeds)
    return Estimate(decision.difference.value, *found, is_change=True).interval if found else None
