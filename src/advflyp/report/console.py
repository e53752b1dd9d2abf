"""Results on the terminal, as rich tables that fit 80–100 columns."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table as RichTable
from rich.text import Text

from advflyp.evaluation.judge import Standing
from advflyp.evaluation.results import Cell
from advflyp.report.measured import Condition, Results, attack_title, radius
from advflyp.report.tables import Table, Value, accuracy_table, check_models, comparison_table, mean_change
from advflyp.runlog import Pulse, duration

INTERVALS = "each accuracy is followed by its 95 % interval"


def results_table(cells: Sequence[Cell]) -> RichTable:
    """What `advflyp eval` prints: set, n and each attack at each ε, the mean over sets last.

    Cells of several models make one block of rows for each.
    """
    results = Results(cells)
    several = len(results.models) > 1
    tables = [accuracy_table(results, model, name_model=not several) for model in results.models]
    # One heading for all: a model that was not attacked at some ε shows a dash there.
    columns = list(dict.fromkeys(column for table in tables for column in table.columns))
    shown = _frame(tables[0].title, columns, [tables[0].note, INTERVALS])
    for model, table in zip(results.models, tables, strict=True):
        if several:
            shown.add_row(Text(model, "bold"))
        place = [table.columns.index(column) if column in table.columns else None for column in columns]
        _fill(shown, table, place)
    return shown


def before_after_table(cells: Sequence[Cell], before: str, after: str, eps: float) -> RichTable:
    """What `advflyp quickstart` ends with: clean and attacked accuracy of two models, set by set.

    eps: in pixels of [0, 1]; the strongest attack measured at it is shown
    ValueError where there are no results of one of the models at that ε.
    """
    results = Results(cells)
    check_models(results, before, after)
    attacked = results.strongest(eps)
    if attacked is None:
        raise ValueError(f"there are no results of an attack at ε = {radius(eps, 'linf')}")
    conditions = [c for c in (results.clean, attacked) if c]
    table = comparison_table(results, before, after, conditions, intervals=False)
    changes = [
        f"{_short(condition)} {change.number} ({change.interval})"
        for condition in conditions
        if (change := mean_change(results, before, after, condition))
    ]
    counts = ", ".join(dict.fromkeys(results.images(name) for name in results.sets))
    shown = _frame(
        f"Zero-shot accuracy in %, {attacked.title}\nbefore: {before}   after: {after}",
        [column.replace(_long(attacked), attack_title(attacked.attack)) for column in table.columns],
        [
            f"mean change in points: {'; '.join(changes)}" if changes else "",
            table.note,
            f"{counts} images a set; {INTERVALS}",
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
        if cell.unreadable:
            names = ", ".join(cell.unreadable[:3])
            lines.append(
                f"{about}: {len(cell.unreadable)} pictures could not be read and are left out: {names}"
            )
        if cell.sanity is not None:
            n, failed = cell.sanity["n"], "; ".join(cell.sanity["failed"])
            verdict = f"gradients look masked on {n} images: {failed}" if failed else f"sane on {n} images"
            lines.append(f"{about}: {verdict}")
    return lines


class EvaluationProgress:
    """A line while `evaluate` works: how far, how many points are left, the accuracy so far.

    On a terminal it is a bar; elsewhere a line comes every ten seconds.
    """

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[status]}"),
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

    def watch(self, cell: Cell, standing: Standing) -> None:
        """What `evaluate` calls after every batch."""
        title = f"{cell.set} {cell.attack}" + (f" {radius(cell.eps, cell.norm)}" if cell.norm else "")
        if title not in self.tasks:
            for task in self.tasks.values():
                self.progress.update(task, visible=False)
            self.tasks[title] = self.progress.add_task(title, total=standing.images, status="")
        left = "" if standing.seconds_left is None else f"  {duration(standing.seconds_left)} to go"
        so_far = f"{100 * standing.accuracy:.1f} % so far" if standing.finished else ""
        status = f"{standing.finished}/{standing.images}  {standing.left} left  {so_far}{left}"
        self.progress.update(self.tasks[title], completed=standing.finished, status=status)
        self.pulse.say(lambda: f"{title}  {status}")


def as_rich(table: Table) -> RichTable:
    """Any of the report's tables, for a terminal."""
    shown = _frame(table.title, table.columns, [table.note])
    _fill(shown, table, range(len(table.columns)))
    return shown


def _frame(title: str, columns: Sequence[str], notes: Sequence[str]) -> RichTable:
    table = RichTable(
        title=title,
        caption="\n".join(["", *(note for note in notes if note)]),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if index == 0 else "right", no_wrap=index > 0)
    return table


def _fill(shown: RichTable, table: Table, place: Sequence[int | None]) -> None:
    def pick(row: Sequence[Value]) -> list[Text]:
        return [_text(None if index is None else row[index]) for index in place]

    for row in table.rows:
        shown.add_row(*pick(row))
    if table.footer:
        shown.add_section()
        shown.add_row(*pick(table.footer), style="bold")
    shown.add_section()


def _text(value: Value) -> Text:
    if value is None:
        return Text("–", "dim")
    if isinstance(value, str):
        return Text(value)
    return Text.assemble(value.number, (f" {value.interval:>5}", "dim not bold"))


def _short(condition: Condition) -> str:
    return "clean" if condition.norm is None else attack_title(condition.attack)


def _long(condition: Condition) -> str:
    return condition.title.replace(", ", "\n")
