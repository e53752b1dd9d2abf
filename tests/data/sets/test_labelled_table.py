"""Every set of the table from a small copy in the layout of the real one."""

import json
import pickle
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from advflyp.data.sets.catalogue import GROUPS, PAPER, TABLE
from advflyp.data.sets.countries import COUNTRIES
from advflyp.data.sets.labelled import LabelledSet, load_set, set_names
from advflyp.data.sets.prompts import EUROSAT
from layouts import BUILDERS, Expected, picture_number, put, webdataset


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADVFLYP_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Expected]]:
    """Each layout once for all tests that only read it."""
    made: dict[str, tuple[Path, Expected]] = {}

    def build(name: str) -> tuple[Path, Expected]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = folder, BUILDERS[name](folder)
        return made[name]

    return build


def contents(labelled: LabelledSet) -> Expected:
    return {picture_number(picture): labelled.classes[label] for picture, label in labelled.dataset}


@pytest.mark.parametrize("name", TABLE)
def test_each_set(
    name: str, built: Callable[[str], tuple[Path, Expected]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = built(name)
    monkeypatch.setenv("ADVFLYP_DATA", str(folder))
    with monkeypatch.context() as patched:

        def no_decoding(*_: object, **__: object) -> None:
            raise AssertionError("opening a set decodes nothing")

        patched.setattr(Image, "open", no_decoding)
        labelled = load_set(name)
    entry = TABLE[name]
    assert (labelled.name, labelled.split) == (name, entry.every_split[0])
    assert len(labelled.classes) == entry.k
    assert labelled.templates == [entry.prompt]
    assert labelled.info["licence"] and labelled.info["source"].startswith("http")
    assert contents(labelled) == expected
    assert labelled.labels.dtype == torch.int64 and labelled.labels.shape == (len(expected),)
    assert len({labelled.key(index) for index in range(len(labelled))}) == len(labelled)


TORCHVISION = {
    "cifar10": ("CIFAR10", {"train": False}),
    "cifar100": ("CIFAR100", {"train": True}),
    "stl10": ("STL10", {"split": "test"}),
    "caltech101": ("Caltech101", {}),
    "caltech256": ("Caltech256", {}),
    "oxford_pets": ("OxfordIIITPet", {"split": "test"}),
    "flowers102": ("Flowers102", {"split": "test"}),
    "flowers102@val": ("Flowers102", {"split": "val"}),
    "flowers102@train": ("Flowers102", {"split": "train"}),
    "food101": ("Food101", {"split": "test"}),
    "stanford_cars": ("StanfordCars", {"split": "test"}),
    "sun397": ("SUN397", {}),
    "country211": ("Country211", {"split": "test"}),
    "fgvc_aircraft": ("FGVCAircraft", {"split": "test"}),
    "eurosat": ("EuroSAT", {}),
    "dtd": ("DTD", {"split": "test"}),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_pixels_and_labels_are_torchvisions(
    name: str, built: Callable[[str], tuple[Path, Expected]], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = name.split("@")[0]
    folder, _ = built(base)
    monkeypatch.setenv("ADVFLYP_DATA", str(folder))
    for module in ("cifar", "stl10", "flowers102"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda *_: True)
    kind, arguments = TORCHVISION[name]
    theirs = getattr(torchvision.datasets, kind)(str(folder), **arguments)
    ours = load_set(f"{name}@train" if base == "cifar100" else name).dataset
    pairs = [(np.asarray(picture.convert("RGB")).tobytes(), label) for picture, label in ours]
    others = [
        (np.asarray(p.convert("RGB")).tobytes(), label)
        for p, label in map(theirs.__getitem__, range(len(theirs)))
    ]
    if name == "sun397":  # theirs are in the order of the file system
        pairs, others = sorted(pairs), sorted(others)
    assert pairs == others


def test_groups_and_spellings() -> None:
    assert len(PAPER) == 14 and set_names(["paper"]) == list(PAPER)
    assert set_names(["imagenet-variants"]) == [
        "imagenet", "imagenet-r", "imagenet-a", "imagenet-sketch", "objectnet",
    ]  # fmt: skip
    assert {name for group in GROUPS.values() for name in group} <= set(TABLE)
    # As the paper writes them.
    spelled = [
        "CIFAR10",
        "CIFAR100",
        "STL10",
        "Caltech101",
        "Caltech256",
        "OxfordPets",
        "Flowers102",
        "Food101",
    ]
    spelled += ["StanfordCars", "SUN397", "Country211", "FGVC-Aircraft", "EuroSAT", "DTD"]
    assert set_names(spelled) == list(PAPER)
    assert set_names(["ImageNet_S", "ImageNetV2", "TinyImageNet", "ImageNet-R"]) == [
        "imagenet-sketch", "imagenet-v2", "tiny-imagenet", "imagenet-r",
    ]  # fmt: skip
    assert set_names(["EuroSAT@Test", "eurosat@all", "eurosat"]) == ["eurosat@test", "eurosat"]
    for entry in TABLE.values():
        assert entry.prompt == {
            "ImageNet-R": "This is an artistic rendering of a {}.",
            "ImageNet-Sketch": "This is a sketch of a {}.",
        }.get(entry.title, "This is a photo of a {}.")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("eurosta", "there is no set 'eurosta'; did you mean 'eurosat'?"),
        ("eurosat@tset", "eurosat has no split 'tset'; did you mean 'test'?"),
        ("food101@val", "food101 has no split 'val'; known: test, train"),
        ("imagenet-variants", "'imagenet-variants' is a group; load one of its sets: imagenet, imagenet-r"),
        ("folder:nowhere", "there is no folder nowhere"),
        ("wds:nowhere/{0..3}.tar", "there are no shards at nowhere/{0..3}.tar"),
    ],
)
def test_names_that_are_none(name: str, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        load_set(name)
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("name", [*TABLE, "eurosat@vtab", "sun397@test", "imagenet-v2@top-images"])
def test_a_set_that_is_not_there_is_one_line(name: str, root: Path) -> None:
    with pytest.raises(ValueError) as raised:
        load_set(name)
    message = str(raised.value)
    assert (
        "\n" not in message
        and message.startswith(f"{name} is not on this machine: ")
        and str(root) in message
    )
    by_hand = name == "sun397@test" or name == "imagenet-v2@top-images"
    assert ("put it in" if by_hand else f"`advflyp data fetch {name}`") in message


def test_incomplete_sets(root: Path) -> None:
    BUILDERS["dtd"](root)
    (root / "dtd" / "dtd" / "labels" / "val1.txt").unlink()
    with pytest.raises(
        ValueError, match=r"dtd@val is incomplete, .*val1.txt is missing: .*advflyp data fetch"
    ):
        load_set("dtd@val")
    BUILDERS["flowers102"](root)
    (root / "flowers-102" / "setid.mat").unlink()
    with pytest.raises(ValueError, match="setid.mat is missing"):
        load_set("flowers102")
    put(root / "imagenet-a" / "n01498041" / "a.jpg", 1)
    with pytest.raises(ValueError, match="imagenet-a has 200 classes, but .* has 1: "):
        load_set("imagenet-a")
    put(root / "imagenet-r" / "goldfish" / "a.jpg", 1)
    with pytest.raises(ValueError, match="holds a folder goldfish; the images belong in folders by WordNet"):
        load_set("imagenet-r")
    put(root / "imagenet" / "val" / "ILSVRC2012_val_00000001.JPEG", 1)
    with pytest.raises(ValueError, match="holds no folders"):
        load_set("imagenet")
    with pytest.raises(ValueError, match="train is missing"):
        load_set("imagenet@train")


def test_damaged_lists_are_named(root: Path) -> None:
    """Python's own message says neither which set it is nor where."""
    BUILDERS["oxford_pets"](root)
    folder = root / "oxford-iiit-pet"
    (folder / "annotations" / "test.txt").write_text("Abyssinian_201 one 1 1\n")
    (folder / "annotations" / "trainval.txt").write_bytes(b"\xff\n")
    with pytest.raises(
        ValueError, match=f"oxford_pets in {folder} is damaged or has a different layout .*int.*fetch"
    ):
        load_set("oxford_pets")
    with pytest.raises(ValueError, match=f"^{folder}/annotations/trainval.txt is not UTF-8"):
        load_set("oxford_pets@trainval")


def test_a_pickle_that_would_run_code_is_refused(root: Path) -> None:
    BUILDERS["cifar10"](root)

    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("harm",)

    (root / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps({"data": Harm()}))
    with pytest.raises(ValueError, match="test_batch is damaged .*print.*; fetch it again"):
        load_set("cifar10")
    # Importing this one is enough to run it.
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(b"cnumpy.f2py.__main__\ndtype\n.")
    with pytest.raises(ValueError, match="it wants numpy.f2py.__main__.dtype"):
        load_set("cifar10")


def test_seeded_splits_cover_the_set_and_depend_on_file_names_alone(root: Path) -> None:
    BUILDERS["eurosat"](root)
    parts = {split: load_set(f"eurosat@{split}") for split in ("test", "train")}
    numbers = {split: set(contents(part)) for split, part in parts.items()}
    assert len(numbers["test"]) == 20 and not numbers["test"] & numbers["train"]
    assert numbers["test"] | numbers["train"] == set(contents(load_set("eurosat")))
    assert set(Counter(parts["test"].labels.tolist()).values()) == {2}
    assert parts["test"].split == "test" and parts["test"].name == "eurosat@test"
    keys = [parts["test"].key(index) for index in range(20)]
    for place, name in enumerate(load_set("eurosat").classes):
        folder = next(folder for folder, title in EUROSAT.items() if title == name)
        files = sorted(f"{folder}/{folder}_{n}.jpg" for n in range(1, 11))
        random.Random(f"0/{place}").shuffle(files)
        assert keys[2 * place : 2 * place + 2] == sorted(files[:2])
    # A split that changes is another test set.
    assert keys[:2] == ["AnnualCrop/AnnualCrop_1.jpg", "AnnualCrop/AnnualCrop_10.jpg"]


def test_tiny_imagenet_holds_out_a_tenth_of_its_training_part(root: Path) -> None:
    BUILDERS["tiny-imagenet"](root)
    heldout, train = load_set("TinyImageNet@heldout"), load_set("tiny-imagenet@train")
    assert len(heldout) == 200 and len(train) == 1800
    assert not set(contents(heldout)) & set(contents(train))
    assert set(Counter(heldout.labels.tolist()).values()) == {1}
    assert heldout.classes == load_set("tiny-imagenet").classes
    every = load_set("tiny-imagenet@train-all")
    assert len(every) == len(heldout) + len(train) and every.classes == train.classes
    assert {every.key(i) for i in range(len(every))} == {
        part.key(i) for part in (heldout, train) for i in range(len(part))
    }
    assert heldout.key(0).startswith("n90000000/images/x_")


def test_tiny_imagenet_has_the_published_part_too(root: Path) -> None:
    BUILDERS["tiny-imagenet"](root)
    folder = root / "tiny-imagenet-200"
    wnids = sorted((folder / "wnids.txt").read_text().split())
    with pytest.raises(
        ValueError, match=r"a list from AdvFLYP's release, ImageNet_files/tinyimagenet_refined_labels.json"
    ):
        load_set("tiny-imagenet@advflyp")
    path = folder / "tinyimagenet_refined_labels.json"
    entries = {wnid: {"clean_name": "x", "eval_files": ["x_3.JPEG", "x_10.JPEG"]} for wnid in wnids}
    path.write_text(json.dumps(entries))
    listed, rest = load_set("tiny-imagenet@advflyp"), load_set("tiny-imagenet@advflyp-train")
    assert [listed.key(i) for i in (0, 1)] == [f"{wnids[0]}/images/x_10.JPEG", f"{wnids[0]}/images/x_3.JPEG"]
    assert len(listed) == 400 and set(Counter(listed.labels.tolist()).values()) == {2}
    assert len(rest) == 1600 and not set(contents(listed)) & set(contents(rest))
    assert listed.classes == rest.classes == load_set("tiny-imagenet").classes
    opened = load_set.__globals__["_load"].__wrapped__
    path.write_text(json.dumps({**entries, wnids[7]: {"eval_files": ["x_11.JPEG"]}}))
    with pytest.raises(ValueError, match=f"names {wnids[7]}/images/x_11.JPEG, which is not in"):
        opened("tiny-imagenet@advflyp", root)
    for broken, message in (("[1]", "must hold"), ("{}", "names no image"), ("{", "is damaged")):
        path.write_text(broken)
        with pytest.raises(ValueError, match=message):
            opened("tiny-imagenet@advflyp", root)


def test_sun397_has_the_authors_partition_too(root: Path) -> None:
    expected = BUILDERS["sun397"](root)
    test, train = load_set("sun397@test"), load_set("sun397@train")
    assert len(test) == len(train) == 397
    assert contents(test) | contents(train) == expected
    assert all(test.key(index).endswith("sun_a2.jpg") for index in range(397))


def test_objectnet_loses_its_red_border_and_has_all_classes_too(root: Path) -> None:
    BUILDERS["objectnet"](root)
    labelled = load_set("objectnet@all")
    assert len(labelled.classes) == 313 and labelled.dataset[0][0].size == (4, 4)
    assert labelled.classes[:3] == ["air freshener", "alarm clock", "band aid"]


def test_imagenet_v2_counts_folders_as_numbers(root: Path) -> None:
    BUILDERS["imagenet-v2"](root)
    labelled = load_set("imagenet-v2")
    assert labelled.key(10) == "10/10abc.jpeg" and int(labelled.labels[10]) == 10


def test_places(root: Path) -> None:
    """Under the set's own name as well as where torchvision keeps it."""
    BUILDERS["food101"](root / "food101")
    BUILDERS["cifar10"](root / "cifar10")
    assert len(load_set("food101")) == 202 and len(load_set("cifar10")) == 30


def test_the_document_has_the_table() -> None:
    text = (Path(__file__).parents[3] / "docs" / "sets.md").read_text()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("| `")
    ]
    assert [row[0] for row in rows] == [f"`{name}`" for name in TABLE]
    for row, entry in zip(rows, TABLE.values(), strict=True):
        assert int(row[1].replace(",", "")) == entry.n and int(row[2]) == entry.k
        assert row[3].split(", ") == entry.every_split
        assert row[4] == f"`{entry.places[0]}/`" and f"({entry.home})" in row[6]


def test_countries() -> None:
    assert len(COUNTRIES) == 250
    assert COUNTRIES["DE"] == "Germany" and COUNTRIES["XK"] == "Kosovo" and COUNTRIES["ZW"] == "Zimbabwe"
    assert all(len(code) == 2 and code.isupper() and name for code, name in COUNTRIES.items())


@pytest.mark.parametrize(
    ("name", "folder", "split"),
    [
        ("stanford_cars", "wds_cars", "test"),
        ("stanford_cars@train", "wds_cars", "train"),
        ("sun397", "wds_sun397", "test"),
        ("eurosat@vtab", "eurosat", "test"),
        ("imagenet", "imagenet", "test"),
        ("pcam", "pcam", "test"),
    ],
)
def test_webdataset_copies(name: str, folder: str, split: str, root: Path) -> None:
    classes = [f"class {i}" for i in range(12)]
    expected = webdataset(root / folder, (5, 7, 1), classes, split)
    labelled = load_set(name)
    assert contents(labelled) == expected and labelled.classes == classes
    assert labelled.templates == ["This is a photo of a {}."]
    assert labelled.info["read_from"] == "webdataset"
    assert labelled.key(5) == "1.tar/s0000005.webp"
    (root / folder / split / "1.tar").rename(root / "elsewhere.tar")
    with pytest.raises(ValueError, match=r"1.tar is missing, though nshards.txt says 3 shards"):
        load_set.__globals__["_load"].__wrapped__(labelled.name, root)


def test_a_webdataset_by_choice_has_its_own_prompts(root: Path) -> None:
    with pytest.raises(ValueError, match=r"fetch CLIP benchmark's copy .*`advflyp data fetch --wds food101`"):
        load_set("food101", source="webdataset")
    BUILDERS["food101"](root)
    webdataset(root / "wds_food101", (3,), ["a", "b"])
    assert load_set("food101").info["read_from"] == "files"
    copy = load_set("food101", source="webdataset")
    assert (copy.info["read_from"], copy.classes, copy.own_names) == ("webdataset", ["a", "b"], None)
    assert copy.templates == ["a photo of a {}.", "a photo of the {}."]
    with pytest.raises(ValueError, match="CLIP benchmark has no copy of it; it has eurosat@vtab"):
        load_set("eurosat", source="webdataset")
    webdataset(root / "wds_food101", (3,), ["a", "b"])
    (root / "wds_food101" / "zeroshot_classification_templates.txt").unlink()
    with pytest.raises(ValueError, match="lacks zeroshot_classification_templates.txt"):
        load_set.__globals__["_load"].__wrapped__("food101", root, "webdataset")


def test_the_webdataset_of_objectnet_is_cropped_too(root: Path) -> None:
    webdataset(root / "wds_objectnet", (3,), ["a", "b"], border=2)
    assert load_set("objectnet").dataset[0][0].size == (4, 4)


def test_templates() -> None:
    assert load_set("mini/food", "openai").templates[0] == "a bad photo of a {}."
    assert load_set("mini/food", "openai").prompt == "OpenAI's 80 ImageNet templates"
    assert load_set("mini/food", ["a {}", "the {}"]).prompt == "a {} | the {}"
    assert load_set("mini/food", "one {}").templates == ["one {}"]
    for bad in ("no place", "{} and {}", "a {c}.", "a {0}", "a {} in {c}", "a {} {", "a {}}", "{{}}"):
        with pytest.raises(ValueError, match="must contain {} exactly once"):
            load_set("mini/food", bad)
    with pytest.raises(ValueError, match="at least one prompt template"):
        load_set("mini/food", [])
