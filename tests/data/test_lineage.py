import time
from pathlib import Path

import pytest

from advflyp.data.lineage import trained_on, was_trained_on


@pytest.mark.parametrize(
    ("trained", "asked", "same"),
    [
        ("mini", "mini/food", False),
        ("mini/proxy", "mini/proxy", True),
        ("imagenet@train", "imagenet", False),
        ("ImageNet@train", "imagenet@train", True),
        ("food", "./food", True),
        ("food", "folder:food/train", True),
        ("food/train", "food", True),
        ("food/train", "food/test", False),
        ("shards/{0..1}.tar", "wds:shards/1.tar", True),
        ("shards/*.tar", "shards", True),
        ("shards/0.tar", "shards/1.tar", False),
        ("s3://bucket/x.tar", "s3://bucket/x.tar", True),
        ("gone/*.tar", "food", False),
        ("gone/{a,b}/*.tar", "gone/b", True),
    ],
)
def test_the_same_data(
    trained: str, asked: str, same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("food/train", "food/test", "shards"):
        Path(folder).mkdir(parents=True)
    for number in range(2):
        Path(f"shards/{number}.tar").touch()
    card = {"trained_on": trained_on({}, trained, None)}
    assert was_trained_on(card, asked) is same
    monkeypatch.chdir("/")
    assert was_trained_on(card, str(tmp_path / "food")) is (trained.startswith("food")), "paths are absolute"


@pytest.mark.parametrize(
    ("trained", "asked", "same"),
    [
        ("../pets", "/pets", True),
        ("/pets", "../pets", True),
        ("link", "/pets", True),
        ("/pets", "link/test", True),
        ("link/train", "../pets/test", False),
        ("../work/shards/*.tar", "shards", True),
        ("shards/*.tar", "../work/./shards/0.tar", True),
        ("/store/0.tar", "shards/0.tar", True),
        ("shards/0.tar", "/store", True),
        ("../{pets,cats}/*.tar", "link", True),
        ("link/{train,test/../more}.tar", "/pets/more.tar", True),
        ("mini/food", "link", False),
        ("s3://b/../x.tar", "s3://b/../x.tar", True),
    ],
)
def test_one_place_in_several_spellings(
    trained: str, asked: str, same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "/" stands for the test's folder."""
    for folder in ("pets/train", "pets/test", "store", "work/shards"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("store/0.tar", "pets/more.tar"):
        (tmp_path / file).touch()
    (tmp_path / "work" / "link").symlink_to(tmp_path / "pets")
    (tmp_path / "work" / "shards" / "0.tar").symlink_to(tmp_path / "store" / "0.tar")
    monkeypatch.chdir(tmp_path / "work")
    trained, asked = (f"{tmp_path}{name}" if name.startswith("/") else name for name in (trained, asked))
    assert was_trained_on({"trained_on": trained_on({}, trained)}, asked) is same


def test_a_card_that_names_a_link(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    (tmp_path / "link").symlink_to("pets")
    assert was_trained_on({"trained_on": [f"{tmp_path}/link"]}, f"{tmp_path}/link")
    assert was_trained_on({"trained_on": [f"{tmp_path}/x/../pets"]}, f"{tmp_path}/link")


def test_a_run_goes_on_from_another() -> None:
    first = {"trained_on": trained_on({}, "mini", None)}
    second = {"trained_on": trained_on(first, "mini/proxy", "imagenet@train")}
    assert second["trained_on"] == ["mini", "mini/proxy", "imagenet@train"]
    assert not was_trained_on({}, "mini/proxy"), "a model that says nothing"


def test_patterns_of_a_stranger_s_card(tmp_path: Path) -> None:
    """They are not looked for all over the disk, nor do their braces fill the memory."""
    began = time.process_time()
    names = ["/{0..999999999}.tar", "/**/*", "/*/*/*/*/*/*.tar", "/nowhere/a*/x"] + ["mini"] * 5_000
    names += ["/tmp" + "{/,{/,/},/,/,/,/,/,/,/,/}" * n + "x" for n in range(3, 7)] + ["{" * 2000 + "}" * 2000]
    assert not was_trained_on({"trained_on": names}, str(tmp_path))
    assert time.process_time() - began < 2
