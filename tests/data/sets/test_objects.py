"""Sets and pairs from objects: torch datasets, subsets, lists, tensors."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

import advflyp
from advflyp.data.config import DataConfig
from advflyp.data.pairs.images import ImageReader
from advflyp.data.pairs.sources import open_source
from advflyp.data.training import open_training
from advflyp.model.clip import CLIP
from advflyp.share import Share
from helpers import class_folder, write_folder

CPU = torch.device("cpu")
CLASSES = ["ant", "bee", "cat"]


def grey(value: int) -> Image.Image:
    return Image.new("RGB", (40, 40), (value,) * 3)


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image)).permute(2, 0, 1).float() / 255


def test_torchvision_list_subset_and_tensors_are_the_same_set(tmp_path: Path) -> None:
    folder = class_folder(tmp_path / "classes", [grey(10 * i) for i in range(12)])
    files = torchvision.datasets.ImageFolder(str(folder))
    as_list = [(image, label) for image, label in files]
    tensors = torchvision.datasets.ImageFolder(str(folder), torchvision.transforms.ToTensor())
    stacked = TensorDataset(torch.stack([x for x, _ in tensors]), torch.tensor(files.targets))
    sets = [advflyp.LabelledSet(data, files.classes) for data in (files, as_list, tensors, stacked)]
    for one in sets:
        assert isinstance(one, advflyp.LabelledSet)
        assert one.labels.tolist() == files.targets and len(one) == 12
        assert one.prompt == "This is a photo of a {}." and one.split == "all"
        ((places, images, labels),) = one.batches(pixels, 16)
        assert places.tolist() == list(range(12)) and labels.tolist() == files.targets
        assert torch.equal(images, torch.stack([x for x, _ in tensors])), "not a bit of an image changes"
    assert len({one.sha256 for one in sets}) == 1
    assert [one.name.rpartition("-")[0] for one in sets] == [
        "imagefolder",
        "list",
        "imagefolder",
        "tensordataset",
    ]
    part = advflyp.LabelledSet(Subset(files, [3, 0, 7]), files.classes)
    assert part.labels.tolist() == [files.targets[place] for place in (3, 0, 7)]
    assert part.name.startswith("imagefolder-") and part.sha256 != sets[0].sha256


def test_the_default_name_changes_with_the_content() -> None:
    def named(value: int, label: int, classes: list[str]) -> str:
        return advflyp.LabelledSet([(grey(value), label), (grey(2), 1)], classes, "a {}").name

    names = [named(1, 0, CLASSES), named(3, 0, CLASSES), named(1, 2, CLASSES), named(1, 0, ["a", "b", "c"])]
    assert len(set(names)) == 4 and names[0] == named(1, 0, CLASSES)
    assert advflyp.LabelledSet([(grey(1), 0)], CLASSES, name="mine").name == "mine"


def test_stored_labels_spare_a_pass_and_are_compared_with_what_is_read() -> None:
    class Known(Dataset):
        targets = [0, 1, 2] * 20
        read = 0
        wrong = -1

        def __len__(self) -> int:
            return 60

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            self.read += 1
            return grey(index), 0 if index == self.wrong else self.targets[index]

    known = Known()
    labelled = advflyp.LabelledSet(known, CLASSES, name="known")
    assert labelled.labels.tolist() == known.targets and known.read == 1
    known.wrong = 4
    with pytest.raises(ValueError, match="item 4 of known now has the label 0 instead of 1"):
        list(labelled.batches(pixels, 8))
    # With labels that are changed on their way out, the list says nothing.
    turned = Known()
    turned.target_transform = str  # type: ignore[attr-defined]
    with pytest.raises(
        ValueError, match="labels from 0 to 2; labels are indices into `classes`, with 2 names 0 to 1"
    ):
        advflyp.LabelledSet(turned, ["a", "b"])
    assert turned.read >= 60


def test_grey_and_8_bit_tensors() -> None:
    made = advflyp.LabelledSet(
        [(torch.full((1, 4, 4), 0.5), 0), (torch.full((3, 4, 4), 7, dtype=torch.uint8), 1)], CLASSES
    )
    assert made.image(0).getpixel((0, 0)) == (128,) * 3 and made.image(1).getpixel((0, 0)) == (7,) * 3


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            (torch.full((3, 4, 4), 1.5), 0),
            r"image 0 of x is a tensor of torch.float32 from 1.5 to 1.5; give floats",
        ),
        ((torch.full((3, 4, 4), float("nan")), 0), "from nan to nan; give floats in"),
        ((torch.zeros(3, 4, 4, dtype=torch.int64), 0), "is a tensor of torch.int64"),
        (
            (torch.zeros(4, 4, 3), 0),
            r"image 0 of x is a Tensor of shape \(4, 4, 3\); a tensor must be \(3, H, W\)",
        ),
        ((torch.zeros(4, 4), 0), r"of shape \(4, 4\); a tensor must be"),
        ((np.zeros((4, 4, 3), np.uint8), 0), r"is a ndarray of shape \(4, 4, 3\); give a PIL image"),
        ((grey(1), 3), "x has labels from 3 to 3; labels are indices into `classes`, with 3 names 0 to 2"),
        ((grey(1), -1), "x has labels from -1 to -1"),
        ((grey(1), 0.5), "the label of item 0 of x is a float; labels are whole numbers from 0 on"),
        ((grey(1), "ant"), "the label of item 0 of x is a str"),
        (grey(1), r"item 0 of x is a Image; it must be \(image, label\)"),
        ((grey(1), 0, "more"), "item 0 of x is a tuple; it must be"),
    ],
)
def test_what_is_no_item_is_said_at_once(item: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        advflyp.LabelledSet([item], CLASSES, name="x")


def test_other_mistakes() -> None:
    one = [(grey(1), 0)]
    for dataset, classes, templates, message in [
        ([], CLASSES, "a {}", "list holds no images"),
        (one, ["ant"], "a {}", "list has 1 class;"),
        (one, "ab", "a {}", "classes must be a list, not the text 'ab'; write"),
        (one, ["ant", "ant"], "a {}", "list has two classes called 'ant'"),
        (one, CLASSES, "a", "the prompt 'a' must contain"),
        (iter(one), CLASSES, "a {}", "list_iterator has no length or cannot be indexed; make a list of it"),
    ]:
        with pytest.raises(ValueError, match=message):
            advflyp.LabelledSet(dataset, classes, templates)

    class Broken(list):
        def __getitem__(self, index: int) -> object:
            raise OSError("truncated")

    with pytest.raises(
        ValueError, match=r"item 0 of broken cannot be read \(truncated\), so its label is unknown; give"
    ):
        advflyp.LabelledSet(Broken(one), CLASSES)
    # A later item is found when it is read, whatever the share of unreadable ones that is tolerated.
    late = advflyp.LabelledSet(
        [(grey(i), 0) for i in range(500)] + [(torch.full((3, 4, 4), 2.0), 1)], CLASSES
    )
    with pytest.raises(ValueError, match="image 500 of list is a tensor"):
        list(late.batches(pixels, 64))


def test_a_set_is_taken_where_its_name_is() -> None:
    mine = advflyp.LabelledSet([(grey(1), 0), (grey(2), 1)], CLASSES, name="mine")
    assert advflyp.load_set(mine) is mine
    assert advflyp.load_set(mine, "an image of {}").templates == ["an image of {}"]
    with pytest.warns(DeprecationWarning, match="pictures"):
        old = advflyp.LabelledSet(name="old", classes=CLASSES, templates=["a {}"], pictures=[(grey(1), 0)])
    assert len(old) == 1


def epoch(
    tiny: CLIP, data: object, wanted: str = "pairs", number: int = 0, start: dict | None = None, **config
):
    reader = ImageReader(tiny.config["preprocess_cfg"])
    settings = DataConfig(train="object", **({"batch_size": 8, "workers": 2} | config))
    share = Share(8, drop_last=settings.drop_last)
    opened = open_training(settings, wanted, reader, seed=0, device=CPU, share=share, data=data)  # type: ignore[arg-type]
    return list(opened.epoch(number, start)), opened


def test_a_labelled_set_trains(tiny: CLIP) -> None:
    data = [(grey(i), i % 3) for i in range(30)]
    batches, opened = epoch(tiny, advflyp.LabelledSet(data, CLASSES, "a {}"), "labelled")
    assert opened.classes == CLASSES and len(batches) == 3
    for batch in batches:
        values = (batch.images[:, 0, 0, 0] * 255).round().long()
        assert torch.equal(batch.labels, values % 3)
        assert batch.captions == [f"a {CLASSES[label]}" for label in batch.labels.tolist()]
    with pytest.raises(ValueError, match="is a labelled set, and this method trains on pairs"):
        epoch(tiny, advflyp.LabelledSet(data, CLASSES), "pairs")
    with pytest.raises(ValueError, match="this method trains on labels; give an advflyp.LabelledSet"):
        epoch(tiny, data, "labelled")


class Endless(IterableDataset):
    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[tuple[Image.Image, str]]:
        return ((grey(i), f"grey {i}") for i in range(self.n))


@pytest.mark.parametrize("kind", ["dataset", "iterable"])
def test_pairs_from_objects_are_shuffled_resumed_and_counted(tiny: CLIP, kind: str) -> None:
    items = [(grey(i), f"grey {i}") for i in range(43)]
    data, more = (items, {}) if kind == "dataset" else (Endless(43), {"size": 43})
    batches, _ = epoch(tiny, data, **more)
    assert len(batches) == 5
    seen = [caption for batch in batches for caption in batch.captions]
    assert len(set(seen)) == 40 and seen != sorted(seen, key=lambda text: int(text.split()[1]))
    for batch in batches:
        values = (batch.images[:, 0, 0, 0] * 255).round().long().tolist()
        assert batch.captions == [f"grey {value}" for value in values]
    rest, _ = epoch(tiny, data, start=batches[1].position, **more)
    assert [batch.captions for batch in rest] == [batch.captions for batch in batches[2:]]
    again, _ = epoch(tiny, data, number=1, **more)
    assert [batch.captions for batch in again] != [batch.captions for batch in batches]


def test_a_path_object_is_a_name(tmp_path: Path) -> None:
    assert len(open_source(write_folder(tmp_path / "pairs", 3))) == 3


def test_several_captions_and_skipped_items(tiny: CLIP) -> None:
    class Broken(list):
        def __getitem__(self, index):
            if index == 5:
                raise OSError("truncated")
            return super().__getitem__(index)

    data = Broken([(grey(i), [f"one {i}", f"two {i}"]) for i in range(40)])
    data[7] = (grey(7), 7)
    first, opened = epoch(tiny, data, drop_last=False)
    assert dict(opened.skipped.counts) == {"unreadable image": 1, "caption is not text": 1}
    assert opened.skipped.examples["unreadable image"] == "broken:5"
    second, _ = epoch(tiny, data, number=1, drop_last=False)
    kinds = {caption.split()[0] for batch in first + second for caption in batch.captions}
    assert kinds == {"one", "two"} and sum(len(batch.captions) for batch in first) == 38


@pytest.mark.parametrize(
    ("data", "config", "message"),
    [
        (["a", "b"] * 8, {}, r"list:0 is a str; each must be \(image, caption\)"),
        ([(torch.full((3, 9, 9), -1.0), "x")] * 8, {}, "the image of list:0 is a tensor"),
        (iter([]), {}, "can be iterated only once, and every epoch needs it again"),
        (Endless(8), {}, "the number of pairs in endless is unknown; set data.size"),
        (7, {}, "pairs is a int; give a Dataset"),
        ([(grey(1), "x")] * 3, {}, "object holds 3 pairs, not enough for one batch of 8"),
    ],
)
def test_what_are_no_pairs(tiny: CLIP, data: object, config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        epoch(tiny, data, **config)
