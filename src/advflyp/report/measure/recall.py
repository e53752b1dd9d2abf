"""Tables of the results of `advflyp retrieval`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from advflyp.evaluation.recall import Recall
from advflyp.evaluation.results import labels
from advflyp.evaluation.retrieval import RetrievalCell
from advflyp.report.measure.estimates import Condition, Estimate
from advflyp.report.measure.repeated import once
from advflyp.report.measure.tables import Table, Value
from advflyp.wording import counted


def recall_table(cells: Sequence[RetrievalCell]) -> Table:
    """One model: a row for each attack at each ε, in the order of `cells`; both directions at 1, 5 and 10."""
    first = cells[0]
    columns = [f"{way}\nR@{one.k}" for way in ("to text", "to image") for one in first.image_to_text]
    return Table(
        title=f"Zero-shot retrieval in %\nmodel: {first.model}\npairs: {first.pairs}",
        columns=["attack", *columns],
        rows=[
            [Condition.of(cell).words, *map(_estimate, cell.image_to_text + cell.text_to_image)]
            for cell in cells
        ],
        note="\n".join(_notes(cells)),
    )


def recall_tables(cells: Sequence[RetrievalCell]) -> list[Table]:
    """A `recall_table` for each model on each collection of pairs.

    Raises:
        ValueError: Two rows would differ only in a setting, or two tables only in the state of their pairs.
    """
    names = labels(cells, [cell.model for cell in cells])
    told = [replace(cell, model=name) for cell, name in zip(cells, names, strict=True)]

    def row(cell: RetrievalCell) -> tuple[Any, ...]:
        return cell.model, str(sorted(cell.subset.items())), Condition.of(cell)

    # By their name, and by their contents: the same pairs may have several names.
    told = once(told, lambda cell: (cell.pairs, *row(cell)))
    groups: dict[tuple[str, ...], list[RetrievalCell]] = {}
    for cell in once(told, lambda cell: (cell.captions_sha256, *row(cell))):
        model, subset, _ = row(cell)
        groups.setdefault((model, subset, cell.captions_sha256), []).append(cell)
    return [recall_table(group) for group in groups.values()]


def _estimate(one: Recall) -> Value:
    low, high = one.ci95
    return Estimate(one.recall, low, high)


def _notes(cells: Sequence[RetrievalCell]) -> list[str]:
    cell = cells[0]
    of, seed = cell.subset["of"], cell.subset.get("seed", "?")
    part = f", drawn from {of} with seed {seed}" if "limit" in cell.subset else ""
    notes = [
        f"{counted(cell.n_images, 'image')}, {counted(cell.n_captions, 'caption')}{part}",
        "each recall is followed by its 95 % interval",
    ]
    if any(cell.norm for cell in cells):
        notes.append("attacked: every image of the gallery, in both directions")
    if any("edits" in cell.attack_args for cell in cells):
        notes.append(
            "editsN: at most N wrong letters in every caption; random-editsN: as many drawn at random"
        )
    if cell.unreadable:
        names = ", ".join(f"{key} ({reason})" for key, reason in list(cell.unreadable.items())[:3])
        notes.append(f"skipped {counted(len(cell.unreadable), 'pair')}: {names}")
    return notes
