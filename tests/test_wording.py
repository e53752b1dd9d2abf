"""Numbers with their nouns."""

import ast
import re
from pathlib import Path

import pytest

import advflyp
from advflyp.wording import counted

SOURCES = Path(advflyp.__file__).parent
# What is counted somewhere.
NOUN = re.compile(
    r" (?:\w+ )?(steps|results|images|pictures|pairs|captions|classes|shards|samples|rows|files|labels|names|tensors"
    r"|layers|sets|parts|fields|addresses|experiments|methods|seeds|validations|models|tables|epochs)\b"
)
# What stands before a plural without being its number, or is never 1.
NOT_COUNTED = {
    "name", "self.name", "train", "folder", "index", "text", "store", "out", "for_html(rule(first.seed))",
    "counted(len(self.entries), 'image')", "' and the others hold' if len(files) > 1 else ' holds'",
    "STEPS", "MAX_LABELS", "amount", "recipe.data.batch_size", "sum(found.against.values())",
    "len(files)",  # after `len(files) == 1`
    "len(ranked)", "len(methods)", "len(sets)", "len(names)", "len(results.sets)", "len(results.mean_sets)",  # likewise
    "statistics.median(speeds)", "line['pairs_per_second']", "metrics['pairs_per_second']",  # images/s
}  # fmt: skip


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


def numbers_with_nouns(path: Path) -> list[str]:
    """The texts of a file in which a value stands before a plural: "{len(found)} pairs"."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            for value, after in zip(node.values, node.values[1:], strict=False):
                if isinstance(value, ast.FormattedValue) and isinstance(after, ast.Constant):
                    counts = ast.unparse(value.value)
                    if NOUN.match(str(after.value)) and counts not in NOT_COUNTED:
                        found.append(f"{{{counts}}}{str(after.value)[:40]}")
    return found


@pytest.mark.parametrize(
    "path", sorted(SOURCES.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCES))
)
def test_whatever_can_be_one_is_counted(path: Path) -> None:
    assert numbers_with_nouns(path) == [], "use advflyp.wording.counted"
