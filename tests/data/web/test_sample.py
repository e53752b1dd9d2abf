"""Sampling of metadata: uniform, exact, the same whatever the files look like."""

import errno
import hashlib
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import chi2

from advflyp.data.web.metadata import Filters, find_columns
from advflyp.data.web.sample import plan, sample


def rows(n: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "URL": f"https://example.org/{i}.jpg",
            "TEXT": f"  caption\n number {i} ",
            "similarity": i % 100 / 100,
            "WIDTH": 100 + i % 300,
            "HEIGHT": 200,
            "NSFW": ["UNLIKELY", "UNSURE", "NSFW", None][i % 4],
            "LICENSE": ["cc-by", "?"][i % 2],
            "LANGUAGE": ["en", "de", "fr"][i % 3],
        }
        for i in range(first, first + n)
    ]


def write(path: Path, some: list[dict[str, Any]], group: int = 1000) -> str:
    pq.write_table(pa.Table.from_pylist(some), path, row_group_size=group)
    return str(path)


def priority(url: str, seed: int) -> int:
    """As DuckDB reads an MD5: the other way round."""
    return int.from_bytes(hashlib.md5(f"{seed} {url}".encode()).digest(), "little")


def drawn(path: Path) -> list[str]:
    return pq.read_table(path)["url"].to_pylist()


def test_what_is_written(tmp_path: Path) -> None:
    source = write(tmp_path / "m.parquet", rows(500))
    summary = sample([source], num=68, expect_success=0.68, out=tmp_path / "o.parquet", seed=3)
    table = pq.read_table(tmp_path / "o.parquet")
    assert (summary.rows, summary.kept, summary.wanted) == (500, 100, 68) and len(table) == 100
    assert {"url", "caption", "similarity", "width", "height", "licence", "nsfw", "language"} == set(
        table.column_names
    )
    by_url = {row["URL"]: row for row in rows(500)}
    for row in table.to_pylist():
        original = by_url[row["url"]]
        assert (
            row["caption"] == " ".join(original["TEXT"].split())
            and row["similarity"] == original["similarity"]
        )
    about = {key.decode(): json.loads(value) for key, value in (table.schema.metadata or {}).items()}
    assert about["wanted"] == 68 and about["seed"] == 3 and about["rows"] == 500


@pytest.mark.long
def test_without_replacement_and_uniform(tmp_path: Path) -> None:
    """Over seeds every row comes as often as any other, and so does every pair of rows."""
    n, k, seeds = 40, 10, 200
    source = write(tmp_path / "m.parquet", rows(n))
    counts: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for seed in range(seeds):
        out = tmp_path / f"{seed}.parquet"
        sample([source], num=k, out=out, seed=seed)
        urls = drawn(out)
        assert len(set(urls)) == k
        counts.update(urls)
        pairs.update(itertools.combinations(sorted(urls), 2))
    share = k / n
    assert len(counts) == n
    # A row is in or out, and exactly k are in: variance seeds · share (1 − share), n − 1 degrees of freedom.
    spread = sum((c - seeds * share) ** 2 for c in counts.values()) / (seeds * share * (1 - share))
    assert 0.001 < chi2.sf(spread * (n - 1) / n, n - 1) < 0.999
    all_pairs, share = n * (n - 1) // 2, share * (k - 1) / (n - 1)
    missing = all_pairs - len(pairs)
    spread = sum((c - seeds * share) ** 2 for c in pairs.values()) + missing * (seeds * share) ** 2
    assert 0.001 < chi2.sf(spread / (seeds * share * (1 - share)), all_pairs - 1) < 0.999


@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
def test_the_order_is_that_of_the_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Against a sort of everything; compacted at the end, and after each file."""
    for number, some in enumerate((rows(400), rows(300, 400), rows(300))):
        write(tmp_path / f"m{number}.parquet", some)
    urls = sorted((row["URL"] for row in rows(700)), key=lambda url: priority(url, seed))
    for spare in (65_536, 0):
        monkeypatch.setattr("advflyp.data.web.sample.SPARE_ROWS", spare)
        sample([f"{tmp_path}/m*.parquet"], num=120, out=tmp_path / f"{spare}.parquet", seed=seed)
        assert drawn(tmp_path / f"{spare}.parquet") == urls[:120]


def test_a_prefix_is_a_sample_of_its_own(tmp_path: Path) -> None:
    source = write(tmp_path / "m.parquet", rows(300))
    sample([source], num=100, out=tmp_path / "a.parquet")
    sample([source], num=30, out=tmp_path / "b.parquet")
    assert drawn(tmp_path / "b.parquet") == drawn(tmp_path / "a.parquet")[:30]


def test_files_groups_and_their_order_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "all.parquet", rows(900))
    for part in range(3):
        write(tmp_path / f"part-{part}.parquet", rows(300, 300 * part), group=70)
    sample([str(tmp_path / "all.parquet")], num=50, out=tmp_path / "a.parquet")
    sample([f"{tmp_path}/part-{{2,0,1}}.parquet"], num=50, out=tmp_path / "b.parquet")
    monkeypatch.setattr("advflyp.data.web.sample.SPARE_ROWS", 0)  # compacts again and again
    sample([f"{tmp_path}/part-*.parquet"], num=50, out=tmp_path / "c.parquet")
    assert drawn(tmp_path / "a.parquet") == drawn(tmp_path / "b.parquet") == drawn(tmp_path / "c.parquet")
    sample([str(tmp_path / "all.parquet")], num=50, out=tmp_path / "d.parquet", seed=1)
    assert drawn(tmp_path / "d.parquet") != drawn(tmp_path / "a.parquet")


def test_a_url_counts_once_and_the_first_caption_stays(tmp_path: Path) -> None:
    again = [{**row, "TEXT": "later"} for row in rows(60)]
    source = write(tmp_path / "m.parquet", rows(60) + again * 3)
    summary = sample([source], num=200, out=tmp_path / "o.parquet")
    table = pq.read_table(tmp_path / "o.parquet")
    assert summary.kept == 60 and len(set(table["url"].to_pylist())) == 60
    assert "later" not in table["caption"].to_pylist()


def test_of_equal_urls_the_first_that_may_be_drawn_stays(tmp_path: Path) -> None:
    """In the order in which the files are named."""
    for name, similarity in (("a", 0.1), ("b", 0.5), ("c", 0.9)):
        write(
            tmp_path / f"{name}.parquet", [{"url": "https://a/1", "caption": name, "similarity": similarity}]
        )
    for files, expected in (("{a,b,c}", "b"), ("{c,b,a}", "c"), ("[ab]", "b")):
        out = tmp_path / f"out-{expected}-{len(files)}.parquet"
        sample([f"{tmp_path}/{files}.parquet"], num=5, out=out, filters=Filters(min_similarity=0.3))
        assert pq.read_table(out)["caption"].to_pylist() == [expected]


@pytest.mark.parametrize(
    ("filters", "good"),
    [
        (Filters(min_similarity=0.5), lambda i: i % 100 >= 50),
        (Filters(min_side=150), lambda i: i % 300 >= 50),
        (Filters(max_aspect=1.5), lambda i: max(200, 100 + i % 300) <= 1.5 * min(200, 100 + i % 300)),
        (Filters(licences=("CC-BY",)), lambda i: i % 2 == 0),
        (Filters(languages=("en", "fr")), lambda i: i % 3 != 1),
        (Filters(max_nsfw=1), lambda i: i % 4 in (0, 1)),
        (Filters(min_caption_words=4), lambda i: False),
        (Filters(min_caption_words=3, max_caption_words=3), lambda i: True),
    ],
)
def test_filters(tmp_path: Path, filters: Filters, good: Any) -> None:
    source = write(tmp_path / "m.parquet", rows(600))
    expected = {f"https://example.org/{i}.jpg" for i in range(600) if good(i)}
    if not expected:
        with pytest.raises(ValueError, match="no row can be drawn of 600 rows; skipped: 600 .*short caption"):
            sample([source], num=1000, out=tmp_path / "o.parquet", filters=filters)
        assert not list(tmp_path.glob("o*"))
        return
    summary = sample([source], num=1000, out=tmp_path / "o.parquet", filters=filters)
    assert set(drawn(tmp_path / "o.parquet")) == expected
    assert sum(summary.dropped.values()) == 600 - len(expected)


def test_rows_that_are_no_pairs(tmp_path: Path) -> None:
    bad = [
        {"url": "ftp://a/b", "caption": "x"}, {"url": None, "caption": "x"}, {"url": "https://", "caption": "x"},
        {"url": "https://a/1", "caption": " \n"}, {"url": "https://a/2", "caption": None},
        {"url": "https://a/3", "caption": "good"},
    ]  # fmt: skip
    summary = sample([write(tmp_path / "m.parquet", bad)], num=9, out=tmp_path / "o.parquet")
    assert drawn(tmp_path / "o.parquet") == ["https://a/3"]
    assert summary.dropped == {"no web address": 3, "no caption": 2}


def test_columns_by_known_or_given_names(tmp_path: Path) -> None:
    assert find_columns(dict.fromkeys(["URL", "TEXT", "WIDTH"], "VARCHAR"), "f", Filters()) == {
        "url": "URL",
        "caption": "TEXT",
        "width": "WIDTH",
    }
    with pytest.raises(
        ValueError,
        match=r"no column of text or numbers by a known name for caption.*it has URL, words: .*--columns capt",
    ):
        find_columns(dict.fromkeys(["URL", "words"], "VARCHAR"), "f", Filters())
    assert (
        find_columns(dict.fromkeys(["URL", "words"], "VARCHAR"), "f", Filters(), {"caption": "words"})[
            "caption"
        ]
        == "words"
    )
    with pytest.raises(ValueError, match="for similarity, which min_similarity needs"):
        find_columns(dict.fromkeys(["URL", "TEXT"], "VARCHAR"), "f", Filters(min_similarity=0.3))
    with pytest.raises(ValueError, match=r"has no column 'wrods' of text or numbers; did you mean 'words'\?"):
        find_columns(dict.fromkeys(["URL", "words"], "VARCHAR"), "f", Filters(), {"caption": "wrods"})


def test_files_of_different_columns_go_together(tmp_path: Path) -> None:
    """A column that only some have is empty for the others; words and scores become text."""
    tables = [
        {"url": ["https://a/1"], "caption": ["x"], "width": [300], "similarity": [0.5]},
        {"URL": ["https://a/2"], "TEXT": pa.array(["y"]).dictionary_encode(), "WIDTH": [400.0], "punsafe": [0.5]},
        {"url": pa.array(["https://a/3"], pa.large_string()), "text": [b"z"], "width": ["500"], "NSFW": ["NSFW"]},
        {"url": ["https://a/4"], "text": ["w"], "width": pa.nulls(1), "height": [[1, 2]]},
    ]  # fmt: skip
    for i, table in enumerate(tables):
        pq.write_table(pa.table(table), tmp_path / f"{i}.parquet")
    sample([str(tmp_path)], num=9, out=tmp_path / "out" / "o.parquet")
    found = sorted(pq.read_table(tmp_path / "out" / "o.parquet").to_pylist(), key=lambda row: row["url"])
    assert [tuple(row.values()) for row in found] == [
        ("https://a/1", "x", 0.5, 300, None),
        ("https://a/2", "y", None, 400, "0.5"),
        ("https://a/3", "z", None, 500, "NSFW"),
        ("https://a/4", "w", None, None, None),
    ]


def test_a_missing_value_passes_no_filter(tmp_path: Path) -> None:
    urls = [f"https://a/{i}" for i in range(6)]
    table = {
        "url": urls,
        "caption": ["x"] * 6,
        "width": ["500", None, "", "0", "nan", "500"],
        "height": [500.0, 500, 500, 0, 500, float("nan")],
        "nsfw": pa.array(["UNLIKELY", "unlikely", "0.2", "?", None, "NSFW"]).dictionary_encode(),
        "license": ["?", "?", "a", "b", None, "?"],
    }
    pq.write_table(pa.table(table), tmp_path / "m.parquet")
    for number, (filters, good) in enumerate(
        [
            (Filters(min_side=100), {0}),
            (Filters(max_aspect=3), {0}),
            (Filters(max_nsfw=0.5), {0, 1, 2}),
            (Filters(licences=("?",)), {0, 1, 5}),
        ]
    ):
        sample([str(tmp_path / "m.parquet")], num=9, out=tmp_path / f"{number}.parquet", filters=filters)
        assert set(drawn(tmp_path / f"{number}.parquet")) == {urls[i] for i in good}


def test_captions_come_out_as_one_line_of_utf8(tmp_path: Path) -> None:
    texts = [
        b"a\t\x0b b\r\nc",
        "d\u2028e\u3000\x85f ".encode(),
        "\u00a0\u2003".encode(),
        b"g \xff",
        "ünï ✓".encode(),
    ]
    column = pa.array(texts, pa.binary()).view(
        pa.string()
    )  # as a Parquet file may hold it: nothing was checked
    table = pa.table({"url": [f" HTTPS://a/{i}\n" for i in range(5)], "caption": column})
    pq.write_table(table, tmp_path / "m.parquet")
    filters = Filters(min_caption_words=2, max_caption_words=3)
    summary = sample([str(tmp_path / "m.parquet")], num=5, out=tmp_path / "o.parquet", filters=filters)
    found = pq.read_table(tmp_path / "o.parquet")
    assert set(found["caption"].to_pylist()) == {"a b c", "d e f", "g ?", "ünï ✓"}
    assert set(found["url"].to_pylist()) == {f"HTTPS://a/{i}" for i in (0, 1, 3, 4)}
    assert found.schema.field("caption").type == pa.string() and summary.dropped == {"no caption": 1}


def test_fewer_rows_than_asked_for_are_said_plainly(tmp_path: Path) -> None:
    source = write(tmp_path / "m.parquet", [*rows(20), {"URL": "ftp://a/b", "TEXT": "x"}])
    few = sample([source], num=17, expect_success=0.5, out=tmp_path / "a.parquet").describe()
    assert few.splitlines() == [
        "20 of 21 rows; skipped: 1 (no web address)",
        "there are no more rows to draw; 34 were asked for, to get 17 good pairs",
    ]
    assert (
        sample([source], num=5, out=tmp_path / "b.parquet").describe().startswith("5 of 21 rows; skipped: 1")
    )
    assert "\n" not in sample([source], num=20, out=tmp_path / "c.parquet").describe()


def test_a_damaged_file_leaves_nothing_behind(tmp_path: Path) -> None:
    """A plan, which reads the footer alone, does not notice."""
    path = Path(write(tmp_path / "m.parquet", rows(5000)))
    data = path.read_bytes()
    path.write_bytes(data[:4] + b"\xff" * 2000 + data[2004:])
    assert plan([str(path)], num=3).rows == 5000
    with pytest.raises(ValueError, match=r"m\.parquet cannot be read to its end; fetch it anew"):
        sample([str(path)], num=3, out=tmp_path / "o.parquet")
    assert list(tmp_path.iterdir()) == [path]


def test_a_plan_of_400_million_rows_reads_footers_only(tmp_path: Path) -> None:
    """A constant column packs to nothing: the row counts are real, the file is small."""
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000_000, pa.int8()), ["https://a/b"])
    table = pa.table({"URL": repeated, "TEXT": repeated})
    with pq.ParquetWriter(tmp_path / "m.parquet", table.schema) as writer:
        for _ in range(8):
            writer.write_table(table, row_group_size=1_000_000)
    names = ",".join(str(i) for i in range(50))
    for i in range(50):
        (tmp_path / f"m{i}.parquet").symlink_to(tmp_path / "m.parquet")
    found = plan([f"{tmp_path}/m{{{names}}}.parquet"], num=1_000_000, expect_success=0.68)
    assert (found.files, found.rows, found.row_groups) == (50, 400_000_000, 400)
    assert found.columns == {"url": "URL", "caption": "TEXT"} and found.memory < 4e9
    assert found.bytes < 10_000_000


def test_over_fsspec(tmp_path: Path) -> None:
    import fsspec

    path = Path(write(tmp_path / "m.parquet", rows(50)))
    fsspec.filesystem("memory").pipe("/metadata/m.parquet", path.read_bytes())
    sample(["memory://metadata/*.parquet"], num=10, out=tmp_path / "a.parquet")
    sample([str(path)], num=10, out=tmp_path / "b.parquet")
    assert drawn(tmp_path / "a.parquet") == drawn(tmp_path / "b.parquet")


def test_a_small_file_that_holds_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long text counts as missing and is never copied; a page that does not fit in memory is refused."""
    n = 5_000
    urls = pa.array([f"https://a/{i}" for i in range(n)])
    codes = pa.array([*[0] * (n - 1), 1], pa.int32())
    captions = pa.DictionaryArray.from_arrays(codes, ["x" * 5_000_000, "short"])
    pq.write_table(pa.table({"url": urls, "caption": captions}), tmp_path / "m.parquet", compression="zstd")
    assert (tmp_path / "m.parquet").stat().st_size < 2_000_000
    summary = sample([str(tmp_path / "m.parquet")], num=9, out=tmp_path / "o.parquet")
    assert (summary.kept, dict(summary.dropped)) == (1, {"no caption": n - 1})

    monkeypatch.setattr("advflyp.data.web.sample.MEMORY_BYTES", 50_000_000)
    texts = pa.table({"url": urls[:20], "caption": ["y" * 5_000_000] * 20})
    pq.write_table(
        texts, tmp_path / "page.parquet", use_dictionary=False, data_page_size=1 << 30, compression="zstd"
    )
    with pytest.raises(ValueError, match=r"page\.parquet unpacks to more than fits in memory"):
        sample([str(tmp_path / "page.parquet")], num=9, out=tmp_path / "p.parquet")
    assert not (tmp_path / "p.parquet").exists()


def test_names_are_no_sql(tmp_path: Path) -> None:
    """Columns and filters of a stranger's making."""
    rows = [{"u\"r'l": "https://a/1", "caption": "x", "license": "it's; --"}]
    source = write(tmp_path / "it's [1]*.parquet", rows)
    write(tmp_path / "it's 1.parquet", [{"url": "https://a/2", "caption": "another"}])
    filters = Filters(licences=("IT'S; --",))
    sample([source], num=1, out=tmp_path / "o.parquet", columns={"url": "u\"r'l"}, filters=filters)
    assert drawn(tmp_path / "o.parquet") == ["https://a/1"]


def test_more_rows_than_memory_go_through_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("advflyp.data.web.sample.MEMORY_BYTES", 80_000_000)
    for part in range(3):
        n = 50_000
        ids = range(part * n, part * n + n)
        table = {
            "url": [f"https://a/{i}" for i in ids],
            "caption": [f"{i:400d}." + "words " * 60 for i in ids],
        }
        pq.write_table(pa.table(table), tmp_path / f"{part}.parquet")
    summary = sample([str(tmp_path)], num=140_000, out=tmp_path / "out" / "o.parquet")
    urls = drawn(tmp_path / "out" / "o.parquet")
    assert summary.kept == len(set(urls)) == 140_000
    assert urls == sorted(urls, key=lambda url: priority(url, 0))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["o.parquet"]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    source = write(tmp_path / "m.parquet", rows(20))
    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(OSError, match="no space left"):
        sample([source], num=3, out=tmp_path / "o.parquet")
    assert list(tmp_path.iterdir()) == [Path(source)]


def test_what_cannot_be_sampled(tmp_path: Path) -> None:
    source, out = write(tmp_path / "m.parquet", rows(5)), tmp_path / "o.parquet"
    nested = write(tmp_path / "nested.parquet", [{"url": "https://a/b", "caption": ["x", "y"]}])
    (tmp_path / "no.parquet").write_bytes(b"x" * 100)
    for bad, message in (
        ({"num": 0}, "--num must be at least 1"),
        ({"expect_success": 0.0}, "--expect-success is a share above 0"),
        ({"seed": -1}, "--seed must be from 0"),
        ({"seed": 2**64}, "--seed must be from 0"),
        (
            {"metadata": [nested]},
            r"for caption, which a sample needs; it has url, caption \(VARCHAR\[\]\): name one",
        ),
        ({"columns": {"colour": "url"}}, "there is no column 'colour' to name"),
        ({"out": tmp_path / "o.csv"}, r"must end in \.parquet"),
        ({"out": Path(source)}, "exists; remove it"),
        ({"metadata": [str(tmp_path / "gone.parquet")]}, "there is nothing at"),
        ({"metadata": [str(tmp_path / "no.parquet")]}, "is not a readable Parquet file"),
        ({"metadata": []}, "name at least one"),
    ):
        with pytest.raises(ValueError, match=message):
            sample(**{"metadata": [source], "num": 3, "out": out, **bad})  # type: ignore[arg-type]
    assert not out.exists()
    with pytest.raises(ValueError, match="--num must be at least 1"):
        plan([source], num=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_caption_words": 5, "max_caption_words": 2}, "min_caption_words is above max_caption_words"),
        ({"max_caption_words": 0}, "max_caption_words must be at least 1"),
        ({"min_side": 0}, "min_side must be at least 1"),
        ({"max_aspect": 0.5}, "max_aspect is the longer side over the shorter"),
        ({"min_similarity": float("nan")}, "min_similarity must be a finite number"),
        ({"max_nsfw": -0.1}, "max_nsfw must be at least 0"),
        ({"licences": ()}, "licences is empty"),
    ],
)
def test_impossible_filters(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Filters(**values)
