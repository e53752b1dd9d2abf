"""Measurements that results hold more than once: the last one counts.

Two with different settings are refused: a table could not say which of them it shows.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

from advflyp.evaluation.results import Cell
from advflyp.evaluation.retrieval import RetrievalCell
from advflyp.lvlm.results import AnswerCell

AnyCell = Cell | RetrievalCell | AnswerCell
C = TypeVar("C", Cell, RetrievalCell, AnswerCell)

# What tables do not say of each cell; not every kind of cell has all of them.
SETTINGS = (
    "split", "n", "n_images", "n_captions", "subset", "prompt", "attack_args", "precision", "seed", "settings",
)  # fmt: skip


def check_same(model: str, one: AnyCell, two: AnyCell) -> None:
    """ValueError if two measurements that a table cannot tell apart differ in a setting."""
    (name, contents), (_, others) = map(_collection, (one, two))
    draws = [{key: cell.subset.get(key) for key in ("limit", "seed")} for cell in (one, two)]
    if draws[0] == draws[1] and contents != others:
        raise ValueError(
            f"the results hold {model} on two states of {name}, which has changed in between; measure into a new "
            "file, or remove the older lines"
        )
    for setting in SETTINGS:
        a, b = getattr(one, setting, None), getattr(two, setting, None)
        if a != b:
            raise ValueError(
                f"the results hold {model} on {name} under {two.attack} twice, with different {setting} "
                f"({a} and {b}); give the report one of them"
            )


def once(cells: Iterable[C], shown: Callable[[C], Hashable]) -> list[C]:
    """Each measurement once, in its last version; `shown` is all that a table says of one, but for its outcome.

    Raises:
        ValueError: Two that a table cannot tell apart differ in a setting.
    """
    found: dict[Hashable, C] = {}
    for cell in cells:
        key = shown(cell)
        if key in found:
            check_same(cell.model, found[key], cell)
        found[key] = cell
    return list(found.values())


def _collection(cell: AnyCell) -> tuple[str, str]:
    """The name of what was measured on, and a hash of its contents if it may change."""
    if isinstance(cell, Cell):
        return cell.set, cell.settings.get("set_sha256", "")
    if isinstance(cell, RetrievalCell):
        return cell.pairs, cell.captions_sha256
    return cell.task, cell.samples_sha256
