"""Results arranged for reading: cells → estimates with intervals → tables, whatever they are printed as.

A `Table` is plain data; report/console.py prints it, report/html.py and `markdown` write it.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from advflyp.evaluation.results import Cell, mean_interval

MINUS = "−"


@dataclass(frozen=True)
class Estimate:
    """An accuracy (0–1) and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def number(self) -> str:
        return f"{100 * self.value:.1f}"

    @property
    def interval(self) -> str:
        return f"{100 * self.low:.0f}–{100 * self.high:.0f}"


@dataclass(frozen=True)
class Change(Estimate):
    """A difference of accuracies; printed with its sign, in points."""

    @property
    def number(self) -> str:
        return signed(100 * self.value)

    @property
    def interval(self) -> str:
        return f"{signed(100 * self.low)} to {signed(100 * self.high)}"


@dataclass(frozen=True)
class Condition:
    """What the images went through: an attack in a norm ball, or nothing ("clean", eps 0)."""

    attack: str
    norm: str | None
    eps: float

    @property
    def title(self) -> str:
        return self.attack if not self.norm else f"{attack_title(self.attack)}, ε = {self.radius}"

    @property
    def radius(self) -> str:
        return radius(self.eps, self.norm)


class Results:
    """Cells by model, set and condition, each in the order of its first appearance (ε ascending).

    A name that stands for several checkpoints is split: "run" becomes "run (3f2a91c0)" and "run (77b1…)".
    ValueError where one measurement is there twice with different settings, so that no table can hold both.
    """

    def __init__(self, cells: Iterable[Cell]) -> None:
        cells = list(cells)
        hashes: dict[str, set[str]] = {}
        for cell in cells:
            hashes.setdefault(cell.model, set()).add(cell.checkpoint_sha256)
        self.cells: dict[tuple[str, str, Condition], Cell] = {}
        for cell in cells:
            split = len(hashes[cell.model]) > 1
            model = f"{cell.model} ({cell.checkpoint_sha256[:8]})" if split else cell.model
            key = (model, cell.set, Condition(cell.attack, cell.norm, cell.eps))
            _same_settings(model, self.cells.get(key, cell), cell)
            self.cells[key] = cell
        self.models = list(dict.fromkeys(model for model, _, _ in self.cells))
        self.sets = list(dict.fromkeys(name for _, name, _ in self.cells))
        conditions = list(dict.fromkeys(condition for _, _, condition in self.cells))
        attacks = list(dict.fromkeys((c.attack, c.norm) for c in conditions))
        # What all names share ("mini/") is said once, in a heading.
        prefixes = {name.partition("/")[0] for name in self.sets if "/" in name[:-1]}
        shared = len(prefixes) == 1 and all("/" in name[:-1] for name in self.sets)
        self.group = prefixes.pop() if shared else None
        self.short = {name: name.partition("/")[2] if shared else name for name in self.sets}
        # Clean first, then attack by attack.
        self.conditions = sorted(
            conditions, key=lambda c: (c.norm is not None, attacks.index((c.attack, c.norm)), c.eps)
        )
        self.sha256 = {model: cell.checkpoint_sha256 for (model, _, _), cell in self.cells.items()}
        self.seconds = {
            model: sum(cell.seconds for (name, _, _), cell in self.cells.items() if name == model)
            for model in self.models
        }
        measured = [
            (model, condition)
            for model in self.models
            for condition in self.conditions
            if any((model, name, condition) in self.cells for name in self.sets)
        ]
        # Means are over the same sets for every model and condition, else they could not be compared.
        self.mean_sets = [
            name for name in self.sets if all((model, name, c) in self.cells for model, c in measured)
        ]

    def get(self, model: str, set_name: str, condition: Condition) -> Estimate | None:
        cell = self.cells.get((model, set_name, condition))
        return Estimate(cell.accuracy, *cell.ci95) if cell else None

    def mean(self, model: str, condition: Condition) -> Estimate | None:
        """Over `mean_sets`; None where nothing was measured."""
        cells = [self.cells.get((model, name, condition)) for name in self.mean_sets]
        found = [cell for cell in cells if cell is not None]
        if not found:
            return None
        value, (low, high) = mean_interval(found)
        return Estimate(value, low, high)

    def images(self, set_name: str) -> str:
        """How many images of the set were judged ("150", or "100, 150" where it varies)."""
        counts = {cell.n for (_, name, _), cell in self.cells.items() if name == set_name}
        return ", ".join(str(n) for n in sorted(counts))

    @property
    def clean(self) -> Condition | None:
        return next((c for c in self.conditions if c.norm is None), None)

    @property
    def attacked(self) -> list[Condition]:
        return [c for c in self.conditions if c.norm is not None]

    def strongest(self, eps: float | None = None) -> Condition | None:
        """The attack that leaves the least at this ε; at the smallest ε measured if none is given."""
        attacked = self.attacked
        if not attacked:
            return None
        # The radii of different norms cannot be compared: the first norm measured leads.
        attacked = [c for c in attacked if c.norm == attacked[0].norm]
        target = min(c.eps for c in attacked) if eps is None else eps
        near = [c for c in attacked if math.isclose(c.eps, target, rel_tol=1e-6)]
        return min(near, key=self._left, default=None)

    def _left(self, condition: Condition) -> float:
        cells = [cell for (_, _, c), cell in self.cells.items() if c == condition]
        return sum(cell.accuracy for cell in cells) / len(cells)


Value = str | Estimate | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """columns: headings, a line break splits them;  rows, footer: one value a column, None prints as a dash."""

    title: str
    columns: list[str]
    rows: list[list[Value]]
    footer: list[Value] = field(default_factory=list)
    note: str = ""


def accuracy_table(results: Results, model: str, *, name_model: bool = True) -> Table:
    """One model: a row for each set, a column for each condition, the mean over sets last."""
    conditions = [c for c in results.conditions if any(results.get(model, s, c) for s in results.sets)]
    rows: list[list[Value]] = [
        [results.short[name], results.images(name), *(results.get(model, name, c) for c in conditions)]
        for name in results.sets
    ]
    return Table(
        title=f"Zero-shot accuracy{f' of {model}' if name_model else ''} in %",
        columns=[set_heading(results), "n", *(_heading(c) for c in conditions)],
        rows=rows,
        footer=_footer(results, ["", *(results.mean(model, c) for c in conditions)]),
        note=mean_note(results),
    )


def models_table(results: Results) -> Table:
    """A row for each model, a column for each condition: means over sets."""
    count = len(results.mean_sets)
    return Table(
        title=f"Mean zero-shot accuracy in % over {count} {'set' if count == 1 else 'sets'}",
        columns=["model", *(_heading(c) for c in results.conditions)],
        rows=[[model, *(results.mean(model, c) for c in results.conditions)] for model in results.models],
        note=mean_note(results),
    )


def comparison_table(
    results: Results, before: str, after: str, conditions: Sequence[Condition], *, intervals: bool = True
) -> Table:
    """A row for each set: before, after and the change in points, at each condition.

    intervals: also for the changes (wide)
    """
    rows: list[list[Value]] = []
    for name in results.sets:
        row: list[Value] = [results.short[name]]
        for condition in conditions:
            row += _three(
                results.get(before, name, condition), results.get(after, name, condition), intervals
            )
        rows.append(row)
    footer: list[Value] = []
    for condition in conditions:
        footer += _three(results.mean(before, condition), results.mean(after, condition), intervals)
    return Table(
        title=f"Zero-shot accuracy in %: {before} (before) and {after} (after)",
        columns=[
            set_heading(results),
            *(f"{_heading(c)}\n{part}" for c in conditions for part in ("before", "after", "change")),
        ],
        rows=rows,
        footer=_footer(results, footer),
        note=mean_note(results),
    )


def difference(before: Estimate, after: Estimate) -> Change:
    """The change from `before` to `after` with Newcombe's interval for two independent proportions.

    Both models saw the same images, so the true interval is usually narrower than this one.
    """
    value = after.value - before.value
    down = math.hypot(after.value - after.low, before.high - before.value)
    up = math.hypot(after.high - after.value, before.value - before.low)
    return Change(value, max(-1.0, value - down), min(1.0, value + up))


def check_models(results: Results, *names: str) -> None:
    """ValueError for a model of which there are no results."""
    for name in names:
        if name not in results.models:
            raise ValueError(
                f"there are no results of {name}, only of {', '.join(results.models) or 'nothing'}"
            )


def mean_change(results: Results, before: str, after: str, condition: Condition) -> Change | None:
    """The change of the mean over sets; None where one of the models was not measured."""
    first, second = results.mean(before, condition), results.mean(after, condition)
    return difference(first, second) if first and second else None


def markdown(table: Table) -> str:
    """The table as GitHub-flavoured Markdown, with its title and note."""

    def line(values: Sequence[Value]) -> str:
        return "| " + " | ".join(escape_markdown(plain(value)) for value in values) + " |"

    columns = [column.replace("\n", " ") for column in table.columns]
    rule = "|---|" + "---:|" * (len(columns) - 1)
    lines = [f"### {escape_markdown(table.title)}", "", line(columns), rule, *map(line, table.rows)]
    if table.footer:
        lines.append("| " + " | ".join(_bold(escape_markdown(plain(value))) for value in table.footer) + " |")
    if table.note:
        lines += ["", escape_markdown(table.note)]
    return "\n".join(lines) + "\n"


def plain(value: Value) -> str:
    """A value as text: "61.0 (51–70)"."""
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value.number} ({value.interval})"


def attack_title(attack: str) -> str:
    """ "pgd10" → "PGD-10", "cw10x5" → "CW-10×5", "apgd-ce+square" → "APGD-CE + Square"; others stay as they are."""
    if match := re.fullmatch(r"([a-z]+)(\d+)(?:x(\d+))?", attack):
        return f"{match[1].upper()}-{match[2]}" + (f"×{match[3]}" if match[3] else "")
    names = {"autoattack": "AutoAttack", "autoattack-rand": "AutoAttack (rand)", "square": "Square"}
    parts = [names.get(p, p.upper() if "-" in p else p) for p in attack.split("+")]
    return " + ".join(parts)


def radius(eps: float, norm: str | None) -> str:
    """ε as people write it: "2/255" for L∞, "0.5 (L2)" for L2."""
    if norm == "l2":
        return f"{eps:.4g} (L2)"
    return f"{_trim(eps * 255)}/255"


def signed(points: float, digits: int = 1) -> str:
    """ "+3.2", "−0.4" with a true minus sign."""
    text = f"{abs(points):.{digits}f}"
    return text if float(text) == 0 else f"{'+' if points > 0 else MINUS}{text}"


def escape_markdown(text: str) -> str:
    """Names are anybody's: keep them from being read as Markdown or HTML."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
    return re.sub(r"([\\`*_{}\[\]|#])", r"\\\1", text)


def mean_note(results: Results) -> str:
    """Which sets the means leave out, if any."""
    missing = [name for name in results.sets if name not in results.mean_sets]
    if not missing:
        return ""
    if not results.mean_sets:
        return "No set was measured for every model and attack shown, so there is no mean."
    names = ", ".join(results.short[name] for name in missing)
    return f"Means leave out {names}: not measured for every model and attack shown."


def set_heading(results: Results) -> str:
    """ "mini sets" over names that have lost their "mini/"."""
    return f"{results.group} set" if results.group else "set"


def _heading(condition: Condition) -> str:
    return condition.title.replace(", ", "\n")


def _footer(results: Results, means: list[Value]) -> list[Value]:
    """The mean row; a single set has none of its own."""
    return (
        [f"mean of {len(results.mean_sets)}", *means] if len(results.sets) > 1 and results.mean_sets else []
    )


def _three(before: Estimate | None, after: Estimate | None, intervals: bool) -> list[Value]:
    if before is None or after is None:
        return [before, after, None]
    change = difference(before, after)
    return [before, after, change if intervals else change.number]


def _same_settings(model: str, one: Cell, two: Cell) -> None:
    for name in ("split", "n", "prompt", "attack_args", "precision", "seed"):
        a, b = getattr(one, name), getattr(two, name)
        if a != b:
            raise ValueError(
                f"the results hold {model} on {two.set} under {two.attack} twice, with different {name} "
                f"({a} and {b}); give the report one of them"
            )


def _trim(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _bold(text: str) -> str:
    return f"**{text}**" if text else text
