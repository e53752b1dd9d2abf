"""`advflyp data …`: list, fetch, pack, check and caption datasets on this machine."""

from typing import TYPE_CHECKING, Annotated, Literal

from advflyp.cli.arguments import (
    Arg,
    AtLeast0,
    BatchSize,
    CaptionColumn,
    Datasets,
    Device,
    FirstPairs,
    ImageColumn,
    OutFolder,
    PairCount,
    Pairs,
    Seed,
)
from advflyp.cli.progress import counter, print_manifest
from advflyp.data.sets.catalogue import set_names
from advflyp.terminal import say
from advflyp.wording import counted
from advflyp.written import check_files

if TYPE_CHECKING:
    from advflyp.data.tools.overlap import Overlap


def sets(name: Annotated[str, Arg("DATASET")] | None = None, /) -> None:
    """List the benchmark sets and which of them are on this machine, or show one in detail.

    Args:
        name: Show the classes, prompts, licence and source of this set.
    """
    if name is not None:
        set_names([name])
        from advflyp.report.pages.lists import set_card

        say(*set_card(name))
        return
    from advflyp.console import SafeConsole
    from advflyp.data.sets.fetch import overview

    SafeConsole().print(overview())


def fetch(names: Datasets = (), /, *, wds: bool = False) -> None:
    """Download benchmark sets.

    Args:
        names: Sets or groups of sets, for example: eurosat caltech101@test paper.
        wds: Download the hub's copy in webdataset format, even if the authors' files are available.
    """
    if not names:
        raise ValueError("say what to fetch, for example `advflyp data fetch eurosat`")
    set_names(list(names))  # a misspelled name is reported before torch is imported
    from advflyp.data.sets.fetch import fetch

    fetch(names, wds=wds)


def caption(
    images: Annotated[str, Arg("DATASET")],
    /,
    *,
    out: OutFolder,
    model: Annotated[str, Arg("MODEL")] = "Qwen/Qwen2.5-VL-3B-Instruct",
    prompt: str = "Describe this image with no more than 50 words",
    batch_size: BatchSize = 16,
    max_new_tokens: int = 96,
    limit: int | None = None,
    dtype: Literal["bf16", "fp16", "fp32"] = "bf16",
    per_shard: int = 1000,
    device: Device = "auto",
    part: Annotated[str, Arg("I/N")] | None = None,
) -> None:
    """Caption the images of a labelled set with a vision-language model, into webdataset shards.

    Args:
        images: A benchmark set or a path, as in `advflyp eval --sets`.
        out: Folder for the shards; the same command resumes at the first unfinished one.
        model: An image-text model with a chat template: a folder, or a name on the Hugging Face hub.
        prompt: Prompt given to the model with each image.
        max_new_tokens: Length limit of a caption, in tokens.
        limit: N class-balanced images (default: all).
        dtype: Precision of the model.
        per_shard: Images per shard; an interruption loses at most one shard.
        device: auto, cpu, cuda, cuda:1 or mps; under torchrun, each rank has its own GPU.
        part: i/n: caption part i of n, counted from 0 (default: set by torchrun, else all images).
    """
    how = {name: value for name, value in locals().items() if name != "images"}
    from advflyp.console import SafeConsole

    set_names([images])
    from advflyp.data.sets.labelled import remarks_on
    from advflyp.data.tools.caption import Options, caption
    from advflyp.training.runlog import Status

    with Status(SafeConsole(), "loading the model") as status:
        done = caption(
            images,
            Options(**how),
            lambda n, total: status.update(f"captions: {n:,} of {counted(total, 'image')}"),
        )
    for remark in remarks_on([images]):
        say(remark)
    if done.skipped.counts:
        say(f"skipped: {done.skipped.describe()}")
    i, n = done.part
    which = "" if n == 1 else f"part {i}/{n}: "
    rest = "" if done.manifest else "; the manifest follows when all parts are done"
    say(f"{which}{counted(done.pairs, 'pair')} in {done.out}{rest}")


def check(
    pairs: Pairs,
    /,
    *,
    out: OutFolder | None = None,
    limit: FirstPairs | None = None,
    size: PairCount | None = None,
    image_column: ImageColumn | None = None,
    caption_column: CaptionColumn | None = None,
    workers: int = 4,
    seed: Seed = 0,
) -> None:
    """Read every pair as training would, and show what is skipped and why, and what the rest looks like.

    Args:
        out: Folder for index.html, with reasons for skipping, caption lengths and a sheet of random pairs.
        workers: Decoding threads.
        seed: Random seed for the sheet of pairs.
    """
    from advflyp.console import SafeConsole
    from advflyp.data.pairs.tables import Columns
    from advflyp.data.tools.check import check
    from advflyp.report.console import as_rich
    from advflyp.report.pages.pairs_page import PAGE, check_page, skipped_table, write_page

    if out is not None:
        check_files(out, (PAGE,))
    with counter("pair", "read") as count:
        found = check(
            pairs,
            limit=limit,
            size=size,
            columns=Columns(image_column, caption_column),
            seed=seed,
            workers=workers,
            progress=count,
        )
    if found.skipped.counts:
        SafeConsole().print(as_rich(skipped_table(found)))
    share = 100 * found.usable / max(1, found.seen)
    say(f"{found.usable:,} of {counted(found.seen, 'pair')} can be used ({share:.1f} %)")
    if out is not None:
        say(f"look at {write_page(out, check_page(found))}")
    if not found.usable:
        raise ValueError(f"no pair of {pairs} can be used: {found.skipped.describe()}")


def overlap(
    pairs: Pairs,
    /,
    *,
    against: Datasets = ("paper",),
    model: str | None = None,
    bits: AtLeast0 | None = None,
    cosine: float = 0.95,
    out: OutFolder | None = None,
    drop: OutFolder | None = None,
    limit: FirstPairs | None = None,
    size: PairCount | None = None,
    image_column: ImageColumn | None = None,
    caption_column: CaptionColumn | None = None,
    device: Device = "auto",
) -> None:
    """Find training images that are near-duplicates of evaluation images, and optionally drop them.

    Args:
        against: Benchmark sets, groups of sets or paths, as in `advflyp eval --sets`.
        model: Confirm the matches of the perceptual hash with this model's embeddings. Use one with --drop: without
            a model, different images of similar shape also count as duplicates.
        bits: Largest number of bits, of 64, in which two hashes may differ (default: 6, or 12 with a model).
        cosine: With --model: smallest cosine similarity of the embeddings.
        out: Folder for matches.jsonl, and index.html to look at them.
        drop: New folder for shards of all pairs except the matching ones.
    """
    set_names(list(against))
    from advflyp.data.pairs.tables import Columns
    from advflyp.data.sets.labelled import remarks_on
    from advflyp.data.tools.overlap import overlap, without
    from advflyp.data.tools.pack import check_new, write_shards
    from advflyp.model.load import load_model, pick_device
    from advflyp.report.pages.pairs_page import MATCHES, PAGE, overlap_page, write_page

    if out is not None:
        check_files(out, (PAGE, MATCHES))
    if drop is not None:
        check_new(drop)
        if out is not None and out.resolve().is_relative_to(drop.resolve()):
            raise ValueError(
                f"--drop makes the folder {drop}, and --out would fill it first; name another --out"
            )
        if limit is not None:
            raise ValueError("--drop goes through all pairs; leave out --limit")
    place = pick_device(device)
    columns = Columns(image_column, caption_column)
    with counter("pair", "compared") as count:
        found = overlap(
            pairs,
            against,
            model=None if model is None else load_model(model, device=place),
            bits=bits,
            cosine=cosine,
            limit=limit,
            size=size,
            columns=columns,
            progress=count,
        )
    say(*remarks_on(against), *_describe_overlap(found))
    if out is not None:
        page = write_page(out, overlap_page(found), found.matches)
        say(f"look at {page}; {out / MATCHES} lists all")
    if drop is not None:
        about = {"dropped_from": pairs, "near_duplicates_of": list(found.against)}
        samples = without(found, size=size, columns=columns)
        print_manifest(write_shards(samples, drop, about=about), drop)


def _describe_overlap(found: "Overlap") -> list[str]:
    def near_duplicates(pairs: set[tuple[int, str]]) -> str:
        return f"{len(pairs):,} {'is a near-duplicate' if len(pairs) == 1 else 'are near-duplicates'}"

    lines = []
    for name, number in found.against.items():
        of_set = [match for match in found.matches if match.set == name]
        hit, every = len({match.image for match in of_set}), counted(number, "image")
        which = f"{hit:,} of its {every}" if hit else f"its {every}"
        matching = near_duplicates({(match.number, match.key) for match in of_set})
        lines.append(f"{name}: of the training pairs, {matching} of {which}")
        if bad := found.unreadable.get(name):
            image, why = next(iter(bad.items()))
            more = ", …" if len(bad) > 1 else ""
            lines.append(
                f"{name}: not compared, unreadable: {counted(len(bad), 'image')}: {image} ({why}){more}"
            )
    seen = counted(found.seen, "training pair")
    lines.append(f"of {seen}, {near_duplicates(found.keys)} of evaluation images")
    if found.skipped.counts:
        lines.append(f"not compared: {found.skipped.describe()}")
    return lines


def pack(
    pairs: Pairs,
    /,
    *,
    out: OutFolder,
    per_shard: int = 10_000,
    resize: int | None = None,
    limit: FirstPairs | None = None,
    size: PairCount | None = None,
    image_column: ImageColumn | None = None,
    caption_column: CaptionColumn | None = None,
) -> None:
    """Write any pairs as webdataset shards with a manifest.

    Args:
        out: New folder for the shards.
        per_shard: Pairs per shard.
        resize: Shrink larger images to this shorter side, in pixels (default: none). JPEG, PNG and WebP files that need
            no shrinking stay as they are; all else becomes JPEG of quality 95.
    """
    from advflyp.data.pairs.tables import Columns
    from advflyp.data.tools.pack import pack

    with counter("pair", "packed") as count:
        manifest = pack(
            pairs,
            out,
            per_shard=per_shard,
            resize=resize,
            limit=limit,
            size=size,
            columns=Columns(image_column, caption_column),
            progress=count,
        )
    print_manifest(manifest, out)
