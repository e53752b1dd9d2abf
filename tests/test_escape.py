import csv
import io
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from rich.console import Console

from advflyp.escape import for_csv, for_html, for_latex, for_markdown, for_rich, for_terminal
from hostile import TEXT, assert_printable

hypothesis = settings(max_examples=40, deadline=None, derandomize=True, database=None)


@given(TEXT)
@hypothesis
def test_a_terminal_gets_one_line_that_it_does_not_obey(text: str) -> None:
    shown = for_terminal(text)
    assert_printable(shown)
    assert len(shown.splitlines()) <= 1
    assert for_terminal(shown) == shown


@pytest.mark.parametrize("text", ["", "ω 猫 é ε = 1/255", "a/b (c).png", "\\x1b"])
def test_what_is_printable_stays(text: str) -> None:
    assert for_terminal(text) == text


@given(TEXT)
@hypothesis
def test_rich_reads_no_markup(text: str) -> None:
    """On any console, one that reads markup included."""
    stream = io.StringIO()
    Console(file=stream, width=1000).print(for_rich(text), soft_wrap=True)
    assert stream.getvalue() == for_terminal(text) + "\n"


@given(TEXT)
@hypothesis
def test_a_spreadsheet_finds_no_formula(text: str) -> None:
    stream = io.StringIO()
    csv.writer(stream).writerow([for_csv(text)])
    assert_printable(stream.getvalue().replace("\r\n", "\n"))
    (cell,) = next(csv.reader(io.StringIO(stream.getvalue())), [""]) or [""]
    assert cell.lstrip()[:1] not in tuple("=+-@＝＋－＠") or re.fullmatch(r"[+-]?[\d.,]+(e[+-]?\d+)?( ?%)?", cell.strip(), re.I)  # noqa: E501  # fmt: skip


@pytest.mark.parametrize("text", ["-1.5", "+3", "12", "", "-1e-05", "−2.0"])
def test_numbers_are_no_formulas(text: str) -> None:
    assert for_csv(text) == text


def test_a_formula_stays_readable() -> None:
    assert for_csv("=1+1") == "'=1+1"
    assert for_csv(" @x") == "' @x"


@given(TEXT)
@hypothesis
def test_markdown_shows_the_letters(text: str) -> None:
    shown = for_markdown(text)
    assert_printable(shown)
    assert "\n" not in shown and "<" not in shown and ">" not in shown
    bare = re.sub(r"\\[\\`*_{}\[\]|#~$]", "", shown)
    assert not re.search(r"[\\`*_{}\[\]|#~$]", bare)


def test_markdown_reads_no_tex_between_dollars() -> None:
    assert for_markdown("a$b$c") == r"a\$b\$c"


def test_latex_of_the_space_in_large_numbers() -> None:
    """pdflatex stops at a narrow no-break space."""
    assert for_latex("1\u202f500") == r"1\,500"


@given(TEXT)
@hypothesis
def test_latex_runs_no_command_of_a_name(text: str) -> None:
    shown = for_latex(text)
    assert_printable(shown)
    # Whoever takes away what this function writes must be left with nothing that TeX acts upon.
    ours = r"\\text(backslash|asciitilde|asciicircum|less|greater|bar|quotedbl)\{\}|\\[&%$#_{},]"
    rest = re.sub(r"\$(\\[a-z]+|-)\$", "", re.sub(ours, "", shown))
    assert not re.search(r"[\\{}%$#_&^]", rest)


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@given(TEXT)
@hypothesis
def test_html_is_text_in_elements_and_attributes(text: str) -> None:
    seen = Seen()
    seen.feed(f'<p title="{for_html(text)}">{for_html(text)}</p>')
    seen.close()
    expected = for_terminal(text, keep="\n\t")
    assert seen.tags == [("p", {"title": expected})]
    assert seen.text == expected
