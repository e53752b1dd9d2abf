import csv
import dataclasses
import itertools
import json
import math
import os
import re
from html import unescape
from pathlib import Path

import pytest

from advflyp.data.sets.labelled import LabelledSet
from advflyp.evaluation.recall import Recall
from advflyp.evaluation.results import Cell, append_cell
from advflyp.evaluation.retrieval import RetrievalCell
from advflyp.model.clip import CLIP
from advflyp.report.figures.examples import examples, rule
from advflyp.report.measure.results import Results
from advflyp.report.measure.runs import read_recipe_tree, run_summary, trained_seconds
from advflyp.report.pages.model_card import model_card
from advflyp.report.pages.prose import (
    attack_text,
    headline,
    scope,
)
from advflyp.report.pages.report import report_from_paths, write_report
from advflyp.training.runlog import duration, read_metrics
from advflyp.written import RECORD
from report.cells import SETS, cell, measured
from report.html_page import Page

PAIR = ("mini", "mini + robust")


def shown(c: Cell) -> str:
    return f"{100 * c.accuracy:.1f}{100 * c.ci95[0]:.0f}–{100 * c.ci95[1]:.0f}"


@pytest.fixture
def page(
    tmp_path: Path,
    cells: list[Cell],
    run_folder: Path,
    tiny: CLIP,
    other: CLIP,
    sets: dict[str, LabelledSet],
) -> Page:
    pictures = examples(tiny, other, list(sets), eps=2 / 255, n=3)
    runs = {"mini & robust": run_folder}
    path = write_report(
        tmp_path / "out", title="a <i>title</i>", cells=cells, runs=runs, examples=pictures, pair=PAIR
    )
    assert path == tmp_path / "out" / "index.html"
    return Page(path)


def test_the_page_is_self_contained(page: Page) -> None:
    assert {link for link in page.links if not link.startswith(("data:image/png;base64,", "#"))} == {
        "https://arxiv.org/abs/2604.11576",
        "results.md",
    }
    assert len([link for link in page.links if link.startswith("data:")]) == 3 * 2 * 3
    assert len(page.ids) == len(set(page.ids))


def test_every_number_is_in_its_table(page: Page, cells: list[Cell]) -> None:
    for c in cells:
        of_set = [row for row in page.rows if row[0] == c.set.removeprefix("mini/")]
        assert any(shown(c) in row for row in of_set), c
    means = {
        model: sum(c.accuracy for c in cells if c.model == model and c.eps == 2 / 255) / 3 for model in PAIR
    }
    mean_row = next(row for row in page.rows if row[0] == "mean of 3")
    assert mean_row[4].startswith(f"{100 * means['mini']:.1f}")
    change = means["mini + robust"] - means["mini"]
    assert mean_row[6].startswith(f"+{100 * change:.1f}")
    assert f"+{100 * change:.1f} points" in page.text
    assert f"{100 * means['mini + robust']:.1f}\u00a0% of images correctly" in page.text


def test_texts_from_outside_are_escaped(page: Page, tmp_path: Path) -> None:
    html = (tmp_path / "out" / "index.html").read_text()
    assert (
        "<b>icons" not in html and "<i>title" not in html and "<script" not in html and "<house>" not in html
    )
    assert "<b>icons</b>" in page.text and "a <i>title</i>" in page.text and "dog & co" in page.text


def test_the_page_says_how_it_was_made(page: Page, run_folder: Path) -> None:
    assert rule(0).replace(" %", "\u00a0%") in page.text
    for word in ("6d696e69", "×64", "Wilson", "10 steps of α = 1/255", "20 steps, 320 image–text pairs"):
        assert word in page.text, word
    assert (run_folder / "recipe.toml").read_text().strip() in page.text.replace("ε\u00a0=\u00a0", "ε = ")


def test_markdown_beside_it(page: Page, tmp_path: Path, cells: list[Cell]) -> None:
    text = (tmp_path / "out" / "results.md").read_text()
    assert sorted(os.listdir(tmp_path / "out")) == [RECORD, "index.html", "results.md", "tables"], (
        "no draft is left"
    )
    assert text.startswith("# a &lt;i&gt;title&lt;/i&gt;\n") and "<b>" not in text
    for c in cells:
        assert f"{100 * c.accuracy:.1f} ({100 * c.ci95[0]:.0f}–{100 * c.ci95[1]:.0f})" in text


@pytest.mark.parametrize("models", [("one",), ("a", "b", "c")])
def test_any_number_of_models(tmp_path: Path, models: tuple[str, ...]) -> None:
    results = tmp_path / "r.jsonl"
    for c in measured(models):
        append_cell(results, c)
    page = Page(report_from_paths([results], tmp_path / "report"))
    assert "change" not in [word for row in page.rows for word in row]
    assert all(model in page.text for model in models)
    best = max(measured(models), key=lambda c: (c.eps == 1 / 255, c.accuracy)).model
    expected = {1: "one classifies", 3: f"{best} has the highest accuracy of 3 models"}
    assert expected[len(models)] in page.text


def test_two_models_are_before_and_after_in_their_order(tmp_path: Path, run_folder: Path) -> None:
    for c in measured(("second", "first")):
        append_cell(run_folder / "results.jsonl", c)
    page = Page(report_from_paths([run_folder], tmp_path / "report"))
    assert "second (before) and first (after)" in page.text
    assert "under PGD-10, ε\u00a0=\u00a02/255" in page.text, "the headline is at the training attack's radius"
    assert str(run_folder) in page.text


def test_many_models_get_a_table_of_methods_and_the_trade_off(tmp_path: Path) -> None:
    names = ("a", "b", "c", "d", "e", "f & g")
    flagged = {"n": 5, "passed": False, "failed": ["noise beats PGD"]}
    places = itertools.product(names, SETS, (0, 1, 2, 4))
    found = [
        cell(model, name, grey, 200 - number, 300, sanity=flagged if model == "a" and grey else None)
        for number, (model, name, grey) in enumerate(places)
    ]
    for c in found:
        append_cell(tmp_path / "r.jsonl", c)
    page = Page(report_from_paths([tmp_path / "r.jsonl"], tmp_path / "out"))
    assert "Up and right is better" in page.text and "Hollow" in page.text
    assert "noise beats PGD" in page.text and "†" in page.text
    files = {path.name for path in (tmp_path / "out" / "tables").iterdir()}
    assert {"methods.csv", "methods.tex", "means.csv", "sanity.csv", "model-6-f-g.csv"} <= files
    with open(tmp_path / "out" / "tables" / "methods.csv") as file:
        rows = list(csv.DictReader(file))
    for c in found:
        block = "clean images" if not c.norm else f"PGD-10, ε = {round(c.eps * 255)}/255"
        row = next(row for row in rows if (row["block"], row["method"]) == (block, c.model))
        assert float(row[c.set.removeprefix("mini/")]) == pytest.approx(100 * c.accuracy, abs=1e-3)


def test_seeds_of_one_name(tmp_path: Path) -> None:
    for seed in "012":
        for c in measured(("m",)):
            right = c.correct + int(seed)
            changes = {"checkpoint_sha256": seed * 64, "correct": right, "accuracy": right / c.n}
            append_cell(tmp_path / "r.jsonl", dataclasses.replace(c, **changes))
    together = Page(report_from_paths([tmp_path / "r.jsonl"], tmp_path / "a", seeds=True))
    assert f"standard deviation ±{100 * 1 / 97:.1f}" in together.text and "m (00000000)" not in together.text
    apart = Page(report_from_paths([tmp_path / "r.jsonl"], tmp_path / "b"))
    assert "m (00000000)" in apart.text and "±" not in apart.text


def test_retrieval_results(tmp_path: Path, cells: list[Cell]) -> None:
    recall = [
        Recall(k=k, hits=hits, n=40, recall=hits / 40, ci95=[0.1, 0.9])
        for k, hits in ((1, 11), (5, 23), (10, 31))
    ]
    found = [
        RetrievalCell(
            model=model,
            checkpoint_sha256=model * 64,
            pairs="my <pairs>",
            captions_sha256="c" * 64,
            subset={"of": 40},
            n_images=40,
            n_captions=40,
            attack=attack,
            attack_args={},
            norm="linf" if eps else None,
            eps=eps,
            precision="fp32",
            seed=0,
            version="1",
            image_to_text=recall,
            text_to_image=recall,
        )
        for model in "ab"
        for attack, eps in (("clean", 0.0), ("pgd10", 1 / 255))
    ]
    for one in found:
        append_cell(tmp_path / "retrieval.jsonl", one)
    alone = Page(report_from_paths([tmp_path / "retrieval.jsonl"], tmp_path / "a"))
    assert "Image–text retrieval of a, b." in alone.text
    assert [row[1] for row in alone.rows if row[0].startswith("PGD-10")] == ["27.510–90"] * 2
    (tmp_path / "link.jsonl").symlink_to("retrieval.jsonl")
    twice = report_from_paths([tmp_path / "retrieval.jsonl", tmp_path / "link.jsonl"], tmp_path / "c")
    assert Page(twice).rows == alone.rows
    for c in cells:
        append_cell(tmp_path / "r.jsonl", c)
    both = Page(report_from_paths([tmp_path / "r.jsonl", tmp_path / "retrieval.jsonl"], tmp_path / "b"))
    assert "my <pairs>" in both.text and "Set by set" in both.text
    assert (tmp_path / "b" / "tables" / "retrieval-2.csv").is_file()
    assert "27.5 (10–90)" in (tmp_path / "b" / "results.md").read_text()


def test_results_and_runs_together(tmp_path: Path, run_folder: Path, cells: list[Cell]) -> None:
    results = tmp_path / "r.jsonl"
    for c in cells:
        append_cell(results, c)
    page = Page(report_from_paths([results, run_folder, results], tmp_path / "report"))
    assert "Training" in page.text


def test_before_and_after_are_in_the_order_of_the_files(tmp_path: Path, cells: list[Cell]) -> None:
    """Not in that of their names; a file named again keeps its first place."""
    paths = [tmp_path / name for name in ("z.jsonl", "a.jsonl")]
    for path, model in zip(paths, ("mini + robust", "mini"), strict=True):
        for c in cells:
            if c.model == model:
                append_cell(path, c)
    page = Page(report_from_paths([*paths, paths[0]], tmp_path / "report"))
    assert "mini + robust (before) and mini (after)" in page.text


def test_tables_of_an_earlier_report_do_not_stay(tmp_path: Path) -> None:
    for c in measured(("a", "b", "c")):
        append_cell(tmp_path / f"{c.model}.jsonl", c)
    paths = [tmp_path / f"{name}.jsonl" for name in "abc"]
    report_from_paths(paths, tmp_path / "report")
    assert (tmp_path / "report/tables/model-3-c.csv").is_file()
    report_from_paths(paths[:2], tmp_path / "report")
    report_from_paths(paths[:2], tmp_path / "new")
    left, right = (
        sorted(p.name for p in (tmp_path / name / "tables").iterdir()) for name in ("report", "new")
    )
    assert left == right and "before-after.tex" in left


def test_settings_that_depend_on_the_radius(tmp_path: Path) -> None:
    """FGSM's step is ε: no radius is described by another's settings, on the page or on a model card."""
    cells = [cell("m", "mini/food", 0, 40)]
    for grey in (1, 4):
        settings = {"steps": 1, "step_size": grey / 255}
        cells.append(cell("m", "mini/food", grey, 20 - grey, attack="fgsm", attack_args=settings))
        cells.append(cell("m", "mini/food", grey, 10 - grey))
    text = Page(write_report(tmp_path / "a", title="t", cells=cells)).text.replace("\u00a0", " ")
    card = model_card("me/model", "open_clip", {}, "0" * 64, cells, None, False)
    for grey in (1, 4):
        assert f"FGSM, ε = {grey}/255" in text and f"1 step of α = {grey}/255" in text
        assert (
            f"FGSM, ε = {grey}/255: Projected gradient ascent on the cross-entropy: 1 step of α = {grey}/255"
            in card
        )
    assert "- PGD-10: " in card, "its settings are the same at every radius"


def test_other_measurements(tmp_path: Path) -> None:
    only_clean = [cell("m", "mini/food", 0, 40)]
    assert "m classifies 41.2" in Page(write_report(tmp_path / "a", title="t", cells=only_clean)).text
    l2 = {"norm": "l2", "eps": 0.5, "attack_args": {"steps": 5, "step_size": 0.1}}
    mixed = [
        *only_clean,
        cell("m", "mini/food", 1, 20, **l2),
        cell("m", "mini/food", 2, 10, **{**l2, "eps": 1.0}),
    ]
    text = Page(write_report(tmp_path / "b", title="t", cells=mixed)).text
    assert "0.5 (L2)" in text and "5 steps of α = 0.1 (L2) from the clean image" in text
    squares = [*only_clean, cell("m", "mini/food", 1, 20, attack="square", attack_args={"queries": 5000})]
    assert "Settings: queries 5000." in Page(write_report(tmp_path / "c", title="t", cells=squares)).text
    apart = [cell("m", "mini/food", 0, 40), cell("k", "mini/flags", 0, 30)]
    assert "there is no mean" in Page(write_report(tmp_path / "d", title="t", cells=apart)).text


def test_mistakes(tmp_path: Path, cells: list[Cell], run_folder: Path) -> None:
    def fails(message: str, *paths: Path, out: Path = tmp_path / "never") -> None:
        with pytest.raises(ValueError, match=message):
            report_from_paths(paths, out)

    fails("there is no .*nowhere.jsonl; name result files", tmp_path / "nowhere.jsonl")
    fails("not a run folder: it holds neither metrics.jsonl nor results.jsonl", tmp_path)
    fails("no results in .*run; make some with `advflyp eval", run_folder)
    broken = tmp_path / "broken.jsonl"
    broken.write_text(json.dumps({"model": "x"}) + "\n")
    fails("broken.jsonl, line 1 is not a result", broken)
    broken.write_bytes(b"\xff\xfe\x00")
    fails("is not a result file", broken)
    assert not (tmp_path / "never").exists()
    good, file = tmp_path / "good.jsonl", tmp_path / "file"
    append_cell(good, cells[0])
    file.touch()
    fails("file is a file; name a folder", good, out=file)
    (run_folder / "recipe.toml").write_text("no toml")
    fails("recipe.toml is not valid TOML", good, run_folder)
    with pytest.raises(ValueError, match="no results to report"):
        write_report(tmp_path / "never", title="t", cells=[])
    with pytest.raises(ValueError, match="no results of nobody, only of mini"):
        write_report(tmp_path / "never", title="t", cells=cells, pair=("mini", "nobody"))


def test_an_interrupted_write_leaves_the_old_report(
    tmp_path: Path, cells: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_report(tmp_path, title="old", cells=cells)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        write_report(tmp_path, title="new", cells=[dataclasses.replace(c, seed=1) for c in cells])
    assert "<title>old</title>" in unescape(path.read_text())
    write_report(tmp_path, title="new", cells=cells)
    assert "<title>new</title>" in unescape(path.read_text())


@pytest.mark.parametrize("name", ["index.html", "results.md", "tables/mine.csv"])
def test_files_of_others_are_not_replaced(tmp_path: Path, cells: list[Cell], name: str) -> None:
    for c in cells:
        append_cell(tmp_path / "r.jsonl", c)
    path = tmp_path / "site" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(ValueError, match=rf"{name} was not written by advflyp, or was changed since"):
        report_from_paths([tmp_path / "r.jsonl"], tmp_path / "site")
    assert [p for p in (tmp_path / "site").rglob("*") if p.is_file()] == [path] and path.read_text() == "mine"


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("tecoa", "320 labelled images"),
        ("fare", "320 images"),
        ("advflyp", "320 image–text pairs"),
        ("mine:Own", "320 images"),
    ],
)
def test_what_was_seen_is_what_the_method_trains_on(run_folder: Path, method: str, words: str) -> None:
    summary = run_summary(read_metrics(run_folder), {"method": {"name": method}})
    assert f"20 steps, {words}, " in summary and "pairs/s" not in summary


def test_the_scope_of_means() -> None:
    every = [cell(m, s, grey, 10 + grey, 60) for m in "ab" for s in ("x/1", "x/2", "x/3") for grey in (0, 1)]
    assert scope(Results(every)).startswith("Zero-shot accuracy, mean over 3 sets (60 images each); ranges")
    part = [*every, cell("a", "x/2", 1, 3, 30, attack="square")]
    found = scope(Results(part))
    assert "only x/2 was measured for every model and attack, so that there is no mean over sets" in found
    two = scope(Results([*part, cell("a", "x/1", 1, 3, 30, attack="square")]))
    assert "mean over 2 of 3 sets (30 to 60 images each, those measured for every model and attack)" in two
    none = [*every, cell("a", "x/4", 1, 1, 1, attack="square")]
    results = Results(none)
    assert "on 4 sets, 1 to 60 images each; no set was measured for every model and attack" in scope(results)
    assert "over 0" not in scope(results)
    for pair in (("a", "b"), None):
        assert headline(results, ["a", "b"], pair, results.conditions[:2]) == "2 models on 4 sets."
    apart = Results([cell("a", "x/1", 0, 3), cell("b", "x/1", 1, 3)])
    assert headline(apart, ["a", "b"], ("a", "b"), apart.conditions) == "2 models on 1 set."


def test_the_settings_of_an_attack_are_words() -> None:
    auto = {"apgd-ce": {"loss": "cross_entropy", "steps": 100}, "square": {"queries": 5000, "rescale": False}}
    assert attack_text(cell("m", "x", 1, 3, attack="autoattack", attack_args=auto)) == (
        "Settings: apgd-ce (loss cross-entropy, steps 100), square (queries 5000, rescale no)."
    )
    cw = {"loss": "margin", "steps": 10, "step_size": 1 / 255}
    text = attack_text(cell("m", "x", 1, 3, attack="cw10", attack_args=cw))
    assert text.startswith("Projected gradient ascent on the margin") and "cross-entropy" not in text
    # Of a version that did not store the loss.
    del cw["loss"]
    assert attack_text(cell("m", "x", 1, 3, attack="cw10", attack_args=cw)) == text
    assert "ascent on the cross-entropy" in attack_text(cell("m", "x", 1, 3, attack="pgd10", attack_args=cw))


def test_a_run_that_diverged_can_be_reported(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    entry = {"kind": "train", "time": 1.0, "epoch": 0, "seen": 16}
    losses = (3.5, math.nan, math.inf)
    entries = [entry | {"step": 10 * n, "loss": v, "loss/clip": v} for n, v in enumerate(losses, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in entries))
    for one in measured():
        append_cell(folder / "results.jsonl", one)
    text = Page(report_from_paths([folder], tmp_path / "report")).text
    assert "3.50 → 3.50" in text and "numbers that are not finite from step 20 to step 30" in text


def test_run_summary(run_folder: Path) -> None:
    entries = read_metrics(run_folder)
    assert trained_seconds(entries) == 35.5
    summary = run_summary(entries, read_recipe_tree(run_folder))
    assert re.fullmatch(r"20 steps, 320 .*, training attack PGD-2 at ε = 2/255, 85 images/s, 36 s\.", summary)
    assert "PGD-2 at ε = ?, " in run_summary(entries, {"attack": {"steps": 2}})
    assert [duration(s) for s in (5, 61, 7260)] == ["5 s", "1 min 1 s", "2 h 1 min"]
