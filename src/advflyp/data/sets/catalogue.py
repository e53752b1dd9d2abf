"""The table of named sets: their sizes, splits, folders and readers.

Imported without torch, so that a misspelled name is refused at once.
"""

import os
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Literal

from advflyp.config import check_there, nearest_path, suggest
from advflyp.data.mini import ON_DEMAND, PROXY, mini_sets
from advflyp.data.sets.prompts import PHOTO, RENDERING, SKETCH
from advflyp.files import cache_folder
from advflyp.plugins import is_import_path

if TYPE_CHECKING:
    from advflyp.data.sets.images import Images
    from advflyp.data.sets.readers import Reader


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One set.

    Attributes:
        title: As papers write it.
        n, k: Images and classes of the default split.
        read: Its reader as MODULE.FUNCTION of this package; None if only the webdataset is read.
        splits: What `read` can read.
        places: Folders below the data folder where its files may lie; the first is where they belong.
        wds: Its copy in webdataset format, a repository of clip-benchmark on the Hugging Face hub.
        wds_splits: {split: folder there}.
        torchvision: The class of torchvision.datasets that downloads it.
        archive: (address, MD5) to unpack in the data folder.
        border: Pixels to crop on each side of the webdataset's images, as `read` does for the files.
    """

    title: str
    domain: str
    n: int
    k: int
    places: tuple[str, ...]
    home: str
    licence: str
    splits: tuple[str, ...] = ()
    read: str | None = None
    prompt: str = PHOTO
    wds: str | None = None
    wds_splits: dict[str, str] = field(default_factory=dict)
    torchvision: str | None = None
    archive: tuple[str, str] | None = None
    border: int = 0

    @property
    def has_files(self) -> bool:
        """Whether the authors' files can be downloaded."""
        return self.torchvision is not None or self.archive is not None

    @property
    def every_split(self) -> list[str]:
        """The splits of the files, then of the webdataset; the first is the default, the paper's."""
        return list(dict.fromkeys([*self.splits, *self.wds_splits]))

    def reader(self) -> "Reader":
        """What reads the authors' files."""
        assert self.read is not None, "splits are of files that are read"
        module, _, function = self.read.partition(".")
        return getattr(import_module(f"advflyp.data.sets.{module}"), function)


TEST = {"test": "test"}
# The list of AdvFLYP's release, {wnid: {"eval_files": ["n01443537_266.JPEG", …], …}, …}: 50 files of each class.
PUBLISHED_LIST = "tinyimagenet_refined_labels.json"
OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"
NO_LICENCE = "none stated"
IMAGENET_TERMS = "non-commercial research (ImageNet's terms)"

TABLE: dict[str, Entry] = {
    "cifar10": Entry(
        title="CIFAR10", domain="objects", n=10_000, k=10, splits=("test", "train"),
        places=("cifar-10-batches-py", "cifar10/cifar-10-batches-py"), read="readers.cifar",
        torchvision="CIFAR10", wds="wds_vtab-cifar10", wds_splits=TEST,
        home="https://www.cs.toronto.edu/~kriz/cifar.html", licence=NO_LICENCE,
    ),
    "cifar100": Entry(
        title="CIFAR100", domain="objects", n=10_000, k=100, splits=("test", "train"),
        places=("cifar-100-python", "cifar100/cifar-100-python"), read="readers.cifar",
        torchvision="CIFAR100", wds="wds_vtab-cifar100", wds_splits=TEST,
        home="https://www.cs.toronto.edu/~kriz/cifar.html", licence=NO_LICENCE,
    ),
    "stl10": Entry(
        title="STL10", domain="objects", n=8_000, k=10, splits=("test", "train"),
        places=("stl10_binary", "stl10/stl10_binary"), read="readers.stl10",
        torchvision="STL10", wds="wds_stl10", wds_splits=TEST,
        home="https://cs.stanford.edu/~acoates/stl10/", licence=IMAGENET_TERMS,
    ),
    "caltech101": Entry(
        title="Caltech101", domain="objects", n=8_677, k=101, splits=("all", "test", "train"),
        places=("caltech101/101_ObjectCategories",), read="readers.caltech101",
        torchvision="Caltech101", wds="wds_vtab-caltech101", wds_splits={"vtab": "test"},
        home="https://data.caltech.edu/records/mzrjq-6wc02", licence="CC BY 4.0",
    ),
    "caltech256": Entry(
        title="Caltech256", domain="objects", n=30_607, k=257, splits=("all", "test", "train"),
        places=("caltech256/256_ObjectCategories",), read="readers.caltech256", torchvision="Caltech256",
        home="https://data.caltech.edu/records/nyy15-4j048", licence="CC BY 4.0",
    ),
    "oxford_pets": Entry(
        title="OxfordPets", domain="fine-grained", n=3_669, k=37, splits=("test", "trainval"),
        places=("oxford-iiit-pet", "oxford_pets/oxford-iiit-pet"), read="readers.oxford_pets",
        torchvision="OxfordIIITPet", wds="wds_vtab-pets", wds_splits=TEST,
        home=f"{OXFORD}/pets/", licence="CC BY-SA 4.0",
    ),
    "flowers102": Entry(
        title="Flowers102", domain="fine-grained", n=6_149, k=102, splits=("test", "val", "train"),
        places=("flowers-102", "flowers102/flowers-102"), read="readers.flowers102",
        torchvision="Flowers102", wds="wds_vtab-flowers", wds_splits=TEST,
        home=f"{OXFORD}/flowers/102/", licence=NO_LICENCE,
    ),
    "food101": Entry(
        title="Food101", domain="fine-grained", n=25_250, k=101, splits=("test", "train"),
        places=("food-101", "food101/food-101"), read="readers.food101",
        torchvision="Food101", wds="wds_food101", wds_splits=TEST,
        home="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/", licence="research (Foodspotting's terms)",
    ),
    "stanford_cars": Entry(
        title="StanfordCars", domain="fine-grained", n=8_041, k=196, splits=("test", "train"),
        places=("stanford_cars",), read="readers.stanford_cars",
        wds="wds_cars", wds_splits={"test": "test", "train": "train"},
        home="https://ai.stanford.edu/~jkrause/cars/car_dataset.html", licence=NO_LICENCE,
    ),
    "sun397": Entry(
        title="SUN397", domain="scenes", n=108_754, k=397, splits=("all", "test", "train"),
        places=("SUN397", "sun397/SUN397"), read="readers.sun397", wds="wds_sun397", wds_splits={"all": "test"},
        home="https://vision.princeton.edu/projects/2010/SUN/", licence=NO_LICENCE,
    ),
    "country211": Entry(
        title="Country211", domain="scenes", n=21_100, k=211, splits=("test", "valid", "train"),
        places=("country211",), read="readers.country211",
        torchvision="Country211", wds="wds_country211", wds_splits=TEST,
        home="https://github.com/openai/CLIP/blob/main/data/country211.md", licence="Creative Commons, by image",
    ),
    "fgvc_aircraft": Entry(
        title="FGVCAircraft", domain="domain-specific", n=3_333, k=100, splits=("test", "train", "val", "trainval"),
        places=("fgvc-aircraft-2013b", "fgvc_aircraft/fgvc-aircraft-2013b"), read="readers.fgvc_aircraft",
        torchvision="FGVCAircraft", wds="wds_fgvc_aircraft", wds_splits=TEST,
        home=f"{OXFORD}/fgvc-aircraft/", licence="non-commercial research",
    ),
    "eurosat": Entry(
        title="EuroSAT", domain="domain-specific", n=27_000, k=10, splits=("all", "test", "train"),
        places=("eurosat/2750",), read="readers.eurosat",
        torchvision="EuroSAT", wds="wds_vtab-eurosat", wds_splits={"vtab": "test"},
        home="https://github.com/phelber/EuroSAT", licence="MIT",
    ),
    "dtd": Entry(
        title="DTD", domain="domain-specific", n=1_880, k=47, splits=("test", "val", "train"),
        places=("dtd/dtd", "dtd"), read="readers.dtd",
        torchvision="DTD", wds="wds_vtab-dtd", wds_splits=TEST,
        home=f"{OXFORD}/dtd/", licence="research",
    ),
    "imagenet": Entry(
        title="ImageNet", domain="objects", n=50_000, k=1000, splits=("val", "train"),
        places=("imagenet",), read="imagenet.imagenet",
        wds="wds_imagenet1k", wds_splits={"val": "test", "train": "train"},
        home="https://image-net.org", licence=IMAGENET_TERMS,
    ),
    "imagenet-v2": Entry(
        title="ImageNet-V2", domain="objects", n=10_000, k=1000, splits=("test", "threshold-0.7", "top-images"),
        places=("imagenet-v2",), read="imagenet.imagenet_v2", wds="wds_imagenetv2", wds_splits=TEST,
        home="https://github.com/modestyachts/ImageNetV2", licence=IMAGENET_TERMS,
    ),
    "imagenet-r": Entry(
        title="ImageNet-R", domain="renditions", n=30_000, k=200, splits=("test",),
        places=("imagenet-r",), read="imagenet.variant", prompt=RENDERING,
        wds="wds_imagenet-r", wds_splits=TEST,
        home="https://github.com/hendrycks/imagenet-r", licence=IMAGENET_TERMS,
    ),
    "imagenet-a": Entry(
        title="ImageNet-A", domain="objects", n=7_500, k=200, splits=("test",),
        places=("imagenet-a",), read="imagenet.variant", wds="wds_imagenet-a", wds_splits=TEST,
        home="https://github.com/hendrycks/natural-adv-examples", licence=IMAGENET_TERMS,
    ),
    "imagenet-sketch": Entry(
        title="ImageNet-Sketch", domain="sketches", n=50_889, k=1000, splits=("test",),
        places=("imagenet-sketch/sketch", "sketch", "imagenet-sketch"), read="imagenet.variant", prompt=SKETCH,
        wds="wds_imagenet_sketch", wds_splits=TEST,
        home="https://github.com/HaohanWang/ImageNet-Sketch", licence=IMAGENET_TERMS,
    ),
    "objectnet": Entry(
        title="ObjectNet", domain="objects", n=18_574, k=113, splits=("test", "all"),
        places=("objectnet-1.0", "objectnet/objectnet-1.0"), read="imagenet.objectnet",
        wds="wds_objectnet", wds_splits=TEST, border=2,
        home="https://objectnet.dev", licence="CC BY 4.0, never to be trained on",
    ),
    "tiny-imagenet": Entry(
        title="TinyImageNet", domain="objects", n=10_000, k=200,
        splits=("val", "heldout", "train", "advflyp", "advflyp-train", "train-all"),
        places=("tiny-imagenet-200", "tiny-imagenet/tiny-imagenet-200"), read="imagenet.tiny_imagenet",
        archive=("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"),
        home="http://cs231n.stanford.edu", licence=IMAGENET_TERMS,
    ),
    "pcam": Entry(
        title="PCAM", domain="domain-specific", n=32_768, k=2,
        places=("wds_vtab-pcam",), wds="wds_vtab-pcam", wds_splits=TEST,
        home="https://github.com/basveeling/pcam", licence="CC0 1.0",
    ),
}  # fmt: skip

PAPER = tuple(TABLE)[:14]
GROUPS: dict[str, tuple[str, ...]] = {
    "paper": PAPER,
    "imagenet-variants": ("imagenet", "imagenet-r", "imagenet-a", "imagenet-sketch", "objectnet"),
}
# What marks a path as that of a user's own set.
MARKS = ("folder:", "wds:")
ALIASES = {"oxfordpet": "oxford_pets", "oxfordiiitpet": "oxford_pets", "imagenets": "imagenet-sketch"}


def canonical(name: str) -> str | None:
    """The canonical name of a set: "EuroSAT@Test" → "eurosat@test"; None if the table has no such set.

    The default split is not written. ValueError for a split that the set does not have.
    """
    base, at, split = name.partition("@")
    known = {_squash(key): key for key in TABLE} | ALIASES
    found = known.get(_squash(base))
    if found is None:
        return None
    splits = TABLE[found].every_split
    split = split.lower()
    if at and split not in splits:
        raise ValueError(f"{found} has no split '{split}'{suggest(split, splits)}")
    return found if not at or split == splits[0] else f"{found}@{split}"


def set_names(groups: list[str]) -> list[str]:
    """Expand names of sets, of groups of sets ("mini", "paper", "imagenet-variants") and paths into single sets.

    Sets of the table get their canonical name, NAME or NAME@SPLIT, however they were spelled, and paths lose "./" and
    needless slashes. ValueError for a name that is none of these.
    """
    embedded = mini_sets()
    tests = tuple(f"mini/{name}" for name, info in embedded.items() if info["split"] == "test")
    sets_of = {"mini": tests, **GROUPS}
    mini = [f"mini/{name}" for name in (*embedded, *ON_DEMAND, PROXY)]
    result: list[str] = []
    for name in groups:
        path = Path(name).expanduser()
        is_marked = name.startswith(MARKS) or ".tar" in name
        is_own = is_marked or path.is_dir() or is_import_path(name)
        if name.lower() in sets_of:
            result += sets_of[name.lower()]
        elif (found := canonical(name)) is not None:
            result.append(found)
        elif name in mini:
            result.append(name)
        elif is_own:
            plain = _plain(name)
            # What something else is called as well stays ./NAME.
            known = plain.lower() in {*sets_of, *mini} or canonical(plain.partition("@")[0]) is not None
            is_other = known or is_import_path(plain) or plain.startswith(MARKS)
            is_other = is_other and plain != name and not name.startswith(MARKS)
            result.append(f"./{plain}" if is_other else plain)
        elif f"mini/{name}" in mini:
            result.append(f"mini/{name}")  # its short name in tables of the mini sets
        elif path.is_file():
            raise ValueError(
                f"{name} is a file; name a folder that holds a folder for each class, or webdataset shards (*.tar)"
            )
        elif name.startswith(("/", "./", "../", "~")):
            raise ValueError(f"there is no folder and there are no shards at {name}{nearest_path(name)}")
        else:
            known = [*sets_of, *TABLE, *mini]
            raise ValueError(f"there is no set '{name}'{nearest_path(name, known) or suggest(name, known)}")
    return list(dict.fromkeys(result))


def _plain(name: str) -> str:
    """The path of a user's own set in one spelling, without "./" and needless slashes."""
    kind = next((kind for kind in MARKS if name.startswith(kind)), "")
    given = name.removeprefix(kind)
    return name if "://" in given or not given else kind + str(PurePath(given))


def check_training_name(name: str) -> None:
    """ValueError if `data.train` names neither a dataset nor anything on this machine, judging by the name.

    Contents, and addresses on other machines, are checked only when they are opened.
    """
    is_mini = name == "mini" or name.startswith(("mini-", "mini/"))
    if not (is_mini or is_import_path(name) or canonical(name) is not None):
        known = ["mini", "mini-full", f"mini/{PROXY}", *TABLE]
        check_there(name.removeprefix("folder:").removeprefix("wds:"), "there are no pairs at", known)


def _squash(name: str) -> str:
    return name.lower().translate({ord(sign): None for sign in "-_/ "})


def parts(name: str) -> tuple[str, Entry, str]:
    """The set, its entry and the split of a canonical name."""
    base, _, split = name.partition("@")
    return base, TABLE[base], split or TABLE[base].every_split[0]


def data_folder() -> Path:
    """Where sets are: $ADVFLYP_DATA, else a folder in the user's cache."""
    chosen = os.environ.get("ADVFLYP_DATA")
    return Path(chosen).expanduser() if chosen else cache_folder() / "sets"


Source = Literal["any", "webdataset"]


def locate(name: str, source: Source = "any") -> tuple[Path, bool] | None:
    """The folder of a canonical name's split and whether it is a webdataset; None if it is not there.

    Args:
        source: "any": the authors' files, or else the webdataset.
    """
    base, entry, split = parts(name)
    root = data_folder()
    if source == "any" and split in entry.splits:
        for place in entry.places:
            if (root / place).is_dir() and not (root / place / "test" / "nshards.txt").is_file():
                return root / place, False
    if entry.wds is not None and split in entry.wds_splits:
        for folder in (root / entry.wds, root / base):
            if (folder / entry.wds_splits[split] / "nshards.txt").is_file():
                return folder / entry.wds_splits[split], True
    return None


def open_set(name: str, source: Source = "any") -> tuple["Images", list[str], Path | None]:
    """The images of a canonical name, its class names as the files write them, and the folder of a webdataset.

    Raises:
        ValueError: They are not on this machine or something is missing.
    """
    from advflyp.data.sets.folders import folder_shards, read_shards

    _, entry, split = parts(name)
    found = locate(name, source)
    if found is None:
        raise ValueError(f"{name} is not on this machine: {how_to_get(name, source)}")
    folder, is_wds = found
    try:
        if is_wds:
            images, names = read_shards(folder_shards(folder), entry.border)
        else:
            images, names = entry.reader()(folder, split)
    except FileNotFoundError as error:
        raise ValueError(f"{name} is incomplete, {error.filename} is missing: {how_to_get(name)}") from None
    except Exception as error:
        if str(folder) in str(error):
            raise  # our own messages, and the system's, name the file
        # Lists and archives that are damaged may raise anything.
        raise ValueError(
            f"{name} in {folder} is damaged or has a different layout ({type(error).__name__}: {error}): "
            f"{how_to_get(name)}"
        ) from error
    # As in torchvision's loaders, which published results come from, the EXIF orientation is ignored.
    images.upright = False
    if is_wds:
        return images, names, folder
    if len(names) != entry.k and not (entry.title == "ObjectNet" and split == "all"):
        raise ValueError(f"{name} has {entry.k} classes, but {folder} has {len(names)}: {how_to_get(name)}")
    return images, names, None


def how_to_get(name: str, source: Source = "any") -> str:
    """The end of an error message: where the set belongs and how to get it."""
    base, entry, split = parts(name)
    if source == "webdataset":
        if split in entry.wds_splits:
            return f"fetch CLIP benchmark's copy of it with `advflyp data fetch --wds {name}`"
        other = f"; it has {base}@{next(iter(entry.wds_splits))}" if entry.wds_splits else ""
        return f"CLIP benchmark has no copy of it{other}"
    place = data_folder() / entry.places[0]
    if split.startswith("advflyp"):
        return (
            f"it uses the images of tiny-imagenet and a list from AdvFLYP's release, ImageNet_files/{PUBLISHED_LIST}; "
            f"put that list in {place}"
        )
    if fetchable(name):
        folder = place if split in entry.splits else data_folder() / (entry.wds or "")
        return f"it belongs in {folder}; fetch it with `advflyp data fetch {name}`"
    return f"get it from {entry.home} and put it in {place} (see docs/sets.md)"


def fetchable(name: str) -> bool:
    """Whether `advflyp data fetch` can download this split."""
    _, entry, split = parts(name)
    if split.startswith("advflyp"):
        return False  # the list has to be got by hand
    return (split in entry.splits and entry.has_files) or split in entry.wds_splits
