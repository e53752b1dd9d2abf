"""The labelled sets of the mini corpus: those that come with the package, and those made on the user's machine."""

import random
from pathlib import Path
from typing import Any

from advflyp.data.mini import BUILD, EMBEDDED, ON_DEMAND, PROXY, full_corpus_folder, mini_sets, proxy_concepts
from advflyp.data.mini.shards import read_encoded, read_tar
from advflyp.data.sets.images import Encoded


def mini_set(name: str) -> dict[str, Any]:
    """The fields of the labelled set "mini/…"; ValueError if it is not on this machine."""
    short = name.removeprefix("mini/")
    if short == PROXY:
        return _proxy_set()
    folder = full_corpus_folder() if short in ON_DEMAND else EMBEDDED
    info = mini_sets(folder).get(short)
    path = folder / ("val.tar.gz" if short == "val" else f"sets/{short}.tar.gz")
    if info is None or not path.is_file():
        raise ValueError(
            f"{name} is not on this machine; make it in a checkout of advflyp with `{BUILD} --sets {short}`"
        )
    return {
        "name": name,
        "split": info["split"],
        "classes": info["classes"],
        "templates": info["templates"],
        "dataset": _read_images(path),
        "info": {key: value for key, value in info.items() if key not in ("classes", "templates")},
    }


def _proxy_set() -> dict[str, Any]:
    """One class for each concept with enough renderings in the embedded corpus, on white."""
    files, metas = read_encoded(EMBEDDED)
    classes = sorted(proxy_concepts(meta["concept"] for meta in metas))
    index = {concept: number for number, concept in enumerate(classes)}
    rows = zip(files.items(), metas, strict=True)
    chosen = [(data, key, index[meta["concept"]]) for (key, data), meta in rows if meta["concept"] in index]
    random.Random(0).shuffle(chosen)
    return {
        "name": f"mini/{PROXY}",
        "split": "train",
        "classes": classes,
        "templates": ["{}", "a picture of a {}", "an image of {}"],
        "dataset": Encoded(*zip(*chosen, strict=True)),
        "info": {"domain": "emoji", "source": "the embedded corpus", "in_proxy": True},
    }


def _read_images(path: Path) -> Encoded:
    """The images and labels in a tar of KEY.webp and KEY.cls members."""
    members = read_tar(path)
    images = [(name, data) for name, data in members if not name.endswith(".cls")]
    labels = [int(data) for name, data in members if name.endswith(".cls")]
    return Encoded([data for _, data in images], [name for name, _ in images], labels)
