"""The figures of a table, read from the files that benchmarks and commands write.

Each reader takes a result file and returns (what, figure) pairs that can be read without the file. Only the standard
library is imported, so that this works before anything is installed.
"""

import json
import statistics
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Figures = list[tuple[str, str]]

ATTACKS = {"pgd10": "PGD-10", "cw10": "CW-10", "autoattack": "AutoAttack"}
RIVALS = {"obvious": "the obvious implementation", "official": "pyautoattack"}
# The radius of the robust accuracy that is shown for the quickstart.
QUICKSTART_EPS = 2 / 255


def tests(path: Path) -> Figures:
    """Figures from pytest's JUnit file."""
    suite = next(ElementTree.parse(path).getroot().iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    text = f"{passed} passed, {len(failed)} failed, {counts['skipped']} skipped"
    return [("tests that need a GPU", text), *(("failed test", name) for name in failed)]


def nothing(_: Path) -> Figures:
    """No figures, for a stage that only prepares another one."""
    return []


def training(path: Path) -> Figures:
    """Figures from a run's metrics.jsonl: medians of all lines but the first, which includes one-time costs."""
    lines = [line for line in _lines(path) if line["kind"] == "train"]
    if len(lines) < 2:
        return []
    median = {
        key: statistics.median(line[key] for line in lines[1:])
        for key in ("pairs_per_second", "data_wait", "memory_gb")
    }
    return [
        ("`advflyp train`, end to end", f"{median['pairs_per_second']:,.0f} pairs/s"),
        ("`advflyp train`, share of the time without a batch", f"{100 * median['data_wait']:.0f} %"),
        ("`advflyp train`, memory", f"{median['memory_gb']:.1f} GB"),
        ("`advflyp train`, first line of the log", f"step {lines[0]['step']} after {lines[0]['time']:.0f} s"),
    ]


def train_step(path: Path) -> Figures:
    """Figures from benchmarks/train_step.py."""
    figures = []
    for row in _rows(path):
        setting = [row["model"], row["precision"], f"batch {row['batch_size']:,}"]
        what = ", ".join(
            [
                f"step of {row['method']}",
                *setting,
                *([f"compiled: {row['compiled']}"] if row["compiled"] else []),
            ]
        )
        rate = row["batch_size"] / row["seconds"]
        figures.append(
            (what, f"{_seconds(row['seconds'])}, {rate:,.0f} pairs/s, {row['ratio']:.2f} × Algorithm 1")
        )
    return figures


def evaluation(path: Path) -> Figures:
    """Figures from benchmarks/evaluate.py."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    setting = tree["arguments"]
    figures = []
    for row in tree["rows"]:
        if "prompts" in row:
            what = f"encoding {row['prompts']:,} prompts, {setting['model']}"
            text = f"{_seconds(row['ours'])}, {row['ratio']:.2f} × with the padding"
            figures.append((what, text))
            continue
        what = (
            f"{ATTACKS[row['attack']]}, {setting['model']}, {row['classes']:,} prompts, {setting['images']} images, "
            f"ε = {setting['eps']}, {setting['precision']}{', replayed' if setting.get('graphs') else ''}"
        )
        ours = row["ours"]
        text = f"{_seconds(ours['seconds'])}, {100 * ours['accuracy']:.0f} % robust"
        for rival, name in RIVALS.items():
            if rival in row:
                text += f", {row[rival]['ratio']:.2f} × {name}"
        figures.append((what, text))
    return figures


def loading(path: Path) -> Figures:
    """Figures from benchmarks/loader.py."""
    figures = []
    for row in _rows(path):
        rate = row["images_per_second"]
        if row["what"] == "loader" and row["name"] != "plain":
            what = (
                f"loader ({row['name']}), {row['workers']} decoding thread{'s' if row['workers'] > 1 else ''}"
            )
            text = f"{rate:,.0f} images/s, {row['ratio']:.2f} × the plain way"
            figures.append((what, f"{text}, {row['own_ms']:.2f} ms an image of the training's process"))
        elif "(ours)" in row["name"]:
            what = "decoding and resizing, one core"
            figures.append((what, f"{rate:,.0f} images/s, {row['ratio']:.2f} × the plain way"))
    return figures


def quickstart(path: Path) -> Figures:
    """Figures from the quickstart's results.jsonl: mean accuracies over its sets, before and after."""
    cells = _lines(path)
    figures = []
    for title, attack, eps in (("clean", "clean", 0.0), ("PGD-10, ε = 2/255", "pgd10", QUICKSTART_EPS)):
        accuracies: dict[str, list[float]] = {}
        for cell in cells:
            if cell["attack"] == attack and abs(cell["eps"] - eps) < 1e-6:
                accuracies.setdefault(cell["model"], []).append(cell["accuracy"])
        means = [f"{100 * statistics.fmean(values):.1f} %" for values in accuracies.values()]
        if means:
            figures.append((f"quickstart, {title}", " → ".join(means)))
    return figures


def headline(path: Path) -> Figures:
    """Figures from benchmarks/headline.py: how far it came; the accuracies have a table of their own."""
    finished, planned = (sum(row[key] for row in _rows(path)) for key in ("finished", "planned"))
    return [("mini reproduction's headline", f"{finished} of {planned} models measured")]


def headline_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of benchmarks/headline.py as Markdown; a dash if a set is missing."""
    conditions = list(dict.fromkeys(title for row in rows for title in row["accuracy"]))
    lines = [
        "| mean accuracy in % | seeds | " + " | ".join(conditions) + " |",
        "|---|---:|" + "---:|" * len(conditions),
    ]
    for row in rows:
        cells = [_accuracy(row["accuracy"].get(title)) for title in conditions]
        lines.append(f"| {row['method']} | {row['finished']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _accuracy(found: dict[str, Any] | None) -> str:
    if found is None:
        return "–"
    spread = "" if found["deviation"] is None else f" ±{found['deviation']:.1f}"
    return f"{found['mean']:.1f}{spread}"


def _rows(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


def _lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a JSON-lines file; the last may be cut off."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def _seconds(value: float) -> str:
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.2f} s"
