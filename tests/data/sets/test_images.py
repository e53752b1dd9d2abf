"""Labelled webdataset shards."""

import tarfile
from pathlib import Path

import pytest

from advflyp.data.sets.images import Shards
from helpers import write_tar


def test_a_repeated_key_is_an_error(tmp_path: Path) -> None:
    members = [("0.jpg", b"x"), ("0.cls", b"0"), ("1.jpg", b"y"), ("1.cls", b" 1\n")]
    assert Shards([write_tar(tmp_path / "a.tar", members)]).labels.tolist() == [0, 1]
    path = write_tar(tmp_path / "a.tar", [*members, ("0.jpg", b"z"), ("0.cls", b"1")])
    with pytest.raises(ValueError, match=r"0\.jpg is there twice"):
        Shards([path])


def test_a_link_is_an_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("0.jpg", b"x"), ("0.cls", b"0")])
    with tarfile.open(path, "a") as tar:
        for suffix in ("jpg", "cls"):
            info = tarfile.TarInfo(f"1.{suffix}")
            info.type, info.linkname = tarfile.LNKTYPE, f"0.{suffix}"
            tar.addfile(info)
    with pytest.raises(ValueError, match=r"1\.jpg is not a file but a link"):
        Shards([path])


@pytest.mark.parametrize("label", [b"0_1", "١".encode(), b"1.0", b""])
def test_a_label_is_ascii_digits(tmp_path: Path, label: bytes) -> None:
    path = write_tar(tmp_path / "a.tar", [("0.jpg", b"x"), ("0.cls", label)])
    with pytest.raises(ValueError, match="not a whole number"):
        Shards([path])
