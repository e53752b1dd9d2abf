"""Make untrusted text safe for its destination: one function per kind of output.

Names of samples, classes, files, models and datasets are untrusted, and so are captions and errors that quote them. A
terminal obeys control characters in them, rich obeys brackets, a spreadsheet a leading "=", a web page tags; a UTF-8
file cannot hold half a character (a lone surrogate). Letters, spaces and punctuation of any language stay as they are.
"""

import html
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

# Control characters (C0, C1), lone surrogates, line separators, and marks that change the text direction.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)
_NUMBER = re.compile(r"[+-]?[\d.,]+(?:e[+-]?\d+)?(?: ?%)?", re.IGNORECASE)
# Some programs read the full-width forms as the narrow ones.
_FORMULA = tuple("=+-@＝＋－＠")
_LATEX = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "ε": r"$\varepsilon$",
    "φ": r"$\varphi$",
    "δ": r"$\delta$",
    "α": r"$\alpha$",
    "∞": r"$\infty$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "−": r"$-$",
    "→": r"$\to$",
    "†": r"$\dagger$",
    "–": "--",
    "\u00a0": "~",
    "\u202f": r"\,",
}


def for_terminal(text: str, *, keep: str = "") -> str:
    r"""Text for a terminal or a log, on one line.

    Args:
        text: Anything.
        keep: Characters to leave, such as "\n" if `text` has several lines.

    Returns:
        `text` with unprintable characters escaped as in Python: an escape character becomes the four letters \x1b.
    """
    return _UNPRINTABLE.sub(
        lambda found: found[0] if found[0] in keep else found[0].encode("unicode_escape").decode(), text
    )


def for_rich(text: str, style: str = "", *, keep: str = "") -> "Text":
    """Text that any rich console prints as it is, without reading it as markup; `keep` as in `for_terminal`."""
    from rich.text import Text

    return Text(for_terminal(text, keep=keep), style)


def for_csv(text: str) -> str:
    """A CSV cell that no spreadsheet takes for a formula: those get a leading apostrophe. Numbers stay."""
    text = for_terminal(text)
    is_formula = text.lstrip().startswith(_FORMULA) and not _NUMBER.fullmatch(text.strip())
    return f"'{text}" if is_formula else text


def for_markdown(text: str) -> str:
    """Text inside a line of GitHub-flavoured Markdown that is read as neither Markdown nor HTML nor, between $, TeX."""
    text = for_terminal(text.replace("\n", " "))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|#~$])", r"\\\1", text)


def for_latex(text: str) -> str:
    """Text as LaTeX, including non-ASCII letters that pdflatex does not know."""
    return "".join(_LATEX.get(letter, letter) for letter in for_terminal(text.replace("\n", " ")))


def for_html(text: str) -> str:
    """Text for an element or a quoted attribute of an HTML page."""
    return html.escape(for_terminal(text, keep="\n\t"))
