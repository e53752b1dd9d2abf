import dataclasses
from pathlib import Path

import numpy as np
import pytest

from advflyp.evaluation.compare import compare, mean_difference_interval
from advflyp.evaluation.results import Cell, append_cell, mean_interval
from advflyp.evaluation.samples import write_samples
from advflyp.report.measure.estimates import Condition, Estimate, competitors
from advflyp.report.measure.grid import means_table
from advflyp.report.measure.results import Results
from advflyp.report.measure.tables import accuracy_table, comparison_table
from advflyp.report.pages.prose import headline, made, meaning, prompts_table, scope, seen
from report.cells import SETS, cell

PGD = Condition("pgd10", "linf", 2 / 255)
COUNTS = {"a": [[31, 40, 53], [35, 47, 49], [28, 44, 58]], "b": [[20, 30, 40]]}


def seeded() -> list:
    return [
        cell(model, name, 2, correct, checkpoint_sha256=f"{model}{seed}".ljust(64, "0"))
        for model, runs in COUNTS.items()
        for seed, counts in enumerate(runs)
        for name, correct in zip(SETS, counts, strict=True)
    ]


def test_seeds_are_mean_and_sample_deviation() -> None:
    results = Results(seeded(), seeds=True)
    assert results.models == ["a", "b"] and results.replicated
    values = np.array(COUNTS["a"]) / 97
    for place, name in enumerate(SETS):
        one = results.get("a", name, PGD)
        assert one is not None and one.seeds == 3
        assert one.value == pytest.approx(values[:, place].mean(), abs=1e-12)
        assert one.deviation == pytest.approx(values[:, place].std(ddof=1), abs=1e-12)
    for sets in (SETS, SETS[1:]):
        mean = results.mean("a", PGD, sets)
        per_seed = values[:, [SETS.index(s) for s in sets]].mean(1)
        assert mean is not None and mean.seeds == 3
        assert mean.value == pytest.approx(per_seed.mean()) and mean.deviation == pytest.approx(
            per_seed.std(ddof=1)
        )
        assert mean.interval == f"±{100 * per_seed.std(ddof=1):.1f}"


def test_the_headline_attack_is_one_that_every_model_was_measured_under() -> None:
    """A stronger attack on a single model cannot compare; neither do means over different sets."""
    names = SETS[:2]
    cells = [cell(model, name, 2, 40) for model in "ab" for name in names]
    stronger = [cell("a", name, 2, 10, attack="autoattack") for name in names]
    assert Results([*cells, *stronger]).strongest() == PGD
    also = [cell("b", name, 2, 12, attack="autoattack") for name in names]
    assert Results([*cells, *stronger, *also]).strongest() == Condition("autoattack", "linf", 2 / 255)
    # Nothing is shared: all count.
    assert Results([*cells[:2], cell("b", names[0], 2, 1, attack="square")]).strongest() is not None
    # CW was measured on the harder set alone.
    easy, hard = (cell(model, name, 2, n) for name, n in zip(names, (80, 20), strict=True) for model in "a")
    cw = cell("a", names[1], 2, 30, attack="cw10")
    assert Results([easy, hard, cw]).strongest() == PGD


def test_weights_whose_hashes_begin_alike() -> None:
    hashes = ["12345678a".ljust(64, "0"), "12345678b".ljust(64, "0")]
    results = Results([cell("m", SETS[0], 0, n, checkpoint_sha256=sha) for n, sha in enumerate(hashes, 7)])
    assert results.models == ["m (12345678a)", "m (12345678b)"] and not results.replicated


def test_one_seed_keeps_its_interval() -> None:
    cells = [c for c in seeded() if c.model == "b"]
    results = Results(seeded(), seeds=True)
    assert results.get("b", SETS[0], PGD) == Estimate(cells[0].accuracy, *cells[0].ci95)
    value, interval = mean_interval(cells)
    assert results.mean("b", PGD) == Estimate(value, *interval)


def test_a_seed_that_lacks_a_set_is_not_in_the_mean() -> None:
    lacking = [c for c in seeded() if not (c.checkpoint_sha256.startswith("a2") and c.set == SETS[0])]
    results = Results(lacking, seeds=True)
    mean = results.mean("a", PGD, SETS)
    assert mean is not None and mean.seeds == 2
    assert mean.value == pytest.approx(np.array(COUNTS["a"][:2]).mean() / 97)
    assert results.mean("a", PGD, [*SETS, "mini/none"]) is None


def test_without_seeds_checkpoints_are_apart() -> None:
    assert Results(seeded()).models == ["a (a0000000)", "a (a1000000)", "a (a2000000)", "b"]


def test_protocols_are_apart() -> None:
    ours = [cell("a", name, 2, 40) for name in SETS]
    theirs = [cell("a", name, 2, 50, protocol="tecoa") for name in SETS[:2]]
    mixed = Results([*ours, *theirs])
    assert mixed.models == ["a", "a [tecoa]"] and mixed.protocol == "" and mixed.mixes_protocols
    assert headline(mixed, mixed.models, None, mixed.conditions) == "2 models on 3 sets."
    assert mixed.get("a", SETS[0], PGD).number == f"{100 * 40 / 97:.1f}"
    assert mixed.mean("a [tecoa]", PGD).number == f"{100 * 50 / 97:.1f}"
    assert mixed.mean_sets == list(SETS[:2])
    assert "A name in brackets is the protocol" in scope(mixed)
    named = cell(
        "a",
        SETS[0],
        2,
        50,
        protocol="tecoa",
        prompt="a {}",
        settings={"resize": 256, "classnames_sha256": "x"},
    )
    both = Results([*ours, named])
    assert prompts_table(both).rows[0] == ["food", "a picture of a {}."]
    assert prompts_table(both).rows[-1] == ["food [tecoa]", "a {}"]
    assert meaning(both)["protocols"] == {"tecoa": {"resize 256": {"food": None}}}
    assert meaning(Results(ours))["protocols"] == {}
    alone = Results(theirs)
    assert (alone.models, alone.protocol) == (["a"], "tecoa")
    table = accuracy_table(alone, "a")
    assert table.note == "Protocol: tecoa." and scope(alone).endswith(" Protocol: tecoa.")
    assert "Protocol: tecoa." in means_table(alone).note
    assert Results(ours).protocol == "" and accuracy_table(Results(ours), "a").note == ""
    with pytest.raises(ValueError, match="twice, with different settings"):
        Results([*theirs, cell("a", SETS[0], 2, 50, protocol="tecoa", settings={"resize": 256})])


def test_what_all_names_share_is_said_once() -> None:
    for names, group, short in (
        (("mini/food", "mini/pets"), "mini", ["food", "pets"]),
        (("/data/food", "/data/pets"), None, ["/data/food", "/data/pets"]),
    ):
        results = Results([cell("a", name, 0, 40) for name in names])
        assert results.group == group and list(results.short.values()) == short


def test_a_protocol_does_not_split_seeds() -> None:
    cells = [dataclasses.replace(cell, protocol="tecoa") for cell in seeded()]
    both = Results([*seeded(), *cells], seeds=True)
    assert both.models == ["a", "b", "a [tecoa]", "b [tecoa]"]
    assert both.mean("a [tecoa]", PGD) == Results(seeded(), seeds=True).mean("a", PGD)


def test_models_not_measured_are_kept_in_their_order() -> None:
    results = Results(seeded(), seeds=True, models=["c", "b", "a"])
    assert results.models == ["c", "b", "a"] and results.get("c", SETS[0], PGD) is None
    assert results.mean("c", PGD) is None and results.hashes["c"] == []


def test_the_largest_of_two_measurements_counts_in_a_study() -> None:
    few = cell("a", SETS[0], 2, 5, n=10)
    many = cell("a", SETS[0], 2, 60, n=97)
    for order in ([few, many], [many, few]):
        one = Results(order, seeds=True, largest=True).get("a", SETS[0], PGD)
        assert one is not None and one.value == 60 / 97
        for seeds in (False, True):
            with pytest.raises(ValueError, match="twice, with different n"):
                Results(order, seeds=seeds)


def test_among_seeds_no_measurement_replaces_another_of_the_same_checkpoint() -> None:
    first, second = (cell("a", SETS[0], 2, 40, checkpoint_sha256=sha * 64) for sha in "12")
    for changes, what in (
        ({"precision": "bf16"}, r"precision \(fp32 and bf16\)"),
        ({"prompt": "a {}"}, "prompt"),
        ({"settings": {"resize": 256}}, "settings"),
        ({"seed": 3}, "seed"),
    ):
        other = dataclasses.replace(second, correct=50, **changes)
        twice = rf"hold a \(22222222\) on {SETS[0]} under pgd10 twice, with different {what}.*; give the report one"
        with pytest.raises(ValueError, match=twice):
            Results([first, second, other], seeds=True)
    # The same measurement in two files is one, and seeds may differ from one another.
    again = dataclasses.replace(second, seconds=7.0, version="0.2.0")
    unlike = dataclasses.replace(first, precision="bf16")
    one = Results([unlike, second, again], seeds=True).get("a", SETS[0], PGD)
    assert one is not None and one.seeds == 2


def test_masked_gradients_flag_the_value_and_the_mean() -> None:
    verdict = {"n": 50, "passed": False, "failed": ["noise beats PGD"]}
    cells = seeded()
    cells[0] = dataclasses.replace(cells[0], sanity=verdict)
    results = Results(cells, seeds=True)
    found = [results.get("a", name, PGD) for name in SETS]
    assert [one.flagged for one in found if one] == [True, False, False]
    mean, other = results.mean("a", PGD), results.mean("b", PGD)
    assert mean and mean.flagged and other and not other.flagged


def test_a_change_of_seeds_has_a_standard_deviation() -> None:
    more = [*seeded(), *(cell("b", name, 2, 30, checkpoint_sha256="b1".ljust(64, "0")) for name in SETS)]
    results = Results(more, seeds=True)
    change = results.change("b", "a", PGD, SETS[0])
    before, after = np.array([20, 30]) / 97, np.array([run[0] for run in COUNTS["a"]]) / 97
    assert (
        change is not None
        and change.is_change
        and change.value == pytest.approx(after.mean() - before.mean())
    )
    assert change.deviation == pytest.approx(np.hypot(before.std(ddof=1), after.std(ddof=1)))
    assert change.number.startswith("+") and change.interval.startswith("±"), "no 95 % interval: it is none"
    alone = Results(seeded(), seeds=True).change("b", "a", PGD, SETS[0])
    assert alone is not None and alone.deviation == pytest.approx(after.std(ddof=1))


def outcomes(folder: Path, n: int = 97) -> tuple[Path, list[Cell]]:
    """Two models on the same n images of each set, with what became of each."""
    generator = np.random.default_rng(0)
    cells, label = [], np.arange(n) % 3
    for name in SETS:
        for model, shift in (("a", 0.0), ("b", 0.3)):
            right = np.where(np.arange(n) < 40, True, generator.random(n) < 0.2 + shift)
            one = cell(model, name, 2, int(right.sum()), n)
            predicted = np.where(right, label, label + 1)
            write_samples(
                folder / "r.jsonl", one, index=np.arange(n), label=label, clean=label, attacked=predicted
            )
            append_cell(folder / "r.jsonl", one)
            cells.append(one)
    return folder / "r.jsonl", cells


def test_a_change_has_the_interval_of_compare(tmp_path: Path) -> None:
    store, cells = outcomes(tmp_path)
    results = Results(cells, stores=[tmp_path / "other.jsonl", store])
    rows = compare(f"{store}::a", f"{store}::b")
    for row, name in zip(rows, (*SETS, None), strict=True):
        change = results.change("a", "b", PGD, name)
        assert change is not None and change.is_change
        assert (change.value, change.low, change.high) == pytest.approx(
            (row.difference, *row.ci95), abs=1e-12
        )
    unknown = Results(cells).change("a", "b", PGD, SETS[0])
    assert unknown and unknown.interval == "" and unknown.value == pytest.approx(rows[0].difference)


def test_a_change_between_different_images_has_no_interval(tmp_path: Path) -> None:
    store, cells = outcomes(tmp_path)
    other = cell("b", SETS[0], 2, 40, 97, subset={"of": 200, "limit": 97, "seed": 1})
    index, label = np.arange(97) + 5, np.arange(97) % 3
    write_samples(store, other, index=index, label=label, clean=label, attacked=label)
    change = Results([cells[0], other], stores=[store]).change("a", "b", PGD, SETS[0])
    assert change and change.interval == "" and change.value == pytest.approx((40 - cells[0].correct) / 97)


def kept(store: Path, model: str, sha: str, name: str, right: np.ndarray) -> Cell:
    """A clean cell whose per-image outcomes are stored."""
    index, label = np.arange(len(right)), np.zeros(len(right), int)
    predicted = np.where(right, 0, 1)
    found = cell(model, name, 0, int(right.sum()), len(right), checkpoint_sha256=sha * 64)
    write_samples(store, found, index=index, label=label, clean=predicted, attacked=predicted)
    return found


def test_a_change_and_its_interval_are_of_the_same_checkpoints(tmp_path: Path) -> None:
    """Seed 1 of a lacks a set: the mean is of seed 2 alone, and so is the change."""
    store, place = tmp_path / "r.jsonl", np.arange(97)
    food, flags = SETS[:2]
    lacking = kept(store, "a", "1", food, place < 90)
    whole = [kept(store, "a", "2", name, place % 3 == 0) for name in (food, flags)]
    after = [kept(store, "b", "3", name, place % 3 < 2) for name in (food, flags)]
    results = Results([lacking, *whole, *after], seeds=True, stores=[store])
    clean = Condition("clean", None, 0.0)
    only_b = int((place % 3 == 1).sum())
    low, high = mean_difference_interval([(0, only_b, 97)] * 2)
    change = results.change("a", "b", clean)
    assert change and change.value == pytest.approx(only_b / 97) and (change.low, change.high) == (low, high)
    alone = Results([*whole, *after], seeds=True, stores=[store])
    assert results.change("a", "b", clean, flags) == alone.change("a", "b", clean, flags)
    note = comparison_table(results, "a", "b", results.conditions).note
    assert note == "Seeds missing: a (1 result)."
    assert comparison_table(alone, "a", "b", alone.conditions).note == ""


def test_what_is_said_of_the_results_is_said_of_every_seed() -> None:
    other = dataclasses.replace(
        seeded()[3], prompt="a {}", seed=5, version="0.2.0", precision="bf16", seen=True
    )
    cells = [*seeded()[:3], other]
    results = Results(cells, seeds=True)
    assert ["food", "a {}"] in prompts_table(results).rows
    assert made(results, {})["seeds"] == [0, 5] and made(results, {})["versions"] == ["0.1.0", "0.2.0"]
    assert meaning(results)["precisions"] == ["bf16", "fp32"]
    assert seen(results) == f" a was trained on {SETS[0]}; its accuracy there is not zero-shot."


def test_the_strongest_attack_is_that_on_the_mean_of_the_seeds() -> None:
    counts = {"pgd10": (40, 20), "cw10": (35, 35)}
    cells = [
        cell("a", SETS[0], 2, correct, attack=attack, checkpoint_sha256=str(seed) * 64)
        for attack, runs in counts.items()
        for seed, correct in enumerate(runs)
    ]
    assert Results(cells, seeds=True).strongest() == PGD


def test_a_picture_has_bars_of_one_kind() -> None:
    results = Results(seeded(), seeds=True)
    many, one = results.get("a", SETS[0], PGD), results.get("b", SETS[0], PGD)
    assert results.drawn(many) == many and one and one.low < one.value < one.high
    assert results.drawn(one) == Estimate(one.value, one.value, one.value) and results.drawn(None) is None
    alone = Results([c for c in seeded() if c.model == "b"])
    assert alone.drawn(one) == one, "no standard deviations here: intervals may be drawn"


def test_a_mean_of_trainings_competes_with_others_like_it() -> None:
    single, mean = Estimate(0.9, 0.8, 1.0), Estimate(0.5, 0.4, 0.6, seeds=3)
    other = Estimate(0.4, 0.3, 0.5, seeds=2)
    assert competitors({"a": single, "b": mean, "c": mean, "d": other}) == {"b": mean, "c": mean}
    assert competitors({"a": single}) == {"a": single} and competitors({}) == {}
