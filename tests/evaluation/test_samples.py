import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch

from advflyp.evaluation.results import Cell
from advflyp.evaluation.samples import read_samples, write_samples
from advflyp.limits import MAX_PREDICTIONS
from fuzz.mutate import mutated


def cell(**changes: Any) -> Cell:
    values: dict[str, Any] = {
        "model": "runs/a b", "checkpoint_sha256": "0" * 64, "set": "mini/food", "split": "test", "n": 4,
        "prompt": "a {}", "attack": "pgd10", "attack_args": {"steps": 10}, "norm": "linf", "eps": 1 / 255,
        "precision": "fp32", "seed": 3, "version": "0", "correct": 1, "accuracy": 0.25, "ci95": (0.0, 1.0),
        "seconds": 1.0,
    }  # fmt: skip
    return Cell(**{**values, **changes})


OUTCOME: dict[str, Any] = {
    "index": torch.tensor([5, 0, 9, 2]),
    "label": np.array([1, 1, 0, 2]),
    "clean": torch.tensor([1, 1, 2, 0]),
    "attacked": np.array([1, 0, 0, 2]),  # the last two were wrong before: an attack cannot mend them
}


def test_round_trip(tmp_path: Path) -> None:
    store = tmp_path / "deep" / "results.jsonl"
    path = write_samples(store, cell(), **OUTCOME, keys=["a.png", "b.png", "c.png", "d.png"])
    assert path.parent == store.with_suffix(".samples") == tmp_path / "deep" / "results.samples"
    samples = read_samples(store, cell())
    assert samples.index.tolist() == [5, 0, 9, 2]
    assert samples.key.tolist() == ["a.png", "b.png", "c.png", "d.png"]
    assert samples.label.tolist() == [1, 1, 0, 2]
    assert samples.clean.tolist() == [1, 1, 2, 0]
    assert samples.attacked.tolist() == [1, 0, 2, 0]
    assert samples.correct.tolist() == [True, False, False, False]
    assert samples.correct.dtype == bool and samples.label.dtype == np.int64


def test_correct_is_what_the_predictions_say(tmp_path: Path) -> None:
    def flattered(table: pa.Table) -> pa.Table:
        column = table.schema.get_field_index("correct")
        return table.set_column(column, "correct", pa.array([True] * len(table)))

    assert read_samples(others(tmp_path, flattered), cell()).correct.tolist() == [True, False, False, False]


def test_columns_are_read_by_name(tmp_path: Path) -> None:
    store = others(tmp_path, lambda table: table.select(table.column_names[::-1]))
    samples = read_samples(store, cell())
    assert samples.index.tolist() == [5, 0, 9, 2] and samples.label.tolist() == [1, 1, 0, 2]
    assert samples.clean.tolist() == [1, 1, 2, 0] and samples.attacked.tolist() == [1, 0, 2, 0]


def test_the_folder_is_one_table(tmp_path: Path) -> None:
    store = tmp_path / "r.jsonl"
    clean = cell(attack="clean", attack_args={}, norm=None, eps=0.0, seed=0)
    write_samples(store, clean, **{**OUTCOME, "attacked": OUTCOME["clean"]})
    write_samples(store, cell(), **OUTCOME, keys=list("abcd"))
    (store.with_suffix(".samples") / ".half-written").write_bytes(b"PAR1")
    # As pandas.read_parquet reads it.
    table = pyarrow.dataset.dataset(store.with_suffix(".samples")).to_table()
    assert table.column_names == [
        "model", "checkpoint_sha256", "set", "split", "attack", "norm", "eps", "seed",
        "index", "key", "label", "predicted_clean", "predicted_attacked", "correct",
    ]  # fmt: skip
    rows = {(row["attack"], row["norm"], row["eps"], row["seed"]) for row in table.to_pylist()}
    assert rows == {("clean", None, 0.0, 0), ("pgd10", "linf", 1 / 255, 3)}
    assert len(table) == 8
    assert set(table["model"].to_pylist()) == {"runs/a b"}


def test_one_file_for_each_measurement(tmp_path: Path) -> None:
    store = tmp_path / "r.jsonl"
    cells = [
        cell(),
        cell(eps=2 / 255),
        cell(seed=4),
        cell(checkpoint_sha256="1" * 64),
        cell(set="mini/food-2"),
    ]
    paths = [write_samples(store, c, **OUTCOME) for c in [*cells, cell()]]
    assert len(set(paths)) == len(cells) == len(list(store.with_suffix(".samples").iterdir()))
    assert "mini-food" in paths[0].name and "pgd10" in paths[0].name
    assert read_samples(store, cell(seed=4)).key.tolist() == [None] * 4


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "r.jsonl"
    write_samples(store, cell(), **OUTCOME)

    def fail(table: object, file: IO[bytes], **_: object) -> None:
        file.write(b"PAR1")
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        write_samples(store, cell(), **{**OUTCOME, "label": [0, 0, 0, 0]})
    assert read_samples(store, cell()).label.tolist() == [1, 1, 0, 2]


def test_missing_and_broken(tmp_path: Path) -> None:
    store = tmp_path / "r.jsonl"
    with pytest.raises(
        ValueError,
        match=r"parquet, which holds the predictions .* is missing.*measure again with `advflyp eval`",
    ):
        read_samples(store, cell())
    path = write_samples(store, cell(), **OUTCOME)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"parquet cannot be read"):
        read_samples(store, cell())
    path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(
        OSError, match="Too many levels of symbolic links"
    ):  # nothing that measuring again would mend
        read_samples(store, cell())


def others(tmp_path: Path, change: Callable[[pa.Table], pa.Table]) -> Path:
    """Results of somebody else, whose predictions are `change` of what they should be."""
    store = tmp_path / "theirs.jsonl"
    path = write_samples(store, cell(), **OUTCOME, keys=list("abcd"))
    pq.write_table(change(pq.read_table(path)), path)
    return store


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda table: table.drop(["correct"]), "its column 'correct' is missing or of another type"),
        (
            lambda table: table.append_column("correct", table["correct"]),
            "its column 'correct' is missing or",
        ),
        (lambda table: table.slice(1), "it holds 3 predictions, not the 4 of the results"),
        (
            lambda table: table.set_column(10, "label", pa.array([1.0, float("nan"), 0.0, 2.0])),
            "its column 'label' is missing or of another type",
        ),
        (lambda table: table.set_column(10, "label", pa.array([1, None, 0, 2])), "it lacks predictions"),
    ],
)
def test_predictions_that_were_not_written_here(
    change: Callable[[pa.Table], pa.Table], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        read_samples(others(tmp_path, change), cell())


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    store = others(tmp_path, lambda table: table)
    (path,) = store.with_suffix(".samples").glob("*.parquet")
    data = path.read_bytes()
    table = pq.read_table(path)
    wrong = pa.Array.from_buffers(
        pa.string(), 4, [*pa.array(list("abcd")).buffers()[:2], pa.py_buffer(b"a\xff\xfed")]
    )
    pq.write_table(table.set_column(9, "key", wrong), path)
    assert path.read_bytes() != data
    with pytest.raises(ValueError, match="cannot be read"):
        read_samples(store, cell())


def test_a_billion_predictions_in_a_few_kilobytes(tmp_path: Path) -> None:
    """Refused before anything is unpacked, whatever the results say of their number."""
    store = tmp_path / "theirs.jsonl"
    count = MAX_PREDICTIONS + 1
    path = write_samples(store, cell(n=count), **OUTCOME)
    part = 1 << 20
    zeros = pa.table({"index": pa.repeat(0, part)})
    with pq.ParquetWriter(path, zeros.schema) as writer:
        for begin in range(0, count, part):
            writer.write_table(zeros.slice(0, min(part, count - begin)))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(ValueError, match=f"it holds {count:,} predictions"):
        read_samples(store, cell(n=count))


def test_damaged_predictions(tmp_path: Path) -> None:
    """Whatever is changed, it is one error, or predictions of as many images."""
    store = others(tmp_path, lambda table: table)
    (path,) = store.with_suffix(".samples").glob("*.parquet")
    data = path.read_bytes()
    read = 0
    for number in range(300):
        path.write_bytes(mutated(random.Random(number), data, 3))
        try:
            read += len(read_samples(store, cell()).correct) == 4
        except ValueError as error:
            assert "cannot be read" in str(error)
    assert 0 < read < 300


@pytest.mark.parametrize(
    "index, message",
    [
        ([5, 0, 5, 2], "it holds an image twice"),
        ([5, 0, 10, 2], "it holds images that the dataset lacks"),
        ([5, 0, -1, 2], "it holds images that the dataset lacks"),
    ],
)
def test_places_that_no_image_has(index: list[int], message: str, tmp_path: Path) -> None:
    some = cell(subset={"of": 10})
    write_samples(tmp_path / "r.jsonl", some, **OUTCOME)
    assert read_samples(tmp_path / "r.jsonl", some).index.tolist() == [5, 0, 9, 2]
    write_samples(tmp_path / "r.jsonl", some, **{**OUTCOME, "index": index})
    with pytest.raises(ValueError, match=message):
        read_samples(tmp_path / "r.jsonl", some)
