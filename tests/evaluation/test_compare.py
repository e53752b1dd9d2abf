import io
import json
import random
from fractions import Fraction
from itertools import product
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import binomtest

from advflyp.cli.main import main
from advflyp.evaluation import samples
from advflyp.evaluation.compare import compare, holm, matched_pairs, mcnemar, mean_difference_interval
from advflyp.evaluation.results import Cell, append_cell, read_cells, wilson
from advflyp.evaluation.samples import write_samples
from advflyp.report.console import as_rich
from advflyp.report.measure.paired import paired_table, write_comparison


def store(path: Path, right: list[int], **changes: Any) -> Path:
    """A cell whose i-th image is classified correctly where right[i] is 1; `index`, `label`, `keys` may be given."""
    n = len(right)
    index = np.array(changes.pop("index", range(n)))
    label = np.array(changes.pop("label", index % 3))
    keys = changes.pop("keys", [f"{i}.png" for i in index])
    values: dict[str, Any] = {
        "model": path.stem, "checkpoint_sha256": path.stem * 8, "set": "mini/food", "split": "test", "n": n,
        "prompt": "a {}", "attack": "clean", "attack_args": {}, "norm": None, "eps": 0.0, "precision": "fp32",
        "seed": 0, "version": "0", "correct": sum(right), "accuracy": sum(right) / n,
        "ci95": wilson(sum(right), n), "seconds": 1.0, **changes,
    }  # fmt: skip
    cell = Cell(**values)
    append_cell(path, cell)
    predicted = np.where(np.array(right) == 1, label, label + 1)
    write_samples(path, cell, index=index, label=label, clean=predicted, attacked=predicted, keys=keys)
    return path


PGD = {"attack": "pgd10", "attack_args": {"steps": 10}, "norm": "linf", "eps": 4 / 255}


def outcomes(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[int], list[int]]:
    a = [1] * both + [1] * only_a + [0] * only_b + [0] * neither
    b = [1] * both + [0] * only_a + [1] * only_b + [0] * neither
    return a, b


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (0, 5), (2, 9), (7, 7), (3, 4), (1, 12)])
def test_mcnemar_by_enumeration(only_a: int, only_b: int) -> None:
    """All 2^(b+c) ways to hand the discordant images out; as extreme or more so, in either direction."""
    n = only_a + only_b
    splits = (sum(way) for way in product((0, 1), repeat=n))
    extreme = sum(abs(2 * split - n) >= abs(2 * only_a - n) for split in splits)
    assert mcnemar(only_a, only_b) == pytest.approx(extreme / 2**n, abs=1e-12)


def test_mcnemar_of_many_pictures() -> None:
    n, b = 400, 160
    tail = sum(Fraction(comb(n, k), 2**n) for k in range(b + 1))
    assert mcnemar(b, n - b) == pytest.approx(float(2 * tail), rel=1e-9)


def test_interval_is_agresti_and_min_s() -> None:
    """Wald's interval of matched pairs after half an image was added to each cell of the table."""
    both, only_a, only_b, neither = 36 + 0.5, 12 + 0.5, 2 + 0.5, 0 + 0.5
    n = both + only_a + only_b + neither
    # The difference of a pair is +1, −1 or 0: its mean and variance.
    mean = (only_b - only_a) / n
    variance = (only_a + only_b) / n - mean**2
    expected = (mean - 1.959964 * (variance / n) ** 0.5, mean + 1.959964 * (variance / n) ** 0.5)
    assert expected == pytest.approx((-0.3286, -0.0560), abs=5e-5)
    assert mean_difference_interval([(12, 2, 50)]) == pytest.approx(expected)
    low, high = mean_difference_interval([(0, 40, 40)])
    assert low < 1 and high == 1, "inside [-1, 1]"
    low, high = mean_difference_interval([(0, 0, 100)])
    assert low < 0 < high, "no discordant image is no certainty"


@pytest.mark.parametrize("sizes", [(60,), (40, 80, 25)])
def test_interval_covers(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    cells = [
        np.array([0.5, 0.05, 0.15, 0.3]),
        np.array([0.2, 0.2, 0.25, 0.35]),
        np.array([0.9, 0.02, 0.04, 0.04]),
    ]
    truth = float(np.mean([p[2] - p[1] for p, _ in zip(cells, sizes, strict=False)]))
    covered = 0
    for _ in range(2000):
        tables = [rng.multinomial(n, p) for n, p in zip(sizes, cells, strict=False)]
        low, high = mean_difference_interval(
            [(int(t[1]), int(t[2]), n) for t, n in zip(tables, sizes, strict=True)]
        )
        covered += low <= truth <= high
    assert 0.935 <= covered / 2000 <= 0.975


def test_holm() -> None:
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]


def test_a_hand_made_table(tmp_path: Path) -> None:
    right_a, right_b = outcomes(both=20, only_a=3, only_b=12, neither=15)
    a = store(tmp_path / "a.jsonl", right_a)
    b = store(tmp_path / "b.jsonl", right_b)
    (row,) = compare(a, b)
    assert (row.n, row.n_a, row.n_b, row.only_a, row.only_b) == (50, 50, 50, 3, 12)
    assert (row.accuracy_a, row.accuracy_b) == (0.46, 0.64)
    assert row.difference == pytest.approx(0.18)
    assert row.ci95[0] < row.difference < row.ci95[1]
    assert row.p == row.p_holm == pytest.approx(binomtest(3, 15).pvalue)
    assert row.differing == []
    (reverse,) = compare(b, a)
    assert reverse.difference == -row.difference and reverse.p == row.p
    assert reverse.ci95 == pytest.approx((-row.ci95[1], -row.ci95[0]))


def test_rows_over_sets_and_holm(tmp_path: Path) -> None:
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    tables = {
        ("mini/food", "clean"): (20, 3, 12, 15),
        ("mini/food", "pgd10"): (5, 1, 20, 24),
        ("mini/tools", "clean"): (10, 2, 3, 5),
        ("mini/tools", "pgd10"): (0, 0, 9, 11),
    }
    for (name, attack), table in tables.items():
        for path, right in zip((a, b), outcomes(*table), strict=True):
            store(path, right, set=name, **(PGD if attack == "pgd10" else {}))
    store(a, [1, 0], set="mini/flags")  # only A has it
    rows = compare(a, b)
    assert [(len(row.sets), row.attack) for row in rows] == [
        (1, "clean"), (1, "clean"), (2, "clean"), (1, "pgd10"), (1, "pgd10"), (2, "pgd10"),
    ]  # fmt: skip
    clean = rows[2]
    assert clean.sets == ["mini/food (test)", "mini/tools (test)"]
    assert (clean.n, clean.only_a, clean.only_b) == (70, 5, 15)
    assert clean.difference == pytest.approx((9 / 50 + 1 / 20) / 2), "each set weighs the same"
    assert clean.accuracy_b - clean.accuracy_a == pytest.approx(clean.difference)
    assert clean.p == pytest.approx(binomtest(5, 20).pvalue)
    assert [row.p_holm for row in rows] == holm([row.p for row in rows])


def test_only_common_pictures_count(tmp_path: Path) -> None:
    a = store(tmp_path / "a.jsonl", [1, 1, 0, 0], index=[8, 2, 5, 1], n=4)
    b = store(tmp_path / "b.jsonl", [0, 1, 1], index=[1, 5, 8], seed=4)
    (row,) = compare(a, b)
    assert (row.n, row.n_a, row.n_b) == (3, 4, 3)
    assert (row.only_a, row.only_b) == (0, 1), "8: both, 5: B alone, 1: neither"
    assert row.differing == ["seed"]
    note = paired_table([row]).note
    assert "mini/food: 3 images in common, of 4 (A) and 3 (B)" in note
    assert "measured with different seed" in note


def test_the_larger_of_two_measurements_is_compared(tmp_path: Path) -> None:
    a = store(tmp_path / "a.jsonl", [1, 0], subset={"limit": 2})
    store(a, [1, 0, 1, 1])
    b = store(tmp_path / "b.jsonl", [1, 1, 1, 0])
    store(b, [1, 1, 1, 1], seed=7)
    (row,) = compare(a, b)
    assert (row.n, row.only_a, row.only_b, row.differing) == (4, 1, 1, [])


def test_measurements_of_the_same_images_are_compared(tmp_path: Path) -> None:
    """Not the largest, which have no image in common."""
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    common = {"index": range(5), "subset": {"of": 30, "limit": 5, "seed": 0}}
    store(a, [1, 1, 1, 0, 0], **common)
    store(b, [1, 1, 0, 0, 0], **common)
    for path, first, seed in ((a, 5, 1), (b, 15, 2)):
        subset = {"of": 30, "limit": 10, "seed": seed}
        store(path, [1] * 10, index=range(first, first + 10), subset=subset)
    (row,) = compare(a, b)
    assert (row.n, row.only_a, row.only_b) == (5, 1, 0)


def test_of_many_seeds_each_file_is_read_once_before_the_best_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for seed in range(6):
        some, others = range(seed, seed + 4), range(11 - seed, 15 - seed)  # in common: 0 to 4 images
        store(a, [1, 1, 0, 0], index=some, seed=seed, subset={"of": 30, "limit": 4, "seed": seed})
        store(b, [1, 0, 1, 0], index=others, seed=seed, subset={"of": 30, "limit": 4, "seed": seed})
    read: list[Cell] = []
    real = samples.read_samples
    monkeypatch.setattr(
        "advflyp.evaluation.compare.read_samples", lambda path, cell: (read.append(cell), real(path, cell))[1]
    )
    (row,) = compare(a, b)
    assert (row.n, row.only_a, row.only_b, len(read)) == (3, 0, 1, 6 + 6 + 2)


@pytest.mark.parametrize(
    "other", [{"attack_args": {"steps": 10, "images": "b"}}, {"split": "test (webdataset)"}], ids=str
)
def test_the_images_of_a_set_count_once(other: dict[str, Any], tmp_path: Path) -> None:
    """Two attacks of one name, or two copies of a set, are no two sets: with a mean p would be 0.125."""
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for more in ({}, other):
        store(a, [1, 1, 0, 0], **{**PGD, **more})
        store(b, [0, 0, 0, 0], **{**PGD, **more})
    assert [(len(row.sets), row.n, row.p) for row in compare(a, b)] == [(1, 4, 0.5)] * 2
    for path, right in ((a, [1, 1]), (b, [0, 1])):
        store(path, right, set="mini/flags", **PGD)
    assert [len(row.sets) for row in compare(a, b)] == [1, 1, 1], "nor a mean over three"


def test_protocols_are_compared_apart(tmp_path: Path) -> None:
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path in (a, b):
        for name in ("mini/food", "mini/tools"):
            store(path, [1, 0, 1, 1], set=name)
            store(path, [1, 1, 1, 0], set=name, protocol="tecoa", settings={"resize": 256})
    store(b, [1, 1, 1, 0, 1], set="mini/tools", protocol="tga-zsr")
    rows = compare(a, b)
    assert [(row.protocol, len(row.sets)) for row in rows] == [
        ("advflyp", 1), ("advflyp", 1), ("advflyp", 2), ("tecoa", 1), ("tecoa", 1), ("tecoa", 2)
    ]  # fmt: skip
    assert all(row.differing == [] for row in rows)
    table = paired_table(rows)
    assert table.blocks == [("clean", 3), ("clean, protocol tecoa", 3)]
    # No protocol in common: compared all the same, and said.
    alone = store(tmp_path / "c.jsonl", [1, 0, 0, 1], protocol="pmg-aft")
    (row,) = compare(alone, store(tmp_path / "d.jsonl", [1, 0, 1, 1]))
    assert row.protocol == "pmg-aft / advflyp" and row.differing == ["protocol"]
    assert "measured with different protocol" in paired_table([row]).note
    assert paired_table([row]).blocks == [("clean, protocol pmg-aft / advflyp", 1)]


def test_models_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    right_a, right_b = outcomes(2, 1, 4, 3)
    store(path, right_a, model="mini")
    store(path, right_b, model="runs/x", checkpoint_sha256="1" * 64)
    with pytest.raises(
        ValueError, match=r"several models; name one: '.*r\.jsonl::mini', '.*r\.jsonl::runs/x'"
    ):
        compare(path, f"{path}::mini")
    with pytest.raises(ValueError, match=r"has no results of mimi; did you mean 'mini'"):
        compare(f"{path}::mimi", f"{path}::mini")
    (row,) = compare(f"{path}::mini", f"{path}::runs/x")
    assert (row.model_a, row.model_b, row.only_a, row.only_b) == ("mini", "runs/x", 1, 4)
    store(path, right_b, model="mini", checkpoint_sha256="2" * 64)
    (row,) = compare(f"{path}::mini (00000000)".replace("00000000", "r" * 8), f"{path}::mini (22222222)")
    assert row.only_b == 4


def test_mistakes(tmp_path: Path) -> None:
    a = store(tmp_path / "a.jsonl", [1, 0, 1])
    with pytest.raises(
        ValueError, match=r"there are no results in .*none\.jsonl; write them with `advflyp eval"
    ):
        compare(a, tmp_path / "none.jsonl")
    other = store(tmp_path / "other.jsonl", [1, 0, 1], set="mini/tools")
    with pytest.raises(
        ValueError, match=r"no set with the same attack in common \(mini/food clean; mini/tools clean\)"
    ):
        compare(a, other)
    weaker = store(tmp_path / "weaker.jsonl", [1, 0, 1], attack_args={"steps": 1})
    with pytest.raises(ValueError, match="no set with the same attack"):
        compare(a, weaker)
    apart = store(tmp_path / "apart.jsonl", [1, 0, 1], index=[7, 8, 9])
    with pytest.raises(ValueError, match=r"have no image of mini/food \(test, clean\) in common"):
        compare(a, apart)
    relabelled = store(tmp_path / "relabelled.jsonl", [1, 0, 1], label=[0, 2, 1])
    with pytest.raises(ValueError, match="different sets called mini/food"):
        compare(a, relabelled)
    renamed = store(tmp_path / "renamed.jsonl", [1, 0, 1], keys=["x", "y", "z"])
    with pytest.raises(ValueError, match="different sets called mini/food"):
        compare(a, renamed)
    for file in other.with_suffix(".samples").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="measure again with `advflyp eval`"):
        compare(other, store(tmp_path / "b.jsonl", [1, 0, 1], set="mini/tools"))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(0)
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for name in ("mini/food", "mini/tools"):
        store(a, [rng.randint(0, 1) for _ in range(40)], set=name, **PGD)
        store(b, [rng.randint(0, 1) for _ in range(40)], set=name, **PGD)
    main(["compare", str(a), str(b), "--out", str(tmp_path / "out" / "c.json")])
    printed = capsys.readouterr().out
    assert "PGD-10 4/255" in printed and "mini/tools" in printed and "mean of 2" in printed
    assert max(map(len, printed.splitlines())) <= 100
    rows = json.loads((tmp_path / "out" / "c.json").read_text())
    assert [row["sets"] for row in rows][:2] == [["mini/food (test)"], ["mini/tools (test)"]]
    assert {"p", "p_holm", "ci95", "only_a", "n_a"} <= set(rows[0])
    main(["compare", str(a), str(b), "--out", str(tmp_path / "c.md")])
    assert "| mini/food | 40 |" in (tmp_path / "c.md").read_text()
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main(["compare", str(a), str(b), "--out", "c.txt"])
    assert capsys.readouterr() == ("", "advflyp: --out c.txt: name a file that ends in .json or .md\n")


def test_a_wide_table_fits(tmp_path: Path) -> None:
    a = store(tmp_path / "a.jsonl", [0] * 2000, set="imagenet-r", split="val")
    b = store(tmp_path / "b.jsonl", [1] * 2000, set="imagenet-r", split="val")
    console = Console(width=90, record=True, file=io.StringIO())
    console.print(as_rich(paired_table(compare(a, b))))
    text = console.export_text()
    assert "+100.0 +99.7 to +100.0" in text and "imagenet-r (val)" in text


@pytest.mark.parametrize("name", ["table.json", "table.md"])
def test_a_table_replaces_a_table_and_nothing_else(tmp_path: Path, name: str) -> None:
    rows = compare(store(tmp_path / "a.jsonl", [1, 1, 0, 0]), store(tmp_path / "b.jsonl", [0, 1, 1, 1]))
    for _ in range(2):
        write_comparison(rows, tmp_path / name)
    (tmp_path / name).write_text('{"name": "mine"}')
    with pytest.raises(ValueError, match=f"{name} was not written by advflyp and is not replaced"):
        write_comparison(rows, tmp_path / name)
    assert (tmp_path / name).read_text() == '{"name": "mine"}'


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, (1, 2, 4)),
        ({"keys": [None] * 4}, (1, 2, 4)),
        ({"keys": ["0.png", "1.png", "other.png", "3.png"]}, None),
        ({"label": [0, 1, 2, 1]}, None),
        ({"index": [0, 1, 2, 4], "label": [0, 1, 2, 0]}, None),
    ],
)
def test_matched_pairs(
    changes: dict[str, Any], expected: tuple[int, int, int] | None, tmp_path: Path
) -> None:
    """Two states of a user's own set may have equal labels; other names tell them apart."""
    stores = [store(tmp_path / "a.jsonl", [1, 1, 0, 0]), store(tmp_path / "b.jsonl", [1, 0, 1, 1], **changes)]
    a, b = (read_cells(path)[0] for path in stores)
    assert matched_pairs(a, b, stores) == expected
