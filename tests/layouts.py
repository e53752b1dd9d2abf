"""Small sets in the layouts of the real ones, for tests of their readers.

A builder fills `root` as the authors' archives would, with every class and one to three pictures each, and gives
{number: class name} for the default split. `picture_number` finds a picture's number again from its pixels.
"""

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from advflyp.data.sets.countries import COUNTRIES
from advflyp.data.sets.imagenet import names_by_wnid
from helpers import write_tar

Expected = dict[int, str]


def colour(number: int) -> tuple[int, int, int]:
    return number % 256, number // 256, 99


def picture_number(image: Image.Image) -> int:
    red, green, blue = image.convert("RGB").getpixel((image.width // 2, image.height // 2))
    assert blue == 99
    return red + 256 * green


def png(number: int, size: int = 4, border: int = 0) -> bytes:
    """Lossless whatever the file is called: Pillow looks at the content."""
    image = Image.new("RGB", (size, size), colour(number))
    if border:
        framed = Image.new("RGB", (size + 2 * border,) * 2, (255, 0, 0))
        framed.paste(image, (border, border))
        image = framed
    stream = io.BytesIO()
    image.save(stream, "png", compress_level=1)
    return stream.getvalue()


def put(path: Path, number: int, **how: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(number, **how))


def put_text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def tree(folder: Path, classes: dict[str, str], each: int = 1, name: str = "{n}.jpg", **how: int) -> Expected:
    """folder/CLASS/….jpg; classes: {folder: class name}; `name` may use {c}, {n} and the class's number {k}."""
    expected: Expected = {}
    for k, (directory, title) in enumerate(classes.items(), 1):
        for n in range(1, each + 1):
            number = len(expected)
            put(folder / directory / name.format(c=directory, k=k, n=n), number, **how)
            expected[number] = title
    return expected


def fill(some: dict[str, str], count: int, folder: str, title: str) -> dict[str, str]:
    """As many classes as the real set has: `some` real ones and made-up ones, in the order of the folders."""
    rest = {folder.format(i): title.format(i) for i in range(len(some), count)}
    return dict(sorted({**some, **rest}.items()))


def _cifar(root: Path, folder: str, classes: list[str], batches: list[str], meta: str, fine: str) -> Expected:
    (root / folder).mkdir(parents=True)
    labels = np.random.default_rng(0).integers(0, len(classes), 30).tolist()
    labels[: len(classes)] = range(min(len(classes), 30))
    for batch in batches:
        pixels = np.stack([np.repeat(np.array(colour(n), np.uint8), 1024) for n in range(30)])
        content = {"data": pixels, f"{fine}labels": labels, "filenames": ["x.png"]}
        _python2(root / folder / batch, content)
    _python2(root / folder / meta, {f"{fine}label_names": classes})
    return {number: classes[label].replace("_", " ") for number, label in enumerate(labels)}


def _python2(path: Path, content: object) -> None:
    """The pickles are Python 2's, from a numpy with another name for the module."""
    path.write_bytes(pickle.dumps(content, protocol=2).replace(b"numpy._core.multi", b"numpy.core.multi"))


def cifar10(root: Path) -> Expected:
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    batches = ["test_batch", *(f"data_batch_{i}" for i in range(1, 6))]
    return _cifar(root, "cifar-10-batches-py", classes, batches, "batches.meta", "")


def cifar100(root: Path) -> Expected:
    classes = ["apple", "aquarium_fish", *(f"thing_{i:02d}" for i in range(98))]
    expected = _cifar(root, "cifar-100-python", classes, ["test", "train"], "meta", "fine_")
    # The superclasses lie beside the classes.
    for name in ("test", "train"):
        path = root / "cifar-100-python" / name
        content = pickle.loads(path.read_bytes().replace(b"numpy.core.multi", b"numpy._core.multi"))
        _python2(path, {**content, "coarse_labels": [0] * 30})
    return expected


def stl10(root: Path) -> Expected:
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    classes = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    put_text(folder / "class_names.txt", *classes)
    labels = np.arange(20, dtype=np.uint8) % 10
    for split in ("test", "train"):
        # Columns first, and not the same in both directions.
        pixels = np.zeros((20, 3, 96, 96), np.uint8)
        pixels[:] = np.array([colour(n) for n in range(20)], np.uint8)[:, :, None, None]
        pixels[:, :, :10, 50:] = 200
        pixels.tofile(folder / f"{split}_X.bin")
        (labels + 1).tofile(folder / f"{split}_y.bin")
    return {number: classes[label] for number, label in enumerate(labels)}


def caltech101(root: Path) -> Expected:
    real = {"Faces": "off-center face", "Faces_easy": "centered face", "airplanes": "airplane"}
    real |= {"yin_yang": "yin yang", "Motorbikes": "motorbike"}
    folder = root / "caltech101" / "101_ObjectCategories"
    expected = tree(folder, fill(real, 101, "thing_{}", "thing {}"), each=3, name="image_{n:04d}.jpg")
    put(folder / "BACKGROUND_Google" / "image_0001.jpg", 9999)
    return expected


def caltech256(root: Path) -> Expected:
    folder = root / "caltech256" / "256_ObjectCategories"
    named = {
        1: ("ak47", "ak47"),
        6: ("basketball-hoop", "basketball hoop"),
        251: ("airplanes-101", "airplanes"),
    }
    named[257] = ("clutter", "clutter")
    classes = {}
    for number in range(1, 258):
        directory, title = named.get(number, (f"a-thing{number}", f"a thing{number}"))
        classes[f"{number:03d}.{directory}"] = title
    expected = tree(folder, classes, each=2, name="{k:03d}_{n:04d}.jpg")
    # As in the real archive: a user's folder, and a file that is no picture.
    put(folder / "056.a-thing56" / "greg" / "vision309" / "056_0001.jpg", 9999)
    (folder / "198.a-thing198" / "RENAME2").write_text("")
    return expected


def oxford_pets(root: Path) -> Expected:
    folder = root / "oxford-iiit-pet"
    breeds = ["Abyssinian", "american_bulldog", *(f"breed_{i:02d}" for i in range(35))]
    lines = [f"{breed}_{7 * k} {k} 1 {k}" for k, breed in enumerate(breeds, 1)]
    put_text(folder / "annotations" / "test.txt", *lines)
    put_text(folder / "annotations" / "trainval.txt", *lines[:1])
    for number, line in enumerate(lines):
        put(folder / "images" / f"{line.split()[0]}.jpg", number)
    return {number: breed.replace("_", " ").title() for number, breed in enumerate(breeds)}


def flowers102(root: Path) -> Expected:
    from scipy.io import savemat
    from torchvision.datasets import Flowers102

    folder = root / "flowers-102"
    labels = np.concatenate([np.arange(102, 0, -1), np.arange(1, 103)]).astype(np.uint8)
    folder.mkdir(parents=True)
    savemat(folder / "imagelabels.mat", {"labels": labels[None]}, do_compression=True)
    ids = np.random.default_rng(0).permutation(np.arange(1, 205))
    test, train, val = ids[:150], ids[150:180], ids[180:]
    savemat(folder / "setid.mat", {"trnid": train[None], "valid": val[None], "tstid": test[None]})
    for number in ids.tolist():
        put(folder / "jpg" / f"image_{number:05d}.jpg", number)
    return {n: Flowers102.classes[labels[n - 1] - 1].replace("?", "") for n in test.tolist()}


def food101(root: Path) -> Expected:
    folder = root / "food-101"
    classes = fill({"apple_pie": "apple pie", "waffles": "waffles"}, 101, "dish_{}", "dish {}")
    expected = tree(folder / "images", classes, each=2, name="10{n}.jpg")
    lists = {name: [f"{name}/101", f"{name}/102"] for name in reversed(classes)}
    put_text(folder / "meta" / "test.json", json.dumps(lists))
    put_text(folder / "meta" / "train.json", json.dumps({name: [] for name in classes}))
    return expected


def stanford_cars(root: Path) -> Expected:
    from scipy.io import savemat

    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    classes = ["AM General Hummer SUV 2000", *(f"Maker Model {i}" for i in range(195))]
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array([classes], dtype=object)})
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
    rows = np.empty((1, 250), dtype=[(name, object) for name in fields])
    expected: Expected = {}
    for number in range(250):
        label = (37 * number) % 196
        rows[0, number] = (1, 1, 2, 2, label + 1, f"{number + 1:05d}.jpg")
        put(folder / "cars_test" / f"{number + 1:05d}.jpg", number)
        expected[number] = classes[label]
    savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": rows})
    savemat(folder / "devkit" / "cars_train_annos.mat", {"annotations": rows[:, :3]})
    return expected


def sun397(root: Path) -> Expected:
    folder = root / "SUN397"
    real = {"a/abbey": "abbey", "a/apartment_building/outdoor": "apartment building outdoor"}
    classes = fill(real, 397, "t/thing_{}", "thing {}")
    expected = tree(folder, classes, each=2, name="sun_a{n}.jpg")
    put_text(folder / "ClassName.txt", *(f"/{name}" for name in classes))
    put_text(folder / "Testing_01.txt", *(f"/{name}/sun_a2.jpg" for name in classes))
    put_text(folder / "Training_01.txt", *(f"/{name}/sun_a1.jpg" for name in classes))
    return expected


def country211(root: Path) -> Expected:
    classes = {code: COUNTRIES[code] for code in sorted([*sorted(COUNTRIES)[:210], "XK"])}
    tree(root / "country211" / "train", {"AD": "Andorra"}, each=2)
    tree(root / "country211" / "valid", {"AD": "Andorra"})
    return tree(root / "country211" / "test", classes, each=2)


def fgvc_aircraft(root: Path) -> Expected:
    folder = root / "fgvc-aircraft-2013b" / "data"
    classes = ["707-320", "727-200", "Boeing 717", *(f"Type {i}" for i in range(97))]
    put_text(folder / "variants.txt", *classes)
    rows = [(f"{7 * n:07d}", classes[(3 * n) % 100]) for n in range(100)]
    for split in ("test", "train", "val", "trainval"):
        put_text(folder / f"images_variant_{split}.txt", *(f"{image} {name}" for image, name in rows))
    for number, (image, _) in enumerate(rows):
        put(folder / "images" / f"{image}.jpg", number)
    return {number: name for number, (_, name) in enumerate(rows)}


def eurosat(root: Path) -> Expected:
    classes = {
        "AnnualCrop": "annual crop land",
        "Forest": "forest",
        "HerbaceousVegetation": "brushland or shrubland",
        "Highway": "highway or road",
        "Industrial": "industrial buildings",
        "Pasture": "pasture land",
        "PermanentCrop": "permanent crop land",
        "Residential": "residential buildings",
        "River": "river",
        "SeaLake": "sea or lake",
    }
    return tree(root / "eurosat" / "2750", classes, each=10, name="{c}_{n}.jpg")


def dtd(root: Path) -> Expected:
    folder = root / "dtd" / "dtd"
    classes = fill({"banded": "banded", "zigzagged": "zigzagged"}, 47, "texture{:02d}", "texture{:02d}")
    expected = tree(folder / "images", classes, each=2, name="{c}_{n:04d}.jpg")
    for split, n in (("test", 2), ("train", 1), ("val", 1)):
        lines = [f"{name}/{name}_{n:04d}.jpg" for name in classes]
        put_text(folder / "labels" / f"{split}1.txt", *lines)
    return {number: name for number, name in expected.items() if number % 2 == 1}


def imagenet(root: Path) -> Expected:
    names = names_by_wnid()
    tree(root / "imagenet" / "train", dict(list(names.items())[:3]), name="{c}_{n}.JPEG")
    return tree(root / "imagenet" / "val", names, name="ILSVRC2012_val_{k:08d}.JPEG")


def imagenet_v2(root: Path) -> Expected:
    classes = {str(i): name for i, name in enumerate(names_by_wnid().values())}
    folder = root / "imagenet-v2" / "imagenetv2-matched-frequency-format-val"
    return tree(folder, classes, name="{c}abc.jpeg")


def imagenet_r(root: Path) -> Expected:
    classes = dict(list(names_by_wnid().items())[1::5])
    return tree(root / "imagenet-r", classes, name="art_{n}.jpg")


def imagenet_a(root: Path) -> Expected:
    classes = dict(list(names_by_wnid().items())[::5])
    put_text(root / "imagenet-a" / "README.txt", "n01498041 stingray")
    return tree(root / "imagenet-a", classes, name="0.00{n}_fox _ fox_0.9.jpg")


def imagenet_sketch(root: Path) -> Expected:
    return tree(root / "imagenet-sketch" / "sketch", names_by_wnid(), name="sketch_{n}.JPEG")


def objectnet(root: Path) -> Expected:
    folder = root / "objectnet-1.0"
    titles = {f"thing_{i}": f"Thing {i}" for i in range(300)}
    titles |= {"air_freshener": "Air freshener", "alarm_clock": "Alarm clock", "band_aid": "Band Aid"}
    titles |= {f"z{i}": f"Z/{i}" for i in range(10)}
    shared = dict.fromkeys(sorted(titles.values())[1:114], "something; else")
    put_text(folder / "mappings" / "folder_to_objectnet_label.json", json.dumps(titles))
    put_text(folder / "mappings" / "objectnet_to_imagenet_1k.json", json.dumps(shared))
    every = tree(folder / "images", {name: titles[name] for name in sorted(titles)}, name="{n}.png", border=2)
    return {number: title.lower() for number, title in every.items() if title in shared}


def tiny_imagenet(root: Path) -> Expected:
    folder = root / "tiny-imagenet-200"
    wnids = [f"n{90_000_000 + 13 * i}" for i in range(200)]
    names = {wnid: f"creature {i}" for i, wnid in enumerate(wnids)}
    put_text(folder / "wnids.txt", *reversed(wnids))
    put_text(
        folder / "words.txt", "n00001740\tentity", *(f"{w}\t{name}, other name" for w, name in names.items())
    )
    tree(folder / "train", {f"{w}/images": name for w, name in names.items()}, each=10, name="x_{n}.JPEG")
    rows = [(f"val_{n}.JPEG", wnids[(7 * n) % 200]) for n in range(200)]
    put_text(
        folder / "val" / "val_annotations.txt", *(f"{image}\t{wnid}\t0\t0\t9\t9" for image, wnid in rows)
    )
    for number, (image, _) in enumerate(rows):
        put(folder / "val" / "images" / image, number)
    return {number: names[wnid] for number, (_, wnid) in enumerate(rows)}


def pcam(root: Path) -> Expected:
    """CLIP benchmark's copy, the only one that is read."""
    classes = ["lymph node", "lymph node containing metastatic tumor tissue"]
    return webdataset(root / "wds_vtab-pcam", (4, 3), classes)


BUILDERS: dict[str, Callable[[Path], Expected]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "stl10": stl10,
    "caltech101": caltech101,
    "caltech256": caltech256,
    "oxford_pets": oxford_pets,
    "flowers102": flowers102,
    "food101": food101,
    "stanford_cars": stanford_cars,
    "sun397": sun397,
    "country211": country211,
    "fgvc_aircraft": fgvc_aircraft,
    "eurosat": eurosat,
    "dtd": dtd,
    "imagenet": imagenet,
    "imagenet-v2": imagenet_v2,
    "imagenet-r": imagenet_r,
    "imagenet-a": imagenet_a,
    "imagenet-sketch": imagenet_sketch,
    "objectnet": objectnet,
    "tiny-imagenet": tiny_imagenet,
    "pcam": pcam,
}


def webdataset(
    folder: Path, counts: tuple[int, ...], classes: list[str], split: str = "test", **how: int
) -> Expected:
    """test/0.tar, 1.tar, … with s0000000.webp (PNG inside) and .cls, nshards.txt, classnames.txt, templates."""
    expected: Expected = {}
    put_text(folder / "classnames.txt", *classes)
    put_text(folder / "zeroshot_classification_templates.txt", "a photo of a {c}.", "a photo of the {c}.")
    put_text(folder / split / "nshards.txt", str(len(counts)))
    for shard, count in enumerate(counts):
        members = []
        for _ in range(count):
            number = len(expected)
            label = (3 * number) % len(classes)
            members += [
                (f"s{number:07d}.cls", str(label).encode()),
                (f"s{number:07d}.webp", png(number, **how)),
            ]
            expected[number] = classes[label]
        write_tar(folder / split / f"{shard}.tar", members)
    return expected
