"""ImageNet, its relatives, and TinyImageNet: folders named by WordNet numbers, or by class indices.

Readers as in `readers.py`: the names of the thousand classes are their WordNet numbers.
"""

from functools import cache
from pathlib import Path

from advflyp.config import convert
from advflyp.data.sets.catalogue import PUBLISHED_LIST
from advflyp.data.sets.folders import class_files, class_folders, read_lines
from advflyp.data.sets.images import Files, held_out
from advflyp.data.sets.readers import Opened, listed
from advflyp.documents import read_json, read_json_object

# Share of each TinyImageNet class (500 images) for validation during training; as large as the validation part.
HELD_OUT = 0.1
VARIANTS = {"test": "matched-frequency", "threshold-0.7": "threshold0.7", "top-images": "top-images"}


@cache
def names_by_wnid() -> dict[str, str]:
    """{"n01440764": "tench", …}: OpenAI's names for the thousand classes, in the order of the labels."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
    from timm.data.imagenet_info import ImageNetInfo

    return dict(zip(ImageNetInfo("imagenet-1k").label_names(), IMAGENET_CLASSNAMES, strict=True))


def imagenet(folder: Path, split: str) -> Opened:
    """val/n01440764/….JPEG and train/."""
    return _wnid_folders(folder / split)


def variant(folder: Path, split: str) -> Opened:
    """n01443537/…: ImageNet-R and -A with 200 of the classes, -Sketch with all."""
    return _wnid_folders(folder)


def _wnid_folders(folder: Path) -> Opened:
    known = names_by_wnid()
    found = class_folders(folder)
    strangers = [name for name in found if name not in known]
    if strangers or not found:
        what = f"a folder {strangers[0]}" if strangers else "no folders"
        raise ValueError(
            f"{folder} holds {what}; the images belong in folders by WordNet number such as n01440764"
        )
    return class_files(folder, found), found


def imagenet_v2(folder: Path, split: str) -> Opened:
    """imagenetv2-matched-frequency-format-val/0 … 999: class indices, not sorted as text."""
    folder = folder / f"imagenetv2-{VARIANTS[split]}-format-val"
    names = list(names_by_wnid())
    found, wanted = class_folders(folder), [*map(str, range(len(names)))]
    if found != wanted:
        missing = [name for name in wanted if name not in found]
        strange = [name for name in found if name not in wanted]
        what = f"lacks the folder {missing[0]}" if missing else f"holds a folder {strange[0]}"
        raise ValueError(f"{folder} {what}; it must hold the folders 0 to 999, one for each class")
    return class_files(folder, found), names


def objectnet(folder: Path, split: str) -> Opened:
    """images/FOLDER/….png and mappings/; a red border of two pixels is cut off.

    The splits are "test", the 113 classes that ImageNet has too, and "all", all 313 classes.
    """
    path = folder / "mappings" / "folder_to_objectnet_label.json"
    titles: dict[str, str] = convert(read_json(path), dict[str, str], str(path))
    if split == "test":
        shared = read_json_object(folder / "mappings" / "objectnet_to_imagenet_1k.json")
        titles = {name: title for name, title in titles.items() if title in shared}
    chosen = sorted(titles)
    return class_files(folder / "images", chosen, border=2), [titles[name] for name in chosen]


def tiny_imagenet(folder: Path, split: str) -> Opened:
    """train/n01443537/images/, val/images/ + val/val_annotations.txt, words.txt with the names.

    The splits are "val"; "heldout", a tenth of each class of train/, and "train", the other nine; "advflyp", the tenth
    that AdvFLYP's release lists, and "advflyp-train", the other nine; "train-all", all of train/.
    """
    wnids = sorted(read_lines(folder / "wnids.txt"))
    entries = dict(line.split("\t", 1) for line in read_lines(folder / "words.txt"))
    classes = [entries[wnid] for wnid in wnids]
    if split == "val":
        rows = [line.split("\t")[:2] for line in read_lines(folder / "val" / "val_annotations.txt")]
        return listed(folder, [(f"val/images/{name}", wnid) for name, wnid in rows], wnids)[0], classes
    whole = class_files(folder / "train", wnids)
    if split == "train-all":
        return whole, classes
    if split.startswith("advflyp"):
        return _listed(whole, folder / PUBLISHED_LIST, wnids, rest=split == "advflyp-train"), classes
    return held_out(whole, HELD_OUT, rest=split == "train"), classes


def _listed(whole: Files, path: Path, wnids: list[str], *, rest: bool) -> Files:
    """The images of the training part that the published list names, or the rest."""
    entries = read_json(path)
    if not isinstance(entries, dict) or not all(
        isinstance(entry, dict) and isinstance(entry.get("eval_files"), list) for entry in entries.values()
    ):
        raise ValueError(f'{path} must hold {{"n01443537": {{"eval_files": ["n01443537_266.JPEG", …]}}, …}}')
    listed = {
        f"{wnid}/images/{name}" for wnid in wnids for name in entries.get(wnid, {}).get("eval_files", [])
    }
    there = set(whole.keys)
    if missing := sorted(listed - there):
        raise ValueError(f"{path} names {missing[0]}, which is not in {whole.folder}; fetch the set again")
    if not listed:
        raise ValueError(f"{path} names no image of TinyImageNet's classes")
    return whole.part([place for place, path in enumerate(whole.keys) if (path in listed) != rest])
