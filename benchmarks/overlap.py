"""The perceptual hash of `advflyp data overlap`: the copies it finds, its false positives, and its cost.

    python benchmarks/overlap.py

Images are those of the mini sets and, as photographs, crops of scikit-learn's two. The crops overlap one another, so
for them only altered copies are counted, not pairs of different images. The last lines compare all images of the
training corpus with those of the test sets, and random hashes with 100,000 others.
"""

import io
from collections.abc import Callable
from itertools import islice
from time import process_time

import numpy as np
from loader import jpegs
from PIL import Image, ImageEnhance
from timing import interleaved, medians

from advflyp.data.mini import EMBEDDED
from advflyp.data.mini.shards import read_shards
from advflyp.data.pairs.images import on_white
from advflyp.data.sets.labelled import load_set, set_names
from advflyp.data.tools.overlap import CANDIDATE_LIMIT, HASH_LIMIT, image_hash, within

PICTURES = 150


def compressed(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=50)
    return Image.open(stream).convert("RGB")


def cropped(image: Image.Image) -> Image.Image:
    edge = max(1, round(0.03 * image.width))
    return image.crop((edge, edge, image.width - edge, image.height - edge))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG quality 50": compressed,
    "resized to 2/3": lambda image: image.resize((image.width * 2 // 3, image.height * 2 // 3)),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "paler": lambda image: ImageEnhance.Color(image).enhance(0.3),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "cropped by 3 %": cropped,
}


def both(images: list[Image.Image]) -> np.ndarray:
    """(N, 2) hashes, mirrored ones second."""
    flip = Image.Transpose.FLIP_LEFT_RIGHT
    return np.array([(image_hash(i), image_hash(i.transpose(flip))) for i in images], np.uint64)


def bits(image: Image.Image, hashes: np.ndarray) -> int:
    return within(np.array([image_hash(image)], np.uint64), hashes, 64)[0][2]


def main() -> None:
    names = set_names(["mini"])
    sets = {name: [on_white(p) for p, _ in islice(load_set(name).dataset, PICTURES)] for name in names}
    sets["photographs"] = [Image.open(io.BytesIO(data)).convert("RGB") for data in jpegs(60)]
    print(f"within {HASH_LIMIT} / {CANDIDATE_LIMIT} bits, in %")
    print(f"{'':18}" + "".join(f"{change:>18}" for change in CHANGES) + f"{'different ones':>18}")
    for name, images in sets.items():
        hashes, cells = both(images), []
        for change in CHANGES.values():
            found = np.array([bits(change(image), hashes[i : i + 1]) for i, image in enumerate(images)])
            cells.append(
                f"{100 * np.mean(found <= HASH_LIMIT):.0f} / {100 * np.mean(found <= CANDIDATE_LIMIT):.0f}"
            )
        if name == "photographs":
            cells.append("")
        else:
            pairs = [p for p in within(hashes[:, 0], hashes, CANDIDATE_LIMIT) if p[0] < p[1]]
            every = len(images) * (len(images) - 1) / 2
            near = sum(p[2] <= HASH_LIMIT for p in pairs)
            cells.append(f"{100 * near / every:.2f} / {100 * len(pairs) / every:.2f}")
        print(f"{name:18}" + "".join(f"{cell:>18}" for cell in cells), flush=True)

    pixels, _ = read_shards(EMBEDDED)
    training = np.array([image_hash(on_white(Image.fromarray(one))) for one in pixels[:]], np.uint64)
    test = np.concatenate([both([on_white(p) for p, _ in load_set(name).dataset]) for name in names])
    flagged = {
        start + row
        for start in range(0, len(training), 64)
        for row, *_ in within(training[start : start + 64], test, HASH_LIMIT)
    }
    print(
        f"alone it flags {len(flagged)} of {len(training):,} training pictures against {len(test):,} test pictures"
    )
    rng = np.random.default_rng(0)
    many, few = rng.integers(0, 2**63, (100_000, 2), np.uint64), rng.integers(0, 2**63, 64, np.uint64)
    search = {"search": lambda: within(few, many, HASH_LIMIT)}
    milliseconds = 1000 * medians(interleaved(search, 5, clock=process_time))["search"] / len(few)
    print(
        f"search among 100,000 images and their mirror images: {milliseconds:.2f} ms of processor time an image"
    )


if __name__ == "__main__":
    main()
