"""The pages of docs/: links lead somewhere, the site shows all of them; commands are
understood, and what is shown of their output is what they print."""

import json
import re
import shlex
import shutil
import tarfile
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import outputs
import pytest
import yaml
from outputs import (
    SUMMARY,
    TABLE,
    commands,
    drift,
    made_anew,
    protocol_differences,
    steps,
    summary,
    with_summary,
    with_tables,
)

from advflyp.cli.arguments import parse
from advflyp.cli.main import main, split_recipe_keys
from advflyp.data.sets import catalogue
from advflyp.evaluation.results import Cell
from advflyp.paper.study import read_study
from advflyp.recipes import find_recipe
from advflyp.report.measure.estimates import Condition
from advflyp.report.measure.grid import sides
from advflyp.report.measure.results import Results
from advflyp.training.recipe import read_recipe
from paper.proxy_study import by_points, write_study

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def anchors(page: Path) -> set[str]:
    """As GitHub and the site make them of headings."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    for target in LINK.findall(CODE.sub("", page.read_text())):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(found), f"{page.name}: {target}"


def test_the_tests_that_promises_name_are_there() -> None:
    named = re.findall(r"`(tests/[^`]*)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 10
    assert not [name for name in named if not (ROOT / name).exists()]


def test_the_site_has_every_page() -> None:
    class Loader(yaml.SafeLoader):
        """mkdocs' own tags, which say nothing of the pages."""

    tree = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)
    shown = re.findall(r"[\w-]+\.md", str(tree["nav"]))
    assert sorted(shown) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_nothing_is_installed_from_an_index_that_has_no_advflyp() -> None:
    """Extras are those of the checkout (`pip install '.[hf]'`), other packages go by their own names."""
    places = [*PAGES, *ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("src/**/*.py")]
    told = {path.name: re.findall(r"pip install [^`\n]*", path.read_text()) for path in places}
    assert sum(map(len, told.values())) > 10
    assert not [(name, line) for name, lines in told.items() for line in lines if "advflyp" in line]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {
        name for lines in told.values() for line in lines for name in re.findall(r"\.\[([\w,]+)\]", line)
    }
    assert {extra for names in named for extra in names.split(",")} <= set(extras)


def shown_commands() -> Iterator[tuple[str, list[str]]]:
    """(page, words after "advflyp") of every command that a page shows whole."""
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        fenced = "".join(re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S))
        for line in re.findall(r"^ {4}advflyp (.+)$", text, re.M) + re.findall(
            r"^advflyp (.+)$", fenced, re.M
        ):
            words = shlex.split(line, comments=True)
            words = words[: words.index(">")] if ">" in words else words
            # "…" stands for what a reader puts there.
            if words[0].isalpha() and not any("…" in word for word in words):
                yield page.name, words


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[partial]:
    """What the command line would call, which is not called."""
    found: list[partial] = []

    def recorded(*arguments: Any) -> Callable[..., None]:
        found.append(parse(*arguments))
        return lambda **_: None

    monkeypatch.setattr("advflyp.cli.arguments.check_there", lambda address, missing: None)
    monkeypatch.setattr("advflyp.cli.main.parse", recorded)
    return found


def test_every_command_is_understood(
    parsed: list[partial], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its options exist, and a recipe of ours has the keys that it sets."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name, code in re.findall(
        r'```python title="(\w+)\.py"\n(.*?)```', (ROOT / "docs/extend.md").read_text(), re.S
    ):
        (tmp_path / f"{name}.py").write_text(code)
    count = 0
    for page, words in shown_commands():
        try:
            main(words)
            # RECIPE stands for any of them; a file of the reader's own is not there.
            if words[0] in ("train", "pretrain") and not re.match("[A-Z]|my", parsed[-1].args[0]):
                read_recipe(find_recipe(parsed[-1].args[0]), split_recipe_keys(words)[1])
        except (SystemExit, ValueError) as error:
            pytest.fail(f"{page}: advflyp {shlex.join(words)}: {error}")
        count += 1
    assert count == len(parsed) > 60


OUTPUTS = [page for page in PAGES if any(step.kind == "output" for step in steps(page.read_text()))]


def test_tables_are_those_of_the_code() -> None:
    pages = [page for page in PAGES if TABLE.search(page.read_text())]
    assert {page.name for page in pages} == {"evaluation.md", "fast.md", "proxies.md"}
    for page in pages:
        assert with_tables(page.read_text()) == page.read_text(), (
            f"python docs/tools/outputs.py docs/{page.name}"
        )


def test_the_tables_of_proxies_are_made_of_their_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "docs/results/proxies-mini"
    folder.mkdir(parents=True)
    write_study(folder, by_points({"tecoa-near-660": -10}))
    with tarfile.open(folder / "results.tar.xz", "w:xz") as packed:
        packed.add(folder / "results", "results")
    shutil.rmtree(folder / "results")
    monkeypatch.setattr(outputs, "ROOT", tmp_path)
    text = outputs.proxies()
    assert text.startswith(
        "H1 holds, H2 does not hold, H3 does not hold, H4 holds, H5 holds, H6 does not hold.\n"
    )
    (row,) = (line for line in text.splitlines() if line.startswith("| near, 660: AdvFLYP"))
    assert "| 3 | +10.0 " in row and "| holds |" in row
    assert not list(folder.glob("report"))


def test_every_output_has_commands() -> None:
    assert {page.name for page in OUTPUTS} >= {"compare.md", "retrieval.md"}
    for page in OUTPUTS:
        kinds = [step.kind for step in steps(page.read_text())]
        assert kinds[0] in ("shell", "python") and "shell" in kinds[: kinds.index("output")], page.name


def test_a_documented_comparison_is_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page's commands, on one of its sets without an attack."""
    monkeypatch.chdir(tmp_path)
    shell, output = steps((ROOT / "docs/compare.md").read_text())
    sets = ["mini/food", "mini/fashion", "mini/flags"]
    for words in commands(shell.text):
        capsys.readouterr()
        main([word for word in words if word not in (*sets[1:], "pgd10")])
    text = capsys.readouterr().out
    clean = output.text.partition("\nPGD-10")[0].splitlines()
    wanted = "\n".join(line for line in clean if not re.match("mini/f[al]|mean of", line))
    assert wanted.count("mini/food") == 1 and drift(wanted, text) == []


def test_the_zoo_is_documented_as_it_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    every = steps((ROOT / "docs/zoo.md").read_text())
    assert [step.kind for step in every] == ["shell", "output"] * 2
    for shell, output in zip(every[::2], every[1::2], strict=True):
        (words,) = commands(shell.text)
        main(words)
        assert output.text == "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("page", OUTPUTS, ids=lambda page: page.name)
def test_documented_output_is_what_is_printed(page: Path) -> None:
    assert drift(page.read_text(), made_anew(page.read_text())) == []


def test_drift_is_what_lies_outside_the_intervals() -> None:
    page = (ROOT / "docs/compare.md").read_text()
    text = steps(page)[-1].text
    assert drift(text, text) == []
    food = next(line for line in text.splitlines() if line.startswith("mini/food"))
    a, _, change = food.split()[2:5]
    inside = food.replace(a, f"{float(a) - 1:.1f}", 1)
    assert drift(text, text.replace(food, inside)) == []
    outside = food.replace(f" {a} ", f" {float(a) - 30:.1f} ", 1)
    assert any("clean mini/food" in sentence for sentence in drift(text, text.replace(food, outside)))
    turned = food.replace(f" {change} ", " +30.1 ", 1)
    assert len(drift(text, text.replace(food, turned))) == 1
    assert drift(text, text.replace(food + "\n", "")) == ["there is no row 'clean mini/food' any more"]
    stale = text.replace("mini/food ", "mini/foods")
    assert len(drift(text, stale)) == 2
    recall = next(
        step for step in steps((ROOT / "docs/retrieval.md").read_text()) if step.kind == "output"
    ).text
    assert drift(recall, recall) == []
    first = re.search(r"clean +(\d+\.\d)", recall)
    assert first is not None
    assert len(drift(recall, recall.replace(first[1], f"{float(first[1]) - 12:.1f}", 1))) == 1


def test_pages_name_every_field_of_a_cell_and_count_the_sets() -> None:
    (listed,) = re.findall(r"One JSON line: `([^`]+)`", (ROOT / "docs/design.md").read_text())
    assert sorted(listed.replace("\n", " ").split(", ")) == sorted(field.name for field in fields(Cell))
    assert f"the {len(catalogue.TABLE)} datasets of [docs/sets.md]" in (ROOT / "README.md").read_text()


def test_the_quickstart_is_that_of_the_bundled_results() -> None:
    """What was measured before training comes with the weights; what training makes of it is in the image's page."""
    readme = (ROOT / "README.md").read_text()
    match = SUMMARY.search(readme)
    assert match is not None
    shown = re.findall(r"\d+\.\d", match[0])
    measured = ROOT / "src/advflyp/model/weights/mini/measured/results.jsonl"
    assert shown[::2] == summary(measured, models=("mini",))
    assert with_summary(readme, shown) == readme
    assert "from 1.5 %" in with_summary(readme, ["1.5", "2.5", "3.5", "4.5"])


@pytest.mark.parametrize("page", ["README.md", "docs/reproduction.md"])
def test_means_of_the_reproduction_are_those_of_its_results(page: str, reproduce_mini: Path) -> None:
    """Each number of a table whose columns are attacks at an ε."""
    study = read_study(reproduce_mini)
    results = Results(study.cells, seeds=True)
    columns = {"clean": Condition("clean", None, 0.0)} | {
        f"{name.upper()}-10, {grey}/255": next(
            c for c in results.conditions if c.attack == f"{name}10" and round(255 * c.eps) == grey
        )
        for name in ("pgd", "cw")
        for grey in (1, 2, 4)
    }
    sets = {"": results.mean_sets, "all ten sets": results.mean_sets}
    sets |= {f"{side} ({len(names)} sets)": names for side, names in sides(study.experiments[0].sets).items()}
    checked = 0
    for head, body in re.findall(r"^\|(.*)\|\n\|[-:|]+\|\n((?:\|.*\n)+)", (ROOT / page).read_text(), re.M):
        first, *names = (cell.strip() for cell in head.split("|"))
        if not names or not set(names) <= set(columns):
            continue
        for line in body.splitlines():
            label, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            for name, shown in zip(names, cells, strict=True):
                value = results.mean(label, columns[name], sets[first])
                assert value is not None, label
                spread = f" {value.interval}" if value.seeds > 1 else ""
                assert shown.replace("*", "") == f"{value.number}{spread}", f"{label}, {name}, {first}"
                checked += 1
    assert checked >= 35


def test_the_accuracies_of_the_bundled_models_are_those_of_their_cards() -> None:
    text = (ROOT / "docs/mini.md").read_text()
    for name in ("mini", "mini-vit"):
        card = json.loads((ROOT / f"src/advflyp/model/weights/{name}/card.json").read_text())
        accuracies = [value for key, value in card["accuracy"].items() if key != "mini/val"]
        row = next(
            line for line in text.splitlines() if line.startswith(f"| `{name}` | ") and "million" not in line
        )
        assert len(accuracies) == 10 and row.endswith(f"| {100 * sum(accuracies) / 10:.1f} % |")


def test_protocols_are_told_apart() -> None:
    table = protocol_differences()
    assert table.columns[1:] == [
        "advflyp, advflyp-2026, advflyp-2026-mini", "advflyp-code", "tecoa", "pmg-aft", "tga-zsr", "robustvlm",
        "clip-benchmark",
    ]  # fmt: skip
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["not here"][2:4] == ["Hateful Memes", "none"] and rows["datasets"][5] == "13"
    assert rows["prompt: eurosat"][:2] == [
        '"This is a photo of a river."',
        '"A centered satellite photo of a river."',
    ]
