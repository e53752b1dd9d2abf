"""Text from outside, made safe for where it goes: a function for each output.

Names of samples, classes, files, models and sets are anybody's, and so are captions and the errors that quote them. A
terminal obeys the control characters in them, rich their brackets, a spreadsheet a leading "=", a page their tags; a
file in UTF-8 cannot hold half a character at all. Letters, spaces and punctuation of any language stay as they are.
"""

import html
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

# Control characters (C0, C1), halves of characters, line separators, and marks that turn the direction of what follows.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)
_NUMBER = re.compile(r"[+-]?[\d.,]+(?:e[+-]?\d+)?(?: ?%)?", re.IGNORECASE)
# The wide forms are taken for the narrow ones by some programs.
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
}


def for_terminal(text: str, *, keep: str = "") -> str:
    r"""Text for a terminal or a log, on one line.

    Args:
        text: Anything.
        keep: Characters to leave, such as "\n" where `text` is of several lines.

    Returns:
        `text` with what is not printable as Python writes it: an escape character as the four letters \x1b.
    """
    return _UNPRINTABLE.sub(
        lambda found: found[0] if found[0] in keep else found[0].encode("unicode_escape").decode(), text
    )


def for_rich(text: str, style: str = "", *, keep: str = "") -> "Text":
    """Text that any rich console prints as it is, without reading it as markup; `keep` as in `for_terminal`."""
    from rich.text import Text

    return Text(for_terminal(text, keep=keep), style)


def for_csv(text: str) -> str:
    """A cell of a CSV file that no spreadsheet takes for a formula: an apostrophe goes before one. Numbers stay."""
    text = for_terminal(text)
    is_formula = text.lstrip().startswith(_FORMULA) and not _NUMBER.fullmatch(text.strip())
    return f"'{text}" if is_formula else text


def for_markdown(text: str) -> str:
    """Text inside a line of GitHub-flavoured Markdown that is read as neither Markdown nor HTML."""
    text = for_terminal(text.replace("\n", " "))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|#~])", r"\\\1", text)


def for_latex(text: str) -> str:
    """Text as LaTeX, letters outside ASCII that pdflatex does not know included."""
    return "".join(_LATEX.get(letter, letter) for letter in for_terminal(text.replace("\n", " ")))


def for_html(text: str) -> str:
    """Text in an element or a quoted attribute of a page."""
    return html.escape(for_terminal(text, keep="\n\t"))
