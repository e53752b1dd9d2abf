"""Labelled pictures as training batches, and what `data.train` can be read as."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from advflyp.cli.main import main
from advflyp.data.config import DataConfig
from advflyp.data.pairs.images import ImageReader
from advflyp.data.sets.images import Arrays, drawn_classes
from advflyp.data.sets.labelled import LabelledSet, load_set
from advflyp.data.sets.prompts import openai_templates
from advflyp.data.training import DecodedLabelled, LabelledBatches, open_training, readings
from advflyp.model.clip import CLIP
from helpers import COLOURS, pairs, write_folder, write_shards, write_tar
from layouts import BUILDERS

CPU = torch.device("cpu")


def class_tree(folder: Path, n: int = 43) -> Path:
    """Shapes of one colour a class, the colour's name for the folder; classes of 11, 11, 11 and 10."""
    for index, (image, _) in enumerate(pairs(n)):
        place = folder / list(COLOURS)[index % 4]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{index:04d}.png").write_bytes(image)
    return folder


def class_shards(folder: Path, n: int = 43) -> Path:
    """The same as webdataset shards."""
    folder.mkdir()
    for shard, start in enumerate(range(0, n, 20)):
        members = []
        for index, (image, _) in list(enumerate(pairs(n)))[start : start + 20]:
            members += [(f"{index:04d}.png", image), (f"{index:04d}.cls", b"%d" % (index % 4))]
        write_tar(folder / f"{shard}.tar", members)
    (folder / "classnames.txt").write_text("\n".join(COLOURS))
    return folder


def opened(train: object, model: Any, wanted: Any = "labelled", seed: int = 0, **config: Any) -> Any:
    config = {"batch_size": 8, "workers": 2, **config}
    reader = model and ImageReader(model.config["preprocess_cfg"])
    return open_training(DataConfig(train=str(train), **config), wanted, reader, seed=seed, device=CPU)


@pytest.fixture(params=["folder", "shards"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return class_tree(tmp_path / "c") if request.param == "folder" else class_shards(tmp_path / "c")


def test_batches(tiny: CLIP, source: Path) -> None:
    stream = opened(source, tiny)
    assert isinstance(stream, LabelledBatches)
    assert sorted(stream.classes) == sorted(COLOURS)
    pictures = {}
    for index, (data, _) in enumerate(pairs(43)):
        image = ImageReader(tiny.config["preprocess_cfg"]).from_bytes(data).float() / 255
        pictures[image.numpy().tobytes()] = list(COLOURS)[index % 4]
    batches = list(stream.epoch(0))
    assert len(stream) == len(batches) == 5
    for batch in batches:
        assert batch.images.shape == (8, 3, 32, 32) and batch.labels.dtype == torch.int64
        names = [stream.classes[label] for label in batch.labels.tolist()]
        assert batch.captions == [f"This is a photo of a {name}." for name in names]
        assert [pictures[image.numpy().tobytes()] for image in batch.images] == names


def test_two_classes_of_one_name_are_both_trained_on(tiny: CLIP) -> None:
    """ImageNet has two called "missile", and two called "sunglasses"."""
    labels = [0, 1, 2, 2, 1, 0, 2, 0]
    data = LabelledSet(Arrays(np.zeros((8, 32, 32, 3), np.uint8), labels), ["a", "b", "a"])
    reader = ImageReader(tiny.config["preprocess_cfg"])
    for classes in (None, 2):
        config = DataConfig(train="mine", batch_size=2, classes=classes)
        stream = open_training(config, "labelled", reader, seed=0, device=CPU, data=data)
        assert isinstance(stream, DecodedLabelled)
        drawn = drawn_classes([0, 1, 2], classes, 0)
        assert stream.classes == stream.represented == [data.classes[label] for label in drawn]
        assert stream.rows == [
            (place, drawn.index(label)) for place, label in enumerate(labels) if label in drawn
        ]


def test_templates_in_place_of_the_sets(tiny: CLIP, source: Path) -> None:
    """Of one every caption is made; of several each is drawn, anew each epoch, whatever the batches and threads."""
    stream = opened(source, tiny, templates="a {} thing")
    assert stream.templates == stream.caption_templates == ["a {} thing"]
    for batch in stream.epoch(0):
        names = [stream.classes[label] for label in batch.labels.tolist()]
        assert batch.captions == [f"a {name} thing" for name in names]

    def drawn(epoch: int, **how: Any) -> list[tuple[str, int]]:
        stream = opened(source, tiny, templates="a {} | the {}, here", **how)
        assert stream.templates == stream.caption_templates == ["a {}", "the {}, here"]
        batches = list(stream.epoch(epoch))
        return [pair for b in batches for pair in zip(b.captions, b.labels.tolist(), strict=True)]

    first = drawn(0)
    kinds = Counter(caption.split()[0] for caption, _ in first)
    assert kinds.keys() == {"a", "the"} and min(kinds.values()) > 5
    classes = opened(source, tiny).classes
    assert all(caption in (f"a {classes[y]}", f"the {classes[y]}, here") for caption, y in first)
    assert drawn(0, workers=1) == first and drawn(0, seed=1) != first and drawn(1) != first
    assert opened(source, tiny, templates="openai").templates == openai_templates()
    with pytest.raises(ValueError, match=r"the prompt 'a thing' must contain \{\} exactly once"):
        DataConfig(train="x", templates="a {} | a thing")


def test_every_picture_at_most_once(tiny: CLIP, source: Path) -> None:
    labels = torch.cat([batch.labels for batch in opened(source, tiny, batch_size=43).epoch(0)])
    assert sorted(labels.bincount().tolist()) == [10, 11, 11, 11]


def test_order_depends_on_seed_and_epoch_alone(tiny: CLIP, source: Path) -> None:
    def images(epoch: int, **how: Any) -> torch.Tensor:
        return torch.cat([batch.images for batch in opened(source, tiny, **how).epoch(epoch)])

    first = images(1, workers=1)
    assert torch.equal(images(1, workers=4), first)
    assert not torch.equal(images(2), first)
    assert not torch.equal(images(1, seed=1), first)


def test_resuming_counts_unreadable_pictures(tiny: CLIP, tmp_path: Path) -> None:
    folder = class_tree(tmp_path / "c", 40)
    for path in sorted(folder.rglob("*.png"))[::7]:
        path.write_bytes(b"not a picture")
    stream = opened(folder, tiny)
    whole = list(stream.epoch(3))
    assert len(whole) == 4 and stream.skipped.counts == {"not an image": 6}
    rest = list(opened(folder, tiny).epoch(3, whole[1].position))
    assert len(rest) == 2
    for batch, again in zip(whole[2:], rest, strict=True):
        assert torch.equal(batch.images, again.images)
        assert torch.equal(batch.labels, again.labels) and batch.position == again.position


def test_limit_is_balanced_and_the_same_in_every_epoch(tiny: CLIP, source: Path) -> None:
    stream = opened(source, tiny, limit=14, batch_size=14)
    seen = []
    for epoch in range(2):
        (batch,) = stream.epoch(epoch)
        assert sorted(batch.labels.bincount().tolist()) == [3, 3, 4, 4]
        seen.append(sorted(image.sum().item() for image in batch.images))
    assert seen[0] == seen[1]


def test_a_set_of_the_table(tiny: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVFLYP_DATA", str(tmp_path))
    BUILDERS["cifar10"](tmp_path)
    stream = opened("CIFAR-10@train", tiny, batch_size=4)
    assert isinstance(stream, DecodedLabelled)
    assert stream.labelled.name == "cifar10@train" and stream.labelled.split == "train"
    batch = next(stream.epoch(0))
    assert batch.captions[0] == f"This is a photo of a {stream.classes[int(batch.labels[0])]}."


def test_images_alone_come_from_either(tiny: CLIP, source: Path, tmp_path: Path) -> None:
    assert len(opened(source, tiny, "images")) == 5
    folder = write_folder(tmp_path / "p", 20)
    (folder / "0003.txt").write_text(" ")
    (folder / "0004.txt").write_bytes(b"\xff")
    without_captions = opened(folder, tiny, "images", batch_size=20)
    assert [len(batch.images) for batch in without_captions.epoch(0)] == [20]
    assert not without_captions.skipped.counts
    assert len(opened(write_shards(tmp_path / "s", 20, 10), tiny, "images")) == 2


@pytest.mark.slow
def test_the_mini_proxy() -> None:
    """Same pictures, same backgrounds, same order as its captioned twin; labels are the concepts."""
    how: dict[str, Any] = {"batch_size": 64}
    labelled, captioned = (
        opened("mini/proxy", None, **how),
        opened("mini/proxy-captioned", None, "pairs", **how),
    )
    known = load_set("mini/proxy")
    assert labelled.classes == known.classes and labelled.templates == known.templates
    assert not isinstance(captioned, LabelledBatches)
    one, other = next(labelled.epoch(2)), next(captioned.epoch(2))
    assert torch.equal(one.images, other.images) and one.position == other.position
    assert one.captions == [known.classes[label] for label in one.labels.tolist()]
    assert one.captions != other.captions
    counts = Counter(meta["concept"] for meta in labelled.metas)
    assert set(counts) == set(known.classes) and min(counts.values()) >= 3
    assert len(labelled.metas) == len(known)


def test_readings(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    both = class_tree(tmp_path / "both")
    for path in list(both.rglob("*.png")):
        path.with_suffix(".txt").write_text("a caption")
    beside = write_shards(tmp_path / "beside", 3, 3)
    write_shards(beside / "val", 3, 3)
    saved = tmp_path / "saved"
    for split in ("train", "test"):
        (saved / split).mkdir(parents=True)
    (saved / "dataset_dict.json").write_text("{}")
    expected: dict[str, set[str]] = {
        "mini": {"pairs"}, "mini/proxy-captioned": {"pairs"}, "mini/proxy": {"labelled"}, "mini/food": {"labelled"},
        "imagenet@train": {"labelled"}, "CIFAR-10": {"labelled"}, str(tmp_path / "empty"): set(),
        str(write_folder(tmp_path / "p", 3)): {"pairs"}, str(write_shards(tmp_path / "s", 3, 3)): {"pairs"},
        str(class_tree(tmp_path / "c")): {"labelled"}, str(class_shards(tmp_path / "cs")): {"labelled"},
        str(both): {"pairs", "labelled"}, "nowhere/*.tar": set(),
        # Pairs for validation beside the shards do not make these a folder of splits.
        str(beside): {"pairs"}, str(saved): {"pairs"},
    }  # fmt: skip
    assert {train: readings(train) for train in expected} == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"method.name": "tecoa"}, "trains on labelled images, and data.train = '{tmp}/pairs' holds pairs"),
        ({"method.name": "tecoa", "data.train": "mini"}, "name other data, such as mini/proxy, or one of the methods"),
        ({"method.name": "pmg_aft", "data.train": "mini/proxy-captioned"}, "holds pairs"),
        ({"method.name": "flyp", "data.train": "{tmp}/shards"}, "holds pairs"),
        ({"data.train": "mini/proxy"}, "'advflyp' trains on image–text pairs, and data.train = 'mini/proxy' holds"),
        ({"data.train": "cifar10"}, "such as mini, or one of the methods agft, fare, flyp, pmg_aft, te"),
        ({"data.train": "{tmp}/classes"}, "holds labelled images"),
        ({"data.train": "{tmp}/class-shards/{{0..1}}.tar"}, "holds labelled images"),
        ({"method.name": "tecoa", "data.train": "mini/proxi"}, "there is no set 'mini/proxi'"),
        ({"method.name": "tecoa", "data.train": "imagenet@train"}, "imagenet@train is not on this machine"),
        ({"method.name": "tecoa", "data.train": "imagenet@tarin"}, "imagenet has no split 'tarin'; did you mean"),
        ({"method.name": "tecoa", "data.train": "{tmp}/whole"}, "name one of them: {tmp}/whole/train"),
        ({"method.name": "tecoa", "data.train": "{tmp}/empty"}, "holds no class folders"),
        ({"method.name": "tecoa", "data.train": "{tmp}/hollow"}, "holds no images"),
        ({"method.name": "fare", "data.train": "{tmp}/empty"}, "holds no image"),
        ({"method.name": "tecoa", "data.train": "{tmp}/classes", "data.batch_size": "64"}, "not enough for one batch"),
        ({"method.name": "tecoa", "data.train": "mini/proxy", "data.source": "openclipart"}, "holds 0 pairs"),
        ({"method.name": "tecoa", "data.train": "mini/proxy", "data.batch_size": "1"}, "must be at least 2, not 1"),
        ({"data.batch_size": "1"}, "the contrastive loss compares pairs"),
        ({"attack.eps": "0"}, "attack.eps must be above 0, not 0.0; to train on clean images: attack.steps = 0"),
        ({"method.name": "tekoa"}, "unknown method 'tekoa'; did you mean 'tecoa'?"),
        ({"method.name": "fare", "method.weight": "1"}, "unknown key 'method.weight'"),
        ({"data.train": "mini/proxy-captioned", "data.also": "{tmp}/shards"}, "data.also mixes decoded pairs"),
        ({"method.name": "tecoa", "data.train": "mini/proxy", "data.also": "{tmp}/shards"}, "with labelled images"),
        ({"method.name": "tecoa", "data.train": "{tmp}/classes", "data.also": "{tmp}/shards"}, "with labelled images"),
        ({"method.name": "fare", "data.train": "mini", "data.classes": "10"}, "data.classes is for labelled data"),
        ({"method.name": "fare", "data.classes": "10"}, "is read as pairs, leave it out"),
    ],
)  # fmt: skip
def test_a_mismatch_is_one_line_and_leaves_nothing(
    overrides: dict[str, str], message: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("ADVFLYP_DATA", str(tmp_path / "data"))
    write_shards(tmp_path / "shards", 20, 10)
    class_tree(tmp_path / "classes")
    class_shards(tmp_path / "class-shards")
    class_tree(tmp_path / "whole/train")
    class_tree(tmp_path / "whole/test")
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow/red").mkdir(parents=True)
    (tmp_path / "hollow/green").mkdir()
    if "method.name" in overrides:
        text = recipe.read_text().replace("feature_weight = 1.0\nlogit_weight = 1.0\n", "")
        recipe.write_text(text)
    before = sorted(tmp_path.rglob("*"))
    arguments = ["train", str(recipe), "--out", str(tmp_path / "run")]
    for key, value in overrides.items():
        arguments += [f"--{key}", value.format(tmp=tmp_path)]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert message.format(tmp=tmp_path) in error
    assert error.startswith("advflyp: ") and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_fewer_classes_are_drawn_by_the_seed_and_taken_evenly(tiny: CLIP, source: Path) -> None:
    drawn = set()
    for seed in range(8):
        stream = opened(source, tiny, seed=seed, classes=2, limit=12)
        found: Counter[str] = Counter()
        for batch in stream.epoch(0):
            found.update(stream.classes[label] for label in batch.labels.tolist())
            assert [
                stream.classes[label] in text
                for label, text in zip(batch.labels, batch.captions, strict=True)
            ]
        assert set(found) == set(stream.classes) and len(stream.rows) == 12
        kept = Counter(stream.classes[label] for _, label in stream.rows)
        assert set(kept.values()) == {6}
        drawn.add(tuple(stream.classes))
    assert len(drawn) > 1
    three = opened(source, tiny, seed=3, classes=3)
    assert set(opened(source, tiny, seed=3, classes=2).classes) < set(three.classes)


@pytest.mark.parametrize("train", ["mini/proxy", "mini/proxy-captioned"])
def test_one_vendor_and_few_classes_of_the_mini_proxy(train: str) -> None:
    wanted = "labelled" if train == "mini/proxy" else "pairs"
    stream = opened(train, None, wanted, source="noto | noto-v1", classes=60, limit=100)
    assert {meta["source"] for meta in stream.metas} == {"noto", "noto-v1"} and len(stream.metas) == 100
    counts = Counter(meta["concept"] for meta in stream.metas)
    assert len(counts) == 60 and set(counts.values()) <= {1, 2, 3}
    other = opened("mini/proxy", None, source="noto | noto-v1", classes=60, limit=100)
    # Labelled and captioned are the same images.
    assert [m["name"] for m in other.metas] == [m["name"] for m in stream.metas]
    assert other.classes == sorted(counts)


@pytest.mark.parametrize(
    ("train", "wanted", "keys", "message"),
    [
        ("mini/proxy", "labelled", {"classes": 1505}, "data.classes = 1505, but the data has 1504"),
        ("mini", "pairs", {"classes": 10}, "data.classes is for labelled data"),
        ("mini/food", "labelled", {"source": "noto"}, "mini/food has none"),
        ("mini", "pairs", {"source": "noto | nato"}, "the corpus has no source 'nato'; it has "),
        ("mini/proxy", "labelled", {"classes": 1}, "data.classes must be at least 2, not 1"),
    ],
)
def test_classes_and_sources_that_are_not_there(train: str, wanted: str, keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        opened(train, None, wanted, **keys)


def test_an_images_template_changes_with_the_epoch(tiny: CLIP, source: str) -> None:
    stream = opened(source, tiny, templates="a {} | the {}, here")
    drawn = [[stream.decode(row, epoch)["captions"] for row in stream.rows] for epoch in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
