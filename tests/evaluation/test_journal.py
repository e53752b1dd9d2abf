import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch

from advflyp.evaluation.journal import Journal


def test_records_follow_one_another(tmp_path: Path) -> None:
    one, two = (Journal.beside(tmp_path / "deep" / "r.jsonl", name) for name in ("one", "two"))
    assert one.read() == {}
    one.append(a=torch.arange(3), b=np.ones((3, 2), np.float32))
    one.append(a=torch.arange(2), b=np.zeros((2, 2), np.float32))
    two.append(a=np.zeros(1))
    found = Journal(one.path).read()
    assert found["a"].tolist() == [0, 1, 2, 0, 1] and found["b"].sum() == 6
    assert found["b"].dtype == np.float32 and found["b"].shape == (5, 2) and len(found) == 2
    assert one.path == tmp_path / "deep" / "r.unfinished" / "one.journal"
    one.remove()
    assert one.read() == {} and two.read().keys() == {"a"}
    one.append(a=np.zeros(2))
    assert one.read()["a"].tolist() == [0, 0]
    one.remove()
    two.remove()
    two.remove()
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_record_costs_the_same_however_many_came_before(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "x.journal")
    sizes = [0]
    for _ in range(50):
        journal.append(a=np.arange(128))
        sizes.append(journal.path.stat().st_size)
    assert len(set(np.diff(sizes))) == 1


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal.beside(tmp_path / "r.jsonl", "x")
    journal.append(a=np.arange(3))
    whole = journal.path.read_bytes()

    def full(file, **_) -> None:
        journal.path.write_bytes(whole + b"half a rec")
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(np, "savez", full)
        journal.append(a=np.arange(5))
    assert journal.read()["a"].tolist() == [0, 1, 2]
    journal.append(a=np.arange(2))
    assert journal.read()["a"].tolist() == Journal(journal.path).read()["a"].tolist() == [0, 1, 2, 0, 1]
    journal.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "head", "bit", "zeros", "other"])
def test_what_is_behind_a_damage_does_not_count(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.journal"
    journal = Journal(path)
    journal.append(a=np.arange(30))
    first = path.stat().st_size
    journal.append(a=np.arange(20))
    data = path.read_bytes()
    middle = (first + len(data)) // 2
    path.write_bytes(
        {
            "cut": data[:-10],
            "head": data[: first + 5],
            "bit": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            "zeros": data[:first] + bytes(len(data) - first),
            "other": b"PK" + data,
        }[damage]
    )
    kept = [] if damage == "other" else list(range(30))
    again = Journal(path)
    assert again.read().get("a", np.zeros(0)).tolist() == kept
    # A process that goes on writes over it, also without having looked.
    Journal(path).append(a=np.arange(2))
    assert again.read()["a"].tolist() == [*kept, 0, 1]


def test_two_processes_that_measure_the_same(tmp_path: Path) -> None:
    """The first one to write keeps the journal; the other goes on without, also when the first has finished."""
    one, two = Journal(tmp_path / "u" / "x.journal"), Journal(tmp_path / "u" / "x.journal")
    assert one.read() == two.read() == {}
    for number in range(3):
        one.append(a=[number])
        two.append(a=[10 + number])
    assert two.read()["a"].tolist() == [0, 1, 2]
    one.remove()
    two.append(a=[13])
    assert not (tmp_path / "u").exists()
    # One that had its place when the other finished begins anew.
    three = Journal(one.path)
    three.append(a=[1])
    one.remove()
    three.append(a=[2])
    assert Journal(one.path).read()["a"].tolist() == [2]
    three.append(a=[3])
    assert Journal(one.path).read()["a"].tolist() == [2, 3]


def test_a_length_that_is_damaged_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "x.journal"
    path.write_bytes(b"\xff" * 100)
    assert Journal(path).read() == {}


def measure(store: Path, number: int) -> None:
    for i in range(100):
        journal = Journal.beside(store, f"{number}-{i}")
        journal.append(a=np.zeros(3))
        journal.remove()


def test_the_folder_comes_and_goes_while_others_measure(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=measure, args=(tmp_path / "r.jsonl", number)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "left"), [("m-1", []), ("m-1.0", []), ("m-1.2", ["m-1", "m-1.0", "m-1.11"])]
)
def test_journals_of_another_number_of_ranks_go_with_the_measurement(
    tmp_path: Path, name: str, left: list[str]
) -> None:
    others = ["m-1.5.0", "m-12", "m-1x", "m-[1]"]
    for one in ("m-1", "m-1.0", "m-1.2", "m-1.11", *others):
        Journal.beside(tmp_path / "r.jsonl", one).append(a=np.zeros(1))
    Journal.beside(tmp_path / "r.jsonl", name).remove()
    there = {path.stem for path in (tmp_path / "r.unfinished").iterdir()}
    assert there == {*left, *others}
