import dataclasses

import pytest

from advflyp.report.measure.estimates import Condition, Estimate
from advflyp.report.measure.grid import IN, MIXED, OUT, means_table, methods_table, sanity_table, sides
from advflyp.report.measure.results import Results
from advflyp.report.measure.tables import Table
from report.cells import cell

FOOD, FLAGS, FASHION = "mini/food", "mini/flags", "mini/fashion"
PGD = Condition("pgd10", "linf", 1 / 255)
AUTO = Condition("autoattack", "linf", 1 / 255)


def cells() -> list:
    counts = {"a": (50, 40, 30), "b": (60, 20, 31), "c": (10, 10, 10)}
    return [
        cell(model, name, grey, right - 5 * grey)
        for model, of in counts.items()
        for name, right in zip((FOOD, FLAGS, FASHION), of, strict=True)
        for grey in (0, 1)
    ]


def test_sides() -> None:
    assert sides([FLAGS, FOOD, FASHION]) == {IN: [FOOD], OUT: [FLAGS, FASHION]}
    assert sides([FLAGS, FASHION]) == {} and sides([FOOD, "elsewhere"]) == {}


def test_methods_sets_and_means() -> None:
    results = Results(cells())
    table = methods_table(results)
    assert table.columns == [
        "method",
        "food",
        "flags",
        "fashion",
        "all\n(3)",
        "in proxy\n(1)",
        "out of proxy\n(2)",
    ]
    assert table.groups == [("", 1), (IN, 1), (OUT, 2), ("mean over sets", 3)]
    assert table.blocks == [("clean images", 3), ("PGD-10, ε = 1/255", 3)]
    row = table.rows[3]
    assert row[0] == "a" and row[1:4] == [results.get("a", s, PGD) for s in (FOOD, FLAGS, FASHION)]
    values = [v.value for v in row[4:] if isinstance(v, Estimate)]
    assert values == pytest.approx([(45 + 35 + 25) / 97 / 3, 45 / 97, (35 + 25) / 97 / 2])


def test_ranks_are_within_blocks_and_ties_share() -> None:
    e = {v: Estimate(v, 0, 1) for v in (0.1, 0.2, 0.3, 0.30004)}
    rows = [["w", e[0.1]], ["x", e[0.30004]], ["y", e[0.3]], ["z", e[0.2]], ["u", e[0.1]], ["v", None]]
    table = Table(title="", columns=["m", "s"], rows=rows, blocks=[("one", 4), ("two", 2)], best=True)
    assert table.ranks() == {(1, 1): 1, (2, 1): 1, (3, 1): 2}, "30.0 twice; a value alone is not the best"
    rest = dataclasses.replace(table, unranked=["x", "y"])
    assert rest.ranks() == {(3, 1): 1}, "of two there is no second best"
    assert dataclasses.replace(table, best=False).ranks() == {}


def test_what_is_missing_is_counted() -> None:
    fewer = [c for c in cells() if not (c.model == "b" and c.set == FLAGS and c.norm)]
    results = Results(fewer, models=["a", "b", "c", "d"])
    table = methods_table(results, [PGD, AUTO], sets=[FOOD, FLAGS, FASHION])
    assert "16 of 24 results missing (–), among them all of AutoAttack" in table.note
    assert [len(table.rows), table.blocks] == [4, [("PGD-10, ε = 1/255", 4)]]
    assert table.rows[1][2] is None and table.rows[1][4] is None, "no mean over other sets than the others'"
    assert isinstance(table.rows[1][5], Estimate), "in proxy nothing is missing"
    assert table.rows[3] == ["d", *[None] * 6]
    more = methods_table(results, [PGD], sets=[FOOD, "mini/travel"])
    assert more.columns[:3] == ["method", "food", "travel"], "nobody was measured on the second"


def test_numbers_of_images_and_settings_are_told() -> None:
    changed = cells()
    changed[0] = dataclasses.replace(changed[0], n=90, prompt="{}")
    limited = {"of": 1000, "limit": 97, "seed": 0}
    changed = [dataclasses.replace(c, subset=limited) if c.set == FASHION else c for c in changed]
    note = methods_table(Results(changed)).note
    assert "The number of images varies: food (90, 97)." in note
    assert "Class-balanced subsets: fashion (97 of 1000)." in note
    assert "Measured with different prompts: food." in note and "precision" not in note


def test_means() -> None:
    results = Results(cells())
    table = means_table(results)
    assert table.groups == [("", 1), ("clean", 3), ("PGD-10, ε = 1/255", 3)]
    full = methods_table(results)
    assert [row[1:] for row in table.rows] == [[*full.rows[i][4:], *full.rows[i + 3][4:]] for i in range(3)]
    alone = means_table(Results([c for c in cells() if c.set != FOOD]))
    assert alone.columns == ["method", "clean", "PGD-10\nε = 1/255"] and alone.groups == []


def test_means_stand_beside_what_the_finetuning_took() -> None:
    """Of seeds the mean; nothing of models whose cards do not say it, and no column where none does."""
    some = [
        *(dataclasses.replace(c, pflops=12.5) if c.model == "a" else c for c in cells()),
        cell("a", FOOD, 1, 33, checkpoint_sha256="f" * 64, pflops=13.5),
    ]
    table = means_table(Results(some, seeds=True))
    place = table.columns.index("PFLOPs")
    assert [row[place] for row in table.rows] == ["13", None, None]
    assert table.groups[0] == ("", place + 1)
    assert "PFLOPs" not in means_table(Results(cells())).columns


def test_a_block_on_fewer_sets_says_so() -> None:
    some = [
        *cells(),
        *(cell(m, FOOD, 1, n, attack="autoattack") for m, n in (("a", 20), ("b", 30), ("c", 1))),
    ]
    table = methods_table(Results(some))
    assert "AutoAttack, ε = 1/255: means over 1 of 3 sets, those measured." in table.note
    assert table.rows[6][4] == Results(some).get("a", FOOD, AUTO)
    assert table.rows[6][6] is None


def test_seeds() -> None:
    more = [*cells(), cell("a", FOOD, 1, 33, checkpoint_sha256="f" * 64)]
    table = methods_table(Results(more, seeds=True))
    assert table.columns[:2] == ["method", "seeds"] and [row[1] for row in table.rows[3:6]] == ["2", "1", "1"]
    assert [row[1] for row in table.rows[:3]] == ["1"] * 3, "clean, of one seed"
    assert "Seeds missing: a (2 results)." in table.note and "clean: 1 seed only." in table.note
    assert "±" in table.note and "Ranges" in table.note


def test_means_of_seeds_are_not_ranked_against_single_runs() -> None:
    """a would be the second best everywhere under attack; of the most trainings there is only a itself."""
    more = [*cells(), *(cell("a", s, 1, 40, checkpoint_sha256="f" * 64) for s in (FOOD, FLAGS, FASHION))]
    for table in (methods_table(Results(more, seeds=True)), means_table(Results(more, seeds=True))):
        assert MIXED in table.note
        seeds = {
            place
            for place, row in enumerate(table.rows)
            for v in row
            if isinstance(v, Estimate) and v.seeds > 1
        }
        ranked = table.ranks()
        mixed = {
            column
            for place in seeds
            for column, v in enumerate(table.rows[place])
            if isinstance(v, Estimate) and v.seeds > 1
        }
        under_attack = range(3, 6) if len(table.rows) == 6 else range(3)
        assert not any((place, column) in ranked for place in under_attack for column in mixed)
        assert any(rank == 1 for rank in ranked.values()), "clean, of one seed each"
    again = [*more, *(cell("b", s, 1, 41, checkpoint_sha256="e" * 64) for s in (FOOD, FLAGS, FASHION))]
    table = methods_table(Results(again, seeds=True))
    assert {place for place, _ in table.ranks() if place >= 3} == {3, 4}, "a and b, not c"
    fair = methods_table(Results(cells(), seeds=True))
    assert MIXED not in fair.note and fair.ranks()


def test_a_part_of_all_sets_is_said_once() -> None:
    limited = [dataclasses.replace(c, subset={"of": 1000, "limit": 97, "seed": 0}) for c in cells()]
    assert "97 class-balanced images of each set." in methods_table(Results(limited)).note
    few = [cell(m, s, 1, 3, 10, attack="autoattack") for m in "abc" for s in (FOOD, FLAGS, FASHION)]
    note = methods_table(Results([*limited, *few])).note
    assert "The number of images varies: 10 or 97 of each set." in note


def test_sanity() -> None:
    assert sanity_table(Results(cells())) is None
    good = {"n": 9, "passed": True, "failed": []}
    bad = {"n": 8, "passed": False, "failed": ["noise beats PGD", "gradients are zero"]}
    verdicts = [good if c.model == "a" else bad for c in cells()]
    checked = [
        dataclasses.replace(c, sanity=v)
        for c, v in zip(cells(), verdicts, strict=True)
        if c.set == FOOD and c.norm
    ]
    table = sanity_table(Results(checked))
    assert table is not None and "No sign of masked gradients: 1 of 3 checked results" in table.note
    assert table.rows[0] == ["b", "food", "PGD-10, ε = 1/255", "8", "noise beats PGD; gradients are zero"]
    assert len(table.rows) == 2 and "†" in methods_table(Results(checked)).note
