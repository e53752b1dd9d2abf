"""The rounds of a download: its progress, the next run of img2dataset, and the results of the last."""

import contextlib
import json
import math
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from advflyp.config import fill
from advflyp.data.pairs.manifest import describe_shards
from advflyp.data.web.isolation import Img2dataset, Running
from advflyp.data.web.url_list import UrlList
from advflyp.documents import read_json, read_json_object
from advflyp.files import move, write_text
from advflyp.wording import counted

WORK = ".download"
PRIVATE = "private address"
TAR_END = bytes(1024)
# A disk with fewer bytes free is full.
SPACE = 1 << 20
# Servers word their errors freely; these are the ones worth telling apart.
REASONS = (
    (r"private address", PRIVATE),
    (r"X-Robots-Tag", "opted out (X-Robots-Tag)"),
    (r"timed out", "timed out"),
    (r"answer is too large", "answer is too large"),
    (r"HTTP Error 30\d:.*(not allowed|infinite loop)", "bad redirect"),
    (r"HTTP Error (\d+)", r"HTTP \1"),
    (r"unknown url type|no host given|control characters|Invalid URL|nonnumeric port", "bad address"),
    (r"codec can't encode|label (empty|too long)|Invalid IPv6 URL|Port (out of range|could not)", "bad address"),
    (r"Name or service not known|No address associated|name resolution|getaddrinfo|nodename", "host not found"),
    (r"SSL|CERTIFICATE|certificate", "TLS error"),
    (r"refused|reset by peer|unreachable|No route|Broken pipe|closed connection", "connection failed"),
    (r"IncompleteRead", "answer was cut off"),
    (r"BadStatusLine|LineTooLong|got more than|UNKNOWN PROTOCOL", "not HTTP"),
    (r"Image decoding error|imdecode|cannot reshape|imread_", "not an image"),
    (r"IMAGE_PIXELS|validateInputImageSize|area too large", "image has too many pixels"),
)  # fmt: skip


@dataclass
class State:
    """The progress of a download, stored in `OUT/.download/state.json`.

    Attributes:
        settings: What the shards' contents depend on.
        rows: How many rows of the list are done.
        pairs: Usable pairs in the finished `shards`.
        next_shard: Number of img2dataset's next shard; the keys in it begin with this number.
        failures: {reason: rows}, of the finished `rounds`.
        seconds: How long img2dataset has worked.
        current: The running round: start, stop, count (rows in its slice), bad ({reason: rows left out of it}).
        moving: [[where, name]]: shards of the last round that may still have to be moved.
    """

    list_sha256: str
    settings: dict[str, Any]
    rows: int = 0
    pairs: int = 0
    shards: list[str] = field(default_factory=list)
    next_shard: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    rounds: int = 0
    seconds: float = 0.0
    current: dict[str, Any] | None = None
    moving: list[list[str]] = field(default_factory=list)

    def save(self, work: Path) -> None:
        write_text(work / "state.json", json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, work: Path) -> "State | None":
        path = work / "state.json"
        if not path.is_file():
            return None
        try:
            return fill(cls, read_json(path))
        except ValueError:
            raise ValueError(
                f"{path} is damaged; download to another folder, or remove {work.parent}"
            ) from None


def round_rows(missing: int, tried: int, pairs: int, left: int, wanted: int) -> int:
    """How many rows the next round takes.

    Args:
        missing: Pairs still wanted; tried, pairs: rows and good pairs so far; left: rows not tried yet.

    The first round cannot overshoot; later ones take 2 % more rows than the success rate so far suggests, so that few
    rounds are needed.
    """
    if tried == 0:
        return min(missing, left)
    rows = math.ceil(1.02 * missing * tried / max(pairs, 1))
    # A rate from few rows may be far off, hence 4 * tried; a very small round is not worth its start-up time.
    return min(max(min(rows, 4 * tried), 16, wanted // 100), left)


def reason(message: str) -> str:
    """Map an error message of img2dataset to one of a few reasons that can be counted."""
    for pattern, name in REASONS:
        found = re.search(pattern, message)
        if found:
            return found.expand(name)
    return " ".join(message.split())[:80] or "unknown"


@dataclass
class Rounds:
    """The work that is left, one round after the other."""

    out: Path
    source: UrlList
    state: State
    runner: Img2dataset
    arguments: dict[str, Any]
    limits: dict[str, Any]
    columns: list[str]
    wanted: int | None
    lock: IO[Any]
    say: Callable[[str], None]
    stall_seconds: float = 900.0

    @property
    def work(self) -> Path:
        return self.out / WORK

    @property
    def images(self) -> Path:
        return self.work / "round" / "images"

    @property
    def exhausted(self) -> bool:
        return self.state.rows >= self.source.rows

    def run(self) -> bool:
        """Download until there are enough pairs or the list ends; return whether there was anything to do."""
        state, fresh = self.state, False
        while True:
            fresh |= bool(state.moving or state.current)
            self._move()
            if state.current is None:
                if self.exhausted or (self.wanted is not None and state.pairs >= self.wanted):
                    return fresh
                self._begin()
            self._fetch()
            self._collect()

    def _begin(self) -> None:
        """Write the next slice of the list; from here on the round can be resumed."""
        state, left = self.state, self.source.rows - self.state.rows
        rows = left
        if self.wanted is not None:
            rows = round_rows(self.wanted - state.pairs, state.rows, state.pairs, left, self.wanted)
        shutil.rmtree(self.work / "round", ignore_errors=True)
        self.images.mkdir(parents=True)
        start, stop = state.rows, state.rows + rows
        count, bad = self.source.write_slice(start, stop, self.work / "round" / "urls.parquet", self.columns)
        state.current = {"start": start, "stop": stop, "count": count, "bad": bad}
        state.save(self.work)

    def _numbers(self) -> range:
        """The numbers of this round's shards."""
        assert self.state.current is not None
        count = math.ceil(self.state.current["count"] / self.state.settings["shard_size"])
        return range(self.state.next_shard, self.state.next_shard + count)

    def _fetch(self) -> None:
        """Run img2dataset for the missing shards of the round, and once more if it loses some.

        Shards still missing after that are counted as lost.
        """
        found = _statistics(self.images)
        for path in self.images.glob("*_stats.json"):
            # Cut short by a kill or a crash; img2dataset would take the shard for finished.
            if int(path.name.partition("_")[0]) not in found:
                path.unlink()
        missing = set(self._numbers()) - set(found)
        for attempt in range(2):
            if not missing:
                return
            self._run()
            before, missing = missing, set(self._numbers()) - set(_statistics(self.images))
            if missing:
                self._check_disk()
            if missing and attempt == 0:
                self.say(f"img2dataset lost {len(missing)} of {counted(len(before), 'shard')}; trying again")

    def _run(self) -> None:
        state = self.state
        arguments = {
            **self.arguments,
            "url_list": str((self.work / "round" / "urls.parquet").resolve()),
            "output_folder": str(self.images.resolve()),
            "input_format": "parquet",
            "output_format": "webdataset",
            "url_col": "url",
            "caption_col": "caption",
            "number_sample_per_shard": state.settings["shard_size"],
            "oom_shard_count": 5,
            "incremental_mode": "incremental",
        }
        job = {"arguments": arguments, "first_shard": state.next_shard, "limits": self.limits}
        begun = time.monotonic()
        running = Running(self.runner.python, job, self.work / "round", self.lock)
        try:
            status = self._watch(running)
        finally:
            running.stop()
            state.seconds += time.monotonic() - begun
        if status not in (None, 0):
            self._check_disk()
            raise ValueError(
                f"img2dataset ended with status {status} ({running.last_line()[:200]}), see {running.log}; the same "
                "command continues"
            )

    def _check_disk(self) -> None:
        """`OSError` if the disk is full: what failed for that is tried again, not counted as lost."""
        path = self.work / "space"
        write_text(path, " " * SPACE)
        path.unlink()

    def _watch(self, running: Running) -> int | None:
        """Wait for img2dataset; return its status, or None if it has been silent for so long that it must be stuck."""
        told, shards, size, changed = time.monotonic(), 0, -1, time.monotonic()
        while (status := running.wait(1.0)) is None:
            now, grown = time.monotonic(), sum(path.stat().st_size for path in self.images.glob("*.*"))
            if grown != size:
                size, changed = grown, now
            elif now - changed > self.stall_seconds:
                return None
            if now - told >= 10:
                told, found = now, _statistics(self.images)
                if len(found) != shards:
                    shards = len(found)
                    self._tell(found)
        return status

    def _tell(self, found: dict[int, dict[str, Any]]) -> None:
        pairs = self.state.pairs + sum(entry["successes"] for entry in found.values())
        rows = self.state.rows + sum(entry["count"] for entry in found.values())
        wanted = counted(pairs if self.wanted is None else self.wanted, "pair")
        done = wanted if self.wanted is None else f"{pairs:,} of {wanted}"
        self.say(f"{done}; {rows:,} of {counted(self.source.rows, 'address')} tried")

    def _collect(self) -> None:
        """Count the round's results and take over its shards, all or nothing: a kill leaves the round unfinished."""
        state = self.state
        assert state.current is not None
        found, failures = _statistics(self.images), Counter(state.failures)
        failures.update(state.current["bad"])
        lost = state.current["count"] - sum(entry["count"] for entry in found.values())
        failures["lost with a failed worker"] += lost
        for number in self._numbers():
            if number not in found:
                continue
            entry, tar = found[number], self.images / f"{number:05d}.tar"
            errors = Counter({text: n for text, n in entry["status_dict"].items() if text != "success"})
            for text, n in errors.items():
                failures[reason(text)] += n
            described = describe_shards([tar])
            kept = described.pairs + sum(described.failures.values())
            # img2dataset counts samples that failed while being written as successes, and rare messages not at all.
            failures["unknown"] += max(entry["count"] - kept - errors.total(), 0)
            if described.pairs:
                name = f"{len(state.shards):05d}.tar"
                state.moving.append([str(tar.relative_to(self.out)), name])
                state.shards.append(name)
                state.pairs += described.pairs
            else:
                failures.update(described.failures)
        state.failures = {text: n for text, n in failures.most_common() if n > 0}
        state.rows = state.current["stop"]
        state.next_shard = self._numbers().stop
        state.rounds, state.current = state.rounds + 1, None
        state.save(self.work)
        self._move()
        self._tell({})

    def _move(self) -> None:
        """Move finished shards; those that a killed process has already moved are skipped."""
        for where, name in self.state.moving:
            if (self.out / where).exists():
                move(self.out / where, self.out / name)
        if self.state.moving:
            self.state.moving = []
            self.state.save(self.work)
        if self.state.current is None:
            shutil.rmtree(self.work / "round", ignore_errors=True)


def _statistics(images: Path) -> dict[int, dict[str, Any]]:
    """{number of a finished shard: img2dataset's statistics of it}."""
    found: dict[int, dict[str, Any]] = {}
    for path in images.glob("*_stats.json"):
        number = path.name.partition("_")[0]
        with contextlib.suppress(ValueError, OSError):  # being written
            entry = read_json_object(path)
            with open(images / f"{number}.tar", "rb") as tar:
                tar.seek(-len(TAR_END), os.SEEK_END)
                if tar.read() == TAR_END:  # else the machine went down before it was on disk
                    found[int(number)] = entry
    return found
