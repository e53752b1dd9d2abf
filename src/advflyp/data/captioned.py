"""Pictures with their captions, to search one by the other: webdataset shards, or a folder of name.jpg + name.txt.

Every line of a text is a caption, as in the shards of COCO Captions and Flickr30k that clip-benchmark reads
(`wds_mscoco_captions`: KEY.jpg, and KEY.txt with five lines). img2dataset's shards have one line; further members
such as KEY.json are passed over.
"""

import hashlib
import json
import random
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from webdataset.tariterators import base_plus_ext

from advflyp.data.images import IMAGE_SUFFIXES, on_white
from advflyp.data.labelled import TOLERATED
from advflyp.data.pictures import UNREADABLE, decode
from advflyp.data.prefetch import threaded
from advflyp.data.sources import find_shards


@dataclass(frozen=True)
class Entry:
    """A picture that is not decoded yet, and its captions.

    key:      its path below the folder, or SHARD:KEY
    place:    number of the picture among all that the shards or the folder hold
    captions: at least one
    file, offset, size: where its bytes are; size −1 is the whole file
    """

    key: str
    place: int
    captions: tuple[str, ...]
    file: Path
    offset: int = 0
    size: int = -1

    def read(self) -> bytes:
        with open(self.file, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class CaptionedPictures:
    """The pictures of `pairs` and their captions; what cannot be used is in `unreadable`, {key: reason}.

    pairs: a folder of pictures with texts of the same name, or plain tars: a file, a folder, a glob, "{000..099}.tar"
    limit: take only so many, drawn by `seed`; a smaller limit takes a part of what a larger one takes
    usable: how many there are without the limit
    ValueError where there are no pairs, and when more than 1 % of those wanted cannot be used.
    """

    def __init__(self, pairs: str | Path, *, limit: int | None = None, seed: int = 0) -> None:
        if limit is not None and limit < 2:
            raise ValueError(f"limit must be at least 2, not {limit}: a picture is searched for among others")
        self.name = str(pairs)
        self.unreadable: dict[str, str] = {}
        every = self._from_folder(Path(pairs)) if _is_plain_folder(Path(pairs)) else self._from_shards()
        self._check(self.unreadable, len(every) + len(self.unreadable))
        self.usable = len(every)
        order = list(range(len(every)))
        if limit is not None and limit < len(every):
            random.Random(seed).shuffle(order)
            order = sorted(order[:limit])
        self.entries = [every[number] for number in order]
        if len(self.entries) < 2:
            raise ValueError(
                f"{self.name} holds {len(self.entries)} pictures with captions; retrieval needs two or more"
            )

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def captions(self) -> list[str]:
        """All captions, picture by picture."""
        return [caption for entry in self.entries for caption in entry.captions]

    @property
    def owner(self) -> Tensor:
        """(captions,) int64: which picture a caption belongs to."""
        return torch.tensor([row for row, entry in enumerate(self.entries) for _ in entry.captions])

    @property
    def places(self) -> Tensor:
        """(pictures,) int64: their places among all, whatever the limit."""
        return torch.tensor([entry.place for entry in self.entries])

    def sha256(self) -> str:
        """Of names and captions: the same pairs in another place are the same."""
        content = [[entry.key, *entry.captions] for entry in self.entries]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def batches(
        self, preprocess: Callable[[Image.Image], Tensor], batch_size: int, workers: int = 4
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows (N,) int64 and images (N, 3, H, W) in [0, 1], in order; decoded in threads, two batches ahead.

        A picture that cannot be decoded is left out and entered in `unreadable`; `drop_unreadable` forgets it.
        """
        broken: dict[str, str] = {}
        rows: list[int] = []
        images: list[Tensor] = []
        for row, image in enumerate(self._decoded(preprocess, workers, 2 * batch_size)):
            if isinstance(image, str):
                broken[self.entries[row].key] = image
                self._check(broken, len(self.entries))
                continue
            rows.append(row)
            images.append(image)
            if len(rows) == batch_size:
                yield torch.tensor(rows), torch.stack(images)
                rows, images = [], []
        if rows:
            yield torch.tensor(rows), torch.stack(images)
        self.unreadable |= broken

    def drop_unreadable(self) -> None:
        """Forget the pictures that `batches` could not decode, captions and all."""
        self.entries = [entry for entry in self.entries if entry.key not in self.unreadable]

    def _decoded(
        self, preprocess: Callable[[Image.Image], Tensor], workers: int, ahead: int
    ) -> Iterator[Tensor | str]:
        def decoded(entry: Entry) -> Tensor | str:
            try:
                return preprocess(on_white(decode(entry.read())))
            except UNREADABLE as error:
                return f"{type(error).__name__}: {error}"

        return (image for _, image in threaded(self.entries, decoded, workers, ahead))

    def _from_folder(self, folder: Path) -> list[Entry]:
        files = sorted(
            path for path in folder.rglob("*") if path.suffix.lower().lstrip(".") in IMAGE_SUFFIXES
        )
        if not any(file.with_suffix(".txt").is_file() for file in files):
            found = f"{len(files)} pictures but no caption" if files else "no picture"
            raise ValueError(
                f"{folder} holds {found}: put a name.txt beside every name.jpg, or name *.tar shards"
            )
        entries = []
        for place, file in enumerate(files):
            text = file.with_suffix(".txt")
            raw = text.read_bytes() if text.is_file() else None
            self._add(entries, Entry(file.relative_to(folder).as_posix(), place, _lines(raw), file), raw)
        return entries

    def _from_shards(self) -> list[Entry]:
        # As in clip-benchmark's folders, which hold dataset_type.txt beside the splits.
        test = Path(self.name) / "test"
        try:
            shards = find_shards(str(test if list(test.glob("*.tar*")) else self.name))
        except ValueError:
            raise ValueError(
                f"there are no pairs at {self.name}; name a folder of name.jpg + name.txt or webdataset shards such "
                'as "shards/{000..099}.tar"'
            ) from None
        entries: list[Entry] = []
        place = 0
        for shard in shards:
            for key, (raw, span) in _members(shard).items():
                name = f"{shard.name}:{key}"
                if span is None:
                    self.unreadable[name] = "no picture"
                else:
                    self._add(entries, Entry(name, place, _lines(raw), shard, *span), raw)
                place += 1
        if not place:
            raise ValueError(f"{shards[0]}{' and the others' if len(shards) > 1 else ''} hold no pairs")
        return entries

    def _add(self, entries: list[Entry], entry: Entry, raw: bytes | None) -> None:
        if entry.captions:
            entries.append(entry)
        else:
            self.unreadable[entry.key] = "no caption" if raw is None else "empty caption"

    def _check(self, unusable: dict[str, str], wanted: int) -> None:
        if len(unusable) > TOLERATED * wanted:
            some = [f"{key} ({reason})" for key, reason in unusable.items()][:3]
            raise ValueError(
                f"{self.name}: more than {TOLERATED:.0%} of {wanted} pairs cannot be used; mend or remove them: "
                f"{', '.join(some)}{', …' if len(unusable) > 3 else ''}"
            )


def _is_plain_folder(path: Path) -> bool:
    return path.is_dir() and not list(path.glob("*.tar*")) and not list((path / "test").glob("*.tar*"))


def _lines(raw: bytes | None) -> tuple[str, ...]:
    """The captions of a text: its lines, without the empty ones."""
    lines = (raw or b"").decode("utf-8", errors="replace").splitlines()
    return tuple(caption for line in lines if (caption := " ".join(line.split())))


def _members(shard: Path) -> dict[str, tuple[bytes | None, tuple[int, int] | None]]:
    """Text and picture (offset, size) of each key that has one of them, in the order of the tar."""
    texts: dict[str, bytes] = {}
    pictures: dict[str, tuple[int, int]] = {}
    keys: dict[str, None] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                key, suffix = base_plus_ext(member.name)
                if not member.isfile() or key is None or suffix is None:
                    continue
                if suffix.lower() == "txt":
                    data = tar.extractfile(member)
                    assert data is not None
                    texts[key] = data.read()
                elif suffix.lower() in IMAGE_SUFFIXES:
                    pictures[key] = (member.offset_data, member.size)
                else:
                    continue
                keys[key] = None
    except (tarfile.TarError, OSError) as error:
        hint = "; unpack it with gunzip first" if shard.suffix == ".gz" else ""
        raise ValueError(f"{shard} is not a readable tar file: {error}{hint}") from None
    return {key: (texts.get(key), pictures.get(key)) for key in keys}
