"""Tables of the results of `advflyp retrieval`."""

from collections.abc import Sequence

from advflyp.evaluation.recall import Recall
from advflyp.evaluation.retrieval import RetrievalCell
from advflyp.report.measure.estimates import Condition, Estimate
from advflyp.report.measure.tables import Table, Value
from advflyp.wording import counted


def recall_table(cells: Sequence[RetrievalCell]) -> Table:
    """One model: a row for each attack at each ε, in the order of `cells`; both directions at 1, 5 and 10."""
    first = cells[0]
    columns = [f"{way}\nR@{one.k}" for way in ("to text", "to image") for one in first.image_to_text]
    return Table(
        title=f"Zero-shot retrieval in %\nmodel: {first.model}\npairs: {first.pairs}",
        columns=["attack", *columns],
        rows=[[_condition(cell), *map(_estimate, cell.image_to_text + cell.text_to_image)] for cell in cells],
        note="\n".join(_notes(cells)),
    )


def recall_tables(cells: Sequence[RetrievalCell]) -> list[Table]:
    """A `recall_table` for each model on each collection of pairs."""
    groups: dict[tuple[str, ...], list[RetrievalCell]] = {}
    for cell in cells:
        hashes = (cell.checkpoint_sha256, cell.config_sha256, cell.captions_sha256)
        about = (cell.model, *hashes, str(sorted(cell.subset.items())))
        groups.setdefault(about, []).append(cell)
    return [recall_table(group) for group in groups.values()]


def _condition(cell: RetrievalCell) -> Value:
    return Condition(cell.attack, cell.norm, cell.eps).title.replace(", ε = ", " ")


def _estimate(one: Recall) -> Value:
    low, high = one.ci95
    return Estimate(one.recall, low, high)


def _notes(cells: Sequence[RetrievalCell]) -> list[str]:
    cell = cells[0]
    part = f", drawn from {cell.subset['of']}" if "limit" in cell.subset else ""
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
