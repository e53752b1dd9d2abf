"""Sampling of metadata: uniform, exact, the same whatever the files look like."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import chisquare

from advflyp.data.sample import Filters, find_columns, plan, sample


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


def test_without_replacement_and_uniform(tmp_path: Path) -> None:
    """Over seeds every row comes as often as any other."""
    source = write(tmp_path / "m.parquet", rows(40))
    counts: Counter[str] = Counter()
    for seed in range(400):
        out = tmp_path / f"{seed}.parquet"
        sample([source], num=10, out=out, seed=seed)
        assert len(set(drawn(out))) == 10
        counts.update(drawn(out))
    assert len(counts) == 40
    # Without replacement the counts vary less than chi-square expects, so this is on the safe side.
    assert chisquare(list(counts.values())).pvalue > 0.001


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
    monkeypatch.setattr("advflyp.data.sample.BATCH_ROWS", 17)  # compacts again and again
    sample([f"{tmp_path}/part-*.parquet"], num=50, out=tmp_path / "c.parquet")
    assert drawn(tmp_path / "a.parquet") == drawn(tmp_path / "b.parquet") == drawn(tmp_path / "c.parquet")
    sample([str(tmp_path / "all.parquet")], num=50, out=tmp_path / "d.parquet", seed=1)
    assert drawn(tmp_path / "d.parquet") != drawn(tmp_path / "a.parquet")


def test_a_url_counts_once_and_the_first_caption_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("advflyp.data.sample.BATCH_ROWS", 7)
    again = [{**row, "TEXT": "later"} for row in rows(60)]
    source = write(tmp_path / "m.parquet", rows(60) + again * 3)
    summary = sample([source], num=200, out=tmp_path / "o.parquet")
    table = pq.read_table(tmp_path / "o.parquet")
    assert summary.kept == 60 and len(set(table["url"].to_pylist())) == 60
    assert "later" not in table["caption"].to_pylist()


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
        with pytest.raises(ValueError, match="no row can be drawn: of 600 rows .*short caption.*600"):
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
    assert find_columns(["URL", "TEXT", "WIDTH"], "f", Filters()) == {
        "url": "URL",
        "caption": "TEXT",
        "width": "WIDTH",
    }
    with pytest.raises(
        ValueError, match=r"no column of captions by a known name.*it has URL, words: .*--columns capt"
    ):
        find_columns(["URL", "words"], "f", Filters())
    assert find_columns(["URL", "words"], "f", Filters(), {"caption": "words"})["caption"] == "words"
    with pytest.raises(
        ValueError, match="no column of similaritys? by a known name, which min_similarity needs"
    ):
        find_columns(["URL", "TEXT"], "f", Filters(min_similarity=0.3))
    with pytest.raises(ValueError, match=r"has no column 'wrods'; did you mean 'words'\?"):
        find_columns(["URL", "words"], "f", Filters(), {"caption": "wrods"})


def test_files_of_different_columns_go_together(tmp_path: Path) -> None:
    one = write(tmp_path / "a.parquet", [{"url": "https://a/1", "caption": "x", "similarity": 0.5}])
    other = write(tmp_path / "b.parquet", [{"URL": "https://a/2", "TEXT": "y"}])
    sample([one, other], num=9, out=tmp_path / "o.parquet")
    assert set(drawn(tmp_path / "o.parquet")) == {"https://a/1", "https://a/2"}


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


def test_what_cannot_be_sampled(tmp_path: Path) -> None:
    source, out = write(tmp_path / "m.parquet", rows(5)), tmp_path / "o.parquet"
    (tmp_path / "no.parquet").write_bytes(b"x" * 100)
    for bad, message in (
        ({"num": 0}, "--num must be at least 1"),
        ({"expect_success": 0.0}, "--expect-success is a share above 0"),
        ({"out": tmp_path / "o.csv"}, r"must end in \.parquet"),
        ({"out": Path(source)}, "exists; remove it"),
        ({"metadata": [str(tmp_path / "gone.parquet")]}, "there is nothing at"),
        ({"metadata": [str(tmp_path / "no.parquet")]}, "is not a readable Parquet file"),
        ({"metadata": []}, "name at least one"),
    ):
        with pytest.raises(ValueError, match=message):
            sample(**{"metadata": [source], "num": 3, "out": out, **bad})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="min_caption_words is above max_caption_words"):
        Filters(min_caption_words=5, max_caption_words=2)
    assert not out.exists()
