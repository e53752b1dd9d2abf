"""The command line: parse, call, print. Everything heavy is imported by the command that needs it."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

from advflyp.__about__ import __version__
from advflyp.cli.data import DATA
from advflyp.cli.models import Export, Models, Publish
from advflyp.cli.parse import Arg, Group, find_command, parse
from advflyp.cli.use import Attack, Demo, Predict
from advflyp.data.sets.catalogue import set_names
from advflyp.data.sets.prompts import choose_templates
from advflyp.errors import RunError, refusal
from advflyp.files import names_in, recover_folder
from advflyp.terminal import nobody_reads, prepare_streams, say
from advflyp.wording import counted

if TYPE_CHECKING:
    import torch

    from advflyp.console import SafeConsole
    from advflyp.evaluation.protocols import Protocol
    from advflyp.model.precision import Precision

# `evaluation.protocols.PROTOCOLS`, which takes torch to import.
ProtocolName = Literal[
    "advflyp", "advflyp-code", "tecoa", "pmg-aft", "tga-zsr", "robustvlm", "clip-benchmark"
]  # fmt: skip


@dataclass
class Quickstart:
    """Make a small CLIP robust and show it: evaluate, finetune with AdvFLYP_full, evaluate again, report."""

    to_go_on = "the same command continues where this one stopped"

    out: Annotated[Path, Arg("FOLDER", output="folder")] = Path("quickstart")
    """Folder for the run, the results and report/index.html."""
    minutes: Annotated[float, Arg(least=0.5)] = 5
    """Shorten the training on a machine on which all of it would take longer."""

    def run(self) -> None:
        console = _console()
        # The imports take longer than anybody waits without a word.
        console.print("loading torch and open_clip")
        from advflyp.use.quickstart import quickstart

        quickstart(self.out, minutes=self.minutes, console=console)


@dataclass
class Train:
    """Run a recipe. Any recipe key can follow as --table.key value, for example --optim.lr 1e-4."""

    to_go_on = "continue with --resume"

    recipe: Annotated[str, Arg("RECIPE", positional=True)]
    """The name of a recipe that comes with the package (`advflyp recipes` lists them), or a TOML file."""
    out: Annotated[Path | None, Arg("FOLDER", output="folder")] = None
    """Run folder; runs/RECIPE by default."""
    resume: bool = False
    """Continue from the last whole checkpoint in the run folder; begin where there is none yet."""
    overrides: Annotated[dict[str, str], Arg(hidden=True)] = field(default_factory=dict)

    @staticmethod
    def notes() -> str:
        """The end of --help."""
        from advflyp.recipes import describe_keys

        return "\n".join(describe_keys())

    @staticmethod
    def also_known() -> list[str]:
        """What else a misspelled option may have meant."""
        from advflyp.recipes import known_keys

        return [f"--{key}" for key in known_keys()]

    def run(self) -> None:
        from advflyp.recipes import check_names, find_recipe

        recipe = find_recipe(self.recipe)
        check_names(recipe, self.overrides)
        from advflyp.distributed import is_rank0
        from advflyp.training.loop import train

        out = self.out or Path("runs") / recipe.stem
        result = train(recipe, self.overrides, out=out, resume=self.resume, console=_console())
        if result.finished and is_rank0():
            say(f"{counted(result.steps, 'step')}; the model is {result.out}")


@dataclass
class Pretrain(Train):
    """Train from scratch: the same as `train`, for recipes that begin with a model named NAME/random."""


@dataclass
class Eval:
    """Measure the zero-shot accuracy of a model, clean and under attack."""

    to_go_on = "with --out, the same command continues where this one stopped"

    model: Annotated[str, Arg("MODEL", positional=True)]
    """mini, ViT-B-32/openai, one of `advflyp models`, hf-hub:…, a run folder, a folder in open_clip's format, or a
    checkpoint and what it was finetuned from, such as fare.pt@ViT-L-14/openai."""
    protocol: Annotated[ProtocolName | None, Arg("NAME")] = None
    """How a published number was measured: class names, prompts, pixels, what "autoattack" means, and the defaults of
    --sets, --attacks, --eps, --norm, --limit and --precision. `advflyp protocols` lists them (default: advflyp, on the
    mini sets)."""
    sets: Annotated[tuple[str, ...] | None, Arg("DATASET")] = None
    """Labelled sets, groups of sets or paths; `advflyp data sets` lists them (default: those of --protocol, else
    mini)."""
    attacks: Annotated[tuple[str, ...] | None, Arg("ATTACK")] = None
    """clean, noise, fgsm, pgdN, cwN (N steps; pgd10x5: five restarts), autoattack, autoattack-rand, or members of
    AutoAttack such as apgd-ce+square (default: those of --protocol, else clean pgd10)."""
    eps: tuple[str, ...] | None = None
    """Radii in pixels of [0, 1], for example 1/255 4/255 (default: those of --protocol, else 1/255)."""
    norm: Literal["linf", "l2"] | None = None
    """Norm of the threat model (default: that of --protocol, else linf)."""
    limit: int | None = None
    """Only so many images of each set, its classes evenly represented (default: that of --protocol, else all)."""
    templates: Annotated[tuple[str, ...] | None, Arg("PROMPT", commas=False)] = None
    """Prompts in place of the sets' own, each with one {} for the class name; or openai, OpenAI's 80 for ImageNet."""
    classnames: Annotated[Path | None, Arg("FILE", input="there is no file")] = None
    """Class names in place of the set's own: one a line, or a JSON list, in the order of the labels."""
    resize: int | None = None
    """Length of the shorter side, in pixels, before the centre crop to the model's input (default: that of --protocol,
    else the model's own)."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """How images are resized (default: that of --protocol, else the model's own, for CLIP bicubic)."""
    sanity: bool = False
    """Check every attacked result for masked gradients."""
    out: Annotated[Path | None, Arg("FILE", output="file")] = None
    """JSON-lines file; cells it already holds are not computed again, an interrupted one is continued."""
    batch_size: int = 128
    """Images at a time."""
    precision: str | None = None
    """Precision of the attack's search: fp32, bf16, or auto: bf16 where the device is faster in it. Adversarial images
    are always judged in fp32 (default: that of --protocol, else auto)."""
    compile: bool = False
    """Run the image tower through torch.compile."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps."""
    seed: Annotated[int, Arg(least=0)] = 0
    """Of the attacks and of --limit."""

    def run(self) -> None:
        radii = _asked(self.attacks or (), self.eps or (), self.norm or "linf")
        set_names(list(self.sets or ()))
        if self.templates is not None:
            choose_templates(self.templates)
        from advflyp.data.sets.folders import read_names
        from advflyp.data.sets.labelled import remarks_on
        from advflyp.distributed import is_rank0
        from advflyp.escape import for_rich
        from advflyp.evaluation.suite import evaluate
        from advflyp.report.console import EvaluationProgress, results_table, verdicts

        protocol = _protocol(self.protocol).changed(
            templates=self.templates,
            classnames=None if self.classnames is None else read_names(self.classnames),
            resize=self.resize,
            interpolation=self.interpolation,
        )
        console = _console()
        precision = _precision(self.precision or protocol.precision, self.device, console)
        with EvaluationProgress(console) as progress:
            cells = evaluate(
                self.model,
                self.sets or protocol.sets,
                self.attacks or protocol.attacks,
                radii or protocol.eps,
                out=self.out,
                norm=self.norm or protocol.norm,
                limit=self.limit or protocol.limit,
                protocol=protocol,
                batch_size=self.batch_size,
                precision=precision,
                compile=self.compile,
                device=self.device,
                seed=self.seed,
                sanity=self.sanity,
                watch=progress.watch,
            )
        console.print(results_table(cells))
        for line in [*remarks_on(self.sets or ()), *verdicts(cells)]:
            console.print(for_rich(line))
        if self.out is not None and is_rank0():
            say(f"{counted(len(cells), 'result')} in {self.out}")


@dataclass
class Compare:
    """Compare two models on the same pictures: differences with intervals, McNemar's exact test."""

    a: Annotated[str, Arg("RESULTS_A", positional=True, input="there are no results at")]
    """Results of `advflyp eval --out`: FILE, or FILE::MODEL where it holds several models."""
    b: Annotated[str, Arg("RESULTS_B", positional=True, input="there are no results at")]
    """The same for the other model."""
    out: Annotated[Path | None, Arg("FILE", output="file")] = None
    """Also write the table here: .json or .md."""

    def run(self) -> None:
        from advflyp.evaluation.compare import compare
        from advflyp.report.console import as_rich
        from advflyp.report.measure.paired import check_out, paired_table, write_comparison

        if self.out is not None:
            check_out(self.out)
        rows = compare(self.a, self.b)
        _console().print(as_rich(paired_table(rows)))
        if self.out is not None:
            write_comparison(rows, self.out)


@dataclass
class Retrieval:
    """Measure how well a model finds captions by pictures and pictures by captions, clean and under attack."""

    to_go_on = "with --out, the same command continues where this one stopped"

    model: Annotated[str, Arg("MODEL", positional=True)]
    """mini, ViT-B-32/openai, one of `advflyp models`, hf-hub:…, a run folder, a folder in open_clip's format, or a
    checkpoint and what it was finetuned from, such as fare.pt@ViT-L-14/openai."""
    pairs: Annotated[str, Arg("PAIRS", positional=True, input="there are no pairs at")]
    """A folder of name.jpg + name.txt, webdataset shards, a CSV, TSV, JSONL or Parquet table, hf:NAME; each line of a
    text is a caption."""
    attacks: Annotated[tuple[str, ...], Arg("ATTACK")] = ("clean", "pgd10")
    """clean, pgdN or cwN (N steps), on every picture of the gallery."""
    eps: tuple[str, ...] = ("1/255",)
    """Radii in pixels of [0, 1], for example 1/255 4/255."""
    norm: Literal["linf", "l2"] = "linf"
    """Norm of the threat model."""
    limit: int | None = None
    """Only so many pictures, with their captions."""
    out: Annotated[Path | None, Arg("FILE", output="file")] = None
    """JSON-lines file; cells it already holds are not computed again, an interrupted one is continued."""
    batch_size: int = 128
    """Pictures at a time."""
    precision: str = "auto"
    """Precision of the attack's search: fp32, bf16, or auto: bf16 where the device is faster in it. Attacked images
    are always embedded in fp32."""
    image_column: Annotated[str | None, Arg("COLUMN")] = None
    """Of a table: column of images, if not detected."""
    caption_column: Annotated[str | None, Arg("COLUMN")] = None
    """Of a table: column of captions, if not detected."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps."""
    seed: Annotated[int, Arg(least=0)] = 0
    """Of the attacks and of --limit."""

    def run(self) -> None:
        radii = _asked(self.attacks, self.eps, self.norm)
        from advflyp.data.pairs.tables import Columns
        from advflyp.evaluation.retrieval import retrieval
        from advflyp.report.console import as_rich
        from advflyp.report.measure.recall import recall_table
        from advflyp.training.runlog import Status

        console = _console()
        precision = _precision(self.precision, self.device, console)
        with Status(console, "retrieval") as status:
            cells = retrieval(
                self.model,
                self.pairs,
                self.attacks,
                radii,
                out=self.out,
                norm=self.norm,
                limit=self.limit,
                batch_size=self.batch_size,
                precision=precision,
                device=self.device,
                seed=self.seed,
                columns=Columns(self.image_column, self.caption_column),
                watch=lambda cell, done: status.update(
                    f"{cell.attack}: {done:,} of {counted(cell.n_images, 'picture')}"
                ),
            )
        console.print(as_rich(recall_table(cells)))
        if self.out is not None:
            say(f"{counted(len(cells), 'result')} in {self.out}")


@dataclass
class Report:
    """Write a self-contained report/index.html from results and runs."""

    paths: Annotated[
        tuple[Path, ...], Arg("PATH", positional=True, input="there are neither results nor a run at")
    ]
    """Result files (*.jsonl) of `eval` and `retrieval`, and run folders."""
    out: Annotated[Path, Arg("FOLDER", output="folder")] = Path("report")
    """Folder for index.html, results.md and tables/ (CSV, LaTeX)."""
    seeds: bool = False
    """Several checkpoints of one name are training seeds of one method: mean ± standard deviation."""

    def run(self) -> None:
        from advflyp.report.pages.report import report_from_paths

        say(f"the report is {report_from_paths(self.paths, self.out, seeds=self.seeds)}")


@dataclass
class Interpolate:
    """Mix the weights of the original and a robust model, and measure the trade-off between clean and robust."""

    to_go_on = "with --out, the same command continues where this one stopped"

    original: Annotated[str, Arg("ORIGINAL", positional=True)]
    """The model that the robust one began as."""
    robust: Annotated[str, Arg("ROBUST", positional=True)]
    """A run folder, for example."""
    alphas: Annotated[tuple[float, ...], Arg("ALPHA")] = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
    """Shares of the robust weights: 0 is the original."""
    protocol: Annotated[ProtocolName | None, Arg("NAME")] = None
    """As in `advflyp eval`, and so are the following."""
    sets: Annotated[tuple[str, ...] | None, Arg("DATASET")] = None
    attacks: Annotated[tuple[str, ...] | None, Arg("ATTACK")] = None
    eps: tuple[str, ...] | None = None
    limit: int | None = None
    precision: str | None = None
    device: str = "auto"
    out: Annotated[Path | None, Arg("FILE", output="file")] = None
    """JSON-lines file for the results; `advflyp report` draws the curve from it."""
    save: Annotated[tuple[float, Path] | None, Arg("ALPHA FOLDER", output="folder")] = None
    """Write the model of one alpha to a folder, for example --save 0.7 runs/mixed, and measure nothing."""

    def run(self) -> None:
        radii = _asked(self.attacks or (), self.eps or (), "linf")
        set_names(list(self.sets or ()))
        alphas = [*self.alphas, *([] if self.save is None else [self.save[0]])]
        if wrong := [alpha for alpha in alphas if not 0 <= alpha <= 1]:
            raise ValueError(
                f"alpha must lie between 0 (the original) and 1 (the robust model), not {wrong[0]:g}"
            )
        if self.save is not None:
            recover_folder(self.save[1])
            if names_in(self.save[1]):
                raise ValueError(f"{self.save[1]} is there already; name a new folder with --save")
        from advflyp.model.folder import save_model
        from advflyp.model.load import load_model, pick_device
        from advflyp.model.mix import curve, interpolate
        from advflyp.report.console import as_rich
        from advflyp.report.measure.grid import means_table
        from advflyp.report.measure.results import Results
        from advflyp.training.runlog import Pulse

        device = pick_device(self.device)
        console = _console()
        protocol = _protocol(self.protocol)
        precision = _precision(self.precision or protocol.precision, device, console)
        sets = self.sets or protocol.sets
        original, robust = load_model(self.original, device=device), load_model(self.robust, device=device)
        if self.save is not None:
            alpha, folder = self.save
            mixed = interpolate(original, robust, alpha)
            save_model(mixed, folder, {"alpha": alpha, "original": self.original, "robust": self.robust})
            say(f"the model is {folder}")
            return
        pulse = Pulse(console)
        cells = curve(
            original,
            robust,
            list(dict.fromkeys(self.alphas)),
            name=Path(self.robust).name,
            out=self.out,
            sets=sets,
            attacks=self.attacks or protocol.attacks,
            eps=radii or protocol.eps,
            limit=self.limit or protocol.limit,
            protocol=protocol,
            precision=precision,
            progress=lambda cell: pulse.say(lambda: f"{cell.model}: {cell.set} {cell.attack} is done"),
        )
        results = Results([cell for found in cells.values() for cell in found])
        title = "Interpolated weights: means over sets in %"
        console.print(as_rich(means_table(results, results.conditions, sets=results.sets, title=title)))


@dataclass
class Reproduce:
    """Run the paper's experiments and print its tables with our numbers."""

    to_go_on = "the same command continues where this one stopped"

    scale: Literal["mini", "paper"] = "mini"
    """mini: on the embedded corpus, on a CPU. paper: the same plan on the real data, published figures beside ours."""
    out: Annotated[Path | None, Arg("FOLDER", output="folder")] = None
    """Folder for runs, results and report; runs/reproduce-SCALE by default. Called again it goes on; several
    processes may share it."""
    seeds: int = 1
    """Trainings of each method."""
    steps: int | None = None
    """Updates of each training: 100 at mini scale, the recipes' epochs at paper scale."""
    only: Annotated[tuple[str, ...], Arg("EXPERIMENT")] = ()
    """Only these experiments: table1 … table14, figure3, figure5."""
    pairs: str | None = None
    """With --scale paper: the web pairs, for example "shards/{000..099}.tar"."""
    captioned: str | None = None
    """With --scale paper: pairs of captioned ImageNet images."""
    dry_run: bool = False
    """Only print what is still to be done, with estimated hours and disk."""
    report_only: bool = False
    """Only write the report of what is there."""

    def run(self) -> None:
        from advflyp.paper.reproduce import reproduce

        failed = reproduce(
            self.out or Path("runs") / f"reproduce-{self.scale}",
            scale=self.scale,
            seeds=self.seeds,
            steps=self.steps,
            only=self.only,
            pairs=self.pairs,
            captioned=self.captioned,
            dry_run=self.dry_run,
            report_only=self.report_only,
            console=_console(),
        )
        if failed:
            sys.exit(1)


@dataclass
class Recipes:
    """List the recipes that come with the package, show one, or explain every recipe key."""

    name: Annotated[str | None, Arg("RECIPE", positional=True)] = None
    """Print this recipe, ready to be copied and changed."""
    keys: bool = False
    """Explain every key of a recipe, with its default."""

    def run(self) -> None:
        from advflyp.recipes import describe_keys, recipe_summaries, recipe_text

        if self.keys:
            say(*describe_keys())
        elif self.name is not None:
            say(*recipe_text(self.name).splitlines())
        else:
            say(*(f"{name:26} {about}" for name, about in recipe_summaries().items()))


@dataclass
class Protocols:
    """List how published numbers were measured, for `advflyp eval --protocol`, or show everything of one."""

    name: Annotated[ProtocolName | None, Arg("NAME", positional=True)] = None
    """Show everything of this one."""

    def run(self) -> None:
        from advflyp.report.console import as_rich
        from advflyp.report.pages.protocols import describe, protocols_table

        if self.name is None:
            _console().print(as_rich(protocols_table()))
        else:
            say(*describe(_protocol(self.name)))


@dataclass
class Env:
    """Print what a bug report needs: versions, processor, GPUs, the precision that auto chooses, threads, system."""

    def run(self) -> None:
        from advflyp.cli.environment import describe_environment

        for name, value in describe_environment().items():
            say(f"{name:16} {value}")


CLI = Group(
    "Make CLIP-like models adversarially robust, and measure how robust they are.",
    {
        "quickstart": Quickstart,
        "train": Train,
        "pretrain": Pretrain,
        "recipes": Recipes,
        "eval": Eval,
        "protocols": Protocols,
        "compare": Compare,
        "retrieval": Retrieval,
        "report": Report,
        "interpolate": Interpolate,
        "reproduce": Reproduce,
        "models": Models,
        "export": Export,
        "publish": Publish,
        "predict": Predict,
        "attack": Attack,
        "demo": Demo,
        "data": DATA,
        "env": Env,
    },
)
# A value that somebody pasted by mistake can be a megabyte long.
LONGEST_LINE = 1000


class Terminated(KeyboardInterrupt):
    """SIGTERM: like Ctrl-C it lets whatever is being written be finished or dropped."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit codes: 0 done, 2 the user's mistake (one line on stderr), 130 Ctrl-C, 143 SIGTERM, 1 anything else."""
    prepare_streams()
    try:
        with _sigterm_unwinds():
            _run(list(sys.argv[1:] if arguments is None else arguments))
    except ValueError as error:
        _fail(error, 2)
    except KeyboardInterrupt as stop:
        _fail("interrupted", _code_of(stop))
    except RunError as error:
        _fail(error, 1)
    except BrokenPipeError:
        if not nobody_reads():
            raise
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        sentence = refusal(error)
        if sentence is None:
            raise
        _fail(sentence, 2)


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Within the block SIGTERM raises `Terminated`; the second one ends the process at once."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        raise Terminated

    # Python lets no other thread listen; a handler of somebody else's stays.
    listens = threading.current_thread() is threading.main_thread()
    if not listens or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _code_of(stop: KeyboardInterrupt) -> int:
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def _run(words: list[str]) -> None:
    # open_clip announces every random initialisation as a warning.
    logging.getLogger().setLevel(logging.ERROR)
    # A command judges in float32, and torch would have NVIDIA's libraries round convolutions. They read it once, later.
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    if words[:1] in (["--version"], ["-V"]):
        say(f"advflyp {__version__}")
        return
    words, keys = split_recipe_keys(words)
    found, words, prog = find_command(CLI, words, "advflyp")
    if keys and not issubclass(found, Train):
        raise ValueError(f"--{next(iter(keys))} is a recipe key; it goes with `advflyp train`")
    command = parse(found, words, prog)
    if isinstance(command, Train):
        command.overrides = keys
    try:
        command.run()
    except KeyboardInterrupt as stop:
        # Its files are whole: each is written to the end, or not at all.
        how = getattr(command, "to_go_on", "the same command starts over")
        _fail(f"interrupted; {how}", _code_of(stop))


def _fail(error: Exception | str, code: int) -> NoReturn:
    """One line on stderr, and the end."""
    line = " ".join(str(error).splitlines())
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE // 2]} … {line[-LONGEST_LINE // 2 :]}"
    rank = os.environ.get("RANK") if code == 1 else None
    # Every process of a run sees a mistake; one of each machine says so.
    if code == 1 or os.environ.get("LOCAL_RANK", "0") == "0":
        say(f"advflyp{f' [process {rank}]' if rank else ''}: {line}", to_stderr=True)
    sys.exit(code)


def split_recipe_keys(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separate `--table.key value` and `--table.key=value` from the other arguments."""
    pending, others, keys = list(arguments), [], {}
    while pending:
        argument = pending.pop(0)
        name, equals, value = argument.partition("=")
        if not (name.startswith("--") and "." in name):
            others.append(argument)
            continue
        if not equals:
            if not pending or pending[0].startswith("--"):
                raise ValueError(f"{name} needs a value")
            value = pending.pop(0)
        keys[name[2:]] = value
    return others, keys


def _asked(attacks: Sequence[str], eps: Sequence[str], norm: str) -> list[float]:
    """The radii, once the names of the attacks and they themselves are ones that an evaluation can use."""
    from advflyp.attack.names import read_attack_name
    from advflyp.config import number

    for name in attacks:
        read_attack_name(name)
    radii = [number(value, "--eps") for value in eps]
    for value in radii:
        if not value > 0:
            raise ValueError(f"--eps must be above 0, for example 1/255, not {value:g}")
        if norm == "linf" and value >= 1:
            raise ValueError(
                f"--eps is in pixels of [0, 1], write {value:g}/255 for grey levels, not {value:g}"
            )
    return radii


def _protocol(name: "ProtocolName | None") -> "Protocol":
    """The protocol of a name; without one ours, on the mini sets."""
    from advflyp.evaluation.protocols import QUICK, find_protocol

    return QUICK if name is None else find_protocol(name)


def _precision(asked: str, device: "str | torch.device", console: "SafeConsole") -> "Precision":
    """`asked`, checked, after printing what "auto" is on the device, or how slow what was asked for."""
    from advflyp.model.load import pick_device
    from advflyp.model.precision import check_precision, choose_precision

    precision = check_precision(asked, "--precision")
    console.print(str(choose_precision(precision, pick_device(device))))
    return precision


def _console() -> "SafeConsole":
    from advflyp.console import SafeConsole

    # One process of a run of several speaks.
    return SafeConsole(quiet=os.environ.get("RANK", "0") != "0")
