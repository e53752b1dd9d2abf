"""Which seeds a table compares: those that all of its methods have, with every set."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from advflyp.evaluation.results import append_cell
from advflyp.paper.efficiency import efficiency_table
from advflyp.paper.page import ComparisonPage, experiment_means
from advflyp.paper.study import Study, read_study
from advflyp.report.measure.estimates import Estimate
from report.cells import cell

SETS = ("mini/food", "mini/animals")
ROWS = ("original", "AdvFLYP_full", "TeCoA")
ONLY = "which all of these methods have; some have more."
NONE = "No seed is common to all of these methods: each mean is over the method's own seeds."
# Correct of 100 images, on both sets: of AdvFLYP_full and of TeCoA, by seed.
CORRECT = {"AdvFLYP_full": (30, 32, 37), "TeCoA": (31, 31, 31)}
Measured = tuple[str, int, str, str]


def every(label: str, seeds: Iterable[int], attacks: Iterable[str] = ("clean", "pgd10")) -> list[Measured]:
    return [(label, seed, name, attack) for seed in seeds for name in SETS for attack in attacks]


def study_of(folder: Path, measured: Iterable[Measured]) -> Study:
    """A study with these results, and with all of the original's."""
    runs = [
        {"label": label, "recipe": None if label == "original" else "x.toml", "overrides": {}}
        for label in ROWS
    ]
    table = {
        "id": "table1", "title": "Table 1", "rows": ROWS, "sets": SETS, "attacks": ["clean", "pgd10"],
        "eps": [1 / 255], "unranked": ["original"],
    }  # fmt: skip
    (folder / "plan.json").write_text(json.dumps({"scale": "mini", "runs": runs, "experiments": [table]}))
    for label, seed, name, attack in (*every("original", [0]), *measured):
        correct = CORRECT[label][seed] if label in CORRECT else 50
        eps, sha256 = float(attack != "clean"), f"{label}/{seed}".encode().hex().ljust(64, "0")
        one = cell(label, name, eps, correct, 100, attack=attack, checkpoint_sha256=sha256)
        append_cell(folder / "results" / f"{label}-s{seed}.jsonl", one)
    return read_study(folder)


def shown(study: Study) -> dict[str, list[str]]:
    """The means of the table, as printed, by method: clean and under attack."""
    table = experiment_means(study, study.experiments[0])
    return {
        str(row[0]): [
            value if isinstance(value, str) else value.number if isinstance(value, Estimate) else "–"
            for value in row[1:]
        ]
        for row in table.rows
    }


def without(measured: list[Measured], *gone: Measured) -> list[Measured]:
    assert set(gone) <= set(measured)
    return [one for one in measured if one not in gone]


def test_an_interrupted_seed_is_left_out_for_all(tmp_path: Path) -> None:
    """Of AdvFLYP_full's last and best seed a set is missing under attack and without."""
    whole = [*every("AdvFLYP_full", range(3)), *every("TeCoA", range(3))]
    study = study_of(tmp_path, without(whole, *(("AdvFLYP_full", 2, SETS[1], a) for a in ("clean", "pgd10"))))
    assert shown(study) == {
        "original": ["1", "50.0", "50.0"],
        "AdvFLYP_full": ["2", "31.0", "31.0"],
        "TeCoA": ["2", "31.0", "31.0"],
    }
    note = f"Only seeds 0, 1, {ONLY}"
    assert study.experiments[0].seeds_note(study) == note
    leads = "Of 2 methods AdvFLYP_full and TeCoA has the highest accuracy under PGD-10, ε = 1/255: 31.0 %."
    assert ComparisonPage(study).headline() == f"{leads} {note}"


def test_each_condition_has_its_own_seeds(tmp_path: Path) -> None:
    whole = [*every("AdvFLYP_full", range(3)), *every("TeCoA", range(3))]
    study = study_of(tmp_path, without(whole, ("AdvFLYP_full", 2, SETS[1], "pgd10")))
    assert shown(study)["AdvFLYP_full"] == ["3", "33.0", "31.0"]
    assert study.experiments[0].seeds_note(study) == f"PGD-10, ε = 1/255: Only seeds 0, 1, {ONLY}"
    assert ComparisonPage(study).headline().endswith(f"1/255: 31.0 %. Only seeds 0, 1, {ONLY}")


def test_a_method_that_has_only_begun_keeps_no_other_from_its_seeds(tmp_path: Path) -> None:
    study = study_of(tmp_path, [*every("AdvFLYP_full", range(3)), ("TeCoA", 0, SETS[0], "pgd10")])
    assert shown(study) == {
        "original": ["1", "50.0", "50.0"],
        "AdvFLYP_full": ["3", "33.0", "33.0"],
        "TeCoA": ["1", "–", "–"],
    }
    assert study.experiments[0].seeds_note(study) == ""
    assert ComparisonPage(study).headline().startswith("Of 1 method AdvFLYP_full has the highest")


@pytest.mark.parametrize(("seeds", "ranked"), [((1,), "2 methods"), ((1, 2), "1 method")])
def test_methods_without_a_common_seed_are_not_compared_without_a_word(
    tmp_path: Path, seeds: tuple[int, ...], ranked: str
) -> None:
    study = study_of(tmp_path, [*every("AdvFLYP_full", seeds), *every("TeCoA", [0])])
    assert [row[-1] for row in shown(study).values()] == [
        "50.0",
        "32.0" if len(seeds) == 1 else "34.5",
        "31.0",
    ]
    assert study.experiments[0].seeds_note(study) == NONE
    headline = ComparisonPage(study).headline()
    assert headline.startswith(f"Of {ranked} AdvFLYP_full has") and headline.endswith(NONE)


def test_where_nothing_is_whole_sets_are_compared_by_common_seeds(tmp_path: Path) -> None:
    study = study_of(
        tmp_path, [("AdvFLYP_full", s, SETS[0], "pgd10") for s in (0, 1)] + [("TeCoA", 0, SETS[0], "pgd10")]
    )
    exhibit = study.experiments[0]
    assert {row: len(shas) for row, shas in exhibit.results(study).hashes.items()} == {
        "original": 1, "AdvFLYP_full": 1, "TeCoA": 1,
    }  # fmt: skip
    assert exhibit.seeds_note(study) == f"Only seed 0, {ONLY}"


def test_the_figure_against_eps_has_the_seeds_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(tmp_path, [*every("AdvFLYP_full", range(3)), *every("TeCoA", [0])])
    drawn = []
    monkeypatch.setattr(
        "advflyp.paper.page.sections.against_eps", lambda results, *_: drawn.append(results.hashes)
    )
    ComparisonPage(study).html()
    assert [len(hashes["AdvFLYP_full"]) for hashes in drawn] == [1]


def test_the_efficiency_table_counts_whole_seeds(tmp_path: Path) -> None:
    """Its means are over all seeds of a method, but not over parts of one."""
    whole = [*every("AdvFLYP_full", range(3)), *every("TeCoA", [0])]
    study = study_of(tmp_path, without(whole, *(("AdvFLYP_full", 2, SETS[1], a) for a in ("clean", "pgd10"))))
    exhibit = replace(study.experiments[0], id="cost", rows=["AdvFLYP_full", "TeCoA"])
    rows = efficiency_table(study, exhibit).rows
    assert [row[:2] for row in rows] == [["AdvFLYP_full", "2"], ["TeCoA", "1"]]
