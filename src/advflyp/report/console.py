"""Results on the terminal, as rich tables: what is wider than it is printed in parts, never cut."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table as RichTable
from rich.text import Text

from advflyp.escape import for_rich, for_terminal
from advflyp.evaluation.evaluator import SetProgress
from advflyp.evaluation.results import Cell
from advflyp.report.measure.grid import MARKS, MIXED
from advflyp.report.measure.measured import Condition, Results, attack_title, radius
from advflyp.report.measure.tables import Table, Value, accuracy_table, check_models, comparison_table
from advflyp.training.runlog import Pulse, duration
from advflyp.wording import counted

INTERVALS = "each accuracy is followed by its 95 % interval"


def results_table(cells: Sequence[Cell]) -> "Fitted":
    """What `advflyp eval` prints: set, n and each attack at each ε, the mean over sets last.

    Cells of several models make one block of rows for each.
    """
    results = Results(cells)
    several = len(results.models) > 1
    tables = [accuracy_table(results, model, name_model=not several) for model in results.models]
    # One heading for all: a model that was not attacked at some ε shows a dash there.
    columns = list(dict.fromkeys(column for table in tables for column in table.columns))
    shown = Fitted(tables[0].title, columns, [tables[0].note, INTERVALS])
    for model, table in zip(results.models, tables, strict=True):
        if several:
            shown.add_block(model)
        place = [table.columns.index(column) if column in table.columns else None for column in columns]
        _fill(shown, table, place)
    return shown


def before_after_table(
    cells: Sequence[Cell], before: str, after: str, eps: float, stores: Sequence[Path] = ()
) -> "Fitted":
    """What `advflyp quickstart` ends with: clean and attacked accuracy of two models, set by set.

    eps:    in pixels of [0, 1]; the strongest attack measured at it is shown
    stores: files of `cells`, as in `Results`
    ValueError where there are no results of one of the models at that ε.
    """
    results = Results(cells, stores=stores)
    check_models(results, before, after)
    attacked = results.strongest(eps)
    if attacked is None:
        raise ValueError(f"there are no results of an attack at ε = {radius(eps, 'linf')}")
    conditions = [c for c in (results.clean, attacked) if c]
    table = comparison_table(results, before, after, conditions, intervals=False)
    changes = [
        f"{_short(condition)} {change.number}" + (f" ({change.interval})" if change.interval else "")
        for condition in conditions
        if (change := results.change(before, after, condition))
    ]
    counts = ", ".join(dict.fromkeys(results.images(name) for name in results.sets))
    shown = Fitted(
        f"Zero-shot accuracy in %, {attacked.title}\nbefore: {before}   after: {after}",
        [column.replace(_long(attacked), attack_title(attacked.attack)) for column in table.columns],
        [
            f"mean change in points: {'; '.join(changes)}" if changes else "",
            table.note,
            f"images of each set: {counts}; {INTERVALS}",
        ],
    )
    _fill(shown, table, range(len(table.columns)))
    return shown


def verdicts(cells: Sequence[Cell]) -> list[str]:
    """A line for each result that is not to be taken at face value, or that was checked."""
    lines = []
    for cell in cells:
        about = f"{cell.model}, {cell.set}, {cell.attack}"
        if cell.norm:
            about += f" at {radius(cell.eps, cell.norm)}"
        if cell.seen:
            lines.append(f"{about}: the model was trained on this data; its accuracy here is not zero-shot")
        if cell.unreadable:
            names = ", ".join(cell.unreadable[:3])
            lines.append(
                f"{about}: {counted(len(cell.unreadable), 'picture')} could not be read: left out: {names}"
            )
        if cell.sanity is not None:
            n, failed = cell.sanity["n"], "; ".join(cell.sanity["failed"])
            on = f"on {counted(n, 'image')}"
            verdict = f"gradients look masked {on}: {failed}" if failed else f"sane {on}"
            lines.append(f"{about}: {verdict}")
    return lines


class EvaluationProgress:
    """A line while `evaluate` works: how far, how many points are left, the accuracy so far.

    On a terminal it is a bar; elsewhere a line comes every ten seconds.
    """

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.pulse = Pulse(console)
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "EvaluationProgress":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def watch(self, cell: Cell, now: SetProgress) -> None:
        """What `evaluate` calls after every batch."""
        title = for_terminal(f"{cell.set} {cell.attack}")
        title += f" {radius(cell.eps, cell.norm)}" if cell.norm else ""
        if title not in self.tasks:
            for task in self.tasks.values():
                self.progress.update(task, visible=False)
            self.tasks[title] = self.progress.add_task(title, total=now.images, status="")
        left = "" if now.seconds_left is None else f"  {duration(now.seconds_left)} to go"
        so_far = f"{100 * now.accuracy:.1f} % so far" if now.finished else ""
        status = f"{now.finished}/{now.images}  {now.left} left  {so_far}{left}"
        self.progress.update(self.tasks[title], completed=now.finished, status=status)
        self.pulse.say(lambda: f"{title}  {status}")


def as_rich(table: Table) -> "Fitted":
    """Any of the report's tables, for a terminal."""
    over = [title for title, count in table.groups for _ in range(count)] or [""] * len(table.columns)
    columns = [
        "\n".join([*title.split(", "), name]) if title else name
        for title, name in zip(over, table.columns, strict=True)
    ]
    # A terminal shows no marks, and a file of what was printed could not.
    shown = Fitted(table.title, columns, [table.note.replace(MARKS, "").replace(MIXED, "").strip()])
    for title, _, rows in table.parts():
        if title:
            shown.add_block(title.replace(", ε = ", " "))
        _fill(shown, replace(table, rows=rows, blocks=[]), range(len(columns)))
    return shown


class Fitted:
    """A table for a terminal of any width: columns that do not fit stand in further tables below the first.

    The first column, the names of the rows, is repeated in each. The rest is as short as numbers are, and never wraps.
    """

    def __init__(self, title: str, columns: Sequence[str], notes: Sequence[str]) -> None:
        self.title = title
        self.columns = [for_rich(column, keep="\n") for column in columns]
        self.notes = [note for note in notes if note]
        # A row, or a line below it (None), or the title of the rows that follow.
        self.lines: list[list[Text] | Text | None] = []
        self.bold: set[int] = set()

    def add_row(self, row: Sequence[Text], *, bold: bool = False) -> None:
        if bold:
            self.bold.add(len(self.lines))
        self.lines.append(list(row))

    def add_section(self) -> None:
        self.lines.append(None)

    def add_block(self, title: str) -> None:
        self.lines.append(for_rich(title, "bold"))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        parts = self._parts(options.max_width)
        yield for_rich(self.title, "italic", keep="\n")
        for place, part in enumerate(parts):
            if place:
                yield Text()
            yield self._table(part)
        if self.notes:
            yield for_rich("\n" + "\n".join(self.notes), "dim italic", keep="\n")

    def _parts(self, width: int) -> list[list[int]]:
        """The columns of each table, the first in all of them."""
        rows = [line for line in self.lines if isinstance(line, list)]
        # What stands between two columns is two spaces.
        widths = [
            2 + max(measure(cell) for cell in (self.columns[column], *(row[column] for row in rows)))
            for column in range(len(self.columns))
        ]
        # A long name wraps before it takes the room of the numbers.
        first = min(widths[0], max(width // 3, width - sum(widths[1:])))
        parts: list[list[int]] = [[0]]
        used = first
        for group in self._groups(width + 2 - first, widths):
            size = sum(widths[column] for column in group)
            if len(parts[-1]) > 1 and used + size - 2 > width:
                parts.append([0])
                used = first
            parts[-1] += group
            used += size
        return parts

    def _groups(self, room: int, widths: Sequence[int]) -> list[list[int]]:
        """Columns that stay together, as far as there is room: those that share all but the last line of a heading."""
        groups: list[list[int]] = []
        for column in range(1, len(widths)):
            over = self.columns[column].plain.rpartition("\n")[0]
            if over and groups and self.columns[groups[-1][0]].plain.rpartition("\n")[0] == over:
                groups[-1].append(column)
            else:
                groups.append([column])
        fits = [sum(widths[column] for column in group) <= room for group in groups]
        return [
            part
            for group, whole in zip(groups, fits, strict=True)
            for part in ([group] if whole else [[column] for column in group])
        ]

    def _table(self, part: Sequence[int]) -> RichTable:
        table = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        for column in part:
            heading = self.columns[column]
            if column:
                table.add_column(heading, justify="right", no_wrap=True)
            else:
                table.add_column(heading, overflow="fold")
        for place, line in enumerate(self.lines):
            if line is None:
                table.add_section()
            elif isinstance(line, Text):
                table.add_row(line)
            else:
                table.add_row(
                    *(line[column] for column in part), style="bold" if place in self.bold else None
                )
        return table


def measure(text: Text) -> int:
    """The width of its longest line on a terminal."""
    return max(map(cell_len, text.plain.splitlines() or [""]))


def _fill(shown: Fitted, table: Table, place: Sequence[int | None]) -> None:
    def pick(row: Sequence[Value]) -> list[Text]:
        return [_text(None if index is None else row[index]) for index in place]

    for row in table.rows:
        shown.add_row(pick(row))
    if table.footer:
        shown.add_section()
        shown.add_row(pick(table.footer), bold=True)
    shown.add_section()


def _text(value: Value) -> Text:
    if value is None:
        return Text("–", "dim")
    if isinstance(value, str):
        return for_rich(value, keep="\n")
    spread = f" {value.interval:>5}" if value.interval else ""
    return Text.assemble(value.number, (spread, "dim not bold"))


def _short(condition: Condition) -> str:
    return "clean" if condition.norm is None else attack_title(condition.attack)


def _long(condition: Condition) -> str:
    return condition.title.replace(", ", "\n")
