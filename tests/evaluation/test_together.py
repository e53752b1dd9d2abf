"""An evaluation shared by several real processes gives the cells of one."""

import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from advflyp.evaluation.results import read_cells
from training.processes import run


def evaluated(count: int, model: Path, out: Path, *more: str) -> list[str]:
    options = "--sets mini/food --attacks clean pgd3 apgd-ce+fab-t --eps 1/255 --limit 17 --batch-size 4"
    results = run(count, ["advflyp", "eval", str(model), *options.split(), "--out", str(out), *more])
    return [said for _, said, _ in results]


@pytest.mark.long
def test_the_cells_are_those_of_one_process(tiny_folder: Path, tmp_path: Path) -> None:
    said = evaluated(1, tiny_folder, tmp_path / "one.jsonl", "--sanity")
    three = evaluated(3, tiny_folder, tmp_path / "three.jsonl", "--sanity")
    assert "3 results are in" in said[0] and "3 results are in" in three[0]
    assert three[1] == three[2] == "", "one process speaks"
    alone, shared = (read_cells(tmp_path / f"{name}.jsonl") for name in ("one", "three"))
    assert len(alone) == len(shared) == 3

    def comparable(cell: object) -> dict:
        return {k: v for k, v in dataclasses.asdict(cell).items() if k != "seconds"}  # type: ignore[call-overload]

    assert [comparable(cell) for cell in alone] == [comparable(cell) for cell in shared]
    assert {cell.n for cell in shared} == {17}
    assert all(cell.sanity for cell in shared if cell.attack != "clean")
    files = sorted(path.name for path in (tmp_path / "one.samples").iterdir())
    assert len(files) == 3
    for name in files:
        one, other = (pq.read_table(tmp_path / f"{which}.samples" / name) for which in ("one", "three"))
        assert one.equals(other)
    assert not (tmp_path / "three.unfinished").exists()
    again = evaluated(2, tiny_folder, tmp_path / "three.jsonl")
    assert "3 results are in" in again[0]
    assert len(read_cells(tmp_path / "three.jsonl")) == 3
