"""Everything in docs/ and the README that advflyp printed or drew, made anew: `make docs-figures`.

A page says in comments, which no reader sees, what is run and where the output belongs:

    <!-- run -->       the commands or the Python program below it are run, in order, in an empty folder of the page's
    <!-- output -->    the fenced block below it is what the last command printed
    <!-- table NAME --> … <!-- end -->    what is between is made of a table in the code (`TABLES`)

    python docs/tools/outputs.py [PAGE…]    the named pages (docs/compare.md, README.md, images), by default all

Another machine rounds otherwise, and a model that changes changes its numbers: `drift` says which of them lie outside
the intervals that are printed. tests/test_docs.py asks it.
"""

import argparse
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from advflyp.data.sets.catalogue import TABLE as CATALOGUE
from advflyp.data.sets.catalogue import set_names
from advflyp.evaluation.protocols import ADVFLYP, PROTOCOLS, Protocol
from advflyp.evaluation.results import mean_interval, read_cells, wilson
from advflyp.paper.efficiency import BASELINES, efficiency_table
from advflyp.paper.proxies.coverage import FILE as COVERAGE
from advflyp.paper.proxies.coverage import read_coverage
from advflyp.paper.proxies.numbers import Numbers
from advflyp.paper.proxies.plan import PROXIES
from advflyp.paper.proxies.tables import summary as proxies_summary
from advflyp.paper.proxies.tables import tables as proxy_tables
from advflyp.paper.study import read_study
from advflyp.report.measure.render import markdown
from advflyp.report.measure.tables import Table, Value
from advflyp.report.pages.protocols import COPY, example, facts
from advflyp.use.quickstart import AFTER, BEFORE, EPS

ROOT = Path(__file__).parents[2]
MARK = re.compile(r"^<!-- (run|output) -->\n+(```(\w*)\n(.*?)^```$|(?: {4}[^\n]*\n|\n)+)", re.M | re.S)
# By number of images and by kind of data, with their legend.
PROXY_PLOTS = "section:has(.plot[aria-label*='number of images']) > :is(.key, .grid)"
TABLE = re.compile(r"^(<!-- table (\w+) -->)\n.*?\n(<!-- end -->)$", re.M | re.S)
# The README's sentence on the quickstart.
SUMMARY = re.compile(
    r"(rises\s+from\s+)[\d.]+( %\s+to\s+)[\d.]+( %,\s+and\s+the\s+clean\s+accuracy,\s+)[\d.]+"
    r"( %\s+before,\s+is\s+)[\d.]+( %\s+after)"
)
NUMBER = r"[+−]?\d+(?:\.\d+)?"
ESTIMATE = re.compile(rf"({NUMBER})\s+({NUMBER})(?:–| to )({NUMBER})")
MODELS = BEFORE, AFTER


@dataclass(frozen=True)
class Step:
    """A block of a page.

    kind:       "shell", "python" or "output"
    text:       without fence and indentation
    start, end: of the block in the page
    """

    kind: str
    text: str
    start: int
    end: int


def steps(page: str) -> list[Step]:
    """What a page's comments ask for, in order."""
    found = []
    for match in MARK.finditer(page):
        what, block, language, fenced = match.groups()
        text = fenced if fenced is not None else re.sub(r"^ {4}", "", block.strip("\n"), flags=re.M)
        kind = "output" if what == "output" else "python" if language == "python" else "shell"
        found.append(Step(kind, text.strip("\n"), match.start(2), match.end(2)))
    return found


def commands(shell: str) -> list[list[str]]:
    """The commands of a block, in words without "advflyp"; a backslash continues a line."""
    lines = shell.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.strip()]


def with_tables(page: str) -> str:
    """The page with every table of the code as it is now."""
    return TABLE.sub(lambda match: f"{match[1]}\n\n{TABLES[match[2]]().strip()}\n\n{match[3]}", page)


def protocols() -> str:
    """What differs between protocols, and what still differs from published numbers, with the protocols it is about."""
    about: dict[str, list[str]] = {}
    for protocol in PROTOCOLS.values():
        for note in protocol.notes:
            about.setdefault(note, []).append(f"`{protocol.name}`")
    table = markdown(protocol_differences()).partition("\n\n")[2].strip()
    return f"{table}\n\n" + "\n".join(f"- {', '.join(names)}: {note}" for note, names in about.items())


def protocol_differences() -> Table:
    """A row for each thing in which protocols differ; those with the same prompts and pixels share a column."""
    rows: dict[str, Callable[[Protocol], str]] = {
        "datasets": lambda p: str(len(set_names(list(p.sets)))),
        **{name: lambda p, name=name: facts(p)[name] for name in facts(ADVFLYP) if name != "datasets"},
        **{f"prompt: {name}": lambda p, name=name: _prompt(p, name) for name in CATALOGUE},
    }
    columns: dict[tuple[str, ...], list[Protocol]] = {}
    for protocol in PROTOCOLS.values():
        looks = [row for name, row in rows.items() if name in ("resizing", "perturbation") or ":" in name]
        columns.setdefault((protocol.source, *(row(protocol) for row in looks)), []).append(protocol)
    found: list[list[Value]] = [
        [name, *(_of_all(some, row) for some in columns.values())] for name, row in rows.items()
    ]
    return Table(
        title="What differs",
        columns=["", *(", ".join(p.name for p in some) for some in columns.values())],
        rows=[row for row in found if len(set(row[1:])) > 1],
    )


def _prompt(protocol: Protocol, name: str) -> str:
    text = example(protocol, name)
    return text if text == COPY else f'"{text}"'


def _of_all(some: Sequence[Protocol], row: Callable[[Protocol], str]) -> str:
    """What is the same for all of them once, else with their names."""
    found: dict[str, list[str]] = {}
    for protocol in some:
        found.setdefault(row(protocol), []).append(protocol.name)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in found.items())


def committed_study(name: str, place: Path) -> Path:
    """A copy in `place` of a study of docs/results, with its results unpacked."""
    folder = place / name
    shutil.copytree(ROOT / "docs/results" / name, folder)
    archive = folder / "results.tar.xz"
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    archive.unlink()
    return folder


def cost() -> str:
    """What AdvFLYP_full's levers cost and save, from the results in docs/results."""
    with tempfile.TemporaryDirectory() as place:
        study = read_study(committed_study("cost-mini", Path(place)))
    exhibits = [one for one in study.experiments if one.id in BASELINES]
    return "\n\n".join(
        markdown(efficiency_table(study, one)).partition("\n\n")[2].strip() for one in exhibits
    )


def autoattack() -> str:
    """The images that stay correct under AutoAttack and under PGD-10, from the results in docs/results."""
    with tempfile.TemporaryDirectory() as place:
        folder = committed_study("cost-mini", Path(place))
        trainings = [row for one in read_study(folder).experiments if one.id in BASELINES for row in one.rows]
        measured = {cells[0].model: cells for cells in map(read_cells, folder.glob("autoattack/*.jsonl"))}
    conditions = [
        ("clean", 0.0),
        *((attack, eps / 255) for attack in ("pgd10", "autoattack") for eps in (1, 2, 4)),
    ]
    rows: list[list[Value]] = []
    for name in (training for training in trainings if training in measured):
        found = [
            [
                cell
                for cell in measured[name]
                if cell.attack == attack and math.isclose(cell.eps, eps, abs_tol=1e-9)
            ]
            for attack, eps in conditions
        ]
        images = [sum(cell.n for cell in cells) for cells in found]
        # What has not been measured on all of them is left open.
        correct = [
            f"{sum(cell.correct for cell in cells)}" if n == max(images) else None
            for cells, n in zip(found, images, strict=True)
        ]
        rows.append([name, f"{max(images)}", *correct])
    heads = [
        "training",
        "images",
        "clean",
        *(f"{attack}, ε = {eps}/255" for attack in ("PGD-10", "AutoAttack") for eps in (1, 2, 4)),
    ]
    return markdown(Table(title="AutoAttack", columns=heads, rows=rows)).partition("\n\n")[2]


def proxies() -> str:
    """What became of the hypotheses, from the results in docs/results, and the accuracies behind them."""
    with tempfile.TemporaryDirectory() as place:
        folder = committed_study("proxies-mini", Path(place))
        study = read_study(folder)
        exhibit = next(one for one in study.experiments if one.id == PROXIES)
        numbers = Numbers.of(study, exhibit, read_coverage(folder / COVERAGE))
        tables = proxy_tables(numbers, exhibit.sets)
        return "\n".join([f"{proxies_summary(numbers)}\n", *map(markdown, tables.values())])


TABLES: dict[str, Callable[[], str]] = {
    "protocols": protocols,
    "cost": cost,
    "autoattack": autoattack,
    "proxies": proxies,
}


def made_anew(page: str) -> str:
    """The page with every table and output as it is now."""
    page = with_tables(page)
    with tempfile.TemporaryDirectory() as folder:
        printed, pieces, end = "", [], 0
        for step in steps(page):
            if step.kind == "output":
                # The first line is a title: what comes before it is progress.
                title = step.text.splitlines()[0]
                shown = "\n".join(line.rstrip() for line in printed.splitlines()).strip("\n")
                shown = shown[max(0, shown.find(title)) :]
                shown = re.sub(r"\n+\d+ results? (?:is|are) in .*$", "", shown)
                pieces += [page[end : step.start], f"```\n{shown}\n```"]
                end = step.end
            elif step.kind == "python":
                subprocess.run([sys.executable, "-c", step.text], cwd=folder, check=True, env=_environment())
            else:
                for words in commands(step.text):
                    printed = advflyp(words, Path(folder))
    return "".join([*pieces, page[end:]])


def advflyp(words: list[str], folder: Path) -> str:
    """What a command prints, as on a terminal of 80 columns."""
    print("  advflyp", shlex.join(words), flush=True)
    command = [sys.executable, "-m", "advflyp", *words]
    return subprocess.run(
        command, cwd=folder, check=True, env=_environment(), stdout=subprocess.PIPE, encoding="utf-8"
    ).stdout


def _environment() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}


def drift(documented: str, now: str) -> list[str]:
    """A sentence for each row of a documented output that the output of now contradicts.

    Of a number with an interval the new value must lie inside the old interval; of one without (a percentage in a row
    that says how many images it is of) inside Wilson's. Rows are told apart by their words and the heading above them.
    """
    new = _rows(now)
    found = []
    for key, row in _rows(documented).items():
        if key not in new:
            found.append(f"there is no row '{key}' any more")
            continue
        estimates, others = _estimates(row), _estimates(new[key])
        if len(estimates) != len(others):
            found.append(f"'{key}' has {len(others)} numbers with an interval in place of {len(estimates)}")
            continue
        found += [
            f"'{key}': {value:.1f} where {low:.1f} to {high:.1f} is documented"
            for (_, low, high), (value, _, _) in zip(estimates, others, strict=True)
            if not low <= value <= high
        ]
    return found


def _rows(text: str) -> dict[str, str]:
    """Heading and first words → the rest, of each line of a table with numbers in it; of one in parts, all of them."""
    rows: dict[str, str] = {}
    heading, inside = "", False
    for line in text.splitlines():
        if "────" in line:
            heading, inside = "", True
        elif inside and (match := re.match(rf"(\S.*?)\s\s+({NUMBER}\s.*)$", line)):
            key = f"{heading} {match[1]}".strip()
            rows[key] = f"{rows[key]}  {match[2]}" if key in rows else match[2]
        elif inside and line.strip():
            heading = line.strip()
    return rows


def _estimates(row: str) -> list[tuple[float, float, float]]:
    """(value, low, high) of each number that has an interval or can be given one."""
    found = []
    for match in ESTIMATE.finditer(row):
        value, low, high = map(_number, match.groups())
        # Intervals are printed in whole percent or with a digit.
        rounding = 0.05 if "." in match[2] else 0.5
        found.append((value, low - rounding, high + rounding))
    bare = re.match(r"(\d+)\s+(\d+\.\d)\s+(\d+\.\d)\s+[+−]?\d", row)
    if bare:
        n = int(bare[1])
        for percent in map(float, bare.groups()[1:]):
            low, high = wilson(percent / 100 * n, n)
            found.append((percent, 100 * low, 100 * high))
    return found


def _number(text: str) -> float:
    return float(text.replace("−", "-"))


def summary(results: Path, models: Sequence[str] = MODELS) -> list[str]:
    """The numbers of the README's quickstart, in %: under attack before and after, clean before and after."""
    cells = read_cells(results)
    values = []
    for attack in ("pgd10", "clean"):
        for model in models:
            of = [c for c in cells if c.model == model and c.attack == attack]
            of = [c for c in of if attack == "clean" or math.isclose(c.eps, EPS)]
            values.append(f"{100 * mean_interval(of)[0]:.1f}")
    return values


def with_summary(readme: str, values: list[str]) -> str:
    """The README with these numbers."""
    return SUMMARY.sub(
        lambda m: "".join(a + b for a, b in zip(m.groups(), [*values, ""], strict=True)), readme, count=1
    )


def draw() -> None:
    """The images of docs/images but demo.png: of the quickstart, the reproduction and the study of proxies."""
    from advflyp.paper.page import paper_report
    from browser import Browser

    images = ROOT / "docs/images"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        advflyp(["quickstart", "--out", "quickstart", "--minutes", "60"], folder)
        readme = ROOT / "README.md"
        text = with_summary(readme.read_text(encoding="utf-8"), summary(folder / "quickstart/results.jsonl"))
        readme.write_text(text, encoding="utf-8")
        page, of_proxies = (
            paper_report(committed_study(f"{name}-mini", folder), folder / name)
            for name in ("reproduce", "proxies")
        )
        browser = Browser(folder / "profile")
        browser.window(1000, 1440, touch=True)
        browser.open((folder / "quickstart/report/index.html").as_uri())
        browser.screenshot(images / "quickstart.png")
        browser.open(page.as_uri())
        browser.screenshot(images / "tradeoff.png", of="section:first-of-type figure")
        browser.open(of_proxies.as_uri())
        browser.screenshot(images / "proxies.png", of=PROXY_PLOTS)
        browser.close()
    for name in ("quickstart", "tradeoff", "proxies"):
        pack(images / f"{name}.png")


def pack(path: Path) -> None:
    """Give a PNG a palette of 256 colours, which halves it: the plots have few, but many shades at their edges."""
    with Image.open(path) as image:
        packed = image.convert("RGB").quantize(256, kmeans=10, dither=Image.Dither.NONE)
    packed.save(path, optimize=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help="pages, or images; by default all")
    texts = {page: page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md"))}
    pages = [page for page, text in texts.items() if steps(text) or TABLE.search(text)]
    parts = parser.parse_args().parts or [*(str(page.relative_to(ROOT)) for page in pages), "images"]
    sys.path.insert(0, str(ROOT / "tests"))
    import browser

    if "images" in parts and browser.CHROMIUM is None:
        parser.error("the images need Chromium (on Debian and Ubuntu: apt install chromium)")
    for part in parts:
        print(part, flush=True)
        if part == "images":
            draw()
            continue
        path = ROOT / part
        before = path.read_text(encoding="utf-8")
        path.write_text(made_anew(before), encoding="utf-8")
        for sentence in drift(before, path.read_text(encoding="utf-8")):
            print(f"  {sentence}")


if __name__ == "__main__":
    main()
