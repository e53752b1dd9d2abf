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
