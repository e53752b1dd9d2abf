"""Results of `advflyp compare`, McNemar's test on two models, as a table or as JSON."""

import dataclasses
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from advflyp.evaluation.compare import Comparison
from advflyp.evaluation.results import DEFAULT_PROTOCOL
from advflyp.files import write_text
from advflyp.report.measure.estimates import Condition, Estimate
from advflyp.report.measure.render import markdown
from advflyp.report.measure.tables import Blocks, Table, Value, in_blocks
from advflyp.wording import counted
from advflyp.written import check_written_by_us


def paired_table(rows: Sequence[Comparison]) -> Table:
    """A block for each attack at each ε: a row for each set, their mean last."""
    blocks: Blocks = []
    keys = groupby(rows, key=lambda row: (Condition.of(row), row.protocol))
    for (condition, protocol), block in keys:
        said = "" if protocol == DEFAULT_PROTOCOL else f", protocol {protocol}"
        blocks.append((condition.title + said, list(map(_row, block))))
    return Table(
        title=f"Zero-shot accuracy in % on the same images\nA: {rows[0].model_a}   B: {rows[0].model_b}",
        columns=["set", "n", "A", "B", "B − A", "only\nA", "only\nB", "p", "Holm p"],
        **in_blocks(blocks),
        note="\n".join(
            [*_about_images(rows), *_about_settings(rows), METHOD.format(counted(len(rows), "row"))]
        ),
    )


METHOD = """B − A in points with its 95 % interval (Agresti & Min, matched pairs).
only A, only B: images that one of them alone gets right.
p: McNemar's exact two-sided test; Holm p: adjusted for {}."""
# Marks of our files: each kind holds one of them, and hardly any other file does.
MARKS = (b'"p_holm": ', b"McNemar's exact two-sided test; Holm p")


def write_comparison(rows: Sequence[Comparison], path: Path) -> None:
    """Write .json, one object per row, or .md, as `path`'s suffix says; raises as `check_out`."""
    check_out(path)
    if path.suffix == ".json":
        write_text(path, json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n")
    else:
        write_text(path, markdown(paired_table(rows)))


def check_out(path: Path) -> None:
    """ValueError for an unknown suffix, and for an existing file that `write_comparison` did not write."""
    if path.suffix not in (".json", ".md"):
        raise ValueError(f"--out {path}: name a file that ends in .json or .md")
    check_written_by_us(path, *MARKS, option="--out")


def _row(row: Comparison) -> list[Value]:
    several = len(row.sets) > 1
    return [
        f"mean of {len(row.sets)}" if several else _set(row),
        str(row.n),
        Estimate(row.accuracy_a).number,
        Estimate(row.accuracy_b).number,
        Estimate(row.difference, *row.ci95, is_change=True),
        str(row.only_a),
        str(row.only_b),
        _p(row.p),
        _p(row.p_holm),
    ]


def _about_images(rows: Sequence[Comparison]) -> list[str]:
    """A line for each set on which the two were measured on different images: how many they share."""
    lines = [
        f"{_set(row)}: {counted(row.n, 'image')} in common, of {row.n_a} (A) and {row.n_b} (B)."
        for row in rows
        if len(row.sets) == 1 and not row.n == row.n_a == row.n_b
    ]
    return list(dict.fromkeys(lines))


def _about_settings(rows: Sequence[Comparison]) -> list[str]:
    names = dict.fromkeys(name for row in rows for name in row.differing)
    return [f"A and B were measured with different {', '.join(names)}."] if names else []


def _set(row: Comparison) -> str:
    return row.sets[0].removesuffix(" (test)")


def _p(p: float) -> str:
    return f"{p:.0e}" if p < 0.001 else f"{p:.2g}" if p < 0.01 else f"{p:.2f}"
