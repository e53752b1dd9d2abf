"""Readers of the paper's 14 sets, in the layout of the authors' archives, which torchvision uses too.

Each reader takes the set's folder and a split and gives (images, class names as the authors' files write them).
Nothing is decoded, and a missing file is a FileNotFoundError. The order is that of the authors' lists, else that of
the sorted paths.
"""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from advflyp.config import convert
from advflyp.data.sets.folders import class_files, class_folders, read_lines
from advflyp.data.sets.images import Arrays, Files, Images, held_out
from advflyp.documents import read_json

Opened = tuple[Images, list[str]]
Reader = Callable[[Path, str], Opened]

# Share of every class in `test`, for sets without an official split; `train` is the rest.
TEST_SHARE = 0.2


def cifar(folder: Path, split: str) -> Opened:
    """The pickles of CIFAR-10 and CIFAR-100, 32×32."""
    batches = {"test": ["test_batch"], "train": [f"data_batch_{number}" for number in range(1, 6)]}[split]
    names = "batches.meta"
    if not (folder / names).is_file():  # CIFAR-100
        batches, names = [split], "meta"
    pixels: list[np.ndarray] = []
    labels: list[int] = []
    for batch in batches:
        content = _unpickle(folder / batch)
        pixels.append(content["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels += content["fine_labels" if "fine_labels" in content else "labels"]
    meta = _unpickle(folder / names)
    classes = meta["fine_label_names" if "fine_label_names" in meta else "label_names"]
    return Arrays(np.concatenate(pixels), labels), list(classes)


class _Arrays(pickle.Unpickler):
    """Reads arrays, lists and dicts, and refuses anything else: a pickle can run code."""

    ALLOWED = ("_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer")
    # Other modules of NumPy run code when they are imported.
    MODULES = ("numpy", "numpy._core.multiarray", "numpy._core.numeric")

    def find_class(self, module: str, name: str) -> Any:
        current = module.replace("numpy.core", "numpy._core")
        if current in self.MODULES and name in self.ALLOWED:
            return super().find_class(current, name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it wants {module}.{name}")


def _unpickle(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        try:
            return _Arrays(file, encoding="latin1").load()
        except Exception as error:  # a damaged pickle may raise anything
            raise ValueError(f"{path} is damaged ({error}); fetch it again") from None


def stl10(folder: Path, split: str) -> Opened:
    """The binary files of STL-10, 96×96, columns first."""
    labels = np.fromfile(folder / f"{split}_y.bin", np.uint8).astype(np.int64) - 1
    pixels = np.memmap(folder / f"{split}_X.bin", np.uint8, "r").reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)
    return Arrays(pixels, labels), read_lines(folder / "class_names.txt")


def caltech101(folder: Path, split: str) -> Opened:
    """101_ObjectCategories without its background images, which are no class."""
    folders = [name for name in class_folders(folder) if name != "BACKGROUND_Google"]
    images = class_files(folder, folders)
    return _seeded(images, split), folders


def caltech256(folder: Path, split: str) -> Opened:
    """256_ObjectCategories; its 257th class, clutter, counts as one, as in torchvision."""
    folders = class_folders(folder)
    whole = class_files(folder, folders)
    # 056.dog holds a stray folder, greg/, which belongs to no class.
    own = [index for index, path in enumerate(whole.keys) if path.count("/") == 1]
    return _seeded(whole.part(own), split), folders


def oxford_pets(folder: Path, split: str) -> Opened:
    """annotations/test.txt: lines "Abyssinian_201 1 1 1"; the second field is the class, from 1 on."""
    rows = [line.split() for line in read_lines(folder / "annotations" / f"{split}.txt")]
    labels = [int(row[1]) - 1 for row in rows]
    names = {label: row[0].rsplit("_", 1)[0] for label, row in zip(labels, rows, strict=True)}
    images = Files(folder, [f"images/{row[0]}.jpg" for row in rows], labels)
    return images, [names[label] for label in sorted(names)]


def flowers102(folder: Path, split: str) -> Opened:
    """setid.mat lists the images of each split (test is the largest), imagelabels.mat their classes, from 1 on."""
    from scipy.io import loadmat
    from torchvision.datasets import Flowers102

    key = {"train": "trnid", "val": "valid", "test": "tstid"}[split]
    numbers = loadmat(_present(folder / "setid.mat"))[key].ravel().tolist()
    labels = loadmat(_present(folder / "imagelabels.mat"))["labels"].ravel().tolist()
    paths = [f"jpg/image_{number:05d}.jpg" for number in numbers]
    return Files(folder, paths, [labels[number - 1] - 1 for number in numbers]), list(Flowers102.classes)


def food101(folder: Path, split: str) -> Opened:
    """meta/test.json: {"apple_pie": ["apple_pie/1011328", …], …}."""
    path = folder / "meta" / f"{split}.json"
    lists = convert(read_json(path), dict[str, list[str]], str(path))
    rows = [(f"images/{path}.jpg", name) for name in lists for path in lists[name]]
    return listed(folder, rows, sorted(lists))


def stanford_cars(folder: Path, split: str) -> Opened:
    """The authors' .mat lists; classes from 1 on."""
    from scipy.io import loadmat

    lists = {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}
    rows = loadmat(_present(folder / lists[split]), squeeze_me=True)["annotations"].ravel()
    names = loadmat(_present(folder / "devkit" / "cars_meta.mat"), squeeze_me=True)["class_names"]
    paths = [f"cars_{split}/{row['fname']}" for row in rows]
    return Files(folder, paths, [int(row["class"]) - 1 for row in rows]), [str(name) for name in names]


def sun397(folder: Path, split: str) -> Opened:
    """ClassName.txt: lines "/a/abbey"; test and train are the authors' first partition."""
    classes = [line.lstrip("/") for line in read_lines(folder / "ClassName.txt")]
    names = [name.split("/", 1)[1] for name in classes]
    if split == "all":
        whole = class_files(folder, classes)
        # a/apartment_building/outdoor is a class below a/apartment_building, which is not one; but take no chances.
        own = [i for i, path in enumerate(whole.keys) if path.rsplit("/", 1)[0] == classes[whole.labels[i]]]
        return whole.part(own), names
    rows = {"test": "Testing_01.txt", "train": "Training_01.txt"}[split]
    paths = [line.lstrip("/") for line in read_lines(folder / rows)]
    images, _ = listed(folder, [(path, path.rsplit("/", 1)[0]) for path in paths], classes)
    return images, names


def country211(folder: Path, split: str) -> Opened:
    """test/AD/….jpg: folders are country codes."""
    codes = class_folders(folder / split)
    return class_files(folder / split, codes), codes


def fgvc_aircraft(folder: Path, split: str) -> Opened:
    """data/images_variant_test.txt: lines "0062765 707-320"; variants.txt has the 100 names."""
    classes = read_lines(folder / "data" / "variants.txt")
    rows = [line.split(" ", 1) for line in read_lines(folder / "data" / f"images_variant_{split}.txt")]
    return listed(folder, [(f"data/images/{number}.jpg", name) for number, name in rows], classes)


def eurosat(folder: Path, split: str) -> Opened:
    """2750/AnnualCrop/AnnualCrop_1.jpg, RGB, 64×64."""
    folders = class_folders(folder)
    return _seeded(class_files(folder, folders), split), folders


def dtd(folder: Path, split: str) -> Opened:
    """labels/test1.txt, the first of the authors' ten partitions: lines "banded/banded_0002.jpg"."""
    paths = read_lines(folder / "labels" / f"{split}1.txt")
    rows = [(f"images/{path}", path.split("/")[0]) for path in paths]
    return listed(folder, rows, sorted({name for _, name in rows}))


def listed(folder: Path, rows: Sequence[tuple[str, str]], classes: list[str]) -> tuple[Files, list[str]]:
    """The (path, class) rows of a list as files."""
    label = {name: number for number, name in enumerate(classes)}
    return Files(folder, [path for path, _ in rows], [label[name] for _, name in rows]), classes


def _seeded(images: Files, split: str) -> Files:
    """All images for "all", else the split made here, for sets without an official one."""
    return images if split == "all" else held_out(images, TEST_SHARE, rest=split == "train")


def _present(path: Path) -> str:
    """The path of a file that exists, for libraries that would look elsewhere or raise another error."""
    if not path.is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    return str(path)
