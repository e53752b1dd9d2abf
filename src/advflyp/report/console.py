"""Results on a terminal: tables that fit any width, caveats on single results, progress."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from advflyp.escape import for_rich
from advflyp.evaluation.evaluator import SetProgress
from advflyp.evaluation.results import Cell
from advflyp.report.measure.estimates import radius
from advflyp.report.measure.grid import MARKS, MIXED
from advflyp.report.measure.render import FLAG
from advflyp.report.measure.results import Results
from advflyp.report.measure.tables import Table, Value, accuracy_table, check_models, comparison_table
from advflyp.training.runlog import Status, duration
from advflyp.wording import counted

INTERVALS = "each accuracy is followed by its 95 % interval"


def results_table(cells: Sequence[Cell]) -> Group:
    """What `advflyp eval` prints: a table for each model, with a row for each set and the mean over sets last."""
    results = Results(cells)
    several = len(results.models) > 1
    tables = [accuracy_table(results, model, name_model=several) for model in results.models]
    return Group(*(as_rich(replace(table, note=_notes(table.note, INTERVALS))) for table in tables))


def before_after_table(
    cells: Sequence[Cell], before: str, after: str, eps: float, stores: Sequence[Path] = ()
) -> "TerminalTable":
    """What `advflyp quickstart` ends with: clean and attacked accuracy of two models, set by set.

    Args:
        eps: Radius in pixels of [0, 1]; the strongest attack measured at it is shown.
        stores: Result files that hold `cells`, as in `Results`.

    Raises:
        ValueError: If there are no results of one of the models at that ε.
    """
    results = Results(cells, stores=stores)
    check_models(results, before, after)
    attacked = results.strongest(eps)
    if attacked is None:
        raise ValueError(f"there are no results of an attack at ε = {radius(eps, 'linf')}")
    conditions = [c for c in (results.clean, attacked) if c]
    table = comparison_table(results, before, after, conditions, intervals=False)
    changes = [
        f"{condition.title} {change.number}" + (f" ({change.interval})" if change.interval else "")
        for condition in conditions
        if (change := results.change(before, after, condition))
    ]
    counts = ", ".join(dict.fromkeys(results.images(name) for name in results.sets))
    note = _notes(
        f"mean change in points: {'; '.join(changes)}" if changes else "",
        table.note,
        f"images of each set: {counts}; {INTERVALS}",
    )
    return as_rich(replace(table, note=note))


def _notes(*notes: str) -> str:
    return "\n".join(note for note in notes if note)


def verdicts(cells: Sequence[Cell]) -> list[str]:
    """Caveats on single results, a line each: not zero-shot, images skipped, gradients checked for masking."""
    lines = []
    for cell in cells:
        about = f"{cell.model}, {cell.set}, {cell.attack}"
        if cell.norm:
            about += f" at {radius(cell.eps, cell.norm)}"
        if cell.seen:
            lines.append(f"{about}: the model was trained on this data; its accuracy here is not zero-shot")
        if cell.unreadable:
            names = ", ".join(cell.unreadable[:3])
            lines.append(f"{about}: skipped {counted(len(cell.unreadable), 'unreadable image')}: {names}")
        if cell.sanity is not None:
            n, failed = cell.sanity["n"], "; ".join(cell.sanity["failed"])
            on = f"on {counted(n, 'image')}"
            lines.append(f"{about}: {f'gradients look masked {on}: {failed}' if failed else f'sane {on}'}")
    return lines


@contextmanager
def evaluation_progress(console: Console) -> Iterator[Callable[[Cell, SetProgress], None]]:
    """A status line while `evaluate` works; yields the progress callback that it calls after every batch.

    The line shows the images finished, those not yet fooled, the accuracy so far and the time remaining.
    """
    with Status(console, "evaluating") as status:

        def watch(cell: Cell, now: SetProgress) -> None:
            where = f" {radius(cell.eps, cell.norm)}" if cell.norm else ""
            so_far = f"  {100 * now.accuracy:.1f} % so far" if now.finished else ""
            rest = "" if now.seconds_left is None else f"  {duration(now.seconds_left)} to go"
            done = f"{now.finished}/{now.images}  {now.left} left"
            status.update(f"{cell.set} {cell.attack}{where}  {done}{so_far}{rest}")

        yield watch


def as_rich(table: Table) -> "TerminalTable":
    """Any of the report's tables, for a terminal."""
    # Ranks are not marked on a terminal, so the note need not explain the marks.
    note = table.note.replace(MARKS, "").replace(MIXED, "")
    return TerminalTable(replace(table, note=note.replace("  ", " ").strip()))


class TerminalTable:
    """A table for a terminal of any width: columns that do not fit go into further tables below the first.

    Each of them repeats the first column, the names of the rows. The other columns are short and never wrap.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        over = [title for title, count in table.groups for _ in range(count)] or [""] * len(table.columns)
        names = (
            "\n".join([*title.split(", "), name]) if title else name
            for title, name in zip(over, table.columns, strict=True)
        )
        self.columns = [for_rich(name, keep="\n") for name in names]
        self.rows = [[_text(value) for value in row] for row in table.rows]
        self.footer = [_text(value) for value in table.footer]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.table.title:
            yield for_rich(self.table.title, "italic", keep="\n")
        for place, columns in enumerate(self._split(options.max_width)):
            if place:
                yield Text()
            yield self._part(columns)
        if self.table.note:
            yield for_rich("\n" + self.table.note, "dim italic", keep="\n")

    def _split(self, width: int) -> list[list[int]]:
        """Column indices of each table; every table begins with the first column."""
        rows = [self.columns, *self.rows, *([self.footer] if self.footer else [])]
        # Two spaces separate columns.
        widths = [2 + max(measure(row[column]) for row in rows) for column in range(len(self.columns))]
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
        """Columns that stay together if they fit: those whose headings share all but the last line."""
        over = [column.plain.rpartition("\n")[0] for column in self.columns]
        groups: list[list[int]] = []
        for column in range(1, len(widths)):
            if over[column] and groups and over[groups[-1][0]] == over[column]:
                groups[-1].append(column)
            else:
                groups.append([column])
        return [
            part
            for group in groups
            for part in ([group] if sum(widths[c] for c in group) <= room else [[c] for c in group])
        ]

    def _part(self, columns: Sequence[int]) -> RichTable:
        table = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        for column in columns:
            if column:
                justify = "left" if self.table.words else "right"
                table.add_column(self.columns[column], justify=justify, no_wrap=True)
            else:
                table.add_column(self.columns[column], overflow="fold")
        for title, start, rows in self.table.parts():
            if title:
                table.add_row(for_rich(title.replace(", ε = ", " "), "bold"))
            for row in self.rows[start : start + len(rows)]:
                table.add_row(*(row[column] for column in columns))
            table.add_section()
        if self.footer:
            table.add_row(*(self.footer[column] for column in columns), style="bold")
        return table


def measure(text: Text) -> int:
    """The width of the longest line on a terminal."""
    return max(map(cell_len, text.plain.splitlines() or [""]))


def _text(value: Value) -> Text:
    if value is None:
        return Text("–", "dim")
    if isinstance(value, str):
        return for_rich(value, keep="\n")
    spread = f" {value.interval:>5}" if value.interval else ""
    return Text.assemble(value.number + FLAG * value.flagged, (spread, "dim not bold"))
