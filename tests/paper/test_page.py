import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from advflyp.data.sets.labelled import LabelledSet
from advflyp.evaluation.results import append_cell, read_cells
from advflyp.model.clip import CLIP
from advflyp.model.folder import weights_sha256
from advflyp.paper import page as paper
from advflyp.paper.page import paper_report
from advflyp.paper.study import main_experiment, read_study
from advflyp.report.figures import embedding
from report.cells import cell
from report.html_page import Page
from report.sample import METHODS, OUT_OF_PROXY, SETS, write_sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def out(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = paper_report(folder, tmp_path_factory.mktemp("report") / "out")
    assert path.name == "index.html"
    return path.parent


def accuracies(folder: Path, label: str, attack: str, sets: list[str], grey: float = 1) -> np.ndarray:
    """(seeds, sets), straight from the files."""
    rows = []
    for file in sorted((folder / "results").glob("*.jsonl")):
        found = {
            c.set: c.accuracy
            for c in read_cells(file)
            if c.model == label and c.attack == attack and round(c.eps * 255) == grey
        }
        if found:
            rows.append([found[f"mini/{name}"] for name in sets])
    return np.array(rows)


def test_self_contained(out: Path) -> None:
    page = Page(out / "index.html")
    outside = {link for link in page.links if not link.startswith(("data:", "#"))}
    assert outside == {"https://arxiv.org/abs/2604.11576", "results.md"}
    assert len(page.ids) == len(set(page.ids))
    text = (out / "index.html").read_text()
    assert "@import" not in text and not re.search(r"url\((?!#)", text) and "<script" not in text
    assert not list(out.rglob("*.partial"))


def test_csv_is_numpys_mean_and_deviation(folder: Path, out: Path) -> None:
    with open(out / "tables" / "table1.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(METHODS)
    for row in rows:
        attack = {"P": "pgd10", "C": "cw10", "A": "autoattack"}[row["block"][0]]
        values = 100 * accuracies(folder, row["method"], attack, list(SETS))
        assert row["seeds"] == str(len(values))
        for place, name in enumerate(SETS):
            assert float(row[name]) == pytest.approx(values[:, place].mean(), abs=1e-3)
            if len(values) > 1:
                assert float(row[f"{name} sd"]) == pytest.approx(values[:, place].std(ddof=1), abs=1e-3)
            else:
                assert row[f"{name} sd"] == "" and float(row[f"{name} low"]) < float(row[name])
        outside = [place for place, name in enumerate(SETS) if name in OUT_OF_PROXY]
        inside = [place for place in range(len(SETS)) if place not in outside]
        for heading, places in {
            "all (7)": range(7),
            "in proxy (4)": inside,
            "out of proxy (3)": outside,
        }.items():
            per_seed = values[:, list(places)].mean(1)
            assert float(row[heading]) == pytest.approx(per_seed.mean(), abs=1e-3)
            if len(values) > 1:
                assert float(row[f"{heading} sd"]) == pytest.approx(per_seed.std(ddof=1), abs=1e-3)


def test_every_experiment_is_there(folder: Path, out: Path) -> None:
    page, text = Page(out / "index.html"), (out / "results.md").read_text()
    for experiment in read_study(folder).experiments:
        assert experiment.title in page.text.replace("\u00a0", " ")
        assert f"## {experiment.title}" in text
        name = experiment.id
        assert {f"{name}{end}" for end in (".csv", ".tex", "-means.csv", "-means.tex")} <= {
            path.name for path in (out / "tables").iterdir()
        }
    assert "14 of 28 results missing (–)" in text, "a method that was not run"
    assert "The original is not ranked." in page.text
    assert "TGA-ZSR" in (out / "tables" / "sanity.csv").read_text() and "†" in page.text


def test_best_and_second(folder: Path, out: Path) -> None:
    means = {
        label: accuracies(folder, label, "pgd10", list(SETS)).mean()
        for label in METHODS
        if label != "original"
    }
    order = sorted(means, key=lambda label: -means[label])
    lines = (out / "results.md").read_text().splitlines()
    row = {
        label: next(line for line in lines if line.startswith(f"| {label.replace('_', chr(92) + '_')} | 3"))
        for label in order
    }
    assert row[order[0]].split("|")[3].strip().startswith(f"**{100 * means[order[0]]:.1f}**")
    assert row[order[1]].split("|")[3].strip().startswith(f"<u>{100 * means[order[1]]:.1f}</u>")
    assert not any(row[label].split("|")[3].strip().startswith(("*", "<")) for label in order[2:])
    page = Page(out / "index.html")
    assert f"Of {len(order)} methods {order[0]} has the highest accuracy" in page.text


def test_figures(folder: Path, out: Path) -> None:
    text = Page(out / "index.html").text
    for words in (
        "batch 256",
        "image–text pairs",
        "1,250",
        "φ = 0.5",
        "Up and right is better",
        "TeCoA, seed 2",
    ):
        assert words in text, words
    phi = (out / "tables" / "figure5-phi.csv").read_text()
    stored = json.loads((folder / "embedding.json").read_text())
    assert f"{np.mean(stored[0]['phi']):.4f}" in phi
    assert phi.splitlines()[0] == "model,mean φ (rad),standard error (rad),images"


def test_from_results_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    shutil.copy(folder / "plan.json", tmp_path)
    for file in (folder / "results").iterdir():
        shutil.copy(file, tmp_path / "results")
    page = Page(paper_report(tmp_path, tmp_path / "out"))
    assert "Training" not in page.text and "t-SNE" not in page.text and "Table 1" in page.text


def test_with_weights(
    tmp_path: Path,
    tiny_folder: Path,
    tiny: CLIP,
    sets: dict[str, LabelledSet],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Embeddings are computed once and stored; images before and after are shown."""
    monkeypatch.setattr(embedding, "load_set", sets.__getitem__)
    rows = ["AdvFLYP", "AdvFLYP_full"]
    every = ["original", *rows]
    common = {"rows": every, "sets": list(sets), "attacks": ["pgd10"], "eps": [8 / 255]}
    experiments = [{"id": "table1", "title": "One", **common}, {"id": "figure5", "title": "Five", **common}]
    untrained = {"label": "original", "recipe": None, "overrides": {"model.name": str(tiny_folder)}}
    plan = {"scale": "mini", "runs": [untrained], "experiments": experiments}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    weights = weights_sha256(tiny)
    for number, label in enumerate(every):
        for name in sets:
            for grey in (0, 8):
                one = cell(label, name, grey, 40 - grey - number, checkpoint_sha256=weights)
                append_cell(tmp_path / f"results/m{number}-s0.jsonl", one)
        if label in rows:
            run = tmp_path / "runs" / f"m{number}-s0"
            shutil.copytree(tiny_folder, run / "best")
            (run / "recipe.toml").write_text(f'[model]\nname = "{tiny_folder}"\n')
    calls = []
    real = paper.embed
    monkeypatch.setattr(paper, "embed", lambda *args, **more: calls.append(args) or real(*args, **more, n=18))
    page = Page(paper_report(tmp_path, tmp_path / "out"))
    stored = json.loads((tmp_path / "embedding.json").read_text())
    assert [one["label"] for one in stored] == every and len(stored[0]["phi"]) == 18
    assert "What it looks like" in page.text and "change ×16" in page.text
    assert len([link for link in page.links if link.startswith("data:image")]) == 8 * 2 * 3
    shutil.rmtree(tmp_path / "runs")
    assert "t-SNE" in Page(paper_report(tmp_path, tmp_path / "out")).text
    assert len(calls) == 1, "made again without weights"
    text = (tmp_path / "embedding.json").read_text()
    (tmp_path / "embedding.json").write_text(text.replace(weights, "f" * 64))
    assert "t-SNE" not in Page(paper_report(tmp_path, tmp_path / "out")).text, "embeddings of other weights"


def test_published_figures_are_beside_ours_at_paper_scale_only(
    folder: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the paper's 14 sets (here the sample's), whichever experiment is the main one."""
    monkeypatch.setattr(paper, "set_names", lambda names: [f"mini/{name}" for name in SETS])
    assert "38.39" not in Page(out / "index.html").text
    shutil.copytree(folder / "results", tmp_path / "results")
    plan = json.loads((folder / "plan.json").read_text()) | {"scale": "paper"}
    plan["experiments"] = [e | {"sets": e["sets"][:2]} for e in plan["experiments"] if e["id"] == "table2"]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    page = Page(paper_report(tmp_path, tmp_path / "out"))
    ours = np.mean(
        [accuracies(folder, "AdvFLYP_full", a, list(SETS)).mean() for a in ("pgd10", "cw10", "autoattack")]
    )
    row = next(row for row in page.rows if "38.39 %" in row)
    assert row[-1] == f"{100 * ours:.2f} %"


def test_one_experiments_cells(folder: Path) -> None:
    study = read_study(folder)
    third = next(e for e in study.experiments if e.id == "table3")
    results = third.results(study)
    assert [round(c.eps * 255) for c in results.conditions] == [2, 4]
    assert results.models == list(METHODS) and len(results.hashes["TeCoA"]) == 3
    assert main_experiment(study).attacks[0] == "clean"
    assert [e.id for e in study.experiments] == [
        "table1",
        "table2",
        "table3",
        "table6",
        "figure3",
        "figure5",
    ]


def changed(folder: Path, out: Path, **of_plan: object) -> Path:
    """A study without runs, its first experiment changed."""
    shutil.copytree(folder / "results", out / "results")
    plan = json.loads((folder / "plan.json").read_text())
    plan["experiments"][0] |= of_plan
    (out / "plan.json").write_text(json.dumps(plan))
    return out


def test_the_main_experiment_is_one_that_has_results(folder: Path, tmp_path: Path) -> None:
    """For example after `advflyp reproduce --only table12`, whose models are in no other table."""
    study = changed(folder, tmp_path, rows=["original, ResNet", "TeCoA, ResNet"])
    assert main_experiment(read_study(study)).id == "table3"
    page = Page(paper_report(study, tmp_path / "out"))
    assert "The main one: Table 3" in page.text


def test_all_methods_of_a_table_are_of_the_same_seeds(folder: Path, tmp_path: Path) -> None:
    """TeCoA with one seed, the others with three: of all of them that seed is shown, and ranked."""
    study = changed(folder, tmp_path)
    for seed in (1, 2):
        (study / "results" / f"tecoa-s{seed}.jsonl").unlink()
    out = paper_report(study, tmp_path / "out").parent
    with open(out / "tables" / "table1.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["block"].startswith("PGD")]
    assert "seeds" not in rows[0], "nobody has more than the one seed that all have"
    for row in rows:
        first = 100 * accuracies(folder, row["method"], "pgd10", list(SETS))[0]
        assert float(row["all (7)"]) == pytest.approx(first.mean(), abs=1e-3), row["method"]
    text = (out / "results.md").read_text()
    note = "Only seed 0, which all of these methods have; some have more."
    assert (
        note in text.partition("## Table 1")[2].partition("## Table 2")[0]
        and note in Page(out / "index.html").text
    )
    assert note not in text.partition("## Table 6")[2], "of AdvFLYP_full alone all three seeds are there"
    with open(out / "tables" / "table6.csv") as file:
        assert {row["seeds"] for row in csv.DictReader(file)} == {"3", ""}


def test_experiments_stand_in_the_order_of_their_numbers(folder: Path, tmp_path: Path) -> None:
    titles = ["Table 10", "Table 11", "Figure 3", "Table 5", "Extra", "Table 13", "Table 10-b"]
    shutil.copytree(folder / "results", tmp_path / "results")
    plan = json.loads((folder / "plan.json").read_text())
    first = plan["experiments"][0]
    plan["experiments"] = [first | {"id": t.lower().replace(" ", ""), "title": t} for t in titles]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    out = paper_report(tmp_path, tmp_path / "out").parent
    wanted = ["Table 5", "Table 10", "Table 10-b", "Table 11", "Table 13", "Figure 3", "Extra"]
    assert re.findall(r"^## (.+)$", (out / "results.md").read_text(), re.M) == wanted
    assert [
        t for t in re.findall(r"<h2>(.+?)</h2>", (out / "index.html").read_text()) if t in titles
    ] == wanted


def test_every_model_of_a_figure_has_a_look_of_its_own(out: Path) -> None:
    page = (out / "index.html").read_text()
    key = re.search(r'<ul class="key">(.*?)</ul>', page, re.S)
    assert key is not None
    looks = re.findall(r'class="(c[\w-]+)".*?(<path|<circle|<rect)([^>]*)/>.*?<b>([^<]+)', key[1])
    assert [name for *_, name in looks] == list(METHODS)
    assert len({look[:3] for look in looks}) == len(METHODS)
    colours = [colour for colour, *_ in looks]
    assert colours[0] == "c-ink" and len(set(colours[:9])) == 9, "the original has the colour of the text"


def test_figures_of_seeds_have_no_intervals(folder: Path, out: Path) -> None:
    text = Page(out / "index.html").text
    assert "± one standard deviation over training seeds (none for a single seed)" in text
    assert "95 % intervals where" not in text.replace("\u00a0", " ")


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*plan.json; name the folder"):
        paper_report(tmp_path, tmp_path / "out")
    (tmp_path / "plan.json").write_text('{"experiments": [{"id": "a"}]}')
    with pytest.raises(ValueError, match="is not a plan of `advflyp reproduce`: it lacks 'title'"):
        paper_report(tmp_path, tmp_path / "out")
    (tmp_path / "plan.json").write_text('{"experiments": []}')
    with pytest.raises(ValueError, match="there are no results in .*results"):
        paper_report(tmp_path, tmp_path / "out")
    append_cell(tmp_path / "results" / "a-s0.jsonl", cell("a", "mini/food", 1, 3))
    with pytest.raises(ValueError, match="has no experiments"):
        paper_report(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
