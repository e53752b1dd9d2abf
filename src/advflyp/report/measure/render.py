"""A table as Markdown, CSV and LaTeX. Names in it are untrusted: each format escapes them."""

import csv
import io
import math
from collections.abc import Callable, Sequence

from advflyp.escape import for_csv, for_latex, for_markdown
from advflyp.report.measure.estimates import Estimate
from advflyp.report.measure.tables import Table, Value

FLAG = "†"


def markdown(table: Table) -> str:
    """The table as GitHub-flavoured Markdown, with its title and note. The best is bold, the second underlined."""
    ranks = table.ranks()

    def line(values: Sequence[Value], row: int = -1) -> str:
        cells = [
            _marked(for_markdown(plain(value)), ranks.get((row, column)))
            for column, value in enumerate(values)
        ]
        return "| " + " | ".join(cells) + " |"

    columns = table.flat_columns()
    rule = "|---|" + "---:|" * (len(columns) - 1)
    title = table.title.replace("\n", "; ")
    lines = [f"### {for_markdown(title)}", "", line(columns), rule]
    for title, start, rows in table.parts():
        if title:
            lines.append(f"| **{for_markdown(title)}** |" + " |" * (len(columns) - 1))
        lines += [line(row, start + place) for place, row in enumerate(rows)]
    if table.footer:
        cells = (for_markdown(plain(value)) for value in table.footer)
        lines.append("| " + " | ".join(f"**{cell}**" if cell else "" for cell in cells) + " |")
    if table.note:
        lines += ["", "\n\n".join(map(for_markdown, table.note.splitlines()))]
    return "\n".join(lines) + "\n"


def as_csv(table: Table) -> str:
    """The table for a spreadsheet or pandas: one header line, percentages as plain numbers, missing ones empty.

    A column of accuracies becomes several: the value, "sd" (sample standard deviation over seeds), "low" and "high"
    (95 % interval of a single checkpoint), "flagged" (masked gradients); those that would be empty are left out. The
    blocks' titles are the first column.
    """
    header: list[str] = ["block"] if table.blocks else []
    parts: list[list[str]] = [
        [title] if table.blocks else [] for title, _, rows in table.parts() for _ in rows
    ]
    lines = [row for _, _, rows in table.parts() for row in rows]
    if table.footer:
        parts.append([""] if table.blocks else [])
        lines.append(table.footer)
    for column, name in enumerate(table.flat_columns()):
        values = [line[column] for line in lines]
        for suffix, get in _FIELDS.items():
            texts = [get(v) if isinstance(v, Estimate) else "" if suffix else v or "" for v in values]
            if suffix and not any(texts):
                continue
            header.append(f"{name} {suffix}".strip())
            for part, text in zip(parts, texts, strict=True):
                part.append(text)
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(map(for_csv, line) for line in [header, *parts])
    return stream.getvalue()


def latex(table: Table) -> str:
    r"""The table as a LaTeX `table` for the packages booktabs and graphicx: \textbf the best, \underline the second."""
    ranks = table.ranks()
    width = len(table.columns)

    def line(values: Sequence[Value], row: int = -1) -> str:
        cells = [_latex_value(value, ranks.get((row, column))) for column, value in enumerate(values)]
        # After a rule or the end of a row, LaTeX takes these for an argument or a variant of that command.
        protected = "{}" if cells[0].lstrip().startswith(("[", "*")) else ""
        return protected + " & ".join(cells) + r" \\"

    # Each line of a heading is a table row of its own, which needs no further package.
    heads = [column.split("\n") for column in table.columns]
    depth = max(map(len, heads))
    heads = [[""] * (depth - len(head)) + head for head in heads]
    lines = [
        r"% needs \usepackage{booktabs,graphicx}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{for_latex(' '.join([table.title.replace(chr(10), '; ') + '.', *table.note.splitlines()]))}}}",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}",
        r"\toprule",
    ]
    if table.groups:
        lines += _latex_groups(table.groups)
    lines += [line([head[level] for head in heads]) for level in range(depth)]
    for title, start, rows in table.parts():
        lines.append(r"\midrule")
        if title:
            lines.append(rf"\multicolumn{{{width}}}{{l}}{{\emph{{{for_latex(title)}}}}} \\")
        lines += [line(row, start + place) for place, row in enumerate(rows)]
    if table.footer:
        lines += [r"\midrule", line(table.footer)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}", r"\end{table}"]) + "\n"


def plain(value: Value) -> str:
    """A value as text: "61.0 (51–70)", "61.0 ±1.2"."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    number = value.number + FLAG * value.flagged
    if not value.interval:
        return number
    return f"{number} {value.interval}" if value.seeds > 1 else f"{number} ({value.interval})"


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.4f}".rstrip("0").rstrip(".")


# The CSV columns that one column of accuracies becomes.
_FIELDS: dict[str, Callable[[Estimate], str]] = {
    "": lambda v: _percent(v.value),
    "sd": lambda v: _percent(v.deviation) if v.seeds > 1 else "",
    "low": lambda v: _percent(v.low) if v.seeds == 1 else "",
    "high": lambda v: _percent(v.high) if v.seeds == 1 else "",
    "flagged": lambda v: "yes" if v.flagged else "",
}


def _marked(text: str, rank: int | None) -> str:
    number, space, rest = text.partition(" ")
    if rank is None:
        return text
    return (f"**{number}**" if rank == 1 else f"<u>{number}</u>") + space + rest


def _latex_value(value: Value, rank: int | None) -> str:
    if not isinstance(value, Estimate):
        return for_latex(plain(value))
    number = for_latex(value.number)
    if rank is not None:
        number = rf"\{'textbf' if rank == 1 else 'underline'}{{{number}}}"
    flag = r"$^\dagger$" if value.flagged else ""
    return rf"{number}{flag} {{\scriptsize {for_latex(value.interval)}}}"


def _latex_groups(groups: Sequence[tuple[str, int]]) -> list[str]:
    cells, rules, column = [], [], 1
    for title, count in groups:
        cells.append(rf"\multicolumn{{{count}}}{{c}}{{{for_latex(title)}}}" if title else " & " * (count - 1))
        if title:
            rules.append(rf"\cmidrule(lr){{{column}-{column + count - 1}}}")
        column += count
    return [" & ".join(cells) + r" \\", " ".join(rules)]
