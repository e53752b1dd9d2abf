"""Labelled webdataset shards."""

import tarfile
from pathlib import Path

import pytest
import torch

from advflyp.data.sets.images import Shards
from advflyp.data.sets.labelled import load_set
from helpers import write_tar
from layouts import png, put_text


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


def two_folders(folder: Path, names: tuple[str, str] = ("cat\ndog", "cat\ndog")) -> str:
    """Folders a and b with a 0.tar of 60 samples each, called alike; the first image of b is unreadable."""
    for number, name in enumerate("ab"):
        (folder / name).mkdir()
        samples = [(f"{key}.png", png(60 * number + key)) for key in range(60)]
        samples[0] = samples[0] if name == "a" else ("0.png", b"x")
        labels = [(f"{key}.cls", str(key % 2).encode()) for key in range(60)]
        write_tar(
            folder / name / "0.tar", [pair for both in zip(samples, labels, strict=True) for pair in both]
        )
        put_text(folder / name / "classnames.txt", *names[number].split())
    return f"wds:{folder}/{{a,b}}/0.tar"


def test_images_of_equally_named_shards_have_keys_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled = load_set(two_folders(tmp_path))
    keys = [labelled.key(number) for number in range(120)]
    assert len({*keys}) == 120 and [keys[1], keys[61]] == ["a/0.tar/1.png", "b/0.tar/1.png"]
    # Else the readable image of the same key would hide it from results.
    assert sum(len(batch[0]) for batch in labelled.batches(lambda _: torch.zeros(3, 1, 1), 64)) == 119
    assert labelled.unreadable == {"b/0.tar/0.png": "not an image"}
    # From any folder, and wherever the two are.
    monkeypatch.chdir(tmp_path)
    assert load_set("wds:{a,b}/0.tar").sha256 == labelled.sha256
    # Shards with names of their own are called by these, as ever.
    (tmp_path / "b" / "0.tar").rename(tmp_path / "b" / "1.tar")
    shards = Shards([tmp_path / "a" / "0.tar", tmp_path / "b" / "1.tar"])
    assert [shards.key(1), shards.key(61)] == ["0.tar/1.png", "1.tar/1.png"]


def test_labels_of_each_folder_are_places_in_its_own_class_names(tmp_path: Path) -> None:
    pattern = two_folders(tmp_path, ("cat\ndog", "dog\ncat"))
    with pytest.raises(ValueError, match="a and .*b have different class names; name them as two sets"):
        load_set(pattern)
    (tmp_path / "b" / "classnames.txt").unlink()
    assert load_set(pattern).classes == ["cat", "dog"]
