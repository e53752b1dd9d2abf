"""`advflyp data caption`: the pictures of a labelled set → webdataset shards of pictures and generated captions.

Which pictures a shard covers is known beforehand (`caption_folder.py`), whatever happened to the other shards: a killed
run goes on at its first unfinished one, and several processes share nothing but the folder.
"""

import hashlib
import io
import json
import math
import os
import random
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from PIL import Image

from advflyp.data.pairs.images import MIN_SIDE, finish_image, open_image
from advflyp.data.pairs.manifest import Manifest
from advflyp.data.pairs.prefetch import prefetched
from advflyp.data.pairs.samples import Skipped
from advflyp.data.sets.images import Encoded, Files, Part, Shards
from advflyp.data.sets.labelled import LabelledSet, load_set
from advflyp.data.tools.caption_folder import CaptionFolder
from advflyp.data.tools.pack import SUFFIXES
from advflyp.data.tools.vlm import Captioner, own_device
from advflyp.errors import SkippedSample
from advflyp.files import draft_file

MODEL = "Qwen/Qwen2.5-VL-3B-Instruct"
PROMPT = "Describe this image with no more than 50 words"
# The model sees larger pictures reduced to this: with 16 at a time, one of 12 million pixels would fill the memory.
MAX_PIXELS = 1 << 20
WORKERS = 4


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """What a call leaves in `out`.

    part:     (i, n): this process was part i of n
    pairs:    in all shards of this part
    fresh:    pictures that this call went through; the others were done before
    skipped:     pictures of this part that were left out
    manifest: of all parts; None while others are unfinished
    """

    out: Path
    part: tuple[int, int]
    pairs: int
    fresh: int
    skipped: Skipped
    manifest: Manifest | None


def caption(
    name: str,
    *,
    out: Path,
    model: str = MODEL,
    prompt: str = PROMPT,
    batch_size: int = 16,
    max_new_tokens: int = 96,
    limit: int | None = None,
    dtype: str = "bf16",
    device: str = "auto",
    part: str | None = None,
    per_shard: int = 1000,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int, int], None] | None = None,
) -> Captioned:
    """Caption the pictures of the labelled set `name` into shards of `out`; go on where an earlier call stopped.

    model:      a folder or a name on the hub; an image-text model with a chat template
    limit:      only so many pictures, the classes evenly represented
    part:       "i/n" with i from 0; by default RANK and WORLD_SIZE of torchrun, else all
    per_shard:  pictures of a shard; those left out are missing from it
    max_pixels: the model sees larger pictures reduced; they are stored as they are
    progress:   called with the pictures of this part that are done, and all of its pictures

    Members are KEY.jpg, .png or .webp (the file as it is where the set has one of these formats, else a PNG), KEY.txt
    and KEY.json (key, class, label, model, prompt); KEY is the picture's position in the set. Whichever process
    finishes last writes the manifest. ValueError for arguments that do not fit, a folder that holds something else or
    was begun with other arguments, and a set of which no picture could be captioned.
    """
    _check(batch_size=batch_size, max_new_tokens=max_new_tokens, per_shard=per_shard, max_pixels=max_pixels)
    if not prompt.strip():
        raise ValueError("--prompt is empty; say what the model is to do with a picture")
    own_device(device)  # a mistake shows before the pictures are looked at
    number, parts = which_part(part)
    labelled = load_set(name)
    places = labelled.subset(limit, seed=0)
    # Shards in the order of the set would hold one class each; and what is done of an unfinished run is a fair sample.
    random.Random(0).shuffle(places)
    settings = {
        "model": model,
        "prompt": prompt,
        "max_new_tokens": max_new_tokens,
        "dtype": dtype,
        "limit": limit,
        "parts": parts,
        "per_shard": per_shard,
        "max_pixels": max_pixels,
        "pictures": _fingerprint(labelled, places),
    }
    folder = CaptionFolder(out.expanduser(), name, settings, places)
    folder.check()
    fresh = 0
    if folder.unfinished(number):
        # Before anything is written: most mistakes show here.
        captioner = Captioner(model, prompt, max_new_tokens=max_new_tokens, dtype=dtype, device=device)
        writer = _Writer(labelled, captioner, {"model": model, "prompt": prompt}, batch_size, max_pixels)
        folder.begin(captioner.versions)
        with folder.own(number):
            # Asked again: another process may have had the part while this one loaded the model.
            todo = folder.unfinished(number)
            total = len(places[number::parts])
            before = total - sum(len(folder.places(number, shard)) for shard in todo)
            for shard in todo:
                wanted = folder.places(number, shard)
                done = before + fresh
                told = (lambda n, done=done: progress(done + n, total)) if progress else None
                with draft_file(folder.work, folder.name(number, shard)) as draft:
                    pairs, left_out = writer.write(wanted, draft, told)
                    folder.finish_shard(draft, number, shard, pairs, left_out)
                fresh += len(wanted)
    pairs, skipped = folder.summary([number])
    manifest = folder.finish()
    return Captioned(
        out=folder.out, part=(number, parts), pairs=pairs, fresh=fresh, skipped=skipped, manifest=manifest
    )


def which_part(part: str | None) -> tuple[int, int]:
    """ "i/n" → (i, n); None: torchrun's RANK and WORLD_SIZE, else (0, 1). ValueError unless 0 ≤ i < n."""
    name = "--part"
    if part is None:
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return 0, 1
        part, name = f"{os.environ['RANK']}/{os.environ['WORLD_SIZE']}", "RANK/WORLD_SIZE"
    found = re.fullmatch(r"(\d+)/(\d+)", part)
    if found is None or int(found[1]) >= int(found[2]):
        raise ValueError(f"{name} must be i/n with i from 0 to n - 1, for example 0/4 to 3/4, not '{part}'")
    return int(found[1]), int(found[2])


@dataclass(frozen=True)
class _Picture:
    """As it is stored, and as the model sees it."""

    suffix: str
    data: bytes
    image: Image.Image


@dataclass(frozen=True)
class _Writer:
    labelled: LabelledSet
    captioner: Callable[[Sequence[Image.Image]], list[str | None]]
    about: dict[str, str]
    batch_size: int
    max_pixels: int

    def write(
        self, places: Sequence[int], file: IO[bytes], progress: Callable[[int], None] | None
    ) -> tuple[int, dict[str, str]]:
        """Caption the pictures at `places` into a tar; the number of pairs, and {key: reason} of the others."""
        left_out: dict[str, str] = {}
        pairs = done = 0
        labels = self.labelled.labels
        batches = prefetched(self._batches(places))
        with tarfile.open(fileobj=file, mode="w") as tar:
            for batch in batches:
                good = [picture for _, picture in batch if isinstance(picture, _Picture)]
                captions = iter(self.captioner([picture.image for picture in good]))
                for place, picture in batch:
                    key = _shown(self.labelled.key(place))
                    caption = next(captions) if isinstance(picture, _Picture) else None
                    if not isinstance(picture, _Picture):
                        left_out[key] = picture
                    elif not caption:
                        left_out[key] = (
                            "refused by the model's processor" if caption is None else "empty caption"
                        )
                    else:
                        label = int(labels[place])
                        about = {
                            "key": key,
                            "class": self.labelled.classes[label],
                            "label": label,
                            **self.about,
                        }
                        text = json.dumps(about).encode()
                        _add(tar, f"{place:09d}.{picture.suffix}", picture.data)
                        _add(tar, f"{place:09d}.txt", caption.encode())
                        _add(tar, f"{place:09d}.json", text)
                        pairs += 1
                done += len(batch)
                if progress is not None:
                    progress(done)
        return pairs, left_out

    def _batches(self, places: Sequence[int]) -> Iterator[list[tuple[int, _Picture | str]]]:
        with ThreadPoolExecutor(WORKERS) as pool:
            for start in range(0, len(places), self.batch_size):
                batch = places[start : start + self.batch_size]
                yield list(zip(batch, pool.map(self._load, batch), strict=True))

    def _load(self, place: int) -> _Picture | str:
        """The picture, or why it cannot be used."""
        try:
            data = _file(self.labelled.dataset, place)
            if data is None:
                return self._decoded(place)
            opened = open_image(data)
            kind = opened.format
            image = finish_image(opened)
        except SkippedSample as reason:
            return str(reason)
        except OSError:
            return "image file cannot be read"
        seen = _reduced(image, self.max_pixels)
        return (
            _Picture(SUFFIXES[kind], data, seen) if kind in SUFFIXES else _Picture("png", _png(image), seen)
        )

    def _decoded(self, place: int) -> _Picture | str:
        image = self.labelled.image(place)
        if min(image.size) < MIN_SIDE:
            return "image is too small"
        return _Picture("png", _png(image), _reduced(image, self.max_pixels))


def _file(pictures: object, index: int) -> bytes | None:
    """The picture's file, None where it is not one or only a part of it is the picture."""
    if isinstance(pictures, Part):
        return _file(pictures.whole, pictures.places[index])
    if isinstance(pictures, Encoded):
        return pictures.files[index]
    if isinstance(pictures, Files) and not pictures.border:
        return pictures.encoded(index)
    if isinstance(pictures, Shards) and not pictures.border:
        return pictures.encoded(index)
    return None


def _reduced(image: Image.Image, max_pixels: int) -> Image.Image:
    scale = math.sqrt(max_pixels / (image.width * image.height))
    if scale >= 1:
        return image
    size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _fingerprint(labelled: LabelledSet, places: Sequence[int]) -> str:
    """Of the pictures' names, labels and order, so that a run never goes on with others."""
    digest = hashlib.sha256(json.dumps(labelled.classes).encode())
    labels = labelled.labels.tolist()
    for place in places:
        digest.update(f"{place}\t{labels[place]}\t{labelled.key(place)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _shown(key: str) -> str:
    return key.encode("utf-8", "replace").decode("utf-8")


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
