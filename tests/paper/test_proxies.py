"""The experiment `proxies` from results to verdicts, tables and page, on synthetic studies whose answer is known."""

import csv
import json
import math
import re
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advflyp.data.sets.labelled import LabelledSet
from advflyp.evaluation.samples import read_samples
from advflyp.model.clip import CLIP
from advflyp.paper.page import paper_report
from advflyp.paper.proxies import coverage as module
from advflyp.paper.proxies.coverage import (
    FILE,
    add_coverage,
    covered_classes,
    labels_of,
    measure_coverage,
    nearest_distances,
    read_coverage,
)
from advflyp.paper.proxies.numbers import Numbers, Side, accuracy_on_side
from advflyp.paper.proxies.plan import NEAR, PROXIES, WORDS, Cell
from advflyp.paper.proxies.tables import (
    METHODS,
    coverage_table,
    grid_table,
    longer_table,
    outside_table,
    regularisers_table,
    sides_table,
    summary,
    verdict_table,
    verdicts,
)
from advflyp.paper.study import read_study
from advflyp.report.measure.estimates import Estimate
from paper.proxy_study import MEASURED, SETS, by_points, write_study
from report.html_page import Page

PAIR = ("pairs-2200", "tecoa-foreign-2200")
# Foreign data costs the labelled methods 10 points, pairs and near data nothing.
FOREIGN = {"tecoa-foreign-2200": -10, "pmg_aft-foreign-2200": -10}


def numbers_of(folder: Path) -> Numbers:
    study = read_study(folder)
    exhibit = next(one for one in study.experiments if one.id == PROXIES)
    return Numbers.of(study, exhibit, read_coverage(folder / FILE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seeds differ by 5 points, alike for all runs; TeCoA's best weights on 660 near images are 10 points better."""
    base = by_points({**FOREIGN, "tecoa-near-660": -10})

    def accuracy(run: str, seed: int, attack: str) -> float:
        best = 0.1 if run == "tecoa-near-660-best" else 0.0
        return base(run, seed, attack) + 0.05 * seed + best

    return write_study(tmp_path_factory.mktemp("study"), accuracy, samples=PAIR)


def test_verdicts_of_a_world_that_is_known(folder: Path) -> None:
    numbers = numbers_of(folder)
    # Food is too small, fashion of the foreign data's family.
    assert numbers.sets == ["mini/flags", "mini/icons"]
    last = {id: verdict for id, (verdict, _) in verdicts(numbers, best=False).items()}
    # Without any difference H3 and H6 fail: the regularisers bring nothing, and CIFAR-10 costs nothing.
    assert last == {
        "H1": "holds", "H2": "holds", "H3": "does not hold", "H4": "holds", "H5": "holds", "H6": "does not hold",
    }  # fmt: skip
    assert verdicts(numbers, best=True)["H4"][0] == "does not hold"
    assert summary(numbers) == (
        "H1 holds, H2 holds, H3 does not hold, H4 holds, H5 holds, H6 does not hold. With the weights at the best "
        "validation: H4 does not hold."
    )
    table = verdict_table(numbers)
    rows = {row[0]: dict(zip(table.flat_columns(), row, strict=True)) for row in table.rows}
    row = rows["foreign, 2,200: pairs > TeCoA"]
    assert isinstance(row["difference"], Estimate) and row["difference"].value == pytest.approx(0.1)
    assert row["seeds"] == "3" and row["verdict"] == "holds"
    # Only of these two runs the outcomes of single images are there.
    assert row["bootstrap"] and rows["near, 2,200: not (pairs > TeCoA)"]["bootstrap"] is None


def test_a_single_seed_decides_nothing(tmp_path: Path) -> None:
    numbers = numbers_of(write_study(tmp_path, by_points(FOREIGN), seeds=1))
    assert {verdict for verdict, _ in verdicts(numbers, best=False).values()} == {"undecided"}


def test_accuracies_are_means_over_the_headline(folder: Path) -> None:
    numbers = numbers_of(folder)
    found = numbers.accuracy("tecoa-foreign-2200", "pgd10")
    each = [
        round(MEASURED * (0.4 + 0.05 * seed + SETS[name][2])) / MEASURED
        for seed in range(3)
        for name in ("flags", "icons")
    ]
    assert found is not None and found.value == pytest.approx(statistics.fmean(each))
    assert found.low < found.value < found.high
    without = numbers.accuracy("fare-near-660", "pgd10")
    assert without is not None and without.low == without.high == without.value
    assert numbers.accuracy("nobody-near-660", "pgd10") is None


def test_what_the_best_validation_is_worth(folder: Path) -> None:
    """Three of TeCoA's trainings gain ten points by it, all others nothing."""
    numbers = numbers_of(folder)
    trainings = sum(len(seeds) for run, seeds in numbers.results.items() if run.endswith("-best"))
    assert grid_table(numbers, NEAR, "").note.endswith(
        f"Of {trainings} trainings, the weights at the best validation are more robust than the last ones in 3, by at "
        "most 10.0 points, and less robust in 0, by up to 0.0."
    )
    assert "validation are" not in grid_table(numbers, [Cell(660, "near"), Cell(660, "few")], "").note


def test_longer_trainings_stand_beside_those_of_their_seed(folder: Path) -> None:
    """The first seed is at 50 %, the mean of all three at 55 %."""
    numbers = numbers_of(folder)
    table = longer_table(numbers)
    assert len(table.rows) == len(METHODS) - 1  # AdvFLYP without regularisers is not trained longer
    for row in table.rows:
        assert [round(100 * value.value) for value in row[1:] if isinstance(value, Estimate)] == [
            50,
            60,
            50,
            60,
        ]
    every = numbers.accuracy("fare-near-6651", "pgd10")
    assert every is not None and every.value == pytest.approx(0.55)


def test_what_the_regularisers_bring_by_hand(tmp_path: Path) -> None:
    """Without them 5 points more at 2,200 pairs, elsewhere nothing. 180 pairs have one seed."""
    table = regularisers_table(numbers_of(write_study(tmp_path, by_points({"advflyp-pairs-2200": 5}))))
    assert [row[0] for row in table.rows] == ["180", "660", "2\u202f200", "6\u202f651", "24\u202f060"]
    for row in table.rows:
        gains = [round(100 * value.value) for value in row[1:] if isinstance(value, Estimate)]
        assert gains == [5 if row[0] == "2\u202f200" else 0] * 4, row[0]
    one, several = (row[1] for row in table.rows[:2])
    assert isinstance(one, Estimate) and isinstance(several, Estimate)
    assert math.isnan(one.low) and several.low == pytest.approx(0)


def test_the_bootstrap_of_a_difference_is_of_the_same_images(folder: Path) -> None:
    """TeCoA is wrong on all that pairs are wrong on: what is hard for both makes no interval."""
    numbers = numbers_of(folder)
    found = numbers.resampled([(1, PAIR[0]), (-1, PAIR[1])], "pgd10", [0, 1, 2])
    alone = numbers.resampled([(1, PAIR[0])], "pgd10", [0, 1, 2])
    assert found is not None and alone is not None
    assert found[0] < 0.1 < found[1] and found[1] - found[0] < (alone[1] - alone[0]) / 2
    assert numbers.resampled([(1, "pairs-660")], "pgd10", [0]) is None


def test_in_and_out_of_coverage_by_hand(folder: Path) -> None:
    """From what is stored of every image, against what the results' classes say."""
    numbers = numbers_of(folder)
    for inside in (True, False):
        side = Side("foreign-2200", inside)
        found = numbers.on_side(PAIR[1], "pgd10", side)
        for seed in range(3):
            by_hand = []
            for name in numbers.sets:
                cell = numbers.results[PAIR[1]][seed][name, "pgd10"]
                one = read_samples(folder / "results" / f"{PAIR[1]}-s{seed}.jsonl", cell)
                covered = numbers.coverage["foreign-2200", seed, name].covered
                right = [c for c, k in zip(one.correct, one.label, strict=True) if (k in covered) == inside]
                # No proxy has a flag: there is nothing of them inside.
                if right:
                    by_hand.append(np.mean(right))
            assert len(by_hand) == (1 if inside else 2)
            assert found[seed] == pytest.approx(np.mean(by_hand), abs=1e-12)
        interval = numbers.resampled([(1, PAIR[1])], "pgd10", [0, 1, 2], side)
        assert interval is not None and interval[0] < statistics.fmean(found.values()) < interval[1]
    table = sides_table(numbers)
    _, _, rows = next(part for part in table.parts() if part[0].startswith("foreign, 2"))
    row = next(row for row in rows if row[0] == "TeCoA")
    values = [value for value in row if isinstance(value, Estimate)]
    assert len(values) == 4 and values[1].value == pytest.approx(-0.1, abs=0.06) and values[3].is_change


def test_too_few_images_on_a_side_are_no_accuracy(folder: Path) -> None:
    cell = numbers_of(folder).results[PAIR[0]][0]["mini/icons", "clean"]
    assert accuracy_on_side(cell, [0, 1], True) is None, "8 images"
    assert accuracy_on_side(cell, [0, 1, 2], True) == sum(cell.per_class[str(k)][0] for k in range(3)) / 12
    assert accuracy_on_side(cell, [], False) == cell.accuracy


def test_the_page_of_a_study_that_has_only_begun(folder: Path, tmp_path: Path) -> None:
    """Pairs alone: no proxy to cover anything, nothing trained longer, no best weights."""
    study = tmp_path / "study"
    shutil.copytree(
        folder, study, ignore=lambda _, names: [n for n in names if n.endswith((".samples", ".json"))]
    )
    shutil.copy(folder / "plan.json", study)
    for file in (study / "results").iterdir():
        if not re.fullmatch(r"pairs-\d+-s0\.jsonl", file.name):
            file.unlink()
    out = paper_report(study, tmp_path / "out").parent
    text = (out / "results.md").read_text()
    assert "H1 undecided" in text and "AdvFLYP\\_full on pairs" in text
    assert "best validation**" not in text and "| TeCoA |" not in text, "rows without a figure are left out"


def test_the_page_has_all_of_it(folder: Path, tmp_path: Path) -> None:
    out = paper_report(folder, tmp_path / "out").parent
    names = {path.stem for path in (out / "tables").glob("proxies*.csv")}
    assert names == {
        "proxies",
        *(
            f"proxies-{end}"
            for end in (
                "verdicts",
                "number",
                "kinds",
                "regularisers",
                "longer",
                "outside",
                "sides",
                "coverage",
            )
        ),
    }
    text, page = (out / "results.md").read_text(), Page(out / "index.html")
    assert "H4 holds: On the same few images" in text and "H2 holds, H3 does not hold" in page.text
    assert text.splitlines()[2].startswith("H1 holds, "), (
        "where there is nothing else the page begins with that"
    )
    html = (out / "index.html").read_text()
    # A fold for each table but that of the verdicts, which is open.
    assert {*re.findall("<summary>(.*?)</summary>", html)} >= {
        "By number of images",
        "By breadth and distance",
        "With and without regularisers",
        "Four times the updates",
        "Sets outside the headline",
        "In and out of coverage",
        "Coverage of each set",
    }
    for words in (
        "accuracy against the number of images, clean images",
        "robust accuracy by kind of data, 2,200 images",
        "robust accuracy beside that of as many pairs, class not in the proxy",
    ):
        assert f'aria-label="{words}"' in html
    with open(out / "tables" / "proxies-number.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["block"] == "PGD-10, ε = 1/255, last weights"]
    assert [row["method"] for row in rows][:3] == ["AdvFLYP_full on pairs", "AdvFLYP on pairs", "TeCoA"]
    assert [bool(row["24\u202f060"]) for row in rows][:3] == [True, True, False]
    assert len([row for row in page.rows if row[:1] == ["near, 2,200: not (pairs > TeCoA)"]]) == 1


def test_coverage_against_loops(tiny: CLIP, sets: dict[str, LabelledSet]) -> None:
    food = next(iter(sets.values()))
    labels = [food.classes[1].upper(), "something else"]
    assert covered_classes(food.classes, labels) == [1]
    generator = torch.Generator().manual_seed(0)
    a, b = (
        torch.nn.functional.normalize(torch.randn(n, 5, dtype=torch.float64, generator=generator))
        for n in (4, 3)
    )
    expected = [min(1 - float(x @ y) for y in b) for x in a]
    assert nearest_distances(a, b).tolist() == pytest.approx(expected, abs=1e-12)
    (one,) = measure_coverage(tiny, {("near-180", 3): labels}, [food])
    assert one.key == ("near-180", 3, food.name) and one.covered == [1]
    assert one.share == pytest.approx(np.mean([label == 1 for label in food.labels.tolist()]))
    texts = tiny.encode_text([*food.classes, *labels]).detach().double()
    near = nearest_distances(texts[: len(food.classes)], texts[len(food.classes) :])
    by_hand = np.mean([near[label] for label in food.labels.tolist()])
    assert one.distance == pytest.approx(
        by_hand, abs=1e-6
    )  # float32: sums of so many products in another order


def test_labels_are_those_that_a_training_sees(tiny: CLIP) -> None:
    few, same, other = (labels_of(Cell(660, "few"), seed, tiny) for seed in (0, 0, 1))
    assert len(few) == len(set(few)) == 170 and few == same != other
    # Of 1,504 classes a number of images below that shows as many.
    assert len(labels_of(Cell(180, "near"), 0, tiny)) == 180


def test_what_is_stored_is_not_measured_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_model", pytest.fail)
    before = (folder / FILE).read_text()
    found = add_coverage(folder / FILE, "mini-vit", [(Cell(660, "near"), 0)], ["mini/flags", "mini/icons"])
    assert (folder / FILE).read_text() == before and len(found) == len(json.loads(before))


def test_coverage_as_a_table(folder: Path) -> None:
    table = coverage_table(numbers_of(folder), [f"mini/{name}" for name in SETS])
    rows = [row for row in table.rows if row[0] == Cell(660, "foreign").words]
    assert rows == [
        ["foreign, 660 images", "50", "0", "50", "50"],
        ["foreign, 660 images", "0.40", "0.40", "0.40", "0.40"],
    ]


def test_sets_outside_the_headline_by_hand(folder: Path) -> None:
    """Fashion is 30 points easier, foreign data costs TeCoA 10, a seed adds 5; nothing else is measured."""
    table = outside_table(numbers_of(folder))
    assert table.groups == [("", 1), ("fashion", 2)] and table.columns[1:] == ["PGD-10,\nε = 1/255", "clean"]
    assert [block for block, _ in table.blocks] == [
        "no finetuning",
        *(Cell(2200, data).words for data in WORDS),
    ]
    start = 1
    rows = {}
    for block, length in table.blocks[1:]:
        rows |= {(block, row[0]): row[1:] for row in table.rows[start : start + length]}
        start += length

    def percent(values: list) -> list[int]:
        return [round(100 * value.value) for value in values]

    assert percent(table.rows[0][1:]) == [80, 90]  # the original has one seed
    assert percent(rows["near, 2\u202f200 images", "TeCoA"]) == [85, 95]
    assert percent(rows["foreign, 2\u202f200 images", "TeCoA"]) == [75, 85]
    assert ("near, 2\u202f200 images", "AdvFLYP_full on pairs") in rows
    assert ("foreign, 2\u202f200 images", "AdvFLYP_full on pairs") not in rows


def test_distances_are_averaged_over_images(tiny: CLIP) -> None:
    image = Image.new("RGB", (8, 8))
    few = LabelledSet([(image, 0)] * 3 + [(image, 1)], ["pizza", "soup"], name="few")
    (one,) = measure_coverage(tiny, {("near-180", 0): ["pizza"]}, [few])
    pizza, soup = tiny.encode_text(["pizza", "soup"]).detach().double()
    assert one.share == 0.75 and one.distance == pytest.approx((1 - float(pizza @ soup)) / 4, abs=1e-6)


def test_a_seed_that_lacks_a_set_has_no_mean(tmp_path: Path) -> None:
    numbers = numbers_of(write_study(tmp_path, by_points({})))
    assert numbers.by_seed("pairs-2200", "pgd10").keys() == {0, 1, 2}
    cells = numbers.results["pairs-2200"][1]
    assert isinstance(cells, dict)
    del cells["mini/flags", "pgd10"]
    assert numbers.by_seed("pairs-2200", "pgd10").keys() == {0, 2}
