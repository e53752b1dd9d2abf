"""Folders of classes: the names in a list, and the folders they are meant for."""

import shutil
from pathlib import Path

import pytest

from advflyp.data.sets.folders import read_folder
from advflyp.data.sets.imagenet import imagenet_v2
from advflyp.data.sets.labelled import load_set, set_names
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


def test_a_path_is_one_set_however_it_is_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes(tmp_path / "own" / "two", ["cat", "dog"], "cat\ndog\n")
    monkeypatch.chdir(tmp_path)
    spelled = ["own/two", "own/two/", "./own/two", "own//two", ".//own/./two/"]
    assert set_names(spelled) == ["own/two"]
    assert set_names([f"folder:{name}" for name in spelled]) == ["folder:own/two"]
    assert set_names([f"{tmp_path}/own//two/", f"{tmp_path}/own/two"]) == [f"{tmp_path}/own/two"]
    assert load_set("./own/two/").name == "own/two"
    assert set_names(["wds:./own//{0..1}.tar", "wds:own/{0..1}.tar"]) == ["wds:own/{0..1}.tar"]
    assert set_names(["wds:s3://own//{0..1}.tar"]) == ["wds:s3://own//{0..1}.tar"]
    (tmp_path / "link").symlink_to("own/two")
    assert set_names(["link/../two/"]) == ["link/../two"]


def test_a_path_that_is_called_like_another_set_remains_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("food101", "cifar10@x", "mini", "mini/food", "paper", "some:name", "wds:x"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        assert set_names([f"./{name}/", f".//{name}"]) == set_names([f"./{name}"]) == [f"./{name}"]
    (tmp_path / "own").mkdir()
    assert set_names(["folder:./food101", "folder:./own/"]) == ["folder:food101", "folder:own"]
    assert set_names(["mini/", "paper/"]) == ["./mini", "./paper"]
