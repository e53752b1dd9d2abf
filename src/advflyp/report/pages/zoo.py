"""The zoo on a terminal: its table, and the card of a model."""

import textwrap

from advflyp.model.zoo import ENTRIES, Entry
from advflyp.report.measure.tables import Table, Value

WIDTH = 80
LAYOUTS = {
    "open_clip": "open_clip's: the whole model and its configuration",
    "transformers": "transformers' weights and config.json; preprocessing and tokenizer of the base",
    "tower": "one file with the image tower; text tower, preprocessing and tokenizer of the base",
}
# The hub cannot be reached from where this project is developed.
UNTRIED = (
    "The facts are from the model card, README and paper. The files themselves were not at hand: the layout was tried "
    "with small random weights."
)


def zoo_table() -> Table:
    """A row for each model of the zoo."""
    rows: list[list[Value]] = [
        [entry.name, entry.method, entry.eps or "?", entry.architecture, entry.licence or "?"]
        for entry in ENTRIES
    ]
    columns = ["model", "method", "ε", "architecture", "licence"]
    return Table(title="", columns=columns, rows=rows, words=True)


def zoo_card(entry: Entry) -> list[str]:
    """What is known about a model, as lines of at most 80 columns."""
    eps = f"L∞ {entry.eps}" if entry.eps else "not stated"
    pins = [f"commit {entry.revision}"] if entry.revision else []
    pins += [f"{file} SHA-256 {sha256}" for file, sha256 in entry.sha256.items()]
    facts = (
        ("method", entry.method),
        ("training ε", eps),
        ("robust", f"{entry.towers} tower{'s' if ' and ' in entry.towers else ''}"),
        ("finetuned", f"from {entry.base}" if entry.base else "no: trained from scratch"),
        ("", f"on {', '.join(entry.trained_on)}" if entry.trained_on else ""),
        ("licence", entry.licence or "not stated in what was read; ask the authors before you redistribute"),
        ("paper", entry.paper),
        (
            "weights",
            f"https://huggingface.co/{entry.repository}" + (f" ({entry.file})" if entry.file else ""),
        ),
        ("layout", LAYOUTS[entry.layout]),
        ("pinned to", "; ".join(pins) or "nothing: the newest commit is loaded"),
        ("address", entry.address),
    )
    lines = [entry.name, ""]
    for name, value in facts:
        lines += _wrapped(value, f"{name:12}") if value else []
    for published in entry.published:
        robust = ", ".join(f"{value:.1f} at {eps}" for eps, value in published.robust.items())
        lines += ["", f"published   clean {published.clean:.1f} %; robust {robust}"]
        lines += _wrapped(published.protocol)
    if not entry.published:
        lines += ["", "published   no figures are listed here; see the paper"]
    lines += ["", "notes"]
    for note in (*entry.notes, UNTRIED):
        lines += textwrap.wrap(note, WIDTH, initial_indent="- ", subsequent_indent="  ")
    return lines


def _wrapped(text: str, first: str = " " * 12) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * 12,
        break_long_words=False,
        break_on_hyphens=False,
    )
