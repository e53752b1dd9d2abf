"""Names that data, models and results may have, and what must not be in anything that is printed."""

import re

from hypothesis import strategies as st

NAMES = (
    "photos[/2019]", "[/b]", "[red]x[/]", "m[_x] [/b]", ":smile:", "\x1b]0;pwned\x07\x1b[2J", "\x9b2J", "\ud83d.png",
    "a\u2028b", "\u202egnp", '=HYPERLINK("http://evil","x")', "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1+1",
    "<script>alert(1)</script>", "\" onload='x", "\\input{x}%", "$\\frac$", "|a|`b`~~c~~", "![a](b)", "a\nb", "a\r\nb",
    "%s {0} {task}", "\x00", "ω 猫 é",
)  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=()), max_size=20) | st.sampled_from(NAMES)
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def assert_printable(text: str) -> None:
    """Lines that no terminal obeys, and that a file in UTF-8 can hold."""
    assert UNPRINTABLE.search(text) is None, ascii(text)
    text.encode("utf-8")
