"""Pairs of a Hugging Face dataset, from the hub or from a folder that `save_to_disk` wrote."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HUB_CACHE

from advflyp.config import suggest
from advflyp.data.pairs.addresses import is_remote
from advflyp.data.pairs.samples import Sample
from advflyp.data.pairs.tables import BATCH_ROWS, Columns, Row, all_paths, is_text, joined, to_sample
from advflyp.model.repository import DATASET_PREFIX, ask_hub, hub_offline


def is_hub_dataset(name: str) -> bool:
    """Whether it is written "hf:NAME"; hf://datasets/… is a file."""
    return name.startswith(DATASET_PREFIX) and not is_remote(name)


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file()


class HubPairs:
    """A Hugging Face dataset: "hf:NAME", "hf:NAME@SPLIT", or a folder that `save_to_disk` wrote.

    As in other tables, rows that name the same image file are its captions.

    Raises:
        ValueError: It cannot be loaded, or the package `datasets` is missing.
    """

    def __init__(self, name: str, columns: Columns) -> None:
        if find_spec("datasets") is None:
            raise ValueError(f"{name} needs the package datasets: pip install datasets")
        self.name = name
        place, split = name.removeprefix(DATASET_PREFIX), ""
        if "@" in place and not Path(place).is_dir():
            place, _, split = place.rpartition("@")
        found = _load_dataset(place)
        if isinstance(found, dict):  # {split: dataset}
            split = split or "train"
            if split not in found:
                raise ValueError(f"{place} has no split '{split}'{suggest(split, map(str, found))}")
            found = found[split]
        self.image, self.caption = columns.find(found.column_names, name)
        wanted = [self.image] if self.caption is None else [self.image, self.caption]
        # As they are stored: nothing is decoded, not even inside lists.
        self.data: Any = found.select_columns(wanted).with_format("arrow")
        # A hub dataset may name files in its repository, and those that `datasets` has unpacked.
        self.table = f"{'' if Path(place).is_dir() else 'hf://datasets/'}{place}/{self.image}"
        config: Any = import_module("datasets.config")
        self.local = [Path(config.HF_DATASETS_CACHE), Path(HF_HUB_CACHE)]
        text = is_text(found.features.arrow_schema.field(self.image).type)
        of_paths = len(self.data) > 0 and (text or all_paths(image for _, _, image, _ in self._rows()))
        self.joined = joined(self._rows(), name, self.local) if of_paths else None

    def __len__(self) -> int:
        return len(self.data) if self.joined is None else len(self.joined)

    def __getitem__(self, number: int) -> Sample:
        if self.joined is not None:
            return self.joined[number]
        name, row = f"{self.name}:{number}", self.data[number]
        caption = None if self.caption is None else row.column(self.caption)[0]
        return replace(to_sample(name, row.column(self.image)[0], caption, self.table, self.local), key=name)

    def _rows(self) -> Iterator[Row]:
        number = 0
        for part in self.data.iter(BATCH_ROWS):
            texts = None if self.caption is None else part.column(self.caption)
            for row, image in enumerate(part.column(self.image)):
                yield self.table, number, image, None if texts is None else texts[row]
                number += 1


def _load_dataset(place: str) -> Any:
    """Load a folder or a name on the hub with `datasets`; the latter from the cache, if the hub does not serve it."""
    refusal: ValueError | None = None
    if not Path(place).is_dir():
        try:
            ask_hub(place, "dataset")
        except ValueError as error:
            refusal = error
    # Slow to import.
    import datasets  # pyright: ignore[reportMissingImports], an extra

    try:
        if Path(place).is_dir():
            return datasets.load_from_disk(place)
        with nullcontext() if refusal is None else hub_offline():
            return datasets.load_dataset(place)
    except Exception as error:  # its errors are of a dozen kinds
        if refusal is not None:
            raise refusal from None
        raise ValueError(f"cannot open the dataset {place}: {type(error).__name__}: {error}") from None
