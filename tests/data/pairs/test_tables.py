"""Pairs listed in tables: every form gives the same pairs."""

import csv
import errno
import functools
import io
import json
import threading
import time
import tracemalloc
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from advflyp.data.pairs import cells, tables
from advflyp.data.pairs.manifest import describe_shards, write_manifest
from advflyp.data.pairs.samples import Sample, Sharded, in_order
from advflyp.data.pairs.sources import open_source
from advflyp.data.pairs.tables import Columns
from advflyp.errors import SkippedSample
from helpers import pairs, write_folder, write_shards
from hubserver import NOWHERE, Hub, use_hub

PAIRS = pairs(6)
# Hugging Face's images in Arrow.
HF_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def pictures(folder: Path) -> list[str]:
    (folder / "img").mkdir(parents=True)
    names = [f"img/{i}.png" for i in range(6)]
    for name, (data, _) in zip(names, PAIRS, strict=True):
        (folder / name).write_bytes(data)
    return names


def write_csv(folder: Path, names: list[str], image: str, caption: str, delimiter: str) -> Path:
    path = folder / ("t.tsv" if delimiter == "\t" else "t.csv")
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["id", image, caption])
        writer.writerows(
            [i, name, text] for i, (name, (_, text)) in enumerate(zip(names, PAIRS, strict=True))
        )
    return path


def rows(names: list[Any], image: str = "image", caption: str = "caption") -> list[dict[str, Any]]:
    return [{image: name, caption: text} for name, (_, text) in zip(names, PAIRS, strict=True)]


def build(kind: str, folder: Path) -> Path:
    names = pictures(folder)
    if kind == "csv":
        return write_csv(folder, names, "filepath", "title", ",")
    if kind == "tsv":
        return write_csv(folder, names, "Image_Path", "Text", "\t")
    if kind == "csv, absolute":
        return write_csv(folder, [str(folder / n) for n in names], "image", "caption", ",")
    if kind == "jsonl":
        (folder / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows(names)) + "\n\n")
        return folder / "t.jsonl"
    if kind == "json":
        (folder / "t.json").write_text(json.dumps(rows(names)))
        return folder / "t.json"
    if kind == "the paper's release":
        (folder / "laion_index.json").write_text(json.dumps(rows(names)))
        return folder
    data: list[Any] = [data for data, _ in PAIRS]
    if kind == "parquet, paths":
        pq.write_table(pa.Table.from_pylist(rows(names)), folder / "t.parquet")
    elif kind == "parquet, bytes":
        pq.write_table(pa.Table.from_pylist(rows(data, "jpg", "txt")), folder / "t.parquet", row_group_size=4)
    else:  # as Hugging Face stores pictures
        found = [{"bytes": one, "path": None} for one in data]
        pq.write_table(pa.Table.from_pylist(rows(found)), folder / "t.parquet", row_group_size=2)
    return folder / "t.parquet"


def content(source: Any) -> list[tuple[bytes, tuple[str, ...]]]:
    return [(sample.image_bytes(), sample.captions()) for sample in in_order(source)]


KINDS = ["csv", "tsv", "csv, absolute", "jsonl", "json", "the paper's release"]
KINDS += ["parquet, paths", "parquet, bytes", "parquet, structs"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_gives_the_same_pairs(tmp_path: Path, kind: str) -> None:
    source = open_source(str(build(kind, tmp_path / "d")))
    assert len(source) == 6
    assert content(source) == [(data, (text,)) for data, text in PAIRS]
    assert len(list(in_order(open_source(str(build(kind, tmp_path / "e")), limit=5)))) == 5


def test_several_captions_of_a_picture(tmp_path: Path) -> None:
    names = pictures(tmp_path)
    table = [{"image": names[0], "caption": text} for text in ("one", "two")]
    table += [{"image": names[1], "caption": ["three", "four"]}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, table)))
    assert [c for _, c in content(open_source(str(tmp_path / "t.jsonl")))] == [
        ("one", "two"),
        ("three", "four"),
    ]


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = write_csv(tmp_path, pictures(tmp_path), "wo", "was", ",")
    with pytest.raises(
        ValueError, match=r"no image column by a known name; name one of id, wo, was with data\.im"
    ):
        open_source(str(path))
    assert len(content(open_source(str(path), columns=Columns("wo", "was")))) == 6
    with pytest.raises(ValueError, match=r"has no column 'wow'; did you mean 'wo'\?"):
        open_source(str(path), columns=Columns("wow", "was"))


def test_rows_that_lack_something_are_skipped(tmp_path: Path) -> None:
    pictures(tmp_path)
    table = [
        {"image": "img/0.png", "caption": None},
        {"image": None, "caption": "x"},
        {"image": "", "caption": None},
        {"image": "gone.png", "caption": "x"},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, table)))
    found = list(in_order(open_source(str(tmp_path / "t.jsonl"))))
    assert [(s.key, s.image is None, s.caption) for s in found] == [
        ("img/0.png", False, None),
        ("t.jsonl:2", True, ("x",)),
        ("t.jsonl:3", True, None),
        ("gone.png", False, ("x",)),
    ]


def outcomes(name: Path) -> list[str | tuple[str, ...]]:
    """Captions of every sample whose image can be read, or why it cannot be used."""
    found: list[str | tuple[str, ...]] = []
    for sample in in_order(open_source(str(name))):
        try:
            sample.image_bytes()
            found.append(sample.captions())
        except SkippedSample as reason:
            found.append(str(reason))
    return found


def repeated(value: str, times: int) -> pa.DictionaryArray:
    """One value in many rows, which takes a few bytes in Parquet."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * times, pa.int32()), pa.array([value]))


def test_a_small_parquet_file_fills_no_memory(tmp_path: Path) -> None:
    """300 MB of captions, each megabyte said once; Arrow and Python hold no copies."""
    names, n, text = pictures(tmp_path), 300, "x" * 1_000_000
    items = pa.array([0, n], pa.int32())
    raws = pa.StructArray.from_arrays([repeated(text, n)], ["raw"])
    columns: dict[str, tuple[Any, Any, list[Any]]] = {
        "rows of one image": ([names[0]] * n, repeated(text, n), ["caption is too long"] * n),
        "an item of each": ([names[0]] * n, raws, ["caption is too long"] * n),
        "a list": (names[:1], pa.ListArray.from_arrays(items, repeated(text, n)), ["caption is too long"]),
        "a list of mappings": (names[:1], pa.ListArray.from_arrays(items, raws), ["caption is too long"]),
        "long paths": (repeated(text, n), ["x"] * n, ["image path is too long"] * n),
        # Together they are too long.
        "captions of one image": ([names[0]] * n, repeated("x" * 500, n), ["caption is too long"]),
        "a long one among others": (names[:1] * 2, ["one", text], [("one",), "caption is too long"]),
    }
    for name, (images, captions, expected) in columns.items():
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"image": images, "caption": captions}), path, compression="zstd")
        assert path.stat().st_size < 50_000
        tracemalloc.start()
        open_source(str(path))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert outcomes(path) == expected, name
        assert peak < 20_000_000, name


def test_a_table_is_kept_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path)
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": pa.nulls(11, pa.string()), "caption": pa.nulls(11, pa.string())}), path)
    assert outcomes(path) == ["no image"] * 11
    monkeypatch.setattr(tables, "MAX_UNUSABLE", 10)
    with pytest.raises(
        ValueError, match=r"more than 10 rows of .*t\.parquet cannot be used \(no image\); remove"
    ):
        open_source(str(path))
    monkeypatch.setattr(tables, "MAX_TABLE_BYTES", 100)
    pq.write_table(pa.table({"image": ["/a.png", "/b.png"], "caption": ["x" * 80, "y" * 10]}), path)
    with pytest.raises(ValueError, match=r"t\.parquet holds more than 0 GB of names and captions; split it"):
        open_source(str(path))


def test_cells_that_are_no_text(tmp_path: Path) -> None:
    """The cells themselves are in test_cells.py; here every form passes through them."""
    names, data = pictures(tmp_path), [data for data, _ in PAIRS]
    cells = [None, float("nan"), ["one", None], {"raw": "two"}, 3, "None"]
    expected = ["no caption", "no caption", ("one",), ("two",), "caption is not text", "no caption"]
    table = [{"image": name, "caption": cell} for name, cell in zip(names, cells, strict=True)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, table)))
    (tmp_path / "t.json").write_text(json.dumps(table))
    assert outcomes(tmp_path / "t.jsonl") == outcomes(tmp_path / "t.json") == expected
    with open(tmp_path / "t.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "caption"])
        writer.writeheader()
        writer.writerows(table)  # as pandas does: str() of what is no text
    assert outcomes(tmp_path / "t.csv") == [*expected[:4], ("3",), "no caption"]
    captions: list[tuple[Any, list[Any]]] = [
        ([b"one"] * 6, [("one",)] * 6),
        ([{"raw": "one", "tokens": ["one"]}] * 6, [("one",)] * 6),
        ([["one", None, "two"]] * 6, [("one", "two")] * 6),
        ([1, 2, 3, 4, 5, None], ["caption is not text"] * 5 + ["no caption"]),
    ]
    for number, (texts, found) in enumerate(captions):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"image": data, "caption": pa.array(texts)}), path)
        assert outcomes(path) == found


def test_images_of_every_kind_are_found_beside_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, data = pictures(tmp_path / "d"), [data for data, _ in PAIRS]
    texts = [text for _, text in PAIRS]
    whole = [(text,) for text in texts]
    images = {
        "dictionary": pa.array(names).dictionary_encode(),
        "large": pa.array(names, pa.large_string()),
        "binary": pa.array([name.encode() for name in names]),
        "paths": pa.array([{"bytes": None, "path": name} for name in names], HF_IMAGE),
        "mixed": pa.array([{"bytes": data[0], "path": None}, *({"path": n} for n in names[1:])], HF_IMAGE),
        "lists": pa.array([[name] for name in names]),
        "windows": pa.array([name.replace("/", "\\") for name in names]),
    }
    # From another folder, in which the names mean nothing.
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name, column in images.items():
        pq.write_table(pa.table({"caption": texts, "image": column}), tmp_path / "d" / f"{name}.parquet")
        assert outcomes(Path("../d") / f"{name}.parquet") == whole, name
    pq.write_table(pa.table({"caption": texts, "image": [names] * 6}), tmp_path / "d" / "t.parquet")
    assert outcomes(tmp_path / "d" / "t.parquet") == ["several images in one row"] * 6
    (tmp_path / "d" / "t.jsonl").write_text(json.dumps({"image": names, "caption": "x"}))
    assert outcomes(tmp_path / "d" / "t.jsonl") == ["several images in one row"]


def test_parquets_of_paths_in_several_folders(tmp_path: Path) -> None:
    for part, (image, caption) in enumerate([("image", "caption"), ("path", "text")]):
        table = rows(pictures(tmp_path / str(part)), image, caption)
        pq.write_table(pa.Table.from_pylist(table), tmp_path / str(part) / "t.parquet")
    source = open_source(f"{tmp_path}/*/t.parquet")
    assert content(source) == 2 * [(data, (text,)) for data, text in PAIRS]


def test_json_lines_are_not_judged_by_the_first(tmp_path: Path) -> None:
    names = pictures(tmp_path)
    lines = [
        {"id": 3},
        {"image": names[0], "title": "page"},
        {"image": names[1], "title": "x", "caption": "c"},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert outcomes(tmp_path / "t.jsonl") == ["no image", "no caption", ("c",)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "image,caption\nimg/0.png,a dog, running\n", r"t\.csv, line 2: 3 fields where the header has 2; put"),
        ("t.csv", "img/0.png,a dog\nimg/1.png,two\n", r"t\.csv has no header: its first row is img/0\.png, a dog"),
        ("t.csv", "img/0.png;a dog\nimg/1.png;two\n", r"has no header"),
        ("t.tsv", "img/0.png\ta dog\n", r"has no header"),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit_their_header(tmp_path: Path, name: str, text: str, message: str) -> None:
    """More of them in test_rows.py."""
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        open_source(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.csv", b"image,caption\n", r"t\.csv holds no pairs; it has no rows"),
        ("t.csv", b"\n", "t.csv is empty"),
        ("t.json", b"[]", "t.json is empty"),
        ("t.jsonl", b'{"image": "a.png"', "is damaged"),
        ("t.json", b'{"image": "a.png"}', "has no caption column"),
        ("t.jsonl", b'["a.png", "text"]\n', "must hold objects"),
        ("t.csv", b"image,caption\na.png,\xfc\n", "is not UTF-8"),
        ("t.parquet", b"PAR1 no", "is not a readable Parquet file"),
        ("t.parquet", b"PAR1" + b"\xff" * 64 + b"\x40\0\0\0PAR1", "is not a readable Parquet file"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        open_source(str(tmp_path / name))


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_utf_16_with_a_byte_order_mark_is_read(tmp_path: Path, name: str) -> None:
    text = "image,caption\na.png,naïve\n" if name == "t.csv" else '{"image": "a.png", "caption": "naïve"}\n'
    (tmp_path / name).write_text(text, encoding="utf-16")
    (sample,) = in_order(open_source(str(tmp_path / name)))
    assert sample.captions() == ("naïve",) and sample.image == str(tmp_path / "a.png")


def test_the_layout_of_the_papers_release(tmp_path: Path) -> None:
    for part in range(2):
        for kind in ("images", "captions"):
            (tmp_path / f"part{part}" / kind).mkdir(parents=True)
        for i in range(3):
            data, text = PAIRS[3 * part + i]
            (tmp_path / f"part{part}" / "images" / f"{i}.jpg").write_bytes(data)
            (tmp_path / f"part{part}" / "captions" / f"{i}.txt").write_text(text)
    (tmp_path / "part1" / "captions" / "lonely.txt").write_text("x")
    source = open_source(str(tmp_path))
    assert len(source) == 7
    samples = list(in_order(source))
    assert [(s.image_bytes(), s.captions()) for s in samples[:6]] == [(d, (t,)) for d, t in PAIRS]
    assert samples[6] == Sample(
        "part1/captions/lonely.txt", None, tmp_path / "part1" / "captions" / "lonely.txt"
    )


def test_over_fsspec(tmp_path: Path) -> None:
    """Shards and tables in fsspec's in-memory file system stand for any bucket."""

    memory = fsspec.filesystem("memory")
    folder = write_shards(tmp_path / "s", 6, per_shard=3)
    for path in folder.iterdir():
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    whole = [(data, (text,)) for data, text in PAIRS]
    assert content(open_source("memory://bucket/{000..001}.tar", size=6)) == whole
    assert content(open_source("memory://bucket/*.tar", size=6)) == whole
    with pytest.raises(ValueError, match=r"the number of pairs in .*000\.tar is unknown; set data\.size"):
        open_source("memory://bucket/*.tar")
    # A manifest beside the shards says it, and then their folder is enough.
    memory.pipe(
        "/bucket/manifest.json", write_manifest(folder, describe_shards(folder.glob("*.tar"))).read_bytes()
    )
    for name in ("memory://bucket/", "memory://bucket/*.tar", "memory://bucket/{000..001}.tar"):
        assert len(open_source(name)) == 6
    assert content(open_source("memory://bucket/")) == whole
    memory.pipe("/bucket/manifest.json", b'{"form')
    with pytest.raises(ValueError, match=r"memory:///?bucket/manifest\.json is damaged"):
        open_source("memory://bucket/")
    memory.rm("/bucket/manifest.json")
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows([data for data, _ in PAIRS])), stream)
    memory.pipe("/bucket/t.parquet", stream.getvalue())
    assert content(open_source("memory://bucket/t.parquet")) == whole
    names = [f"memory://bucket/{i}.png" for i in range(6)]
    for name, (data, _) in zip(names, PAIRS, strict=True):
        memory.pipe(name.removeprefix("memory:/"), data)
    memory.pipe("/bucket/t.jsonl", "\n".join(json.dumps(row) for row in rows(names)).encode())
    assert content(open_source("memory://bucket/t.jsonl")) == whole
    with pytest.raises(ValueError, match=r"there is no memory://bucket/gone\.csv"):
        open_source("memory://bucket/gone.csv")


def test_over_http(tmp_path: Path) -> None:
    """A plain web server: no ranges, folders listed as pages."""
    pytest.importorskip("aiohttp", reason="fsspec needs it for http")
    folder = write_shards(tmp_path / "s", 6, per_shard=3)
    write_manifest(folder, describe_shards(sorted(folder.glob("*.tar"))))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        whole = [(data, (text,)) for data, text in PAIRS]
        for name in (f"{url}/", f"{url}/*.tar", f"{url}/{{000..001}}.tar"):
            source = open_source(name)
            assert len(source) == 6 and content(source) == whole
        with pytest.raises(ValueError, match=r"there is no http://.*/002\.tar"):
            list(in_order(open_source(f"{url}/{{000..002}}.tar", size=9)))
        server.shutdown()


def test_a_hugging_face_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_list([{"image": {"bytes": d, "path": None}, "text": t} for d, t in PAIRS])
    made = made.cast_column("image", datasets.Image())
    for name in ("plain", "v1@2024"):
        made.save_to_disk(tmp_path / name)
        assert content(open_source(str(tmp_path / name))) == [(data, (text,)) for data, text in PAIRS]
    datasets.DatasetDict({"train": made, "val": made.select(range(2))}).save_to_disk(tmp_path / "splits")
    whole = [(data, (text,)) for data, text in PAIRS]
    assert content(open_source(f"hf:{tmp_path / 'splits'}")) == whole
    assert content(open_source(f"hf:{tmp_path / 'splits'}@val")) == whole[:2]
    several = datasets.Dataset.from_list(
        [{"image": [{"bytes": d, "path": None}], "text": t} for d, t in PAIRS]
    )
    several = several.cast_column("image", datasets.Sequence(datasets.Image()))
    several.save_to_disk(tmp_path / "lists")
    assert content(open_source(str(tmp_path / "lists"))) == whole
    names = pictures(tmp_path / "paths")
    datasets.Dataset.from_list(rows(names)).save_to_disk(tmp_path / "paths")
    assert content(open_source(str(tmp_path / "paths"))) == whole
    with pytest.raises(ValueError, match=r"has no split 'vla'; did you mean 'val'\?"):
        open_source(f"hf:{tmp_path / 'splits'}@vla")


def test_a_dataset_of_the_hub_and_what_its_cache_keeps(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    datasets = pytest.importorskip("datasets")
    table = {"image": [data for data, _ in PAIRS], "caption": [text for _, text in PAIRS]}
    pq.write_table(pa.table(table), tmp_path / "train.parquet")
    hub.repos["datasets/user/pairs"] = {"train.parquet": (tmp_path / "train.parquet").read_bytes()}
    hub.repos["datasets/user/hidden"] = {}
    hub.private.add("datasets/user/hidden")

    def use(url: str) -> None:
        use_hub(monkeypatch, url, tmp_path / "hub")
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    use(hub.url)
    whole = [(data, (text,)) for data, text in PAIRS]
    assert content(open_source("hf:user/pairs")) == whole
    for name, message in (
        ("user/hidden", "the hub has no dataset user/hidden, or it is private: check the name"),
        ("user/none", "the hub has no dataset user/none"),
        ("a/b/c", "'a/b/c' is not a repository name: write hf:OWNER/NAME"),
    ):
        with pytest.raises(ValueError, match=message):
            open_source(f"hf:{name}")
    use(NOWHERE)
    capsys.readouterr()
    started = time.monotonic()
    assert content(open_source("hf:user/pairs")) == whole, "from the cache"
    with pytest.raises(
        ValueError, match=r"the hub \(http.*\) cannot be reached and no copy of the dataset user/none"
    ):
        open_source("hf:user/none")
    assert time.monotonic() - started < 20, "one retry of the hub's client takes a second, five take 23"
    assert "retry" not in capsys.readouterr().err.lower()
    assert not constants.HF_HUB_OFFLINE, "other commands of the process go on as before"


def test_a_file_on_the_hub_is_no_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, NOWHERE, tmp_path)
    with pytest.raises(ValueError, match="the server of hf://datasets/user/pairs/t.csv cannot be reached"):
        open_source("hf://datasets/user/pairs/t.csv")


def test_mixed_up_names(tmp_path: Path) -> None:
    write_folder(tmp_path / "f", 3)
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("image,caption\nx.png,y\n")
    with pytest.raises(ValueError, match="names 2 tables; name one"):
        open_source(f"{tmp_path}/*.csv")


def test_a_row_group_of_one_large_value_is_unpacked_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 kB of Parquet hold the same 2 MB in each of 64 rows: 128 MB, were they unpacked together."""
    monkeypatch.setattr(tables, "MAX_IMAGE_BYTES", 8 << 20)
    large = bytes(2 << 20)
    table = pa.table({"image": pa.array([large] * 64), "caption": ["x"] * 64})
    pq.write_table(table, tmp_path / "t.parquet", compression="zstd", dictionary_pagesize_limit=1 << 30)
    assert (tmp_path / "t.parquet").stat().st_size < 10_000
    del table
    before, most, count = pa.total_allocated_bytes(), 0, 0
    for sample in in_order(open_source(str(tmp_path / "t.parquet"))):
        assert sample.image == large
        most, count = max(most, pa.total_allocated_bytes() - before), count + 1
    assert count == 64 and most < 32 << 20


@pytest.mark.parametrize("nested", [False, True])
def test_one_value_in_every_row_is_held_once(tmp_path: Path, nested: bool) -> None:
    """Whatever the file says of the sizes, which is its author's word."""
    large = bytes(2 << 20)
    image = pa.array([{"bytes": large, "path": None}] * 64) if nested else pa.array([large] * 64)
    table = pa.table({"image": image, "caption": pa.array([["x", "y"]] * 64)})
    pq.write_table(table, tmp_path / "t.parquet", compression="zstd", dictionary_pagesize_limit=1 << 30)
    del table, image
    before, most, count = pa.total_allocated_bytes(), 0, 0
    for sample in in_order(open_source(str(tmp_path / "t.parquet"))):
        assert sample.image == large and sample.captions() == ("x", "y")
        most, count = max(most, pa.total_allocated_bytes() - before), count + 1
    assert count == 64 and most < 32 << 20


@pytest.mark.parametrize("kind", ["images", "structs", "paths", "lists"])
def test_a_large_row_group_is_read_in_linear_time(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow would copy all earlier values of the group for every batch."""
    copied = 0

    class Counting(pq.ParquetFile):
        def iter_batches(self, *args: Any, **kwargs: Any) -> Iterator[pa.RecordBatch]:
            nonlocal copied
            for batch in super().iter_batches(*args, **kwargs):
                for column in map(batch.column, range(batch.num_columns)):
                    held = [column, *column.flatten()] if pa.types.is_struct(column.type) else [column]
                    held = [one.flatten() if pa.types.is_list(one.type) else one for one in held]
                    copied += sum(one.dictionary.nbytes for one in held if hasattr(one, "dictionary"))
                yield batch

    if kind in ("images", "structs"):
        n, image = 2000, [number.to_bytes(2, "big") * 2000 for number in range(2000)]
        captions = [f"caption {number}" for number in range(n)]
    else:
        n = 20_000
        image = [f"{number}.png" for number in range(n)]
        captions = [[f"one of {number}", f"two of {number}"] for number in range(n)]
    images: Any = [{"bytes": data, "path": f"{data[:2]}"} for data in image] if kind == "structs" else image
    texts = [" ".join(both) for both in captions] if kind == "paths" else captions
    table = pa.table({"image": images, "caption": texts})
    pq.write_table(table, tmp_path / "t.parquet", dictionary_pagesize_limit=1000)
    group = pq.read_metadata(tmp_path / "t.parquet").row_group(0)
    texts_only = ["caption"] if kind in ("images", "structs") else ["image", "caption"]
    size = sum(tables._column_bytes(group, [column]) for column in texts_only)
    monkeypatch.setattr(tables.pq, "ParquetFile", Counting)
    found = list(in_order(open_source(str(tmp_path / "t.parquet"))))
    if kind in ("images", "structs"):
        assert [sample.image for sample in found] == image
    else:
        assert [sample.key for sample in found] == image
    expected = [tuple(both) if kind == "lists" else (both,) for both in texts]
    assert [sample.captions() for sample in found] == expected
    assert copied <= 64 * size


def test_columns_of_different_lengths_are_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = tables._cells

    def shorter(*where: Any) -> Iterator[pa.Scalar]:
        return islice(cells(*where), 2 if where[-1] in ("caption", "txt") else None)

    monkeypatch.setattr(tables, "_cells", shorter)
    path = build("parquet, bytes", tmp_path)
    found = [sample.problem for sample in in_order(open_source(str(path)))]
    assert found == [None, None, "damaged shard", "damaged shard", None, None]
    pq.write_table(pa.table({"image": ["a.png"] * 3, "caption": ["x"] * 3}), path)
    with pytest.raises(ValueError, match=r"t\.parquet is not a readable Parquet file: its columns differ"):
        open_source(str(path))


def test_rows_without_end_of_one_image(tmp_path: Path) -> None:
    """Captions of one image are joined in linear time, and of too many not all are kept."""
    (tmp_path / "a.png").write_bytes(PAIRS[0][0])
    (tmp_path / "t.csv").write_text("image,caption\n" + "a.png,x\n" * 30_000)
    (sample,) = in_order(open_source(str(tmp_path / "t.csv")))
    assert isinstance(sample.caption, tuple) and len(sample.caption) < 21_000
    with pytest.raises(SkippedSample, match="caption is too long"):
        sample.captions()


def test_an_image_in_a_cell_is_as_large_as_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "MAX_IMAGE_BYTES", 100)
    assert cells.image_in(bytes(100)) == bytes(100)
    with pytest.raises(SkippedSample, match="image file is too large"):
        cells.image_in({"bytes": bytes(101)})


def test_a_damaged_row_group(tmp_path: Path) -> None:
    """As in a tar, what comes before the damage is used; every missing row counts, and the other groups are read."""
    path = tmp_path / "t.parquet"
    table = pa.table({"image": [data for data, _ in PAIRS], "caption": [text for _, text in PAIRS]})
    pq.write_table(table, path, row_group_size=2, compression="none", use_dictionary=False)
    captions = pq.ParquetFile(path).metadata.row_group(1).column(1)
    data = bytearray(path.read_bytes())
    data[captions.data_page_offset : captions.data_page_offset + 8] = b"\xff" * 8
    path.write_bytes(data)
    source = open_source(str(path))
    assert isinstance(source, Sharded) and len(source) == 6
    for offset in (0, 1):  # as a resumed run reads on
        ends = [end for shard in source.shards for _, end in shard.read(offset)]
        assert ends == [*range(offset + 1, 3)] * 3
    found = [(sample.key, sample.problem) for sample in in_order(source)]
    assert found == [
        ("t.parquet[0]:0", None),
        ("t.parquet[0]:1", None),
        ("t.parquet[1]", "damaged shard"),
        ("t.parquet[1]", "damaged shard"),
        ("t.parquet[2]:0", None),
        ("t.parquet[2]:1", None),
    ]


def test_the_rows_that_a_damaged_footer_promises(tmp_path: Path) -> None:
    """The group says it has 63 rows, and its columns 50 values."""
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": [PAIRS[0][0]] * 50, "caption": ["x"] * 50}), path)
    data = bytearray(path.read_bytes())
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for place in range(footer, len(data) - 8):
        if data[place] == 2 * 50:  # as Thrift writes 50
            data[place] = 2 * 63
            path.write_bytes(data)
            if pq.read_metadata(path).row_group(0).num_rows == 63:
                break
            data[place] = 2 * 50
    else:
        pytest.fail("the number of rows was not found")
    assert len(list(in_order(open_source(str(path))))) == 50


def test_a_disk_that_fails_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build("parquet, bytes", tmp_path)
    source = open_source(str(path))

    def broken(*_: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", broken)
    with pytest.raises(OSError, match="Input/output error"):
        list(in_order(source))


def unchecked(texts: list[bytes]) -> pa.Array:
    """Text as Arrow reads it from a file: nobody has checked that it is UTF-8."""
    array = pa.array(texts, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(array), array.buffers())


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["bytes.parquet", "paths.parquet", "saved"])
def test_one_caption_that_is_not_utf8_is_one_skipped_sample(kind: str, nested: bool, tmp_path: Path) -> None:
    names = pictures(tmp_path)
    texts = [text.encode() for _, text in PAIRS]
    texts[2] = "café".encode("latin-1")
    captions = unchecked(texts)
    if nested:
        captions = pa.ListArray.from_arrays(pa.array(range(7), pa.int32()), captions)
    images = (
        [str(tmp_path / name) for name in names] if kind == "paths.parquet" else [data for data, _ in PAIRS]
    )
    table, path = pa.table({"image": images, "caption": captions}), tmp_path / f"t.{kind}"
    if kind == "saved":
        datasets = pytest.importorskip("datasets")
        datasets.Dataset(table).save_to_disk(path)
    else:
        pq.write_table(table, path)
    source = open_source(str(path))
    samples = list(in_order(source))
    assert [sample.problem for sample in samples] == [None, None, "caption is not UTF-8", *[None] * 3]
    assert samples[2].key.endswith(":3" if kind == "paths.parquet" else ":2")
    assert [content([sample])[0] for sample in samples if sample.problem is None] == [
        (data, (text,)) for number, (data, text) in enumerate(PAIRS) if number != 2
    ]


def test_paths_that_are_not_utf8(tmp_path: Path) -> None:
    table = pa.table({"image": unchecked([b"a.png", b"\xff\xfe", b"b.png"]), "caption": ["x", "y", "z"]})
    pq.write_table(table, tmp_path / "t.parquet")
    found = [(sample.key, sample.problem) for sample in in_order(open_source(str(tmp_path / "t.parquet")))]
    assert found == [("a.png", None), ("t.parquet:2", "image path is not UTF-8"), ("b.png", None)]


@pytest.mark.parametrize(
    "captions",
    [
        pa.array([1, 2**62, 3], pa.timestamp("us")),
        pa.array([1, 2**62, 3], pa.duration("s")),
        pa.array([1, 2, 3], pa.timestamp("us", tz="Nowhere/None")),
    ],
)
def test_values_that_python_has_no_room_for(captions: pa.Array, tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [PAIRS[0][0]] * 3, "caption": captions}), tmp_path / "t.parquet")
    samples = list(in_order(open_source(str(tmp_path / "t.parquet"))))
    assert [(sample.key, sample.problem) for sample in samples] == [
        (f"t.parquet[0]:{row}", "caption is not text") for row in range(3)
    ]


@pytest.mark.parametrize("kind", ["csv", "text", "bytes", "struct", "saved", "saved struct"])
def test_all_rows_of_one_image_are_its_captions(kind: str, tmp_path: Path) -> None:
    """Whatever the writer made of their paths, and however it spelt them."""
    folder = tmp_path if "saved" not in kind else tmp_path.resolve()
    names, path = pictures(folder), tmp_path / "t"
    spelt = [f"{folder}/{name}" if "saved" in kind else name for name in (*names[:2], f"./img/../{names[0]}")]
    cells: dict[str, list[Any]] = {
        "bytes": [name.encode() for name in spelt],
        "struct": [{"bytes": None, "path": name} for name in spelt],
    }
    table = pa.table({"image": cells.get(kind.split()[-1], spelt), "caption": ["one", "two", "three"]})
    if kind == "csv":
        path = tmp_path / "t.csv"
        path.write_text("image,caption\n" + "".join(map("{},{}\n".format, spelt, ["one", "two", "three"])))
    elif "saved" in kind:
        datasets = pytest.importorskip("datasets")
        datasets.Dataset(table).save_to_disk(path)
    else:
        path = tmp_path / "t.parquet"
        pq.write_table(table, path, row_group_size=2)
    found = open_source(str(path))
    assert len(found) == 2
    assert content(found) == [(PAIRS[0][0], ("one", "three")), (PAIRS[1][0], ("two",))]


def test_a_column_of_some_paths_and_some_images_is_read_by_row_group(tmp_path: Path) -> None:
    names = pictures(tmp_path)
    images = [{"bytes": None, "path": names[0]}, {"bytes": PAIRS[1][0], "path": names[1]}]
    pq.write_table(pa.table({"image": images, "caption": ["one", "two"]}), tmp_path / "t.parquet")
    source = open_source(str(tmp_path / "t.parquet"))
    assert not isinstance(source, list)
    assert content(source) == [(PAIRS[0][0], ("one",)), (PAIRS[1][0], ("two",))]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "paths.parquet", "bytes.parquet", "saved"])
def test_images_alone(kind: str, tmp_path: Path) -> None:
    """For FARE, which needs no captions."""
    names = pictures(tmp_path)
    images = [data for data, _ in PAIRS] if kind in ("bytes.parquet", "saved") else names
    table, path = [{"id": i, "image": image} for i, image in enumerate(images)], tmp_path / f"t.{kind}"
    if kind == "csv":
        path.write_text("id,image\n" + "\n".join(f"{row['id']},{row['image']}" for row in table))
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, table)))
    elif kind == "saved":
        datasets = pytest.importorskip("datasets")
        datasets.Dataset.from_list(table).save_to_disk(path)
    else:
        pq.write_table(pa.Table.from_pylist(table), path)
    source = open_source(str(path), columns=Columns(captioned=False))
    assert [sample.image_bytes() for sample in in_order(source)] == [data for data, _ in PAIRS]
    assert all(sample.caption is None for sample in in_order(source))
    with pytest.raises(ValueError, match="no caption column by a known name; name one of id, image with"):
        open_source(str(path))
    with pytest.raises(ValueError, match="has no column 'txet'"):
        open_source(str(path), columns=Columns(caption="txet", captioned=False))


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a note")
    with pytest.raises(
        ValueError, match=r"notes\.txt holds no pairs: it is neither a shard \(\*\.tar\) nor a table"
    ):
        open_source(str(tmp_path / "notes.txt"))
