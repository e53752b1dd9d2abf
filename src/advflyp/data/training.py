"""Training data for every kind of method: how `data.train` can be read, and labelled images as batches.

Batches of labelled images are ordered, resumed and counted like those of pairs; the underlying set is read as for an
evaluation.
"""

from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch.utils.data import Subset

from advflyp.data.config import DataConfig
from advflyp.data.filenames import LABEL_SUFFIX, is_image, parse_member, shards_in, walk
from advflyp.data.mini import EMBEDDED, PROXY
from advflyp.data.mini.compose import MiniLabelled, MiniPairs, corpus_folder, labelled_concepts
from advflyp.data.pairs.addresses import is_remote
from advflyp.data.pairs.folder_pairs import FolderPairs, has_pairs
from advflyp.data.pairs.hub_pairs import is_saved_dataset
from advflyp.data.pairs.images import ImageReader
from advflyp.data.pairs.objects import DatasetPairs, IterablePairs
from advflyp.data.pairs.pairs import Decoded, Pairs, Reading, Tokenizer, open_pairs
from advflyp.data.pairs.samples import Sharded
from advflyp.data.pairs.shards import TarShard
from advflyp.data.pairs.sources import find_shards
from advflyp.data.pairs.stream import IndexedStream, Mixed
from advflyp.data.pairs.tables import SUFFIXES as TABLES
from advflyp.data.pairs.tars import DamagedTar, members, unpacked
from advflyp.data.sets.catalogue import canonical
from advflyp.data.sets.folders import check_no_splits, class_folders, has_shards
from advflyp.data.sets.images import balanced, drawn_classes, represented
from advflyp.data.sets.labelled import LabelledSet, load_set
from advflyp.data.sets.prompts import fill
from advflyp.errors import SkippedSample
from advflyp.limits import open_regular
from advflyp.share import Share

Kind = Literal["pairs", "labelled"]

PROXY_SET = f"mini/{PROXY}"
# The same images as pairs, with the captions that the corpus has for them.
PROXY_PAIRS = f"mini/{PROXY}-captioned"
# Members to read from a shard to see what its samples consist of.
PEEK = 60
# Not JSON, which also accompanies labelled images.
CAPTIONS = ("txt", "caption")


@runtime_checkable
class LabelledBatches(Pairs, Protocol):
    """A source of labelled batches: they hold "labels" (N,) int64, and as captions the prompts of their classes.

    Attributes:
        classes, templates: As in `LabelledSet`.
        caption_templates: Those of the captions: one, or several if each caption draws one.
        represented: The classes that have images.
    """

    classes: list[str]
    templates: list[str]
    caption_templates: list[str]
    represented: list[str]


class DecodedLabelled(Decoded[tuple[int, int]]):
    """Batches of a labelled set; see `LabelledBatches`. `config.limit` selects class-balanced images."""

    def __init__(self, labelled: LabelledSet, how: Reading) -> None:
        self.labelled = labelled
        places = drawn_classes(range(len(labelled.classes)), how.config.classes, how.seed)
        # By place: two classes of ImageNet are called "missile", and two "sunglasses".
        self.classes = [labelled.classes[place] for place in places]
        number = {place: label for label, place in enumerate(places)}
        drawn = [
            (place, number[label]) for place, label in enumerate(labelled.labels.tolist()) if label in number
        ]
        chosen_rows = balanced([label for _, label in drawn], how.config.limit, how.seed)
        self.rows = [drawn[row] for row in chosen_rows]  # place in the set, label
        self.represented = represented(self.classes, (label for _, label in self.rows))
        chosen = how.config.chosen_templates()
        self.templates = chosen or labelled.templates
        self.caption_templates = chosen or self.templates[:1]
        super().__init__(how, IndexedStream(self.rows, seed=how.seed, share=how.share), "image")

    def key(self, sample: tuple[int, int]) -> str:
        return self.labelled.key(sample[0])

    def decode(self, sample: tuple[int, int], epoch: int) -> dict[str, Any]:
        place, label = sample
        template = Random(f"{self.how.seed}/{epoch}/{place}").choice(self.caption_templates)
        image = self.how.reader.from_image(self.labelled.image(place))
        return {"images": image, "labels": label, "captions": fill(template, self.classes[label])}


def open_training(
    config: DataConfig,
    wanted: Literal["pairs", "labelled", "images"],
    reader: ImageReader,
    *,
    seed: int,
    device: torch.device,
    share: Share | None = None,
    tokenizer: Tokenizer | None = None,
    data: Any = None,
) -> Pairs:
    """The source that `config.train` names.

    Args:
        config: The recipe table `data`.
        wanted: What the method trains on; "images" takes whatever is there. A "labelled" source is a `LabelledBatches`.
        reader: The preprocessing of the model.
        seed: Random seed of the order, together with the epoch.
        device: Device of the batches.
        share: Which rows of each batch this rank makes; all by default.
        tokenizer: Tokenizes the captions, if tokens are wanted with the batch.
        data: An object to train on instead of `config.train`, which then only names it in messages: a `LabelledSet`,
            or pairs (see `open_objects`).

    Raises:
        ValueError: The source does not exist, holds too few samples, or is not of the kind that the method trains on.
    """
    share = share or Share(config.batch_size, drop_last=config.drop_last)
    how = Reading(config=config, reader=reader, seed=seed, device=device, share=share, tokenizer=tokenizer)
    if config.source is not None and (data is not None or not _is_of_mini(config.train)):
        raise ValueError(
            f"data.source chooses sources of a mini corpus; {config.train} has none, leave it out"
        )
    if data is not None:
        _check_kind(data, wanted)
    elif config.train == PROXY_PAIRS:
        _check_no_also(config, "the mini corpus")
        concepts = labelled_concepts(load_set(PROXY_SET).classes, config, seed)
        return MiniPairs(EMBEDDED, how, concepts)
    elif (corpus := corpus_folder(config.train)) is not None and wanted != "labelled":
        _check_no_also(config, "the mini corpus")
        _check_no_classes(config)
        return MiniPairs(corpus, how)
    elif wanted == "labelled" or (wanted == "images" and readings(config.train) == {"labelled"}):
        _check_no_also(config, "labelled images")
        data = load_set(config.train)
        if config.train == PROXY_SET:
            classes = labelled_concepts(data.classes, config, seed)
            return MiniLabelled(EMBEDDED, how, classes, data.templates)
    if isinstance(data, LabelledSet):
        _check_no_also(config, "labelled images")
        return DecodedLabelled(data, how)
    _check_no_classes(config)
    return open_pairs(how, captions=wanted == "pairs", pairs=data)


def unused_keys(pairs: Pairs) -> list[tuple[str, str]]:
    """What an opened source never reads of the recipe table `data`: keys, with spaces between them, and why."""
    of_tables = "data.size data.image_column data.caption_column"
    if isinstance(pairs, MiniPairs):
        keys = "data.loader data.resize data.interpolation data.shuffle_buffer data.max_bad_fraction"
        return [(f"{keys} {of_tables}", "a mini corpus is in memory, and its images are composed")]
    if isinstance(pairs, DecodedLabelled):
        return [(f"data.shuffle_buffer {of_tables}", "labelled images are not read in the order of shards")]
    stream = pairs.stream if isinstance(pairs, Decoded) else None
    streams = (stream.main, stream.other) if isinstance(stream, Mixed) else (stream,)
    found = []
    if all(isinstance(one, IndexedStream) for one in streams):
        found.append(("data.shuffle_buffer data.size", "the pairs are not in shards"))
    if not any(one is None or _is_of_tables(one) for one in streams):
        found.append(("data.image_column data.caption_column", "the pairs are not in a table"))
    return found


def _is_of_tables(stream: Any) -> bool:
    """Whether the samples of a stream are the rows of tables, rather than files or the items of an object."""
    source = stream.source.dataset if isinstance(stream.source, Subset) else stream.source
    parts = source.shards if isinstance(source, Sharded) else [source]
    return not all(isinstance(part, FolderPairs | TarShard | DatasetPairs | IterablePairs) for part in parts)


def _check_no_also(config: DataConfig, what: str) -> None:
    if config.also is not None:
        raise ValueError(f"data.also mixes decoded pairs; it cannot be combined with {what}")


def _check_no_classes(config: DataConfig) -> None:
    if config.classes is not None:
        raise ValueError(f"data.classes is for labelled data; {config.train} is read as pairs, leave it out")


def _is_of_mini(train: str) -> bool:
    return train in (PROXY_SET, PROXY_PAIRS) or corpus_folder(train) is not None


def _check_kind(data: Any, wanted: str) -> None:
    """ValueError if an object is not of the kind that the method trains on."""
    if wanted == "labelled" and not isinstance(data, LabelledSet):
        raise ValueError(
            "this method trains on labels; give an advflyp.LabelledSet(dataset, classes, templates)"
        )
    if wanted == "pairs" and isinstance(data, LabelledSet):
        raise ValueError(
            f"{data.name} is a labelled set, and this method trains on pairs; give (image, caption) items, or choose a "
            "method that trains on labels"
        )


def readings(train: str) -> set[Kind]:
    """How `data.train` can be read, judging by its name and a glance at the files; empty if these do not tell.

    Raises:
        ValueError: The folder holds whole splits, so that one of them has to be named.
    """
    if train == PROXY_PAIRS or corpus_folder(train) is not None:
        return {"pairs"}
    if train.startswith(("mini/", "folder:", "wds:")) or canonical(train) is not None:
        return {"labelled"}
    if is_remote(train) or train.startswith("hf:") or train.lower().endswith(TABLES):
        return {"pairs"}
    path = Path(train).expanduser()
    if path.is_dir():
        if is_saved_dataset(path):
            return {"pairs"}
        if not shards_in(path):
            check_no_splits(path, likely="train")
        if not has_shards(path):
            return _folder_readings(path)
    try:
        return _shard_readings(find_shards(train)[0])
    except ValueError:
        return set()


def _folder_readings(folder: Path) -> set[Kind]:
    found: set[Kind] = set()
    if has_pairs(folder):
        found.add("pairs")
    classes = (files for name in class_folders(folder) for _, files in walk(folder / name))
    if any(is_image(file) for files in classes for file in files):
        found.add("labelled")
    return found


def _shard_readings(shard: Path) -> set[Kind]:
    found: set[Kind] = set()
    try:
        with open_regular(shard) as file, unpacked(file) as stream:
            for member in islice(members(stream, 0, lambda *_: 0), PEEK):
                name = parse_member(member.name)
                if name is not None and name.suffix in CAPTIONS:
                    found.add("pairs")
                elif name is not None and name.suffix == LABEL_SUFFIX:
                    found.add("labelled")
    except (SkippedSample, OSError, DamagedTar):
        pass  # reported when the shard is opened
    return found
