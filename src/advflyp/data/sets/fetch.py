"""Downloading the sets of the table, and showing which are there. Only `advflyp data fetch` downloads anything."""

from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.error import URLError

from rich.table import Table

from advflyp.data.mini import mini_sets
from advflyp.data.pairs.addresses import explain_failure
from advflyp.data.sets.catalogue import (
    GROUPS,
    TABLE,
    Entry,
    Source,
    canonical,
    data_folder,
    fetchable,
    how_to_get,
    locate,
    parts,
)
from advflyp.data.sets.labelled import load_set, set_names
from advflyp.files import draft_folder, move
from advflyp.model.repository import ask_hub
from advflyp.wording import counted

HUB = "clip-benchmark"
SHARD_COUNT = "nshards.txt"


def fetch(names: Sequence[str], *, wds: bool = False, say: Callable[[str], None] = print) -> None:
    """Download sets or groups of sets into the data folder; those already there are left alone.

    Args:
        names: As in `set_names`.
        wds: Take the webdataset copy from the Hugging Face hub even if the authors' files can be downloaded.
        say: Called with progress messages.

    Raises:
        ValueError: A name is unknown, a set has to be downloaded by hand, or a download fails.
    """
    for name in set_names(list(names)):
        if canonical(name) is None:
            say(f"{name}: {counted(len(load_set(name)), 'image')}, nothing to fetch")
            continue
        _, entry, split = parts(name)
        source: Source = "webdataset" if wds and split in entry.wds_splits else "any"
        if locate(name, source) is None:
            _download(name, source, say)
        labelled = load_set(name, source=source)
        count = f"{counted(len(labelled), 'image')}, {counted(len(labelled.classes), 'class')}"
        if split == entry.every_split[0] and len(labelled) != entry.n:
            count += f" (published: {counted(entry.n, 'image')})"
        say(f"{name}: {count}")


def _download(name: str, source: Source, say: Callable[[str], None]) -> None:
    _, entry, split = parts(name)
    if not fetchable(name):
        raise ValueError(f"{name} cannot be downloaded: {how_to_get(name)}")
    say(f"{name}: downloading; licence: {entry.licence}; {entry.home}")
    data_folder().mkdir(parents=True, exist_ok=True)
    try:
        if split in entry.splits and entry.has_files and source == "any":
            _fetch_files(entry, data_folder())
        else:
            _fetch_wds(entry, split, data_folder())
    except URLError as error:
        address = entry.home if entry.archive is None else entry.archive[0]
        raise ValueError(f"{name} could not be downloaded: {explain_failure(address, error)}") from None
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name} could not be downloaded ({reason}): see {entry.home}") from None


def _fetch_files(entry: Entry, root: Path) -> None:
    """Unpack into a draft folder first, so that a partial download never passes for the set."""
    import torchvision
    from torchvision.datasets.utils import download_and_extract_archive

    with draft_folder(root / entry.title) as staging:
        if entry.archive is not None:
            download_and_extract_archive(entry.archive[0], str(staging), md5=entry.archive[1])
        else:
            assert entry.torchvision is not None
            getattr(torchvision.datasets, entry.torchvision)(str(staging), download=True)
        for child in staging.iterdir():
            if child.is_dir():
                if (root / child.name).exists():
                    raise FileExistsError(17, f"{root / child.name} is in the way; move it")
                move(child, root / child.name)


def _fetch_wds(entry: Entry, split: str, root: Path) -> None:
    from huggingface_hub import snapshot_download

    assert entry.wds is not None
    repository = f"{HUB}/{entry.wds}"
    # Only texts in its root: another split's nshards.txt without its shards would look like a damaged copy.
    texts = [file for file in ask_hub(repository, "dataset") if file.endswith(".txt") and "/" not in file]
    # The file that says the split is whole comes last: an interrupted download is then begun again.
    for ignored in ([SHARD_COUNT, f"*/{SHARD_COUNT}"], None):
        snapshot_download(
            repository,
            repo_type="dataset",
            local_dir=root / entry.wds,
            allow_patterns=[f"{entry.wds_splits[split]}/*", *texts],
            ignore_patterns=ignored,
        )


def overview() -> Table:
    """A table of all named sets, with the splits that are on this machine; the first split is the default."""
    groups = [f"{group}: {', '.join(members)}" for group, members in GROUPS.items()]
    table = Table(
        title=f"Sets by name are looked for in {data_folder()}",
        title_justify="left",
        caption="Groups: " + "; ".join([*groups, "mini: the test sets that come with the package"]),
        caption_justify="left",
    )
    for column in ("set", "images", "classes", "splits", "here"):
        justify = "right" if column in ("images", "classes") else "left"
        table.add_column(column, justify=justify, no_wrap=column == "set")
    for name, entry in TABLE.items():
        here = ", ".join(split for split in entry.every_split if locate(f"{name}@{split}") is not None)
        table.add_row(name, f"{entry.n:,}", f"{entry.k:,}", ", ".join(entry.every_split), here or "no")
    table.add_section()
    for name, info in mini_sets().items():
        images, classes = f"{info['n']:,}", f"{len(info['classes']):,}"
        table.add_row(f"mini/{name}", images, classes, info["split"], "comes with the package")
    return table
