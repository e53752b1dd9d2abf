"""Folders of classes: the names in a list, and the folders they are meant for."""

import shutil
from pathlib import Path

import pytest

from advflyp.data.sets.folders import read_folder
from advflyp.data.sets.imagenet import imagenet_v2
from helpers import pairs
from layouts import put


def classes(folder: Path, names: list[str], listed: str, file: str = "classnames.txt") -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "0.png").write_bytes(pairs(1)[0][0])
    (folder / file).write_text(listed)
    return folder


@pytest.mark.parametrize(
    ("names", "listed", "file"),
    [
        (["cat", "dog"], "dog\ncat\n", "classnames.txt"),
        (["cat", "dog"], '["dog", "cat"]', "classnames.json"),
        (["Hot_Dog", "ice-cream"], "ice cream\nhot dog\n", "classnames.txt"),
        (["001.cat", "002.dog"], "dog\ncat\n", "classnames.txt"),
        (["01_cat", "02_dog", "03_eel"], "cat\neel\ndog\n", "classnames.txt"),
    ],
)
def test_names_of_the_folders_in_another_order(
    names: list[str], listed: str, file: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="has the folders' own names in another order: it calls the folder"):
        read_folder(classes(tmp_path, names, listed, file))


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (["cat", "dog"], "Cat\ndog\n"),
        (["Hot_Dog", "ice-cream"], "hot dog\nice cream\n"),
        (["001.cat", "002.dog"], "cat\ndog\n"),
        (["n01", "n02"], "dog\ncat\n"),
        (["cat", "dog"], "dog\na kind of cat\n"),
        (["0", "1"], "one\nzero\n"),
    ],
)
def test_names_that_may_be_right(names: list[str], listed: str, tmp_path: Path) -> None:
    assert read_folder(classes(tmp_path, names, listed))[1] == listed.splitlines()


def test_imagenet_v2_has_a_folder_for_each_class(tmp_path: Path) -> None:
    """A folder's number is its label, so none may be missing."""
    folder = tmp_path / "imagenetv2-top-images-format-val"
    for number in range(1000):
        put(folder / str(number) / "a.jpeg", number)
    shutil.rmtree(folder / "7")
    with pytest.raises(ValueError, match="lacks the folder 7; it must hold the folders 0 to 999"):
        imagenet_v2(tmp_path, "top-images")
    put(folder / "7" / "a.jpeg", 7)
    put(folder / "1000" / "a.jpeg", 0)
    with pytest.raises(ValueError, match="holds a folder 1000; it must hold the folders 0 to 999"):
        imagenet_v2(tmp_path, "top-images")
