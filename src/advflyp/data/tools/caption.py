"""`advflyp data caption`: the images of a labelled set → webdataset shards of images and generated captions.

The images of each shard are fixed beforehand (`caption_folder.py`), independently of the other shards: a killed run
resumes at its first unfinished shard, and several processes share nothing but the folder.
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
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from PIL import Image

from advflyp.config import at_least
from advflyp.data.filenames import writable
from advflyp.data.pairs.images import MIN_SIDE, finish_image, open_image
from advflyp.data.pairs.manifest import Manifest
from advflyp.data.pairs.prefetch import prefetched, threaded
from advflyp.data.pairs.samples import Skipped
from advflyp.data.sets.labelled import LabelledSet, load_set
from advflyp.data.tools.caption_folder import CaptionFolder
from advflyp.data.tools.pack import SUFFIXES, add_member
from advflyp.data.tools.vlm import Captioner, own_device
from advflyp.errors import SkippedSample
from advflyp.files import draft_file

MODEL = "Qwen/Qwen2.5-VL-3B-Instruct"
PROMPT = "Describe this image with no more than 50 words"
# Larger images are reduced to this for the model: in a batch of 16, one of 12 megapixels would fill the memory.
MAX_PIXELS = 1 << 20
WORKERS = 4


@dataclass(frozen=True, kw_only=True)
class Options:
    """How images are captioned; each field is the option of that name of `advflyp data caption`.

    Attributes:
        part: "i/n" with i from 0; by default RANK and WORLD_SIZE of torchrun, else all.
        per_shard: Images of a shard; skipped ones are missing from it.

    Raises:
        ValueError: For an impossible value.
    """

    out: Path
    model: str = MODEL
    prompt: str = PROMPT
    batch_size: int = 16
    max_new_tokens: int = 96
    limit: int | None = None
    dtype: str = "bf16"
    device: str = "auto"
    part: str | None = None
    per_shard: int = 1000

    def __post_init__(self) -> None:
        at_least(1, self, "--", "batch_size", "max_new_tokens", "per_shard")
        if not self.prompt.strip():
            raise ValueError("--prompt is empty; say what the model is to do with an image")

    def settings(self, parts: int, images: str) -> dict[str, Any]:
        """What the result depends on."""
        names = ("model", "prompt", "max_new_tokens", "dtype", "limit", "per_shard")
        fixed = {"max_pixels": MAX_PIXELS, "parts": parts, "images": images}
        return {name: getattr(self, name) for name in names} | fixed


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """What a call leaves in `out`.

    Attributes:
        part: (i, n): this process was part i of n.
        pairs: Pairs in all shards of this part.
        fresh: Images processed by this call; the others were done before.
        skipped: Skipped images of this part.
        manifest: The manifest of all parts; None while others are unfinished.
    """

    out: Path
    part: tuple[int, int]
    pairs: int
    fresh: int
    skipped: Skipped
    manifest: Manifest | None


def caption(name: str, options: Options, progress: Callable[[int, int], None] | None = None) -> Captioned:
    """Caption the images of the labelled set `name` into shards; resume where an earlier call stopped.

    Members are KEY.jpg, .png or .webp (the original file if it has one of these formats, else a PNG), KEY.txt
    and KEY.json (key, class, label, model, prompt); KEY is the image's position in the set. Whichever process finishes
    last writes the manifest.

    Args:
        name: As in `load_set`.
        options: How to caption them.
        progress: Called with the number of images of this part that are done, and of all its images.

    Raises:
        ValueError: An argument is invalid, the folder holds something else or was begun with other arguments, or not
            one image of the set could be captioned.
    """
    own_device(options.device)  # reports a mistake before any image is read
    number, parts = which_part(options.part)
    labelled = load_set(name)
    places = labelled.subset(options.limit, seed=0)
    # In set order, each shard would hold one class. Shuffling also makes an unfinished run a fair sample.
    random.Random(0).shuffle(places)
    settings = options.settings(parts, _fingerprint(labelled, places))
    folder = CaptionFolder(options.out.expanduser(), name, settings, places)
    folder.check()
    fresh = 0
    if folder.unfinished(number):
        # Before anything is written: most mistakes show here.
        captioner = Captioner(
            options.model,
            options.prompt,
            max_new_tokens=options.max_new_tokens,
            dtype=options.dtype,
            device=options.device,
        )
        folder.begin(captioner.versions)
        fresh = _caption_part(folder, number, _Writer(labelled, captioner, options), progress)
    pairs, skipped = folder.summary([number])
    manifest = folder.finish()
    return Captioned(
        out=folder.out, part=(number, parts), pairs=pairs, fresh=fresh, skipped=skipped, manifest=manifest
    )


def _caption_part(
    folder: CaptionFolder, number: int, writer: "_Writer", progress: Callable[[int, int], None] | None
) -> int:
    """Caption the unfinished shards of a part; return how many images they cover."""
    with folder.own(number):
        # Checked again: another process may have worked on the part while this one loaded the model.
        todo = folder.unfinished(number)
        total = sum(len(folder.places(number, shard)) for shard in folder.shards(number))
        done = before = total - sum(len(folder.places(number, shard)) for shard in todo)
        for shard in todo:
            wanted = folder.places(number, shard)
            told = (lambda n, done=done: progress(done + n, total)) if progress else None
            with draft_file(folder.work, folder.name(number, shard)) as draft:
                pairs, skipped = writer.write(wanted, draft, told)
                folder.finish_shard(draft, number, shard, pairs, skipped)
            done += len(wanted)
    return done - before


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
class _Loaded:
    """An image as it is stored, and as the model sees it."""

    suffix: str
    data: bytes
    image: Image.Image


@dataclass(frozen=True)
class _Writer:
    labelled: LabelledSet
    captioner: Callable[[Sequence[Image.Image]], list[str | None]]
    options: Options

    def write(
        self, places: Sequence[int], file: IO[bytes], progress: Callable[[int], None] | None
    ) -> tuple[int, dict[str, str]]:
        """Caption the images at `places` into a tar; return the number of pairs, and {key: reason} of skipped ones."""
        skipped: dict[str, str] = {}
        done = 0
        with tarfile.open(fileobj=file, mode="w") as tar:
            for batch in prefetched(self._batches(places)):
                captions = iter(self.captioner([one.image for _, one in batch if isinstance(one, _Loaded)]))
                for place, one in batch:
                    key = writable(self.labelled.key(place))
                    caption = next(captions) if isinstance(one, _Loaded) else None
                    if isinstance(one, str):
                        skipped[key] = one
                    elif caption is None:
                        skipped[key] = "refused by the model's processor"
                    elif not caption:
                        skipped[key] = "empty caption"
                    else:
                        self._add(tar, place, key, one, caption)
                done += len(batch)
                if progress is not None:
                    progress(done)
        return done - len(skipped), skipped

    def _add(self, tar: tarfile.TarFile, place: int, key: str, loaded: _Loaded, caption: str) -> None:
        label = int(self.labelled.labels[place])
        about = {"key": key, "class": self.labelled.classes[label], "label": label}
        about |= {"model": self.options.model, "prompt": self.options.prompt}
        add_member(tar, f"{place:09d}.{loaded.suffix}", loaded.data)
        add_member(tar, f"{place:09d}.txt", caption.encode())
        add_member(tar, f"{place:09d}.json", json.dumps(about).encode())

    def _batches(self, places: Sequence[int]) -> Iterator[list[tuple[int, _Loaded | str]]]:
        size = self.options.batch_size
        loaded = threaded(places, self._load, WORKERS, ahead=size)
        while batch := list(islice(loaded, size)):
            yield batch

    def _load(self, place: int) -> _Loaded:
        dataset = self.labelled.dataset
        try:
            # With a border, only a part of the file is the image.
            data = None if dataset.border else dataset.encoded(place)
        except OSError:
            raise SkippedSample("image file cannot be read") from None
        opened = None if data is None else open_image(data)
        image = self.labelled.image(place) if opened is None else finish_image(opened)
        if min(image.size) < MIN_SIDE:
            raise SkippedSample("image is too small")
        seen = _reduced(image)
        if data is not None and opened is not None and opened.format in SUFFIXES:
            return _Loaded(SUFFIXES[opened.format], data, seen)
        stream = io.BytesIO()
        image.save(stream, "PNG")
        return _Loaded("png", stream.getvalue(), seen)


def _reduced(image: Image.Image) -> Image.Image:
    scale = math.sqrt(MAX_PIXELS / (image.width * image.height))
    if scale >= 1:
        return image
    size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def _fingerprint(labelled: LabelledSet, places: Sequence[int]) -> str:
    """Hash of the images' names, labels and order, so that a run never resumes with others."""
    digest = hashlib.sha256(json.dumps(labelled.classes).encode())
    labels = labelled.labels.tolist()
    for place in places:
        digest.update(f"{place}\t{labels[place]}\t{labelled.key(place)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
