from pathlib import Path

import pytest
import torch
from PIL import Image

from advflyp.data.labelled import LabelledSet, load_set, mini_sets, set_names


def test_the_embedded_test_sets() -> None:
    names = set_names(["mini"])
    assert len(names) >= 10
    assert len({load_set(name).info["domain"] for name in names}) >= 5
    assert "mini/val" not in names
    assert set_names(["mini/food", "mini", "mini/food"])[0] == "mini/food"
    assert sorted(set_names(["mini/food", "mini"])) == sorted(names)


@pytest.mark.parametrize("name", sorted(f"mini/{name}" for name in mini_sets()))
def test_each_set(name: str) -> None:
    labelled = load_set(name)
    assert len(labelled) == labelled.info["n"] >= 80
    assert len(set(labelled.classes)) == len(labelled.classes)
    assert {label for _, label in labelled.pictures} <= set(range(len(labelled.classes)))
    assert all(template.count("{}") == 1 for template in labelled.templates)
    assert all(picture.size == (64, 64) for picture, _ in labelled.pictures)
    assert labelled.info["licence"] and labelled.info["source"]


def test_the_first_images_are_a_mixture() -> None:
    labels = [label for _, label in load_set("mini/fashion").pictures[:100]]
    assert len(set(labels)) == 10
    assert max(labels.count(label) for label in range(10)) < 25


def test_proxy_is_training_data_with_labels() -> None:
    proxy = load_set("mini/proxy")
    assert proxy.split == "train"
    assert len(proxy.classes) > 500
    counts = [0] * len(proxy.classes)
    for _, label in proxy.pictures:
        counts[label] += 1
    assert min(counts) >= 3


def test_batches() -> None:
    pictures = [(Image.new("RGB", (4, 4), (i, i, i)), i % 3) for i in range(10)]
    labelled = LabelledSet(
        name="x", split="test", classes=list("abc"), templates=["{}"], pictures=pictures, info={}
    )
    batches = list(
        labelled.batches(lambda p: torch.full((3, 2, 2), p.getpixel((0, 0))[0] / 255), 4, range(9))
    )
    assert [len(labels) for _, _, labels in batches] == [4, 4, 1]
    torch.testing.assert_close(torch.cat([x[:, 0, 0, 0] for _, x, _ in batches]) * 255, torch.arange(9.0))
    assert torch.cat([places for places, _, _ in batches]).tolist() == list(range(9))
    assert torch.cat([labels for _, _, labels in batches]).tolist() == [i % 3 for i in range(9)]


def test_unknown_and_absent_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="there is no set 'mini/foot'; did you mean 'mini/food'"):
        set_names(["mini/foot"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        ValueError, match="not on this machine; fetch it with `advflyp data mini --sets openmoji`"
    ):
        load_set("mini/openmoji")
