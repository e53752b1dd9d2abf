import csv
import io
import re

import pytest

from advflyp.escape import for_latex
from advflyp.report.measure.estimates import Estimate
from advflyp.report.measure.render import as_csv, latex, markdown
from advflyp.report.measure.tables import Table

NASTY = 'a_b & "c", 50 % {x}\\y #1 $2 ~^<|>'


@pytest.fixture
def table() -> Table:
    one, two = Estimate(0.12345, 0.1, 0.2), Estimate(0.5, 0.48, 0.52, seeds=2)
    best, flagged = Estimate(0.9, 0.8, 1.0), Estimate(0.7, 0.68, 0.72, True, seeds=2)
    return Table(
        title="Numbers, ε = 1/255",
        columns=["method", "set one", "mean\nof 2", "mean\nof 2"],
        groups=[("", 1), ("in", 1), ("left", 1), ("right", 1)],
        rows=[[NASTY, one, two, best], ["plain", two, flagged, None], ["third", best, one, two]],
        blocks=[("clean & all", 2), ("other", 1)],
        footer=["all", one, two, best],
        note="A note_with 100 % ±.",
        best=True,
    )


def test_csv_parsed_back(table: Table) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert [row["method"] for row in rows] == [NASTY, "plain", "third", "all"]
    assert [row["block"] for row in rows] == ["clean & all", "clean & all", "other", ""]
    first = rows[0]
    assert [first[f"set one{end}"] for end in ("", " sd", " low", " high")] == ["12.345", "", "10", "20"]
    assert [first[f"left: mean of 2{end}"] for end in ("", " sd", " low", " high")] == ["50", "2", "", ""]
    assert rows[1]["left: mean of 2 flagged"] == "yes" and rows[1]["right: mean of 2"] == ""
    assert "set one flagged" not in first, "columns that would be empty are left out"


def latex_rows(text: str) -> list[list[str]]:
    """The body's rows as plain texts: an own small reader of what the writer may emit."""
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)&", line[:-2])] for line in lines]


def unescape(text: str) -> str:
    words = {"textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textless": "<"}
    words |= {"textgreater": ">", "textbar": "|", "textquotedbl": '"'}
    text = re.sub(r"\\(text\w+)\{\}", lambda m: words[m[1]] if m[1] != "textbackslash" else "\0", text)
    return re.sub(r"\\([&%$#_{}])", r"\1", text).replace("\0", "\\")


def test_latex_parsed_back(table: Table) -> None:
    text = latex(table)
    rows = latex_rows(text)
    assert [len(row) for row in rows] == [4, 4, 4, 1, 4, 4, 1, 4, 4]
    groups, _, heads, *body = rows
    assert groups[1:] == [rf"\multicolumn{{1}}{{c}}{{{title}}}" for title in ("in", "left", "right")]
    assert heads == ["method", "set one", "of 2", "of 2"]
    assert body[0] == [r"\multicolumn{4}{l}{\emph{clean \& all}}"]
    assert unescape(body[1][0]) == NASTY
    assert body[1][1:] == [
        r"12.3 {\scriptsize 10--20}",
        r"50.0 {\scriptsize $\pm$2.0}",
        r"90.0 {\scriptsize 80--100}",
    ]
    assert body[2][1:] == [
        r"50.0 {\scriptsize $\pm$2.0}",
        r"\textbf{70.0}$^\dagger$ {\scriptsize $\pm$2.0}",
        "--",
    ]
    assert r"\cmidrule(lr){2-2} \cmidrule(lr){3-3} \cmidrule(lr){4-4}" in text
    assert r"\caption{Numbers, $\varepsilon$ = 1/255. A note\_with 100 \% $\pm$.}" in text
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 1
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")


def test_latex_escapes_every_special_letter() -> None:
    escaped = for_latex('\\&%$#_{}~^<>|"')
    assert unescape(escaped) == '\\&%$#_{}~^<>|"'
    assert for_latex("φ ≤ ε ± 2×3 − 1").isascii() is False, "letters that are not known stay"
    assert for_latex("φ ε ± × − – †").isascii()


def test_markdown_parsed_back(table: Table) -> None:
    lines = [line for line in markdown(table).splitlines() if line.startswith("|")]
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert all(len(row) == 4 for row in cells)
    assert cells[0] == ["method", "set one", "left: mean of 2", "right: mean of 2"]
    assert cells[2][0] == "**clean & all**".replace("&", "&amp;")
    assert cells[3][1:] == ["12.3 (10–20)", "50.0 ±2.0", "90.0 (80–100)"]
    assert cells[4][1:] == ["50.0 ±2.0", "**70.0†** ±2.0", "–"]
    assert cells[-1] == ["**all**", "**12.3 (10–20)**", "**50.0 ±2.0**", "**90.0 (80–100)**"]


def test_the_second_best_is_underlined() -> None:
    rows = [[name, Estimate(value, 0, 1)] for name, value in (("a", 0.1), ("b", 0.3), ("c", 0.2))]
    table = Table(title="t", columns=["m", "s"], rows=rows, best=True)
    assert "| a | 10.0 (0–100) |" in markdown(table) and "| b | **30.0** (0–100) |" in markdown(table)
    assert "| c | <u>20.0</u> (0–100) |" in markdown(table)
    assert r"c & \underline{20.0} {\scriptsize 0--100} \\" in latex(table)


@pytest.mark.parametrize("name", ["[2024] run", "*", "  [x"])
def test_latex_takes_no_name_for_an_option_of_the_row_above(name: str) -> None:
    value = Estimate(0.5, 0.4, 0.6)
    table = Table(title="t", columns=[f"{name}\n{name}", "a"], rows=[[name, value]] * 2, footer=[name, value])
    text = latex(table)
    assert text.count(f"\n{{}}{name} & ") == 2 + 2 + 1 and f"\n{name}" not in text
    assert "{}" not in latex(Table(title="t", columns=["a [b] *", "c"], rows=[["d [e]", value]]))
