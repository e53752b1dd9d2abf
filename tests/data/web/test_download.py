"""`advflyp data download`: rounds and state with img2dataset replaced; `-m network` installs and runs the real one."""

import errno
import io
import json
import math
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import advflyp.data.web.download as downloads
import advflyp.data.web.rounds as rounds
from advflyp.cli.main import main
from advflyp.data.pairs.images import read_image
from advflyp.data.pairs.manifest import Manifest, read_manifest
from advflyp.data.web.download import Options, parse_extra
from advflyp.data.web.isolation import Img2dataset, find_img2dataset, interpreter
from advflyp.data.web.rounds import reason, round_rows
from advflyp.data.web.url_list import open_urls
from advflyp.files import file_sha256, lock, move, write_text
from webserver import Server, jpeg


def download(urls: Path, say: Any = lambda _: None, **options: Any) -> Manifest:
    return downloads.download(urls, Options(**options), say)


def write_list(path: Path, urls: list[Any], captions: list[Any] | None = None, **about: Any) -> Path:
    captions = captions or [f"caption  of {number}" for number in range(len(urls))]
    table = pa.table({"url": pa.array(urls, pa.string()), "caption": pa.array(captions, pa.string())})
    table = table.replace_schema_metadata({key: json.dumps(value) for key, value in about.items()})
    pq.write_table(table, path, row_group_size=7)
    return path


def samples(out: Path) -> list[dict[str, Any]]:
    """Of all shards: key, url, caption, picture."""
    found = []
    for shard in sorted(out.glob("*.tar")):
        with tarfile.open(shard) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for name in files:
            if name.endswith(".json"):
                key = name[:-5]
                info = json.loads(files[name])
                found.append(
                    {"key": key, "url": info["url"], "txt": files[f"{key}.txt"], "jpg": files[f"{key}.jpg"]}
                )
    return found


def test_a_small_list_that_holds_gigabytes(tmp_path: Path) -> None:
    """2,000 captions of 5 MB each, said once."""
    n = 2000
    codes = pa.array([*[0] * (n - 1), 1], pa.int32())
    captions = pa.DictionaryArray.from_arrays(codes, ["x" * 5_000_000, "short"])
    table = pa.table(
        {"url": [f"https://a/{number}" for number in range(n)], "caption": captions, "id": range(n)}
    )
    pq.write_table(table, tmp_path / "urls.parquet", compression="zstd")
    source = open_urls(tmp_path / "urls.parquet")
    count, bad = source.write_slice(10, n, tmp_path / "slice.parquet", ["id"])
    assert (count, bad) == (1, {"empty caption": n - 11})
    assert pq.read_table(tmp_path / "slice.parquet").to_pylist() == [
        {"url": f"https://a/{n - 1}", "caption": "short", "id": n - 1}
    ]


class Fake:
    """img2dataset as it looks from outside: an address that begins with "good" works, others are their own error.

    An address that ends in "unwritten" counts as a success although its sample could not be written.
    """

    jobs: list[dict[str, Any]]
    slices: list[int]
    lose: set[int]
    status = 0
    stop_after: int | None = None

    def __init__(self) -> None:
        self.jobs, self.slices, self.lose = [], [], set()

    def __call__(self, python: Path, job: dict[str, Any], folder: Path, hold: Any) -> "Fake":
        self.jobs.append(job)
        self.log = folder / "log.txt"
        self.log.write_text("something\nthe reason\n")
        return self

    def wait(self, seconds: float) -> int | None:
        job = self.jobs[-1]
        arguments, out = job["arguments"], Path(job["arguments"]["output_folder"])
        table = pq.read_table(arguments["url_list"])
        self.slices.append(len(table))
        done = {int(path.name[:5]) for path in out.glob("*.json")}
        size, written = arguments["number_sample_per_shard"], 0
        for shard in range(math.ceil(len(table) / size)):
            number = job["first_shard"] + shard
            if number in done or number in self.lose:
                continue
            if written == self.stop_after:
                (out / f"{number:05d}.tar").write_bytes(b"half a shard")
                (out / f"{number:05d}_stats.json").write_text('{"count": 1')
                raise KeyboardInterrupt
            self.shard(out, number, table.slice(shard * size, size).to_pylist())
            written += 1
        self.lose = set()
        return self.status

    def shard(self, out: Path, number: int, rows: list[dict[str, str]]) -> None:
        status: Counter[str] = Counter()
        with tarfile.open(out / f"{number:05d}.tar", "w") as tar:
            for row, entry in enumerate(rows):
                good = entry["url"].startswith("good")
                status["success" if good else unquote(entry["url"])] += 1
                if good and not entry["url"].endswith("unwritten"):
                    key = f"{number:05d}{row:04d}"
                    data = {
                        "jpg": jpeg(row),
                        "txt": entry["caption"].encode(),
                        "json": json.dumps(entry).encode(),
                    }
                    for suffix, content in data.items():
                        member = tarfile.TarInfo(f"{key}.{suffix}")
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
        stats = {"count": len(rows), "successes": status["success"], "status_dict": dict(status)}
        (out / f"{number:05d}_stats.json").write_text(json.dumps(stats))

    def last_line(self) -> str:
        return "the reason"

    def stop(self) -> None:
        pass


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake()
    found = Img2dataset(Path("python"), "1.47.0", "3.11.7", "4", ("retries", "min_image_size", "verify_hash"))
    monkeypatch.setattr(downloads, "find_img2dataset", lambda *_: found)
    monkeypatch.setattr(rounds, "Running", made)
    return made


def mixed(number: int, good: int) -> list[str]:
    """`good` of every 10 addresses work."""
    return [f"good{row}" if row % 10 < good else "HTTP Error 404: Not Found" for row in range(number)]


def test_rounds_stop_when_there_is_enough(fake: Fake, tmp_path: Path) -> None:
    urls = write_list(tmp_path / "urls.parquet", mixed(1000, 7), wanted=200, seed=5)
    said: list[str] = []
    manifest = download(urls, out=tmp_path / "shards", shard_size=40, say=said.append)
    assert fake.slices == [200, math.ceil(1.02 * 60 * 200 / 140)]
    assert [job["first_shard"] for job in fake.jobs] == [0, 5]
    names = [f"{number:05d}.tar" for number in range(8)]
    assert sorted(path.name for path in (tmp_path / "shards").glob("*.tar")) == names
    found = samples(tmp_path / "shards")
    assert [entry["url"] for entry in found] == [url for url in mixed(288, 7) if url.startswith("good")]
    assert len({entry["key"] for entry in found}) == len(found) == manifest.pairs >= 200
    assert manifest == read_manifest(tmp_path / "shards")
    assert [shard.name for shard in manifest.shards] == names
    assert manifest.shards[3].sha256 == file_sha256(tmp_path / "shards" / "00003.tar")
    assert manifest.failures == {"HTTP 404": 288 - manifest.pairs}
    source = manifest.source
    assert (source["rows_tried"], source["wanted"], source["seed"]) == (288, 200, 5)
    assert (
        source["complete"] and not source["list_exhausted"] and source["sample"] == {"wanted": 200, "seed": 5}
    )
    assert manifest.versions["img2dataset"] == "1.47.0"
    assert not (tmp_path / "shards" / ".download" / "round").exists()
    assert any("200" in line for line in said)


def test_later_calls_do_only_what_is_missing(fake: Fake, tmp_path: Path) -> None:
    urls = write_list(tmp_path / "urls.parquet", mixed(300, 5))
    out = tmp_path / "shards"
    first = download(urls, out=out, num=50, shard_size=30)
    calls, before = len(fake.jobs), (out / "manifest.json").read_text()
    assert download(urls, out=out, num=50) == first and len(fake.jobs) == calls
    assert (out / "manifest.json").read_text() == before
    more = download(urls, out=out, num=120)
    assert more.pairs >= 120 and len(fake.jobs) > calls and more.shards[: len(first.shards)] == first.shards
    found = [entry["url"] for entry in samples(out)]
    assert len(set(found)) == len(found) == more.pairs
    (out / "00001.tar").unlink()
    with pytest.raises(ValueError, match=r"00001.tar is missing; put it back"):
        download(urls, out=out, num=120)


def test_a_list_that_is_too_short(fake: Fake, tmp_path: Path) -> None:
    said: list[str] = []
    urls = write_list(tmp_path / "urls.parquet", mixed(100, 3))
    manifest = download(urls, out=tmp_path / "shards", num=60, say=said.append)
    assert manifest.pairs == 30 and manifest.source["rows_tried"] == 100
    assert manifest.source["list_exhausted"] and not manifest.source["complete"]
    assert said[-1].startswith("the list is exhausted: its 100 addresses gave 30 of the 60 pairs wanted")
    assert download(urls, out=tmp_path / "all").source["complete"], "no number is wanted: one try at each"


def test_a_download_of_nothing_is_a_mistake(
    fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a script asks for it, with relative paths; addresses refused as private are not tried again in silence."""
    monkeypatch.chdir(tmp_path)
    write_list(Path("urls.parquet"), ["private address"] * 30)
    with pytest.raises(SystemExit) as ended:
        main(["data", "download", "urls.parquet", "--out", "shards"])
    printed = capsys.readouterr()
    assert ended.value.code == 2 and "30 skipped: private address" in printed.out
    assert printed.err == "advflyp: no URL in urls.parquet yielded a pair; the reasons are above\n"
    with pytest.raises(SystemExit):
        main(["data", "download", "urls.parquet", "--out", "shards", "--allow-private"])
    assert "shards was begun without --allow-private" in (text := capsys.readouterr().err)
    assert "(30 private addresses); use another folder" in text and len(fake.slices) == 1


def test_rows_that_cannot_be_tried(fake: Fake, tmp_path: Path) -> None:
    captions = ["a\n b", None, "  ", "c", "d"]
    urls = write_list(tmp_path / "urls.parquet", ["good1", "good2", "good3", None, " good4 "], captions)
    manifest = download(urls, out=tmp_path / "shards")
    assert manifest.failures == {"empty caption": 2, "no address": 1}
    assert [(entry["url"], entry["txt"]) for entry in samples(tmp_path / "shards")] == [
        ("good1", b"a b"),
        ("good4", b"d"),
    ]


def test_shards_without_a_good_pair_leave_no_gap(fake: Fake, tmp_path: Path) -> None:
    urls = write_list(tmp_path / "urls.parquet", ["good"] * 10 + ["timed out"] * 20 + ["good"] * 10)
    manifest = download(urls, out=tmp_path / "shards", shard_size=10)
    assert [shard.name for shard in manifest.shards] == ["00000.tar", "00001.tar"]
    assert manifest.failures == {"timed out": 20}
    assert {entry["key"][:5] for entry in samples(tmp_path / "shards")} == {"00000", "00003"}


def test_an_interrupted_round_goes_on(fake: Fake, tmp_path: Path) -> None:
    urls = write_list(tmp_path / "urls.parquet", mixed(100, 8))
    out = tmp_path / "shards"
    fake.stop_after = 3
    with pytest.raises(KeyboardInterrupt):
        download(urls, out=out, num=80, shard_size=10)
    assert not (out / "manifest.json").exists() and not list(out.glob("*.tar"))
    fake.stop_after = None
    manifest = download(urls, out=out, num=80, processes=1, threads=3)
    assert fake.slices[:2] == [80, 80], "the same slice"
    found = [entry["url"] for entry in samples(out)]
    assert len(set(found)) == len(found) == manifest.pairs == 80


def test_killed_while_moving_shards(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = write_list(tmp_path / "urls.parquet", mixed(60, 10))
    out, moved = tmp_path / "shards", []

    def dies(source: Path, target: Path) -> None:
        moved.append(source)
        if len(moved) == 3:
            raise KeyboardInterrupt
        move(source, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(rounds, "move", dies)
        download(urls, out=out, shard_size=10)
    assert len(list(out.glob("*.tar"))) == 2
    manifest = download(urls, out=out)
    assert len(fake.jobs) == 1 and manifest.pairs == 60
    assert len({entry["url"] for entry in samples(out)}) == 60


def test_shards_that_img2dataset_loses(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = write_list(tmp_path / "urls.parquet", mixed(50, 10))
    fake.lose = {1, 3}
    assert download(urls, out=tmp_path / "a", shard_size=10).pairs == 50 and len(fake.jobs) == 2
    loses = Fake.wait

    def always(self: Fake, seconds: float) -> int | None:
        self.lose = {2}
        return loses(self, seconds)

    monkeypatch.setattr(Fake, "wait", always)
    manifest = download(urls, out=tmp_path / "b", shard_size=10)
    assert (manifest.pairs, manifest.failures) == (40, {"lost with a failed worker": 10})


def test_every_row_is_counted(fake: Fake, tmp_path: Path) -> None:
    urls = write_list(tmp_path / "urls.parquet", ["good1", "good2-unwritten", "HTTP Error 404: no", "good3"])
    manifest = download(urls, out=tmp_path / "shards")
    assert (manifest.pairs, manifest.failures) == (2, {"HTTP 404": 1, "unknown": 1})


@pytest.mark.parametrize("left", [None, 0, 1000, 40_960])
def test_a_shard_that_a_crash_of_the_machine_left_cut_off_is_done_again(
    fake: Fake, tmp_path: Path, left: int | None
) -> None:
    urls, out = write_list(tmp_path / "urls.parquet", mixed(60, 10)), tmp_path / "shards"
    fake.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        download(urls, out=out, shard_size=20)
    tar = out / ".download" / "round" / "images" / "00001.tar"
    whole = tar.read_bytes()
    assert len(whole) > 40_960
    tar.unlink()
    if left is not None:
        tar.write_bytes(whole[:left])
    fake.stop_after = None
    manifest = download(urls, out=out, shard_size=20)
    assert (manifest.pairs, manifest.failures) == (60, {})
    assert [entry["url"] for entry in samples(out)] == mixed(60, 10)


def test_img2dataset_fails(fake: Fake, tmp_path: Path) -> None:
    urls = write_list(tmp_path / "urls.parquet", mixed(50, 10))
    fake.status = 3
    fake.stop_after = None
    with pytest.raises(
        ValueError, match=r"img2dataset ended with status 3 \(the reason\), see .*log.txt; the same"
    ):
        download(urls, out=tmp_path / "shards")


def test_nothing_is_written_meanwhile(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second download into the folder waits, and then gives up."""
    urls = write_list(tmp_path / "urls.parquet", mixed(50, 10))
    monkeypatch.setattr(downloads, "WAIT", 0.15)
    with lock(tmp_path / "shards" / rounds.WORK / "lock"), pytest.raises(ValueError, match="is working on"):
        download(urls, out=tmp_path / "shards")
    assert download(urls, out=tmp_path / "shards").pairs == 50


def test_sizes_of_rounds() -> None:
    assert round_rows(100, 0, 0, 1000, 100) == 100, "the first cannot overshoot"
    assert round_rows(100, 0, 0, 30, 100) == 30
    assert round_rows(32, 100, 68, 900, 100) == math.ceil(1.02 * 32 * 100 / 68)
    assert round_rows(1, 1470, 999, 5000, 1000) == 16, "no round for one row"
    assert round_rows(100, 100, 0, 10_000, 100) == 400, "no rate yet: grows by steps"
    assert round_rows(50, 100, 50, 20, 100) == 20
    # A million at 68 % of success: few rounds, little excess.
    tried = pairs = count = 0
    while pairs < 1_000_000:
        rows = round_rows(1_000_000 - pairs, tried, pairs, 10**9, 1_000_000)
        tried, pairs, count = tried + rows, int((tried + rows) * 0.68), count + 1
    assert count == 2 and pairs < 1_010_000


@pytest.mark.parametrize(
    ("message", "name"),
    [
        ("<urlopen error private address>", "private address"),
        ("HTTP Error 403: Forbidden", "HTTP 403"),
        ("HTTP Error 302: The HTTP server returned a error that would lead to an infinite loop", "bad redirect"),
        ("<urlopen error [Errno -2] Name or service not known>", "host not found"),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed>", "TLS error"),
        ("<urlopen error [Errno 111] Connection refused>", "connection failed"),
        ("<urlopen error timed out>", "timed out"),
        ("IncompleteRead(345 bytes read, 346 more expected)", "answer was cut off"),
        ("unknown url type: 'x'", "bad address"),
        ("'ascii' codec can't encode character", "bad address"),
        ("Use of image disallowed by X-Robots-Tag directive", "opted out (X-Robots-Tag)"),
        ("Image decoding error", "not an image"),
        ("something\n new" + "x" * 200, ("something new" + "x" * 200)[:80]),
    ],
)  # fmt: skip
def test_reasons(message: str, name: str) -> None:
    assert reason(message) == name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", 'URL,TEXT\ngood1,"one, a\n b"\ngood2,two\n'),
        ("list.tsv", "URL\tTEXT\ngood1\tone, a  b\ngood2\ttwo\n"),
        ("list.jsonl", '{"URL": "good1", "TEXT": "one, a b"}\n{"URL": "good2", "TEXT": "two"}\n'),
    ],
)
def test_other_lists(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    urls = open_urls(tmp_path / name)
    assert (urls.url, urls.caption, urls.rows, urls.wanted()) == ("URL", "TEXT", 2, None)
    assert urls.write_slice(0, 2, tmp_path / "slice.parquet") == (2, {})
    assert pq.read_table(tmp_path / "slice.parquet").to_pylist() == [
        {"url": "good1", "caption": "one, a b"},
        {"url": "good2", "caption": "two"},
    ]
    assert open_urls(tmp_path / name, url_column="TEXT", caption_column="URL").url == "TEXT"


OTHER_LISTS = [
    # Marks that mean nothing; more of them in test_rows.py.
    ("t.tsv", 'url\tcaption\ngood1\t"one\ngood2\ttwo" he said\n', [("good1", '"one'), ("good2", 'two" he said')]),
    ("t.csv", "url;caption\ngood1;one, two\ngood2;007\n", [("good1", "one, two"), ("good2", "007")]),
    ("t.csv", "url,caption\nnan,one\ngood2,None\ngood3,true\n", [("good3", "true")]),
    ("t.jsonl", '{"x": 1}\n{"url": "good1", "caption": ["one", null, "two"]}\n{"url": "good2", "caption": "\\ud800"}',
     [("good1", "one\ntwo"), ("good2", "?")]),
    ("t.json", '[{"url": ["good1"], "caption": {"raw": "one"}}, {"url": "good2", "caption": null}]',
     [("good1", "one")]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "expected"), OTHER_LISTS)
def test_text_of_lists(tmp_path: Path, name: str, text: str, expected: list[tuple[str, str]]) -> None:
    (tmp_path / name).write_text(text)
    urls = open_urls(tmp_path / name)
    count, bad = urls.write_slice(0, urls.rows, tmp_path / "slice.parquet")
    found = [(row["url"], row["caption"]) for row in pq.read_table(tmp_path / "slice.parquet").to_pylist()]
    assert found == expected and count == len(expected) and count + sum(bad.values()) == urls.rows


def test_text_of_parquet_lists(tmp_path: Path) -> None:
    table = {
        "url": pa.array([b"good1", b"good2", None, b"\xff"]),
        "caption": pa.array([["one", "two"], [], ["x"], ["x"]]),
    }
    pq.write_table(pa.table(table), tmp_path / "urls.parquet")
    found = open_urls(tmp_path / "urls.parquet").write_slice(0, 4, tmp_path / "slice.parquet")
    assert found == (1, {"empty caption": 1, "no address": 1, "address is not UTF-8": 1})
    assert pq.read_table(tmp_path / "slice.parquet").to_pylist() == [{"url": "good1", "caption": "one\ntwo"}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "url,caption\nhttps://a.b,a dog, running\n", r"line 2: 3 fields where the header has 2"),
        ("t.tsv", "a dog\thttps://a.b/c\ntwo\thttps://a.b/d\n", r"t\.tsv has no header: its first row is a dog, https"),
        ("t.csv", "url,caption\n", "has no rows"),
        ("t.csv", "url,caption,caption\nx,y,z\n", "has two columns 'caption'; rename one"),
        ("t.parquet", "PAR1" + 64 * "x" + "\x40\0\0\0PAR1", "t.parquet is not a readable Parquet file"),
    ],
)  # fmt: skip
def test_lists_that_do_not_fit(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        open_urls(tmp_path / name)


def test_slices_cross_row_groups(tmp_path: Path) -> None:
    urls = open_urls(write_list(tmp_path / "urls.parquet", [f"u{row}" for row in range(30)]))
    assert urls.write_slice(5, 23, tmp_path / "slice.parquet") == (18, {})
    assert pq.read_table(tmp_path / "slice.parquet")["url"].to_pylist() == [f"u{row}" for row in range(5, 23)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num": 0}, "--num must be at least 1, not 0"),
        ({"shard_size": 0}, "--shard-size must be at least 1"),
        ({"threads": -1}, "--threads must be at least 1"),
        ({"quality": 101}, "--quality must be between 0 and 100"),
        ({"urls": "missing.parquet"}, "there is no list .*missing.parquet; `advflyp data sample` makes one"),
        ({"urls": "text.txt"}, "must be one of .parquet, .csv"),
        ({"urls": "broken.parquet"}, "broken.parquet is not a readable Parquet file"),
        ({"urls": "empty.parquet"}, "has no rows"),
        (
            {"urls": "nothing.parquet"},
            "has no url column by a known name; name one of a, b with --url-column",
        ),
        ({"url_column": "ulr"}, "has no column 'ulr'; did you mean 'url'?"),
        ({"out": "full"}, "holds other files"),
        ({"out": "text.txt"}, "is a file"),
        ({"out": "odd[1]"}, "treats as a pattern"),
        ({"extra": ["size"]}, "--extra takes key=value, not 'size'"),
        ({"extra": ["image_size=3"]}, "--extra cannot set image_size; it is set by --size"),
        ({"extra": ["retires=3"]}, "img2dataset has no argument 'retires'; did you mean 'retries'?"),
        ({"extra": ['verify_hash=["md5", "md5"]']}, "has no column 'md5'"),
        ({"extra": ["verify_hash=true"]}, "--extra verify_hash takes a list"),
        ({"extra": ["save_additional_columns=license"]}, "takes a list, for example .*, not license"),
    ],
)
def test_wrong_input(fake: Fake, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    write_list(tmp_path / "urls.parquet", mixed(10, 10))
    write_list(tmp_path / "empty.parquet", [])
    pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "nothing.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"no")
    (tmp_path / "text.txt").write_text("no")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    given = {"out": "shards", "urls": "urls.parquet", **arguments}
    urls, out = tmp_path / given.pop("urls"), tmp_path / given.pop("out")
    with pytest.raises(ValueError, match=message) as raised:
        download(urls, out=out, **given)
    assert "\n" not in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before, "nothing half-written"


def test_another_list_or_other_settings(fake: Fake, tmp_path: Path) -> None:
    urls = write_list(tmp_path / "urls.parquet", mixed(10, 10))
    download(urls, out=tmp_path / "shards")
    with pytest.raises(ValueError, match="was begun with size = 256, not 128; use that"):
        download(urls, out=tmp_path / "shards", size=128)
    with pytest.raises(ValueError, match="was begun with another list"):
        download(write_list(tmp_path / "b.parquet", mixed(11, 10)), out=tmp_path / "shards")
    (tmp_path / "shards" / ".download" / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"state.json is damaged"):
        download(urls, out=tmp_path / "shards")


def test_rows_that_fail_on_a_full_disk_are_tried_again(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls, out = write_list(tmp_path / "urls.parquet", mixed(60, 10)), tmp_path / "shards"

    def full(path: Path, text: str) -> None:
        if path.name == "space":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_text(path, text)

    for lose, status in (({1}, 0), ({1}, -15), (set(), -15)):
        fake.lose, fake.status = lose, status
        with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
            patched.setattr(rounds, "write_text", full)
            download(urls, out=out, shard_size=20)
        state = rounds.State.load(out / ".download")
        assert state is not None and (state.rows, state.failures) == (0, {})
    fake.status = 0
    manifest = download(urls, out=out, shard_size=20)
    assert (manifest.pairs, manifest.failures) == (60, {})
    assert [entry["url"] for entry in samples(out)] == mixed(60, 10)
    assert not (out / ".download" / "space").exists()


def test_further_arguments(fake: Fake, tmp_path: Path) -> None:
    assert parse_extra(["a=1", "b=x=y", "c=[1]", "--min-image-size=True"]) == {
        "a": 1, "b": "x=y", "c": [1], "min_image_size": True,
    }  # fmt: skip
    urls = write_list(tmp_path / "urls.parquet", mixed(10, 10))
    download(urls, out=tmp_path / "shards", extra=["min_image_size=64"], timeout=3, allow_private=True)
    job = fake.jobs[0]
    assert job["arguments"]["min_image_size"] == 64 and job["arguments"]["resize_mode"] == "keep_ratio"
    assert job["limits"] == {"allow_private": True, "max_bytes": 32 << 20, "seconds": 18.0}


def test_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tool = tmp_path / "uv"
    tool.write_text("#!/bin/sh\necho 'error: no route to the index' >&2\nexit 2\n")
    tool.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(
        ValueError, match=r"could not be installed \(error: no route to the index\): go online, or"
    ):
        find_img2dataset(None, "multiprocessing")
    assert not (tmp_path / "advflyp").exists(), "nothing half-made"


def test_named_interpreters(tmp_path: Path) -> None:
    script = tmp_path / "img2dataset"
    shells = "#!/bin/sh\n'''exec' {} \"$0\" \"$@\"\n' '''\nimport img2dataset\n"
    spaced = "/home/my user/.venv/bin/python3.11"
    for text, expected in (
        ("#!/opt/venv/bin/python\nimport img2dataset\n", "/opt/venv/bin/python"),
        (shells.format(f'"{spaced}"'), spaced),
        (shells.format(f"'{spaced}'"), spaced),
        ("#!/bin/bash\nexec python\n", script),
    ):
        script.write_text(text)
        script.chmod(0o755)
        assert interpreter(str(script)) == Path(expected)
    assert interpreter(sys.executable) == Path(sys.executable)
    with pytest.raises(ValueError, match="there is no command"):
        interpreter(str(tmp_path / "none"))
    script.write_text("no program")
    for command, why in (
        (sys.executable, "ModuleNotFoundError"),
        ("true", "it is no Python interpreter"),
        ("echo", "it is no Python interpreter"),
        (str(script), "Exec format error"),
    ):
        with pytest.raises(ValueError, match=rf"img2dataset does not run with .* \({why}.*see --img2dataset"):
            find_img2dataset(command, "multiprocessing")


# From here on the real img2dataset, installed from the package index.


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The environment that `download` makes, made once."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        said: list[str] = []
        found = find_img2dataset(None, "multiprocessing", said.append)
        assert found.version == "1.47.0" and "installing img2dataset==1.47.0" in said[0]
        assert find_img2dataset(None, "multiprocessing", said.append) == found and len(said) == 1
    return str(found.python)


@pytest.mark.network
def test_every_kind_of_answer(installed: str, server: Server, tmp_path: Path) -> None:
    paths = [f"good/{number}" for number in range(30)]
    paths += [
        "large/1",
        "to/http://127.0.0.1:PORT/good/40",
        "missing/1",
        "slow/1",
        "drip/1",
        "cut/1",
        "text/1",
    ]
    paths += ["empty/1", "huge/said", "huge/endless", "optout/1", "to/ftp://127.0.0.1/x"]
    (tmp_path / "secret.jpg").write_bytes(jpeg(1))
    others = [
        (tmp_path / "secret.jpg").as_uri(),
        "no address",
        "http://no-such-host.invalid/x.jpg",
        "http://127.0.0.1:9/",
    ]
    urls = write_list(tmp_path / "urls.parquet", [*map(server.url, paths), *others])
    manifest = download(
        urls,
        out=tmp_path / "shards",
        allow_private=True,
        timeout=1,
        threads=8,
        max_bytes=1 << 20,
        img2dataset=installed,
    )
    found = {entry["url"]: entry for entry in samples(tmp_path / "shards")}
    assert set(found) == {server.url(path) for path in paths[:32]}
    assert manifest.pairs == 32
    expected = {
        "HTTP 404": 1, "timed out": 2, "answer was cut off": 1, "not an image": 2, "answer is too large": 2,
        "opted out (X-Robots-Tag)": 1, "host not found": 1, "bad address": 3, "connection failed": 1,
    }  # fmt: skip
    assert manifest.failures == expected

    def size(path: str) -> tuple[int, int]:
        return Image.open(io.BytesIO(found[server.url(path)]["jpg"])).size

    assert size("large/1") == (384, 256) and size("good/1") == (96, 64), "only larger pictures are resized"
    assert found[server.url("good/3")]["txt"] == b"caption of 3"


@pytest.mark.network
def test_images_are_stored_as_they_look(installed: str, server: Server, tmp_path: Path) -> None:
    urls = write_list(
        tmp_path / "urls.parquet", [server.url("deep/77"), server.url("turned/1"), server.url("good/1")]
    )
    download(urls, out=tmp_path / "shards", allow_private=True, timeout=2, threads=4, img2dataset=installed)
    found = {
        entry["url"].rpartition("/")[0].rpartition("/")[2]: entry["jpg"]
        for entry in samples(tmp_path / "shards")
    }
    deep, turned, plain = (read_image(found[kind]) for kind in ("deep", "turned", "good"))
    assert np.abs(np.asarray(deep).astype(int) - 77).max() <= 1
    assert (turned.size, plain.size) == ((64, 96), (96, 64))


@pytest.mark.network
def test_private_addresses_in_real_workers(installed: str, server: Server, tmp_path: Path) -> None:
    hosts = ["127.0.0.1", "localhost", "0.0.0.0", "127.9.9.9", "[::1]", "2130706433"]
    urls = write_list(
        tmp_path / "urls.parquet", [server.url(f"good/{n}", host) for n, host in enumerate(hosts)]
    )
    server.asked.clear()
    manifest = download(urls, out=tmp_path / "shards", timeout=2, threads=4, img2dataset=installed)
    assert (manifest.pairs, manifest.failures) == (0, {"private address": len(hosts)})
    assert not server.asked


FULL = """
import resource, sys
from advflyp.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.network
def test_a_shard_that_cannot_be_written(installed: str, server: Server, tmp_path: Path) -> None:
    urls = write_list(tmp_path / "urls.parquet", [server.url(f"large/{number}") for number in range(200)])
    out = tmp_path / "shards"
    command = ["data", "download", str(urls), "--out", str(out), "--allow-private", "--shard-size", "200"]
    command += ["--threads", "4", "--img2dataset", installed]
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", FULL, *command], capture_output=True, text=True)
    assert done.returncode == 2 and "File too large" in done.stderr and len(done.stderr.splitlines()) == 1
    assert time.monotonic() - begun < 600, "not the time after which a silent img2dataset is given up"
    assert not list(out.glob("*.tar"))
    main(command)
    manifest = read_manifest(out)
    assert manifest is not None and (manifest.pairs, manifest.failures) == (200, {})


CALL = """
import sys
from pathlib import Path
from advflyp.data.web.download import Options, download
options = Options(out=Path(sys.argv[2]), num=120, shard_size=20, processes=1, threads=2, allow_private=True,
                  img2dataset=sys.argv[3])
download(Path(sys.argv[1]), options)
"""


def processes_of(folder: Path) -> list[int]:
    """Those that run in a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and Path(os.readlink(entry / "cwd")).is_relative_to(folder):
                found.append(int(entry.name))
        except OSError:
            pass
    return found


@pytest.mark.network
def test_kill_9_and_the_same_command_again(installed: str, server: Server, tmp_path: Path) -> None:
    paths = [f"{'missing' if number % 4 == 3 else 'good'}/{number}" for number in range(400)]
    urls = write_list(tmp_path / "urls.parquet", list(map(server.url, paths)))
    out = tmp_path / "shards"
    server.asked.clear()
    server.delay = 0.2
    running = subprocess.Popen([sys.executable, "-c", CALL, str(urls), str(out), installed])
    try:
        deadline = time.monotonic() + 120
        while not list(out.glob(".download/round/images/*_stats.json")):
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    finished = rounds._statistics(out / ".download" / "round" / "images")
    assert 0 < len(finished) < 6
    server.delay = 0
    deadline = time.monotonic() + 10
    while processes_of(out):
        assert time.monotonic() < deadline, "no orphan goes on writing"
        time.sleep(0.1)
    manifest = download(
        urls,
        out=out,
        num=120,
        shard_size=20,
        processes=1,
        threads=8,
        allow_private=True,
        img2dataset=installed,
    )
    found = samples(out)
    assert manifest.pairs == len(found) == len({entry["key"] for entry in found}) >= 120
    tried = manifest.source["rows_tried"]
    assert {entry["url"] for entry in found} == {server.url(path) for path in paths[:tried] if "good" in path}
    assert manifest.pairs + manifest.failures["HTTP 404"] == tried < 200
    assert manifest.source["rounds"] >= 2
    for number in finished:
        assert all(server.asked[path] == 1 for path in paths[20 * number : 20 * number + 20]), (
            "not asked again"
        )


@pytest.mark.parametrize("kind", [pa.large_binary(), pa.string_view(), pa.list_(pa.string())])
def test_a_small_list_whose_captions_are_of_any_type(tmp_path: Path, kind: pa.DataType) -> None:
    """200 captions of 5 MB each, said once, of types that cannot all be read as a dictionary."""
    n, text = 200, "x" * 5_000_000
    value = [text] if pa.types.is_list(kind) else text
    schema = pa.schema({"url": pa.string(), "caption": kind})
    with pq.ParquetWriter(tmp_path / "urls.parquet", schema, compression="zstd") as writer:
        for begin in range(0, n, 100):
            urls = [f"https://a/{number}" for number in range(begin, begin + 100)]
            writer.write_table(pa.table({"url": urls, "caption": pa.array([value] * 100, kind)}, schema))
    before = pa.total_allocated_bytes()
    pool = pa.default_memory_pool()
    source = open_urls(tmp_path / "urls.parquet")
    peak = 0
    for table in source._read(0, 200, ["url", "caption"]):
        peak = max(peak, pool.bytes_allocated() - before)
        del table
    assert peak < 300_000_000
    count, bad = source.write_slice(0, 50, tmp_path / "slice.parquet", [])
    assert count == 0 and sum(bad.values()) == 50
