from pathlib import Path

import numpy as np
import pytest
import torch

from advflyp.evaluation.journal import Journal


def test_round_trip_and_removal(tmp_path: Path) -> None:
    one, two = (Journal.beside(tmp_path / "deep" / "r.jsonl", name) for name in ("one", "two"))
    assert one.read() == {}
    one.write(a=torch.arange(3), b=np.ones((2, 2), np.float32))
    one.write(a=torch.arange(4), b=np.ones((2, 2), np.float32))
    two.write(a=np.zeros(1))
    found = one.read()
    assert found["a"].tolist() == [0, 1, 2, 3] and found["b"].dtype == np.float32 and len(found) == 2
    assert one.path == tmp_path / "deep" / "r.unfinished" / "one.npz"
    one.remove()
    assert one.read() == {} and two.read().keys() == {"a"}
    two.remove()
    two.remove()
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal.beside(tmp_path / "r.jsonl", "x")
    journal.write(a=np.arange(3))

    def fail(file, **_) -> None:
        file.write(b"PK")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        journal.write(a=np.arange(5))
    assert journal.read()["a"].tolist() == [0, 1, 2]
    journal.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", [0, 3, 60, -10])
def test_a_damaged_file_is_none(tmp_path: Path, length: int) -> None:
    journal = Journal(tmp_path / "x.npz")
    journal.write(a=np.arange(30))
    journal.path.write_bytes(journal.path.read_bytes()[:length])
    assert journal.read() == {}
