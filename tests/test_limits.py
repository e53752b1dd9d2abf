"""What one read from data may cost, and what it means that it fails."""

import errno
import os
from pathlib import Path

import pytest
from PIL import Image

from advflyp.data.sets.labelled import load_set
from advflyp.data.tools.pack import pack
from advflyp.errors import RunError
from helpers import class_folder, write_folder


def failing(monkeypatch: pytest.MonkeyPatch, number: int, name: str) -> None:
    """Opening the file of that name fails from now on."""
    real = os.open

    def open_(path: object, *args: object, **options: object) -> int:
        if str(path).endswith(name):
            raise OSError(number, os.strerror(number), path)
        return real(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", open_)


@pytest.mark.parametrize("name", ["0003.png", "0003.txt"])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO])
def test_a_machine_that_fails_makes_no_file_unusable(
    tmp_path: Path, name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "pairs", 8)
    failing(monkeypatch, number, name)
    with pytest.raises(
        RunError, match=f"{name}: {os.strerror(number)}; .*, then give the same command again"
    ):
        pack(str(folder), tmp_path / "shards")
    assert [path.name for path in tmp_path.iterdir()] == ["pairs"]


def test_a_file_that_cannot_be_read_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "pairs", 8)
    failing(monkeypatch, errno.EACCES, "0003.png")
    found = pack(str(folder), tmp_path / "shards")
    assert found.pairs == 7 and sum(found.failures.values()) == 1


def test_an_evaluation_ends_where_the_machine_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labelled = load_set(str(class_folder(tmp_path / "set", [Image.new("RGB", (32, 32), "red")] * 6)))
    failing(monkeypatch, errno.EMFILE, "03.png")
    with pytest.raises(RunError, match=r"03\.png: Too many open files"):
        for index in range(6):
            labelled.image(index)
