"""Folders of classes: the names in a list, and the folders they are meant for."""

from pathlib import Path

import pytest

from advflyp.data.sets.folders import read_folder
from helpers import pairs


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
