import io
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from advflyp.data.config import DataConfig
from advflyp.data.pairs.images import ImageReader, on_white
from advflyp.data.pairs.sources import find_shards, open_source
from advflyp.data.pairs.stream import open_stream
from advflyp.data.training import open_training
from advflyp.model.clip import CLIP
from helpers import members, pairs, write_folder, write_shards, write_tar

CPU = torch.device("cpu")


def opened(tiny: CLIP, train: object, seed: int = 0, **config: object):
    config = {"batch_size": 8, "workers": 2, **config}
    reader = ImageReader(tiny.config["preprocess_cfg"])
    return open_training(DataConfig(train=str(train), **config), "pairs", reader, seed=seed, device=CPU)


def captions(batches: list[dict]) -> list[str]:
    return [caption for batch in batches for caption in batch.captions]


@pytest.fixture(params=["folder", "shards", "shards.gz"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "folder":
        return write_folder(tmp_path / "pairs", 43)
    if request.param == "shards":
        return write_shards(tmp_path / "shards", 43, per_shard=10)
    return write_tar(tmp_path / "all.tar.gz", members(pairs(43)))


def test_an_epoch_has_every_pair_at_most_once(tiny: CLIP, source: Path) -> None:
    stream = opened(tiny, source)
    batches = list(stream.epoch(0))
    assert len(stream) == len(batches) == 5
    assert all(batch.images.shape == (8, 3, 32, 32) for batch in batches)
    assert batches[0].images.min() >= 0.0 and batches[0].images.max() <= 1
    expected = Counter(caption for _, caption in pairs(43))
    assert not Counter(captions(batches)) - expected
    assert not stream.skipped.counts


def test_pictures_keep_their_captions(tiny: CLIP, tmp_path: Path) -> None:
    grey = []
    for value in range(0, 240, 10):
        stream = io.BytesIO()
        Image.new("RGB", (40, 40), (value,) * 3).save(stream, "png")
        grey += [(f"k{value}.png", stream.getvalue()), (f"k{value}.txt", str(value).encode())]
    stream = opened(tiny, write_tar(tmp_path / "grey.tar", grey))
    for batch in stream.epoch(0):
        for image, caption in zip(batch.images, batch.captions, strict=True):
            # A pixel is rounded to 2⁻²⁵.
            assert image.double().mean().item() * 255 == pytest.approx(int(caption), abs=255 * 2**-25)


def test_order_depends_on_seed_and_epoch_alone(tiny: CLIP, source: Path) -> None:
    first = captions(list(opened(tiny, source, workers=1).epoch(1)))
    assert captions(list(opened(tiny, source, workers=4).epoch(1))) == first
    assert captions(list(opened(tiny, source).epoch(2))) != first
    assert captions(list(opened(tiny, source, seed=1).epoch(1))) != first


def test_resuming_within_an_epoch(tiny: CLIP, source: Path) -> None:
    whole = list(opened(tiny, source).epoch(3))
    rest = list(opened(tiny, source).epoch(3, whole[1].position))
    assert [b.captions for b in rest] == [b.captions for b in whole[2:]]
    assert all(torch.equal(a.images, b.images) for a, b in zip(rest, whole[2:], strict=True))


def test_the_last_smaller_batch(tiny: CLIP, source: Path) -> None:
    stream = opened(tiny, source, drop_last=False)
    batches = list(stream.epoch(0))
    assert len(stream) == len(batches) == 6
    assert [len(batch.images) for batch in batches] == [8, 8, 8, 8, 8, 3]
    assert Counter(captions(batches)) == Counter(caption for _, caption in pairs(43))
    assert captions(batches[:5]) == captions(list(opened(tiny, source).epoch(0)))
    (rest,) = opened(tiny, source, drop_last=False).epoch(0, batches[4].position)
    assert rest.captions == batches[5].captions and torch.equal(rest.images, batches[5].images)
    assert not list(opened(tiny, source, drop_last=False).epoch(0, batches[5].position))


def test_resuming_counts_unusable_samples(tiny: CLIP, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pairs", 40)
    for index in range(0, 40, 7):
        (folder / f"{index:04d}.png").write_bytes(b"not a picture")
    whole = list(opened(tiny, folder).epoch(0))
    rest = list(opened(tiny, folder).epoch(0, whole[0].position))
    assert [b.captions for b in rest] == [b.captions for b in whole[1:]]


def test_unusable_samples_are_counted_by_reason(tiny: CLIP, tmp_path: Path) -> None:
    good = members(pairs(8))
    image = pairs(1)[0][0]
    bad = [
        ("a.png", b"not a picture"), ("a.txt", b"x"),
        ("b.png", image[: len(image) // 2]), ("b.txt", b"x"),
        ("c.png", image),
        ("d.txt", b"no picture"),
        ("e.png", image), ("e.txt", b"  \n "),
    ]  # fmt: skip
    stream = opened(tiny, write_tar(tmp_path / "x.tar", good + bad), max_bad_fraction=0.5)
    assert len(list(stream.epoch(0))) == 1
    reasons = ("not an image", "truncated image", "no caption", "no image", "empty caption")
    assert stream.skipped.counts == dict.fromkeys(reasons, 1)
    assert stream.skipped.examples["truncated image"] == "x.tar:b"


def test_limit_is_the_same_subset_in_every_epoch(tiny: CLIP, source: Path) -> None:
    stream = opened(tiny, source, limit=17)
    assert len(stream) == 2
    all_pairs = [caption for _, caption in pairs(43)][:17]
    for epoch in range(3):
        assert not Counter(captions(list(stream.epoch(epoch)))) - Counter(all_pairs)


def test_shard_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_shards(tmp_path / "shards", 30, per_shard=10)
    names = [folder / f"{i:03d}.tar" for i in range(3)]
    assert find_shards(str(folder)) == names
    assert find_shards(f"{folder}/*.tar") == names
    assert find_shards(f"{folder}/{{000..001}}.tar") == names[:2]
    assert find_shards(str(names[2])) == names[2:]
    monkeypatch.chdir(tmp_path)
    assert find_shards("shards/00*.tar") == [name.relative_to(tmp_path) for name in names]


def test_transparent_pictures_lie_on_white() -> None:
    picture = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 255, 0))
    flat = on_white(picture)
    assert [flat.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]
    assert on_white(Image.new("L", (1, 1), 7)).getpixel((0, 0)) == (7, 7, 7)


def test_sources_that_cannot_be_used(tiny: CLIP, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there are no pairs at .*nothing"):
        opened(tiny, tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"there are no pairs at .*002\.tar"):
        write_shards(tmp_path / "two", 20, per_shard=10)
        opened(tiny, f"{tmp_path}/two/{{000..004}}.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no image: put a name\.txt beside every name\.jpg"):
        opened(tiny, tmp_path / "empty")
    lonely = write_folder(tmp_path / "lonely", 3)
    for text in lonely.glob("*.txt"):
        text.unlink()
    with pytest.raises(ValueError, match="holds 3 images but no caption"):
        opened(tiny, lonely)
    with pytest.raises(ValueError, match=r"empty\.tar holds no pairs"):
        opened(tiny, write_tar(tmp_path / "empty.tar", []))
    (tmp_path / "fake.tar").write_bytes(b"x" * 2000)
    with pytest.raises(ValueError, match=r"fake\.tar holds no pairs"):
        opened(tiny, tmp_path / "fake.tar")
    with pytest.raises(ValueError, match="holds 5 pairs, not enough for one batch of 8"):
        opened(tiny, write_folder(tmp_path / "few", 5))


def test_one_of_several_captions_is_drawn_each_epoch(tiny: CLIP, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pairs", 8)
    for text in folder.glob("*.txt"):
        text.write_text(f"{text.stem} a\n{text.stem} b\n{text.stem} c\n")
    stream = opened(tiny, folder)
    drawn = [set(captions(list(stream.epoch(epoch)))) for epoch in range(12)]
    assert all(len({caption[:4] for caption in epoch}) == 8 for epoch in drawn)
    assert drawn[0] != drawn[1] and len(set.union(*drawn)) == 24
    assert set(captions(list(opened(tiny, folder, workers=1).epoch(3)))) == drawn[3]


def test_too_many_skipped_samples_stop_training(tiny: CLIP, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pairs", 40)
    for index in range(0, 40, 4):
        (folder / f"{index:04d}.png").write_bytes(b"<html>")
    assert len(list(opened(tiny, folder, max_bad_fraction=0.25).epoch(0))) == 3
    with pytest.raises(
        ValueError, match=r"10 of 40 samples .* more than data\.max_bad_fraction = 0\.2: 10 not an im"
    ):
        list(opened(tiny, folder).epoch(0))


def test_a_few_bad_samples_at_the_end_do_not_stop_a_resumed_run(tiny: CLIP, tmp_path: Path) -> None:
    """The run that was not interrupted saw 8 of 44; the one resumed at the last batch sees those alone."""
    folder = write_folder(tmp_path / "pairs", 44)
    order = [
        int(sample.key[:4])
        for sample, _ in open_stream(open_source(str(folder)), seed=0, buffer=1).samples(0)
    ]
    for index in order[-8:]:
        (folder / f"{index:04d}.png").write_bytes(b"<html>")
    whole = list(opened(tiny, folder).epoch(0))
    assert len(whole) == 4
    resumed = opened(tiny, folder)
    assert not list(resumed.epoch(0, whole[-1].position))
    assert resumed.skipped.counts == {"not an image": 8}


def test_many_skipped_samples_stop_training_long_before_the_end_of_the_epoch(
    tiny: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("advflyp.data.pairs.pairs.ENOUGH", 20)
    folder = write_folder(tmp_path / "pairs", 200)
    for index in range(0, 200, 2):
        (folder / f"{index:04d}.png").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r" of (2\d|3\d) samples"):
        list(opened(tiny, folder).epoch(0))


def test_damaged_shards_are_counted_and_the_others_used(tiny: CLIP, tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "shards", 40, per_shard=10)
    data = (folder / "001.tar").read_bytes()
    (folder / "001.tar").write_bytes(data[: len(data.rstrip(b"\0")) - 300])
    (folder / "004.tar").write_bytes(b"")
    stream = opened(tiny, folder, batch_size=13)
    assert len(list(stream.epoch(0))) == 3
    assert stream.skipped.counts == {"truncated shard": 1, "empty shard": 1}
    assert stream.skipped.examples["truncated shard"] == "001.tar"


def test_the_position_is_exact_although_decoding_runs_ahead(tiny: CLIP, tmp_path: Path) -> None:
    """Skipped is what stands before a batch's end, not what the threads have met beyond it."""
    folder = write_folder(tmp_path / "pairs", 80)
    for index in range(0, 80, 9):
        (folder / f"{index:04d}.png").write_bytes(b"x")
    first = opened(tiny, folder, workers=4)
    batches = first.epoch(0)
    taken = [next(batches) for _ in range(3)]
    halfway = first.skipped
    batches.close()
    second = opened(tiny, folder)
    second.skipped = halfway
    list(second.epoch(0, taken[-1].position))
    assert second.skipped.counts == {"not an image": 9}


def test_two_sources(tiny: CLIP, tmp_path: Path) -> None:
    main, other = write_shards(tmp_path / "a", 40, per_shard=10), write_folder(tmp_path / "b", 9)
    for text in other.glob("*.txt"):
        text.write_text("other")
    stream = opened(tiny, main, also=str(other), also_share=0.25, shuffle_buffer=16)
    whole = list(stream.epoch(0))
    assert len(stream) == len(whole) == 6
    assert captions(whole).count("other") == 12
    rest = list(
        opened(tiny, main, also=str(other), also_share=0.25, shuffle_buffer=16).epoch(0, whole[2].position)
    )
    assert captions(rest) == captions(whole[3:])
    with pytest.raises(ValueError, match=r"data\.also mixes decoded pairs"):
        reader = ImageReader(tiny.config["preprocess_cfg"])
        open_training(DataConfig(train="mini", also=str(other)), "pairs", reader, seed=0, device=CPU)


@pytest.mark.parametrize(
    "bad",
    [{"also_share": 1.0}, {"max_bad_fraction": 2.0}, {"shuffle_buffer": 0}, {"size": 0}, {"workers": 0}],
)
def test_impossible_settings(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"data\.{next(iter(bad))} must be"):
        DataConfig(train="x", **bad)
