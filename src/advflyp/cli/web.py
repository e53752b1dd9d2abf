"""`advflyp data sample` and `download`: pairs from the web."""

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal

from advflyp.cli.arguments import Arg, AtLeast0, Column, OutFile, OutFolder, Seed
from advflyp.cli.progress import counter, print_manifest
from advflyp.terminal import say
from advflyp.wording import counted


def sample(
    metadata: Annotated[tuple[str, ...], Arg("FILE", input="there is no metadata at")],
    /,
    *,
    num: int = 1_000_000,
    out: OutFile = Path("urls.parquet"),
    seed: Seed = 0,
    expect_success: float = 1.0,
    min_similarity: float | None = None,
    min_side: AtLeast0 | None = None,
    max_aspect: float | None = None,
    max_nsfw: float | None = None,
    licences: Annotated[tuple[str, ...], Arg("LICENCE")] | None = None,
    languages: Annotated[tuple[str, ...], Arg("LANGUAGE")] | None = None,
    min_caption_words: AtLeast0 | None = None,
    max_caption_words: AtLeast0 | None = None,
    columns: Annotated[dict[str, str], Arg("NAME=COLUMN")] | None = None,
    dry_run: bool = False,
) -> None:
    """Draw a uniform sample of URLs and captions from metadata in Parquet, in one pass.

    Args:
        metadata: Parquet files: names, globs, {braces}; local or remote (s3://, gs://, https://, hf://).
        num: Number of good pairs wanted.
        out: Parquet file for the list, in random order.
        seed: Random seed. The same seed draws the same rows, whatever the order of the files.
        expect_success: Expected fraction of working links (0.68 for LAION-400M in 2024); below 1, more rows are drawn.
        min_similarity: Smallest similarity between image and caption in the metadata.
        min_side: Smallest shorter side in the metadata, in pixels.
        max_aspect: Largest ratio of the longer to the shorter side.
        max_nsfw: Largest NSFW score; LAION's words UNLIKELY, UNSURE, NSFW count as 0, 1, 2.
        licences: Licences to keep.
        languages: Languages to keep.
        min_caption_words: Fewest words in a caption.
        max_caption_words: Most words in a caption.
        columns: Column names, if not detected: url=URL_COLUMN caption=TEXT_COLUMN.
        dry_run: Print what would be read (rows, columns, memory), and stop.
    """
    given = locals()
    from advflyp.data.web.metadata import Filters
    from advflyp.data.web.sample import plan, sample

    filters = Filters(**{field.name: given[field.name] for field in fields(Filters)})
    how = {"num": num, "expect_success": expect_success, "filters": filters, "columns": columns or {}}
    if dry_run:
        found = plan(metadata, **how)
        names = ", ".join(f"{ours} = {theirs}" for ours, theirs in found.columns.items())
        rows, groups = counted(found.rows, "row"), counted(found.row_groups, "row group")
        say(f"{rows} in {groups} of {counted(found.files, 'file')}; columns {names}")
        say(f"to read {found.bytes / 1e9:.2f} GB (compressed); memory about {found.memory / 1e9:.1f} GB")
        return
    with counter("row", "read") as count:
        summary = sample(metadata, out=out, seed=seed, progress=count, **how)
    say(summary.describe())
    say(f"written to {out}")


def download(
    urls: Annotated[Path, Arg("LIST", input="there is no list")],
    /,
    *,
    out: OutFolder,
    num: int | None = None,
    size: int = 256,
    quality: int = 95,
    resize_mode: Literal["keep_ratio", "keep_ratio_largest", "center_crop", "border", "no"] = "keep_ratio",
    shard_size: int | None = None,
    processes: int | None = None,
    threads: int = 64,
    timeout: int = 10,
    retries: AtLeast0 = 0,
    distributor: Literal["multiprocessing", "pyspark", "ray"] = "multiprocessing",
    allow_private: bool = False,
    max_bytes: int = 32 << 20,
    img2dataset: Annotated[str, Arg("COMMAND")] | None = None,
    extra: Annotated[tuple[str, ...], Arg("KEY=VALUE", commas=False)] = (),
    url_column: Column | None = None,
    caption_column: Column | None = None,
) -> None:
    """Download the images of a list into webdataset shards, with img2dataset in a separate environment.

    Args:
        urls: Parquet, CSV, TSV or JSONL file with a column of URLs; `advflyp data sample` makes one.
        out: Folder for the shards and manifest.json; the same command resumes an interrupted download.
        num: Number of good pairs wanted (default: as recorded in the list, else one attempt at every row).
        size: Shrink larger images to this side, in pixels (see --resize-mode); smaller images stay as they are.
        quality: JPEG quality.
        resize_mode: What --size is: keep_ratio, the shorter side; keep_ratio_largest, the longer side; center_crop, a
            square crop; border, a padded square; no, nothing: images are not resized.
        shard_size: Rows of the list per shard (default: 10,000, or fewer for a small --num).
        processes: Worker processes (default: one per processor).
        threads: Parallel downloads in each process.
        timeout: Seconds without data before a download is given up.
        retries: Further attempts at each failed download.
        distributor: How to distribute the work. Spark and Ray are installed beside img2dataset on demand.
        allow_private: Also connect to addresses that are not on the public internet, such as your own network.
        max_bytes: Maximum response size in bytes.
        img2dataset: Python interpreter that has img2dataset (default: an environment made for it).
        extra: Further arguments for img2dataset.download.
        url_column: Column of the URLs, if not detected.
        caption_column: Column of the captions, if not detected.
    """
    how = {name: value for name, value in locals().items() if name != "urls"}
    from advflyp.console import SafeConsole
    from advflyp.data.web.download import Options, download
    from advflyp.escape import for_rich

    console = SafeConsole()
    manifest = download(urls, Options(**how), lambda line: console.print(for_rich(line), soft_wrap=True))
    print_manifest(manifest, out)
    if not manifest.pairs:
        raise ValueError(f"no URL in {urls} yielded a pair; the reasons are above")
