"""Numbers with their nouns."""

import pytest

from advflyp.wording import are, counted


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "step", "1 step"),
        (0, "step", "0 steps"),
        (1234, "class folder", "1,234 class folders"),
        (2, "class", "2 classes"),
        (1, "address", "1 address"),
        (3, "batch", "3 batches"),
        (2, "entry", "2 entries"),
        (2, "day", "2 days"),
    ],
)
def test_plurals_agree(number: int, noun: str, text: str) -> None:
    assert counted(number, noun) == text


def test_verbs_agree() -> None:
    assert are(1, "result") == "1 result is"
    assert are(1200, "result") == "1,200 results are"
