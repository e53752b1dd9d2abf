"""`advflyp data download`: a list of addresses → webdataset shards, by img2dataset in an environment of its own.

The list is processed in rounds, so that the download stops once enough pairs are there: the first round tries as many
addresses as pairs are wanted, later ones as many as the missing pairs need at the success rate so far. Each round is a
run of img2dataset in a work folder, from which finished shards move to OUT under sequential names. `OUT/.download`
holds the state; the same command resumes a download, however it ended.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from advflyp.config import at_least, suggest
from advflyp.data.pairs.manifest import Manifest, describe_shards, read_manifest, write_manifest
from advflyp.data.web.isolation import find_img2dataset
from advflyp.data.web.rounds import PRIVATE, WORK, Rounds, State
from advflyp.data.web.url_list import UrlList, open_urls
from advflyp.documents import parse_json
from advflyp.files import file_sha256, lock, names_in
from advflyp.wording import counted

MAX_BYTES = 32 << 20
# Seconds to wait for a run that was just killed: img2dataset's processes hold the lock too.
WAIT = 10.0
# img2dataset arguments that our options set, and those that nobody may set.
ARGUMENTS = {
    "image_size": "size", "encode_quality": "quality", "resize_mode": "resize_mode", "thread_count": "threads",
    "processes_count": "processes", "timeout": "timeout", "retries": "retries", "distributor": "distributor",
}  # fmt: skip
OWN = {theirs: f"--{ours.replace('_', '-')}" for theirs, ours in ARGUMENTS.items()} | {
    "number_sample_per_shard": "--shard-size", "url_col": "--url-column", "caption_col": "--caption-column",
    "url_list": "the list", "output_folder": "--out",
    "output_format": "", "input_format": "", "incremental_mode": "", "oom_shard_count": "",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a list is downloaded; each field is the option of that name of `advflyp data download`.

    Only http and https are used; every connection checks its address, also after a redirect
    (`isolated/advflyp_guard.py`). A proxy set in the environment may itself be private. Images whose servers opt out by
    X-Robots-Tag (noai, noimageai, noindex, noimageindex) are skipped, img2dataset's default unless `extra` changes it.

    Attributes:
        shard_size: Rows of the list per shard, which holds fewer pairs; by default 10,000, or fewer for a small `num`.
        timeout: Seconds without data before a download is given up; a whole response may take six times as long.
        extra: Further arguments of `img2dataset.download`, as "key=value"; values are parsed as JSON if possible.

    Raises:
        ValueError: For an impossible value.
    """

    out: Path
    num: int | None = None
    size: int = 256
    quality: int = 95
    resize_mode: str = "keep_ratio"
    shard_size: int | None = None
    processes: int | None = None
    threads: int = 64
    timeout: int = 10
    retries: int = 0
    distributor: str = "multiprocessing"
    allow_private: bool = False
    max_bytes: int = MAX_BYTES
    img2dataset: str | None = None
    extra: Sequence[str] = ()
    url_column: str | None = None
    caption_column: str | None = None

    def __post_init__(self) -> None:
        names = ("num", "size", "shard_size", "processes", "threads", "timeout", "max_bytes")
        at_least(1, self, "--", *names)
        if not 0 <= self.quality <= 100:
            raise ValueError(f"--quality must be between 0 and 100, not {self.quality}")

    @property
    def limits(self) -> dict[str, Any]:
        """The limits of the guard; see `isolated/advflyp_guard.py`."""
        seconds = 6.0 * self.timeout
        return {"allow_private": self.allow_private, "max_bytes": self.max_bytes, "seconds": seconds}

    def arguments(self, further: dict[str, Any]) -> dict[str, Any]:
        """The arguments of `img2dataset.download`."""
        ours = {theirs: getattr(self, name) for theirs, name in ARGUMENTS.items()}
        processes = self.processes or len(os.sched_getaffinity(0))
        fixed = {"processes_count": processes, "resize_only_if_bigger": True, "extract_exif": False}
        return {**ours, **fixed, **further}


def download(urls: Path, options: Options, say: Callable[[str], None] = lambda _: None) -> Manifest:
    """Download the images of a list to webdataset shards, with their captions, and describe them in a manifest.

    Args:
        urls: The list; see `open_urls`.
        options: How to download it.
        say: Called with progress messages.

    Raises:
        ValueError: An argument is invalid, the folder holds something else, or img2dataset is not available.
    """
    source = open_urls(urls, url_column=options.url_column, caption_column=options.caption_column)
    further = parse_extra(options.extra)
    columns = _extra_columns(further, source)
    out = options.out.expanduser()
    _check_folder(out)
    wanted = options.num or source.wanted()
    if wanted is not None and wanted > source.rows:
        say(f"{counted(wanted, 'pair')} wanted, but {source.path} has only {counted(source.rows, 'row')}")
    # What the images depend on.
    settings = {
        "size": options.size,
        "quality": options.quality,
        "resize_mode": options.resize_mode,
        "columns": [source.url, source.caption],
        "extra": further,
    }
    digest = file_sha256(source.path)
    state = _resumed(out, digest, settings, options.shard_size)
    if state is None:
        rows = options.shard_size or min(10_000, max(500, (wanted or source.rows) // 32))
        state = State(digest, {**settings, "shard_size": rows})
    elif options.allow_private and (refused := state.failures.get(PRIVATE, 0)):
        raise ValueError(
            f"{out} was begun without --allow-private, and what was refused then is not tried again "
            f"({counted(refused, PRIVATE)}); use another folder"
        )
    runner = find_img2dataset(options.img2dataset, options.distributor, say)
    for key in further:
        if key not in runner.parameters:
            raise ValueError(f"img2dataset has no argument '{key}'{suggest(key, runner.parameters)}")
    with lock(out / WORK / "lock", wait=WAIT) as held:
        # Reloaded: the download may have gone on until this process got the lock.
        state = _resumed(out, digest, settings, options.shard_size) or state
        arguments = options.arguments(further)
        work = Rounds(out, source, state, runner, arguments, options.limits, columns, wanted, held, say)
        fresh = work.run()
        how = {"distributor": options.distributor, "allow_private": options.allow_private}
        return _finish(work, fresh, how)


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder")
    place = str(out.resolve())
    if set("*?[") & set(place) or "::" in place:
        raise ValueError(
            f"{place} contains characters that img2dataset treats as a pattern; use another folder"
        )
    if out.is_dir() and not (out / WORK).is_dir() and names_in(out):
        raise ValueError(f"{out} holds other files; name a new folder, or one of an unfinished download")


def parse_extra(extra: Sequence[str]) -> dict[str, Any]:
    """["key=value"] → arguments; ValueError for those that advflyp sets itself."""
    found: dict[str, Any] = {}
    for one in extra:
        key, separator, value = one.partition("=")
        key = key.strip().lstrip("-").replace("-", "_")
        if not separator or not key:
            raise ValueError(f"--extra takes key=value, not '{one}'")
        if key in OWN:
            instead = f"; it is set by {OWN[key]}" if OWN[key] else ""
            raise ValueError(f"--extra cannot set {key}{instead}")
        try:
            found[key] = parse_json(value)
        except ValueError:
            found[key] = {"True": True, "False": False, "None": None}.get(value, value)
    return found


def _extra_columns(further: dict[str, Any], source: UrlList) -> list[str]:
    """Columns of the list that further arguments tell img2dataset to use."""
    for name in ("save_additional_columns", "verify_hash"):
        if not isinstance(further.get(name) or [], list):
            raise ValueError(
                f"--extra {name} takes a list, for example {name}='[\"license\"]', not {further[name]}"
            )
    named: list[Any] = [further.get("bbox_col"), *(further.get("save_additional_columns") or [])]
    named += (further.get("verify_hash") or [])[:1]
    columns = list(dict.fromkeys(str(name) for name in named if name is not None))
    for name in columns:
        if name not in source.columns:
            raise ValueError(f"{source.path} has no column '{name}'{suggest(name, source.columns)}")
    return columns


def _resumed(out: Path, sha256: str, settings: dict[str, Any], shard_size: int | None) -> State | None:
    state = State.load(out / WORK)
    if state is None:
        return None
    if state.list_sha256 != sha256:
        raise ValueError(f"{out} was begun with another list; use another folder")
    for key, value in {**settings, "shard_size": shard_size or state.settings["shard_size"]}.items():
        if state.settings[key] != value:
            raise ValueError(
                f"{out} was begun with {key} = {state.settings[key]}, not {value}; use that, or another folder"
            )
    return state


def _finish(work: Rounds, fresh: bool, how: dict[str, Any]) -> Manifest:
    """Write the manifest; the shards are read again only if they have changed since the last one."""
    state, source, runner = work.state, work.source, work.runner
    shards = [work.out / name for name in state.shards]
    for shard in shards:
        if not shard.is_file():
            raise ValueError(f"{shard} is missing; put it back, or download to another folder")
    manifest = None if fresh else read_manifest(work.out)
    if manifest is None or [shard.name for shard in manifest.shards] != state.shards:
        manifest = describe_shards(shards, failures=state.failures)
    complete = work.wanted is None or manifest.pairs >= work.wanted
    record = {
        "list": source.path.name,
        "list_sha256": state.list_sha256,
        "list_rows": source.rows,
        "rows_tried": state.rows,
        "wanted": work.wanted,
        "complete": complete,
        "list_exhausted": work.exhausted,
        "seed": source.metadata.get("seed"),
        "sample": source.metadata,
        "settings": {**state.settings, **how},
        "rounds": state.rounds,
        "seconds": round(state.seconds, 1),
    }
    versions = {"img2dataset": runner.version, "img2dataset_python": runner.python_version}
    versions = {**manifest.versions, **versions, "opencv": runner.opencv}
    manifest = replace(manifest, source=record, versions=versions)
    write_manifest(work.out, manifest)
    if not complete:
        work.say(
            f"the list is exhausted: its {counted(state.rows, 'address')} gave {manifest.pairs:,} of the "
            f"{work.wanted:,} pairs wanted; use a longer list"
        )
    return manifest
