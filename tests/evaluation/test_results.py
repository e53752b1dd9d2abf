import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from advflyp.evaluation.results import Cell, append_cell, mean_interval, read_cells, wilson


def cell(**changes: object) -> Cell:
    values = {
        "model": "m", "checkpoint_sha256": "0" * 64, "set": "mini/food", "split": "test", "n": 50, "prompt": "a {}",
        "attack": "pgd10", "attack_args": {"steps": 10}, "norm": "linf", "eps": 1 / 255, "precision": "fp32",
        "seed": 0, "version": "0", "correct": 20, "accuracy": 0.4, "ci95": (0.28, 0.54), "seconds": 1.0,
    }  # fmt: skip
    return Cell(**{**values, **changes})


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    # R: prop.test(x, n, correct = FALSE)$conf.int
    [
        (0, 10, 0.0, 0.2775328),
        (10, 10, 0.7224672, 1.0),
        (5, 10, 0.2365931, 0.7634069),
        (81, 263, 0.2553, 0.3662),
    ],
)
def test_wilson(correct: int, n: int, low: float, high: float) -> None:
    # To the digits that were printed.
    assert wilson(correct, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_mean_interval_is_narrower_than_a_set_s_and_holds_the_mean() -> None:
    cells = [cell(set=str(i), correct=20 + i, accuracy=(20 + i) / 50) for i in range(4)]
    mean, (low, high) = mean_interval(cells)
    assert mean == pytest.approx(0.43)
    assert low < mean < high
    a, b = wilson(21, 50)
    assert (high - low) == pytest.approx((b - a) / 2, rel=0.1)


def test_mean_interval_of_perfect_sets_is_not_certain() -> None:
    _, (low, high) = mean_interval([cell(correct=50, accuracy=1.0)])
    assert low < 1 and high == 1


def test_store_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "r.jsonl"
    for eps in (1 / 255, 2 / 255):
        append_cell(path, cell(eps=eps))
    assert read_cells(path) == [cell(eps=1 / 255), cell(eps=2 / 255)]
    with open(path, "a") as file:
        file.write('{"model": "cut o')  # a crash in the middle of a line
    assert len(read_cells(path)) == 2
    append_cell(path, cell(eps=4 / 255))
    assert [c.eps for c in read_cells(path)] == [1 / 255, 2 / 255, 4 / 255]
    assert read_cells(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("line", ['{"model": 1}', "not json", "[1]"])
def test_a_foreign_file_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "r.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"r\.jsonl, line 1 is not a result that can be used here"):
        read_cells(tmp_path / "r.jsonl")
    with pytest.raises(ValueError, match=r"is a folder; name a file, for example .*results\.jsonl"):
        read_cells(tmp_path)


WRONG_VALUES: dict[str, list[Any]] = {
    "model": [None, 1, []],
    "n": [None, "10", 0, -1, 1.5, True, 10**25],
    "correct": [-1, 1000, "x", math.nan],
    "accuracy": ["x", 1.5, math.nan, math.inf, None, []],
    "ci95": ["x", [0.1], [0.1, 0.2, 0.3], [0, math.nan], None],
    "eps": ["x", -1, math.inf],
    "seconds": ["x", math.inf],
    "attack_args": [[], "x", {"step_size": "x"}, {"steps": [], "restarts": {}}],
    "per_class": [[], {"0": [1]}, {"0": ["a", "b"]}, {"0": 1}],
    "unreadable": ["x", [1], {}],
    "sanity": ["x", [], {}, {"n": 1}, {"n": 1, "failed": "x"}],
    "subset": [[], {"of": "x"}],
    "seen": ["x", 1, None],
    "strange": [1],
}


@pytest.mark.parametrize("key", WRONG_VALUES)
def test_values_that_no_measurement_has(key: str, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    for value in WRONG_VALUES[key]:
        path.write_text(json.dumps({**dataclasses.asdict(cell()), key: value}) + "\n")
        with pytest.raises(ValueError, match=r"r\.jsonl, line 1 is not a result that can be used here: "):
            read_cells(path)
    if key in ("model", "n", "ci95"):
        path.write_text(json.dumps({k: v for k, v in dataclasses.asdict(cell()).items() if k != key}) + "\n")
        with pytest.raises(ValueError, match=f"it lacks '{key}'"):
            read_cells(path)


@pytest.mark.parametrize(
    "data",
    [
        b'{"name": "my-project"}',
        b'{"model": "gpt"}',
        b'{"name": "cut o',
        b"one line",
        b'{\n "model": "x"\n}',
        b"\xff\xd8",
    ],
)
def test_what_holds_no_results_is_refused(tmp_path: Path, data: bytes) -> None:
    """Files without a newline at their end, as other programs write JSON: no crash cut them off."""
    path = tmp_path / "package.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"package\.json, line 1 is not a result that can be used here"):
        read_cells(path)
    assert path.read_bytes() == data


@pytest.mark.parametrize("data", [b"one line", b'{"name": "cut o', b"\xff\xd8"])
def test_nothing_is_cut_off_that_is_no_result(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "notes"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="notes does not hold results"):
        append_cell(path, cell())
    assert path.read_bytes() == data


def test_a_whole_record_without_its_newline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    append_cell(path, cell())
    path.write_bytes(path.read_bytes().rstrip())
    assert read_cells(path) == [cell()]
    append_cell(path, cell(eps=2 / 255))
    assert read_cells(path) == [cell(), cell(eps=2 / 255)]


def test_key_is_what_was_measured_not_what_came_out() -> None:
    assert (
        cell().key()
        == cell(correct=1, accuracy=0.02, seconds=9.0, n=49, per_class={"0": [1, 2]}, model="renamed").key()
    )
    for change in (
        {"eps": 2 / 255},
        {"checkpoint_sha256": "1"},
        {"subset": {"of": 40}},
        {"seed": 1},
        {"attack_args": {"steps": 9}},
    ):
        assert cell(**change).key() != cell().key()


def test_arguments_of_an_attack_from_a_file(tmp_path: Path) -> None:
    """A report computes with them: a fraction is read as a number, and a user's attack may lack one."""
    path = tmp_path / "r.jsonl"
    append_cell(path, cell(attack_args={"steps": 3, "step_size": "1/255"}))
    append_cell(path, cell(attack="mine:Attack", attack_args={"steps": None, "step_size": None}))
    found = read_cells(path)
    assert found[0].attack_args == {"steps": 3, "step_size": pytest.approx(1 / 255)}
    assert found[1].attack_args == {"steps": None, "step_size": None}


def test_cells_are_json() -> None:
    assert json.loads(json.dumps(cell().__dict__))["ci95"] == [0.28, 0.54]


def test_cells_of_the_default_protocol_keep_their_key(tmp_path: Path) -> None:
    """The key names a measurement's files; these were written before there were protocols."""
    assert cell().slug() == "m-mini-food-pgd10-1-cfbee66741d1"
    clean = cell(attack="clean", eps=0.0, norm=None, attack_args={}, subset={"of": 50})
    assert clean.slug() == "m-mini-food-clean-1516efa8bc77"
    path = tmp_path / "r.jsonl"
    append_cell(path, cell())
    line = json.loads(path.read_text())
    assert (line.pop("protocol"), line.pop("settings")) == ("advflyp", {})
    path.write_text(json.dumps(line) + "\n")
    assert read_cells(path) == [cell()]
    keys = {cell(**changes).key() for changes in (
        {}, {"protocol": "tecoa"}, {"protocol": "tga-zsr"}, {"settings": {"resize": 256}},
        {"protocol": "tecoa", "settings": {"resize": 256}},
    )}  # fmt: skip
    assert len(keys) == 5
