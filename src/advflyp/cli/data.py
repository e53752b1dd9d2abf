"""`advflyp data …`: parse, call, print. Everything heavy is imported by the command that needs it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from advflyp.cli.parse import Arg, Group
from advflyp.terminal import say
from advflyp.wording import counted

if TYPE_CHECKING:
    from advflyp.data.pairs.manifest import Manifest


@dataclass
class Sets:
    """List the labelled sets, and which of them are on this machine."""

    def run(self) -> None:
        from advflyp.console import SafeConsole
        from advflyp.data.sets.fetch import overview

        SafeConsole().print(overview())


@dataclass
class Fetch:
    """Download labelled sets."""

    names: Annotated[tuple[str, ...], Arg("DATASET", positional=True)] = ()
    """Sets or groups of sets, for example: eurosat caltech101@test paper."""
    wds: bool = False
    """The copy in webdataset format on the Hugging Face hub, even where the authors' files can be had."""

    def run(self) -> None:
        if not self.names:
            raise ValueError("say what to fetch, for example `advflyp data fetch eurosat`")
        from advflyp.data.sets.catalogue import set_names

        set_names(list(self.names))  # a misspelled one shows before torch is imported
        from advflyp.data.sets.fetch import fetch

        fetch(self.names, wds=self.wds)


@dataclass
class Sample:
    """Draw a uniform sample of addresses and captions from metadata in Parquet, in one pass."""

    metadata: Annotated[tuple[str, ...], Arg("FILE", positional=True, input="there is no metadata at")]
    """Parquet files: names, globs, {braces}; here or at any address that fsspec knows (s3://, gs://, https://, hf://)."""
    num: int = 1_000_000
    """Good pairs that are wanted."""
    out: Annotated[Path, Arg("FILE", output="file")] = Path("urls.parquet")
    """The list; its rows are in random order."""
    seed: Annotated[int, Arg(least=0)] = 0
    """The same seed draws the same rows, whatever the order of the files."""
    expect_success: float = 1.0
    """Share of the links that still work (0.68 for LAION-400M in 2024): so many more rows are drawn."""
    min_similarity: float | None = None
    """Of picture and caption, as the metadata has it."""
    min_side: Annotated[int | None, Arg(least=0)] = None
    """Pixels of the shorter side, as the metadata has it."""
    max_aspect: float | None = None
    """Longer side over shorter side."""
    max_nsfw: float | None = None
    """Of a score; of LAION's words UNLIKELY, UNSURE, NSFW the number of the word from 0."""
    licences: Annotated[tuple[str, ...] | None, Arg("LICENCE")] = None
    """Only these."""
    languages: Annotated[tuple[str, ...] | None, Arg("LANGUAGE")] = None
    """Only these."""
    min_caption_words: Annotated[int | None, Arg(least=0)] = None
    max_caption_words: Annotated[int | None, Arg(least=0)] = None
    columns: Annotated[dict[str, str], Arg("NAME=COLUMN")] = field(default_factory=dict)
    """Columns whose names are not known: url=URL_COLUMN caption=TEXT_COLUMN."""
    dry_run: bool = False
    """Only say what would be read: rows, columns, memory."""

    def run(self) -> None:
        from advflyp.data.web.metadata import Filters
        from advflyp.data.web.sample import plan, sample

        filters = Filters(
            min_similarity=self.min_similarity,
            min_side=self.min_side,
            max_aspect=self.max_aspect,
            licences=self.licences,
            languages=self.languages,
            max_nsfw=self.max_nsfw,
            min_caption_words=self.min_caption_words,
            max_caption_words=self.max_caption_words,
        )
        how = {
            "num": self.num,
            "expect_success": self.expect_success,
            "filters": filters,
            "columns": self.columns,
        }
        if self.dry_run:
            found = plan(self.metadata, **how)
            names = ", ".join(f"{ours} = {theirs}" for ours, theirs in found.columns.items())
            rows, groups = counted(found.rows, "row"), counted(found.row_groups, "row group")
            say(f"{rows} in {groups} of {counted(found.files, 'file')}; columns {names}")
            say(f"to read {found.bytes / 1e9:.2f} GB (compressed); memory about {found.memory / 1e9:.1f} GB")
            return
        with _counter("row", "read") as count:
            summary = sample(self.metadata, out=self.out, seed=self.seed, progress=count, **how)
        say(summary.describe())
        say(f"written to {self.out}")


@dataclass
class Caption:
    """Caption the pictures of a labelled set with a vision-language model, to webdataset shards."""

    to_go_on = "the same command continues where this one stopped"

    images: Annotated[str, Arg("DATASET", positional=True)]
    """A labelled set or a path, as `advflyp eval --sets` takes it."""
    out: Annotated[Path, Arg("FOLDER", output="folder")]
    """Folder for the shards; called again, it goes on at the first unfinished one."""
    model: Annotated[str, Arg("MODEL")] = "Qwen/Qwen2.5-VL-3B-Instruct"
    """A folder, or a name on the Hugging Face hub: an image-text model with a chat template."""
    prompt: str = "Describe this image with no more than 50 words"
    """What the model is asked about each picture."""
    batch_size: int = 16
    """Pictures at a time."""
    max_new_tokens: int = 96
    """Where a caption is cut off."""
    limit: int | None = None
    """Only so many pictures, the classes evenly represented."""
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Of the model."""
    per_shard: int = 1000
    """Pictures of a shard, which is also what an interruption costs at most."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps; under torchrun, each process has its own GPU."""
    part: Annotated[str | None, Arg("I/N")] = None
    """i/n: this process does part i of n, from 0/n on; torchrun says so by itself."""

    def run(self) -> None:
        from advflyp.console import SafeConsole
        from advflyp.data.sets.catalogue import set_names

        set_names([self.images])
        from advflyp.data.sets.labelled import remarks_on
        from advflyp.data.tools.caption import caption
        from advflyp.training.runlog import Status

        with Status(SafeConsole(), "loading the model") as status:
            done = caption(
                self.images,
                out=self.out,
                model=self.model,
                prompt=self.prompt,
                batch_size=self.batch_size,
                max_new_tokens=self.max_new_tokens,
                limit=self.limit,
                dtype=self.dtype,
                per_shard=self.per_shard,
                device=self.device,
                part=self.part,
                progress=lambda n, total: status.update(f"captions: {n:,} of {counted(total, 'picture')}"),
            )
        for remark in remarks_on([self.images]):
            say(remark)
        if done.skipped.counts:
            say(f"left out: {done.skipped.describe()}")
        i, n = done.part
        which = "" if n == 1 else f"part {i}/{n}: "
        rest = "" if done.manifest else "; the manifest follows when all parts are done"
        say(f"{which}{counted(done.pairs, 'pair')} in {done.out}{rest}")


@dataclass
class Check:
    """Read every pair as training would: what cannot be used and why, what the rest looks like."""

    pairs: Annotated[str, Arg("PAIRS", positional=True, input="there are no pairs at")]
    """A folder, shards, a table, hf:NAME."""
    out: Annotated[Path | None, Arg("FOLDER", output="folder")] = None
    """Folder for index.html: reasons, lengths of captions, a sheet of random pairs."""
    limit: int | None = None
    """Only the first so many."""
    size: int | None = None
    """How many there are, for remote shards without a manifest."""
    image_column: Annotated[str | None, Arg("COLUMN")] = None
    """Of a table, where its name is not known."""
    caption_column: Annotated[str | None, Arg("COLUMN")] = None
    """Of a table, where its name is not known."""
    workers: int = 4
    """Decoding threads."""
    seed: Annotated[int, Arg(least=0)] = 0
    """Of the sheet."""

    def run(self) -> None:
        from advflyp.console import SafeConsole
        from advflyp.data.pairs.tables import Columns
        from advflyp.data.tools.check import check
        from advflyp.files import check_files
        from advflyp.report.console import as_rich
        from advflyp.report.pages.pairs_page import PAGE, check_page, skipped_table, write_page

        if self.out is not None:
            check_files(self.out, (PAGE,))
        with _counter("pair", "read") as count:
            found = check(
                self.pairs,
                limit=self.limit,
                size=self.size,
                columns=Columns(self.image_column, self.caption_column),
                seed=self.seed,
                workers=self.workers,
                progress=count,
            )
        if found.skipped.counts:
            SafeConsole().print(as_rich(skipped_table(found)))
        share = 100 * found.usable / max(1, found.seen)
        say(f"{found.usable:,} of {counted(found.seen, 'pair')} can be used ({share:.1f} %)")
        if self.out is not None:
            say(f"look at {write_page(self.out, check_page(found))}")
        if not found.usable:
            raise ValueError(f"no pair of {self.pairs} can be used: {found.skipped.describe()}")


@dataclass
class Download:
    """Download the pictures of a list to webdataset shards, by img2dataset in an environment of its own."""

    to_go_on = "the same command continues where this one stopped"

    urls: Annotated[Path, Arg("LIST", positional=True, input="there is no list")]
    """Parquet, CSV, TSV or JSONL with a column of addresses; `advflyp data sample` makes one."""
    out: Annotated[Path, Arg("FOLDER", output="folder")]
    """Folder for the shards and manifest.json; the same command continues a download that ended in any way."""
    num: int | None = None
    """Good pairs wanted; by default what the list says of itself, else one attempt at every row."""
    size: int = 256
    """Pixels of the shorter side of larger pictures; smaller ones stay."""
    quality: int = 95
    """Of the JPEGs."""
    resize_mode: Literal["keep_ratio", "keep_ratio_largest", "center_crop", "border", "no"] = "keep_ratio"
    """What --size means: the shorter side, the longer, a square crop, a padded square; no: pictures stay."""
    shard_size: int | None = None
    """Rows of the list in a shard; by default 10,000, and fewer for a small --num."""
    processes: int | None = None
    """By default one for each processor."""
    threads: int = 64
    """Downloads at a time, of each process."""
    timeout: int = 10
    """Seconds of silence before a download is given up."""
    retries: Annotated[int, Arg(least=0)] = 0
    """Of each failed download."""
    distributor: Literal["multiprocessing", "pyspark", "ray"] = "multiprocessing"
    """Spark and Ray are installed beside img2dataset when they are asked for."""
    allow_private: bool = False
    """Also connect to addresses that are not on the public internet: your own network."""
    max_bytes: int = 32 << 20
    """Of one answer."""
    img2dataset: Annotated[str | None, Arg("COMMAND")] = None
    """An interpreter that has img2dataset; by default an environment made for it."""
    extra: Annotated[tuple[str, ...], Arg("KEY=VALUE", commas=False)] = ()
    """Further arguments of img2dataset.download, key=value."""
    url_column: Annotated[str | None, Arg("COLUMN")] = None
    """Where its name is not known."""
    caption_column: Annotated[str | None, Arg("COLUMN")] = None
    """Where its name is not known."""

    def run(self) -> None:
        from advflyp.console import SafeConsole
        from advflyp.data.web.download import download
        from advflyp.escape import for_rich

        how = {key: value for key, value in vars(self).items() if key != "urls"}
        console = SafeConsole()
        manifest = download(self.urls, say=lambda line: console.print(for_rich(line), soft_wrap=True), **how)
        _print_manifest(manifest, self.out)


@dataclass
class Overlap:
    """Find training pictures that are near-duplicates of evaluation pictures, and drop them if you like."""

    pairs: Annotated[str, Arg("PAIRS", positional=True, input="there are no pairs at")]
    """Whatever data.train takes: a folder, shards, a table, hf:NAME."""
    against: Annotated[tuple[str, ...], Arg("DATASET")] = ("paper",)
    """Labelled sets, groups of sets or paths, as in `advflyp eval --sets`."""
    model: str | None = None
    """Confirms with its embeddings what the perceptual hash proposes. Give one before --drop: alone, the hash also
    takes different pictures of like shape for duplicates."""
    bits: Annotated[int | None, Arg(least=0)] = None
    """Most bits of 64 in which two hashes may differ: 6, or 12 with a model."""
    cosine: float = 0.95
    """Least similarity of the embeddings."""
    out: Annotated[Path | None, Arg("FOLDER", output="folder")] = None
    """Folder for matches.jsonl and index.html, which shows them."""
    drop: Annotated[Path | None, Arg("FOLDER", output="folder")] = None
    """A new folder for the pairs without the matching ones, as shards."""
    limit: int | None = None
    """Only the first so many pairs."""
    size: int | None = None
    """How many there are, for remote shards without a manifest."""
    image_column: Annotated[str | None, Arg("COLUMN")] = None
    """Of a table, where its name is not known."""
    caption_column: Annotated[str | None, Arg("COLUMN")] = None
    """Of a table, where its name is not known."""
    device: str = "auto"
    """Of the model: auto, cpu, cuda, cuda:1, mps."""

    def run(self) -> None:
        from advflyp.data.sets.catalogue import set_names

        set_names(list(self.against))
        from advflyp.data.pairs.tables import Columns
        from advflyp.data.sets.labelled import remarks_on
        from advflyp.data.tools.overlap import overlap, without
        from advflyp.data.tools.pack import check_new, write_shards
        from advflyp.files import check_files
        from advflyp.model.load import load_model, pick_device
        from advflyp.report.pages.pairs_page import MATCHES, PAGE, overlap_page, write_page

        if self.out is not None:
            check_files(self.out, (PAGE, MATCHES))
        if self.drop is not None:
            check_new(self.drop)
            if self.limit is not None:
                raise ValueError("--drop goes through all pairs; leave out --limit")
        place = pick_device(self.device)
        columns = Columns(self.image_column, self.caption_column)
        model = None if self.model is None else load_model(self.model, device=place)
        with _counter("pair", "compared") as count:
            found = overlap(
                self.pairs,
                self.against,
                model=model,
                bits=self.bits,
                cosine=self.cosine,
                limit=self.limit,
                size=self.size,
                columns=columns,
                progress=count,
            )
        for remark in remarks_on(self.against):
            say(remark)
        for name, number in found.against.items():
            of_set = [match for match in found.matches if match.set == name]
            hit, every = len({match.picture for match in of_set}), counted(number, "image")
            which = f"{hit:,} of its {every}" if hit else f"its {every}"
            say(
                f"{name}: of the training pairs, {_near_duplicates({(m.number, m.key) for m in of_set})} of {which}"
            )
            if bad := found.unreadable.get(name):
                picture, why = next(iter(bad.items()))
                more = ", …" if len(bad) > 1 else ""
                say(
                    f"{name}: not compared, unreadable: {counted(len(bad), 'image')}: {picture} ({why}){more}"
                )
        say(f"of {counted(found.seen, 'training pair')}, {_near_duplicates(found.keys)} of evaluation images")
        if found.skipped.counts:
            say(f"not compared: {found.skipped.describe()}")
        if self.out is not None:
            page = write_page(self.out, overlap_page(found), found.matches)
            say(f"look at {page}; {self.out / MATCHES} lists all")
        if self.drop is not None:
            about = {"dropped_from": self.pairs, "near_duplicates_of": list(found.against)}
            samples = without(self.pairs, found.keys, size=self.size, columns=columns)
            _print_manifest(write_shards(samples, self.drop, about=about), self.drop)


def _near_duplicates(pairs: set[tuple[int, str]]) -> str:
    return f"{len(pairs):,} {'is a near-duplicate' if len(pairs) == 1 else 'are near-duplicates'}"


@dataclass
class Pack:
    """Write any pairs as webdataset shards with a manifest."""

    pairs: Annotated[str, Arg("PAIRS", positional=True, input="there are no pairs at")]
    """Whatever data.train takes: a folder, shards, a CSV, TSV, JSONL or Parquet table, hf:NAME."""
    out: Annotated[Path, Arg("FOLDER", output="folder")]
    """A new folder."""
    per_shard: int = 10_000
    """Pairs in a shard."""
    resize: int | None = None
    """Shorter side of larger pictures; by default every file stays as it is."""
    limit: int | None = None
    """Only the first so many."""
    size: int | None = None
    """How many there are, for remote shards without a manifest."""
    image_column: Annotated[str | None, Arg("COLUMN")] = None
    """Of a table, where its name is not known."""
    caption_column: Annotated[str | None, Arg("COLUMN")] = None
    """Of a table, where its name is not known."""

    def run(self) -> None:
        from advflyp.data.pairs.tables import Columns
        from advflyp.data.tools.pack import pack

        with _counter("pair", "packed") as count:
            manifest = pack(
                self.pairs,
                self.out,
                per_shard=self.per_shard,
                resize=self.resize,
                limit=self.limit,
                size=self.size,
                columns=Columns(self.image_column, self.caption_column),
                progress=count,
            )
        _print_manifest(manifest, self.out)


@contextmanager
def _counter(noun: str, done: str) -> Iterator[Callable[[int], None]]:
    """Shows how far a long command is."""
    from advflyp.console import SafeConsole
    from advflyp.training.runlog import Status

    with Status(SafeConsole(), f"no {noun} {done} yet") as status:
        yield lambda number: status.update(f"{counted(number, noun)} {done}")


def _print_manifest(manifest: "Manifest", out: Path) -> None:
    size = sum(shard.bytes for shard in manifest.shards)
    say(
        f"{counted(manifest.pairs, 'pair')} in {counted(len(manifest.shards), 'shard')} of {out}, {size / 1e9:.2f} GB"
    )
    for reason, number in manifest.failures.items():
        say(f"  {number:,} left out: {reason}")


DATA = Group(
    "Training and test data, from nothing to shards.",
    {
        "sets": Sets,
        "fetch": Fetch,
        "sample": Sample,
        "download": Download,
        "pack": Pack,
        "check": Check,
        "overlap": Overlap,
        "caption": Caption,
    },
)
