"""Mini corpora in memory: composition, augmentation, order, resume."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from advflyp.data.config import DataConfig
from advflyp.data.mini import shards
from advflyp.data.mini.compose import MiniLabelled, MiniPairs, augment, compose, corpus_folder
from advflyp.data.pairs.images import ImageReader
from advflyp.data.pairs.pairs import Reading
from advflyp.data.training import open_training
from advflyp.share import Share
from helpers import write_tar

CPU = torch.device("cpu")
GREY = (128, 128, 128)


def corpus(folder: Path, n: int = 20, **changes: object) -> Path:
    """A mini corpus of n discs of different greys; the name is the grey value."""
    folder.mkdir()
    members = []
    for index in range(n):
        value = index * 12
        picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
        picture.paste((value, value, value, 255), (16, 16, 48, 48))
        stream = io.BytesIO()
        picture.save(stream, "webp", lossless=True)
        meta = {"name": f"grey{value}", "tags": [], "group": None, "style": "icon", "source": "test",
                "mono": False, "mirror": True, "concept": None, "weight": 1.0, **changes}  # fmt: skip
        members += [(f"{index}.webp", stream.getvalue()), (f"{index}.json", json.dumps(meta).encode())]
        members.append((f"{index}.txt", b"x"))
    write_tar(folder / "train-0000.tar.gz", members)
    (folder / "manifest.json").write_text("{}")
    (folder / "sets.json").write_text("{}")
    return folder


def mini_pairs(folder: Path, seed: int = 0, **config: object) -> MiniPairs:
    return MiniPairs(folder, how(DataConfig(train=str(folder), **{"batch_size": 8, **config}), seed))


def how(config: DataConfig, seed: int = 0) -> Reading:
    share = Share(config.batch_size, drop_last=config.drop_last)
    return Reading(config=config, reader=ImageReader({"size": 64}), seed=seed, device=CPU, share=share)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return corpus(tmp_path / "corpus")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("0.webp", b"no image", "are WebP files"),
        ("0.webp", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "are WebP files"),
        ("0.json", b'{"name": "x"}', "not every image has a description with concept, mirror,"),
        ("0.json", b"[" * 100_000, "is not a mini corpus"),
        ("9.json", b"{}", "is not a mini corpus"),
    ],
)
def test_a_folder_that_only_looks_like_a_corpus(folder: Path, name: str, data: bytes, message: str) -> None:
    with tarfile.open(folder / "train-0000.tar.gz") as tar:
        members = {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]
    write_tar(folder / "train-0000.tar.gz", list((members | {name: data}).items()))
    with pytest.raises(ValueError, match=message):
        mini_pairs(folder).images[:]


@pytest.mark.parametrize("size", [(640, 640), (32, 64)])
def test_an_image_of_another_size(folder: Path, size: tuple[int, int]) -> None:
    stream = io.BytesIO()
    Image.new("RGBA", size).save(stream, "webp")
    test_a_folder_that_only_looks_like_a_corpus(
        folder, "19.webp", stream.getvalue(), "the images of a mini corpus"
    )


def test_a_damaged_shard(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "train-0000.tar.gz"
    whole = gzip.decompress(path.read_bytes())
    signed = whole[:124] + b"-0000001000" + whole[135:]
    for data in (path.read_bytes()[:-900], b"no gzip", gzip.compress(signed)):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"train-0000.tar.gz is not a shard of a mini corpus \("):
            mini_pairs(folder)
    path.write_bytes(gzip.compress(whole))
    monkeypatch.setattr(shards, "MAX_SHARD_BYTES", len(whole) - 1)
    with pytest.raises(ValueError, match="is larger than"):
        mini_pairs(folder)


def test_batches(folder: Path) -> None:
    pairs = mini_pairs(folder)
    batches = list(pairs.epoch(0))
    assert len(pairs) == len(batches) == 2
    for batch in batches:
        assert batch.images.shape == (8, 3, 64, 64)
        assert batch.images.min() >= 0 and batch.images.max() <= 1
        assert all("grey" in caption or "icon" in caption for caption in batch.captions)


def test_the_last_smaller_batch(folder: Path) -> None:
    pairs = mini_pairs(folder, drop_last=False)
    batches = list(pairs.epoch(0))
    assert len(pairs) == len(batches) == 3
    assert [len(batch.images) for batch in batches] == [len(batch.captions) for batch in batches] == [8, 8, 4]
    (rest,) = mini_pairs(folder, drop_last=False).epoch(0, batches[1].position)
    assert torch.equal(rest.images, batches[2].images)


def test_a_batch_depends_on_seed_epoch_and_place_alone(folder: Path) -> None:
    whole = list(mini_pairs(folder).epoch(3))
    (rest,) = mini_pairs(folder).epoch(3, whole[0].position)
    assert rest.captions == whole[1].captions
    assert torch.equal(rest.images, whole[1].images)
    assert not torch.equal(next(iter(mini_pairs(folder).epoch(4))).images, whole[0].images)
    assert not torch.equal(next(iter(mini_pairs(folder, seed=1).epoch(3))).images, whole[0].images)


def test_captions_belong_to_their_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("advflyp.data.mini.compose.augment", lambda images, mirror, generator: images)
    monkeypatch.setattr("advflyp.data.mini.compose.caption", lambda meta, rng: meta["name"])
    for batch in mini_pairs(folder).epoch(0):
        centre = batch.images[:, 0, 32, 32] * 255
        assert [f"grey{round(value)}" for value in centre.tolist()] == batch.captions


def test_draws_in_proportion_to_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = mini_pairs(corpus(tmp_path / "c"))
    pairs.weights[:] = 1.0
    pairs.weights[0] = 19.0
    monkeypatch.setattr("advflyp.data.mini.compose.caption", lambda meta, rng: meta["name"])
    drawn = [c for epoch in range(40) for batch in pairs.epoch(epoch) for c in batch.captions]
    assert drawn.count("grey0") / len(drawn) == pytest.approx(0.5, abs=0.07)


def test_limit_keeps_a_random_subset(folder: Path) -> None:
    kept = {meta["name"] for meta in mini_pairs(folder, limit=8).metas}
    assert len(kept) == 8
    assert kept == {meta["name"] for meta in mini_pairs(folder, limit=8).metas}
    assert kept != {f"grey{12 * i}" for i in range(8)}


def test_opaque_pixels_keep_their_colour_and_the_rest_is_background() -> None:
    picture = torch.zeros(64, 4, 64, 64, dtype=torch.uint8)
    picture[:, :3, 16:48, 16:48] = torch.tensor([200, 100, 50], dtype=torch.uint8).view(3, 1, 1)
    picture[:, 3, 16:48, 16:48] = 255
    images = compose(picture, torch.zeros(64, dtype=torch.bool), torch.Generator().manual_seed(0))
    assert torch.equal(images[:, :, 32, 32], (torch.tensor([200, 100, 50]) / 255).expand(64, 3))
    backgrounds = images[:, :, 0, 0]
    assert len(backgrounds.unique(dim=0)) > 20
    assert (backgrounds == 1).all(1).any(), "plain white is among them"


def test_shapes_without_colour_contrast_with_the_background() -> None:
    picture = torch.zeros(64, 4, 64, 64, dtype=torch.uint8)
    picture[:, 3, 16:48, 16:48] = 255
    images = compose(picture, torch.ones(64, dtype=torch.bool), torch.Generator().manual_seed(0))
    contrast = (images[:, :, 32, 32].mean(1) - images[:, :, 32, 2].mean(1)).abs()
    assert contrast.median() > 0.4
    assert len(images[:, :, 32, 32].unique(dim=0)) > 10


def test_half_transparent_pixels_are_mixed() -> None:
    picture = torch.full((1, 4, 8, 8), 255, dtype=torch.uint8)
    picture[:, 3] = 51  # 0.2
    images = compose(picture, torch.zeros(1, dtype=torch.bool), torch.Generator().manual_seed(5))
    picture[:, 3] = 0
    background = compose(picture, torch.zeros(1, dtype=torch.bool), torch.Generator().manual_seed(5))
    # Float32: a few roundings of numbers below 1, in either.
    torch.testing.assert_close(images, 0.2 + 0.8 * background, rtol=0, atol=8 * 2**-24)


def test_only_what_may_be_mirrored_is() -> None:
    """The left half is white: its place after augmentation tells a mirrored picture."""
    images = torch.zeros(200, 3, 64, 64)
    images[..., :32] = 1
    for allowed, share in ((True, 0.3), (False, 0.0)):
        mirror = torch.full((200,), allowed)
        out = augment(images, mirror, torch.Generator().manual_seed(0))
        mirrored = out[..., 40:].mean((1, 2, 3)) > out[..., :24].mean((1, 2, 3))
        assert mirrored.float().mean().item() == pytest.approx(share, abs=0.08)
        assert out.min() >= 0 and out.max() <= 1


def test_names(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert corpus_folder(str(folder)) == folder
    assert corpus_folder("mini") is not None
    assert corpus_folder(str(tmp_path)) is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="tools.mini_corpus.build"):
        corpus_folder("mini-full")
    config, reader = DataConfig(train=str(folder), batch_size=8), ImageReader({"size": 8})
    opened = open_training(config, "pairs", reader, seed=0, device=CPU)
    assert isinstance(opened, MiniPairs)


def test_too_small_for_a_batch(folder: Path) -> None:
    with pytest.raises(ValueError, match="holds 20 pairs, not enough for one batch of 64"):
        mini_pairs(folder, batch_size=64)


@pytest.fixture
def concepts(tmp_path: Path) -> Path:
    """20 greys; every fourth has no concept, the others are apple, boat or cat in turn."""
    folder = corpus(tmp_path / "concepts", 20)
    members = []
    with tarfile.open(folder / "train-0000.tar.gz") as tar:
        for index, member in enumerate(tar):
            data = tar.extractfile(member).read()
            if member.name.endswith(".json"):
                concept = (None, "cat", "boat", "apple")[index // 3 % 4]
                data = json.dumps({**json.loads(data), "concept": concept}).encode()
            members.append((member.name, data))
    write_tar(folder / "train-0000.tar.gz", members)
    return folder


def mini_classes(folder: Path, classes: list[str], **config: object) -> MiniLabelled:
    config = DataConfig(train=str(folder), **{"batch_size": 4, **config})
    return MiniLabelled(folder, how(config), classes, ["a {}", "the {}"])


def test_labelled_pictures_are_those_of_the_captioned_twin(concepts: Path) -> None:
    """The same composition of the same pictures in the same order; only labels take the captions' place."""
    labelled = mini_classes(concepts, ["apple", "boat"])
    config = DataConfig(train=str(concepts), batch_size=4)
    captioned = MiniPairs(concepts, how(config), ["apple", "boat"])
    assert len(labelled) == 2 and len(labelled.metas) == 10
    for one, other in zip(labelled.epoch(1), captioned.epoch(1), strict=True):
        assert torch.equal(one.images, other.images)
        assert one.captions == [f"a {['apple', 'boat'][label]}" for label in one.labels.tolist()]
        assert all("grey" in caption or "icon" in caption for caption in other.captions)
        assert one.position == other.position
    (rest,) = labelled.epoch(1, {"batch": 1})
    assert torch.equal(rest.labels, one.labels) and torch.equal(rest.images, one.images)


def test_labels_belong_to_their_pictures(concepts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("advflyp.data.mini.compose.augment", lambda images, mirror, generator: images)
    classes = ["cat", "apple"]
    for batch in mini_classes(concepts, classes).epoch(0):
        numbers = (batch.images[:, 0, 32, 32] * 255 / 12).round().int().tolist()
        expected = [("none", "cat", "boat", "apple")[number % 4] for number in numbers]
        assert [classes[label] for label in batch.labels.tolist()] == expected


def test_a_limit_on_labelled_pictures_is_balanced(concepts: Path) -> None:
    stream = mini_classes(concepts, ["apple", "boat", "cat"], limit=7)
    assert sorted(stream.labels.bincount().tolist()) == [2, 2, 3]
    again = mini_classes(concepts, ["apple", "boat", "cat"], limit=4)
    assert {meta["name"] for meta in again.metas} < {meta["name"] for meta in stream.metas}


def test_another_epoch_draws_other_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = mini_pairs(folder)
    drawn: list[list[int]] = []
    about = pairs.about
    monkeypatch.setattr(
        pairs, "about", lambda index, rng: (drawn.append(index.tolist()), about(index, rng))[1]
    )
    for epoch in (0, 0, 1):
        list(pairs.epoch(epoch))
    first, again, other = ([*drawn[i], *drawn[i + 1]] for i in (0, 2, 4))
    assert first == again != other


def test_another_epoch_composes_the_same_image_anew(folder: Path) -> None:
    pairs = mini_pairs(folder)
    pairs.weights = torch.zeros_like(pairs.weights)
    pairs.weights[0] = 1  # every draw is the first image
    one, again, other = (next(iter(pairs.epoch(epoch))) for epoch in (0, 0, 1))
    assert torch.equal(one.images, again.images) and not torch.equal(one.images, other.images)
