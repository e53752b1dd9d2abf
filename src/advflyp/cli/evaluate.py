"""Commands that measure: eval, protocols, compare, retrieval, report, interpolate."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from advflyp.cli.arguments import (
    Arg,
    Attacks,
    BatchSize,
    CaptionColumn,
    Datasets,
    Device,
    ImageColumn,
    Model,
    Norm,
    OutFile,
    OutFolder,
    Pairs,
    Prompts,
    Radii,
    Seed,
)
from advflyp.cli.heavy import heavy_imports
from advflyp.config import Typed, convert, number
from advflyp.data.sets.catalogue import set_names
from advflyp.terminal import say
from advflyp.wording import are, counted

if TYPE_CHECKING:
    import torch

    from advflyp.console import SafeConsole
    from advflyp.evaluation.protocols import Protocol
    from advflyp.model.precision import Precision

# The names in `evaluation.protocols.PROTOCOLS`, which needs torch to import.
ProtocolName = Literal[
    "advflyp", "advflyp-code", "tecoa", "pmg-aft", "tga-zsr", "robustvlm", "clip-benchmark", "advflyp-2026",
    "advflyp-2026-mini",
]  # fmt: skip
Results = Annotated[str, Arg("RESULTS", input="there are no results at")]
EvalBatchSize = Annotated[str, Arg("N")]


def evaluate(
    model: Model,
    /,
    *,
    protocol: Annotated[ProtocolName | None, Arg("NAME")] = None,
    sets: Datasets = (),
    attacks: Attacks = (),
    eps: Radii = (),
    norm: Norm | None = None,
    limit: int | None = None,
    templates: Prompts = (),
    classnames: Annotated[Path, Arg("FILE", input="there is no file")] | None = None,
    resize: int | None = None,
    interpolation: Literal["bilinear", "bicubic"] | None = None,
    sanity: bool = False,
    out: OutFile | None = None,
    save_images: OutFolder | None = None,
    batch_size: EvalBatchSize = "auto",
    precision: str | None = None,
    compile: bool = False,
    graphs: bool = False,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Measure the zero-shot accuracy of a model, clean and under attack.

    Args:
        model: mini, ViT-B-32/openai, one of `advflyp models`, hf-hub:…, a run folder, a folder in open_clip's format,
            or a checkpoint and the model it was finetuned from, such as fare.pt@ViT-L-14/openai.
        protocol: Measure as for a published number: class names, prompts, pixels, what "autoattack" means, and the
            defaults of --sets, --attacks, --eps, --norm, --limit and --precision. `advflyp protocols` lists them
            (default: advflyp, on the mini sets).
        sets: Benchmark sets, groups of sets or paths; `advflyp sets` lists them (default: the protocol's, else
            mini).
        attacks: clean, noise, fgsm, pgdN, cwN (N steps; pgd10x5: five restarts), autoattack, autoattack-rand, members
            of AutoAttack such as apgd-ce+square, or others of docs/attacks.md such as encoder100 (default: the
            protocol's, else clean pgd10).
        eps: Radii in pixels of [0, 1], for example 1/255 4/255 (default: the protocol's, else 1/255).
        norm: Norm of the threat model (default: the protocol's, else linf).
        limit: N class-balanced images of each set (default: the protocol's, else all).
        templates: Prompts in place of the sets' own, each with one {} for the class name; or openai, OpenAI's 80 for
            ImageNet.
        classnames: Class names in place of the set's own: one per line, or a JSON list, in the order of the labels.
        resize: Length of the shorter side, in pixels, before the crop (default: the protocol's, else the model's).
        interpolation: How images are resized (default: the protocol's, else the model's; bicubic for CLIP).
        sanity: Check every attacked result for masked gradients.
        out: JSON-lines file for the results. What it already holds is not computed again; the rest resumes.
        save_images: Folder for the adversarial images, float32 without loss. A result whose images are missing is
            measured again.
        batch_size: Images per batch, or auto: as many as fit in a GPU's memory, 128 on a CPU or MPS.
        precision: Precision of the attack's search: fp32, bf16, or auto (bf16 if the device is faster in it).
            Adversarial images are always evaluated in fp32 (default: the protocol's, else auto).
        compile: Run the image tower through torch.compile.
        graphs: Replay passes of the image tower and steps of attacks as CUDA graphs: for small models, where a GPU
            waits for its host.
    """
    radii = check_attacks(attacks, eps, norm or "linf")
    set_names(list(sets))
    if templates:
        from advflyp.data.sets.prompts import choose_templates

        choose_templates(templates)
    with heavy_imports():
        from advflyp.console import is_rank0, rank0_console
        from advflyp.data.sets.folders import read_names
        from advflyp.data.sets.labelled import remarks_on
        from advflyp.escape import for_rich
        from advflyp.evaluation.suite import evaluate
        from advflyp.report.console import evaluation_progress, results_table, verdicts

    chosen = _protocol(protocol).changed(
        templates=templates or None,
        classnames=None if classnames is None else read_names(classnames),
        resize=resize,
        interpolation=interpolation,
    )
    console = rank0_console()
    with evaluation_progress(console) as watch:
        cells = evaluate(
            model,
            sets or chosen.sets,
            attacks or chosen.attacks,
            radii or chosen.eps,
            out=out,
            norm=norm or chosen.norm,
            limit=limit or chosen.limit,
            protocol=chosen,
            save_images=save_images,
            batch_size=batch_size_of(batch_size),
            precision=_precision(precision or chosen.precision, device, console),
            compile=compile,
            graphs=graphs,
            device=device,
            seed=seed,
            sanity=sanity,
            watch=watch,
        )
    console.print(results_table(cells))
    for line in [*remarks_on(sets), *verdicts(cells)]:
        console.print(for_rich(line))
    if out is not None and is_rank0():
        say(f"{are(len(cells), 'result')} in {out}")


def protocols(name: Annotated[ProtocolName | None, Arg("NAME")] = None, /) -> None:
    """List how published numbers were measured, for `advflyp eval --protocol`, or explain one protocol.

    Args:
        name: Explain this protocol in full.
    """
    with heavy_imports():
        from advflyp.console import rank0_console
        from advflyp.report.console import as_rich
        from advflyp.report.pages.protocols import describe, protocols_table

    if name is None:
        rank0_console().print(as_rich(protocols_table()))
    else:
        say(*describe(_protocol(name)))


def compare(a: Results, b: Results, /, *, out: OutFile | None = None) -> None:
    """Compare two models on the same images: differences with intervals, McNemar's exact test.

    Args:
        a: Results of `advflyp eval --out`: FILE, or FILE::MODEL if the file holds several models.
        b: Results of the other model.
        out: Also write the table here: .json or .md.
    """
    with heavy_imports():
        from advflyp.console import rank0_console
        from advflyp.evaluation.compare import compare
        from advflyp.report.console import as_rich
        from advflyp.report.measure.paired import check_out, paired_table, write_comparison

    if out is not None:
        check_out(out)
    rows = compare(a, b)
    rank0_console().print(as_rich(paired_table(rows)))
    if out is not None:
        write_comparison(rows, out)


def retrieval(
    model: Model,
    pairs: Pairs,
    /,
    *,
    attacks: Attacks = ("clean", "pgd10"),
    eps: Radii = ("1/255",),
    norm: Norm = "linf",
    edits: Annotated[tuple[int, ...], Arg("K")] = (),
    limit: int | None = None,
    out: OutFile | None = None,
    batch_size: BatchSize = 128,
    precision: str = "auto",
    image_column: ImageColumn | None = None,
    caption_column: CaptionColumn | None = None,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Measure image–text retrieval in both directions, clean and under attack.

    Args:
        pairs: A folder of name.jpg + name.txt, webdataset shards, a CSV, TSV, JSONL or Parquet table, or hf:NAME; each
            line of a text is a caption.
        attacks: clean, pgdN or cwN (N steps), on every image of the gallery.
        eps: Radii in pixels of [0, 1], for example 1/255 4/255.
        edits: Also edit captions: at most K wrong letters, chosen against the text encoder, and as a control at random.
        limit: N images, drawn by the seed, with their captions (default: all).
        out: JSON-lines file for the results. What it already holds is not computed again; the rest resumes.
        precision: Precision of the attack's search: fp32, bf16, or auto (bf16 if the device is faster in it).
            Adversarial images are always embedded in fp32.
    """
    radii = check_attacks(attacks, eps, norm)
    with heavy_imports():
        from advflyp.console import rank0_console
        from advflyp.data.pairs.tables import Columns
        from advflyp.evaluation.retrieval import retrieval
        from advflyp.report.console import as_rich
        from advflyp.report.measure.recall import recall_table
        from advflyp.training.runlog import Status

    console = rank0_console()
    with Status(console, "retrieval") as status:
        cells = retrieval(
            model,
            pairs,
            attacks,
            radii,
            out=out,
            norm=norm,
            edits=edits,
            limit=limit,
            batch_size=batch_size,
            precision=_precision(precision, device, console),
            device=device,
            seed=seed,
            columns=Columns(image_column, caption_column),
            watch=lambda cell, done: status.update(
                f"{cell.attack}: {done:,} of {counted(cell.n_images, 'image')}"
            ),
        )
    console.print(as_rich(recall_table(cells)))
    if out is not None:
        say(f"{are(len(cells), 'result')} in {out}")


def report(
    paths: Annotated[tuple[Path, ...], Arg("PATH", input="there are neither results nor a run at")],
    /,
    *,
    out: OutFolder = Path("report"),
    seeds: bool = False,
) -> None:
    """Write a self-contained report/index.html from results and runs.

    Args:
        paths: Result files (*.jsonl) of `eval` and `retrieval`, and run folders.
        out: Folder for index.html, results.md and tables/ (CSV, LaTeX).
        seeds: Treat checkpoints with one name as training seeds of one method: mean ± standard deviation.
    """
    with heavy_imports():
        from advflyp.report.pages.report import report_from_paths

    say(f"the report is {report_from_paths(paths, out, seeds=seeds)}")


def interpolate(
    original: Annotated[str, Arg("ORIGINAL", is_model=True)],
    robust: Annotated[str, Arg("ROBUST", is_model=True)],
    /,
    *,
    alphas: Annotated[tuple[float, ...], Arg("ALPHA")] = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1),
    protocol: Annotated[ProtocolName | None, Arg("NAME")] = None,
    sets: Datasets = (),
    attacks: Attacks = (),
    eps: Radii = (),
    limit: int | None = None,
    precision: str | None = None,
    device: Device = "auto",
    out: OutFile | None = None,
    save: Annotated[tuple[float, Path], Arg("ALPHA FOLDER", output="folder")] | None = None,
) -> None:
    """Interpolate the weights of an original and a robust model, and measure the clean–robust trade-off.

    Args:
        original: The model that the robust one was finetuned from.
        robust: The finetuned model, for example a run folder.
        alphas: Interpolation coefficients: 0 is the original model, 1 the robust one.
        protocol: As in `advflyp eval`.
        limit: As in `advflyp eval`.
        precision: As in `advflyp eval`.
        out: JSON-lines file for the results; `advflyp report` draws the curve from it.
        save: Write the model of one alpha to a folder, for example --save 0.7 runs/mixed, and measure nothing.
    """
    radii = check_attacks(attacks, eps, "linf")
    set_names(list(sets))
    for alpha in (*alphas, *(save or ())[:1]):
        if not 0 <= alpha <= 1:
            raise ValueError(
                f"alpha must lie between 0 (the original) and 1 (the robust model), not {alpha:g}"
            )
    if save is not None:
        _save_interpolated(original, robust, *save, device)
        return
    with heavy_imports():
        from advflyp.console import rank0_console
        from advflyp.evaluation.suite import evaluate as measure
        from advflyp.model.load import load_model, pick_device
        from advflyp.model.mix import interpolate as mixed
        from advflyp.report.console import as_rich
        from advflyp.report.measure.grid import means_table
        from advflyp.report.measure.results import Results
        from advflyp.training.runlog import Pulse

    place = pick_device(device)
    console, chosen = rank0_console(), _protocol(protocol)
    searched_in = _precision(precision or chosen.precision, place, console)
    models = load_model(original, device=place), load_model(robust, device=place)
    pulse = Pulse(console)
    cells = [
        cell
        for alpha in dict.fromkeys(alphas)
        for cell in measure(
            mixed(*models, alpha),
            sets or chosen.sets,
            attacks or chosen.attacks,
            radii or chosen.eps,
            name=f"{Path(robust).name}, α = {alpha:g}",
            out=out,
            limit=limit or chosen.limit,
            protocol=chosen,
            precision=searched_in,
            progress=lambda cell: pulse.say(lambda: f"{cell.model}: {cell.set} {cell.attack} is done"),
        )
    ]
    found, title = Results(cells), "Interpolated weights: means over sets in %"
    console.print(as_rich(means_table(found, found.conditions, sets=found.sets, title=title)))


def _save_interpolated(original: str, robust: str, alpha: float, folder: Path, device: str) -> None:
    from advflyp.files import names_in, recover_folder

    recover_folder(folder)
    if names_in(folder):
        raise ValueError(f"{folder} already exists; name a new folder with --save")
    from advflyp.model.folder import card_of, save_model
    from advflyp.model.load import load_model
    from advflyp.model.mix import interpolate

    mixed = interpolate(load_model(original, device=device), load_model(robust, device=device), alpha)
    card = {"alpha": alpha, "original": original, "robust": robust, **card_of(mixed)}
    save_model(mixed, folder, card, replace=False)
    say(f"the model is {folder}")


def batch_size_of(word: str) -> 'int | Literal["auto"]':
    """A number of images, or "auto"."""
    return convert(Typed(word.lower()), int | Literal["auto"], "--batch-size")


def check_attacks(attacks: Sequence[str], eps: Sequence[str], norm: str) -> list[float]:
    """The radii as numbers; ValueError for an unknown attack, or a radius that no evaluation can use."""
    from advflyp.attack.names import read_attack_name

    for name in attacks:
        read_attack_name(name)
    radii = [number(value, "--eps") for value in eps]
    for value, word in zip(radii, eps, strict=True):
        if not value > 0:
            raise ValueError(f"--eps must be above 0, for example 1/255, not {value:g}")
        # A plain 1 probably means one grey level, not all 255.
        if norm == "linf" and (value > 1 or (value == 1 and "/" not in word)):
            raise ValueError(
                f"--eps is in pixels of [0, 1], write {value:g}/255 for grey levels, not {value:g}"
            )
    return radii


def _protocol(name: "ProtocolName | None") -> "Protocol":
    """The protocol with this name; by default ours, on the mini sets."""
    from advflyp.evaluation.protocols import QUICK, find_protocol

    return QUICK if name is None else find_protocol(name)


def _precision(asked: str, device: "str | torch.device", console: "SafeConsole") -> "Precision":
    """Check a precision, and print what "auto" means on the device, or how slow the precision is there."""
    from advflyp.model.load import pick_device
    from advflyp.model.precision import check_precision, choose_precision

    precision = check_precision(asked, "--precision")
    console.print(str(choose_precision(precision, pick_device(device))))
    return precision
