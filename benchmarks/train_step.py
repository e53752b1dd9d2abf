"""Our AdvFLYP step compared with a plain transcription of Algorithm 1, interleaved in one process.

    python benchmarks/train_step.py              # mini and ViT-B/32; batch 16 on a CPU, 256 and 1,024 on CUDA
    python benchmarks/train_step.py --all        # also the last model at the last precision through torch.compile
    python benchmarks/train_step.py --models ViT-B-32/random --precisions bf16 --compile replayed default static graphs
    python benchmarks/train_step.py --profile profile       # where our step's time goes, a file for each row

Prints, for the basic and the full method at each precision, the median seconds of both with their range, the ratio
of the medians, and the ratio of their arithmetic, counted by the dispatcher: the speed-up that fewer operations alone
would give. Both use PGD-2 from the same start, the same losses and SGD with momentum; the losses they reach are
printed. The transcription follows the pseudocode line by line: it encodes the texts wherever a loss needs them, attacks
through `loss.backward()`, which computes the gradients of the weights too, runs the adversarial, clean and original
branches one after another, and uses open_clip's own layers.
"""

import itertools
import logging
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
import tyro
from timing import Record, describe_machine, medians
from torch.nn import functional as F
from torch.profiler import ProfilerActivity

from advflyp.data.batch import Batch
from advflyp.data.mini import compose
from advflyp.devices import to_device
from advflyp.model.clip import CLIP
from advflyp.model.layers import ORIGINALS, Float32Conv2d
from advflyp.model.load import pick_device
from advflyp.training.build import TrainingRun, build
from advflyp.training.meter import Flops
from advflyp.training.recipe import Recipe, read_recipe
from advflyp.training.update import random_start, update

RECIPE = """
[model]
name = "{model}"
[data]
train = "mini"
batch_size = {batch_size}
[method]
name = "advflyp"
feature_weight = {weight}
logit_weight = {weight}
[optim]
name = "sgd"
warmup_steps = 0
schedule = "constant"
[train]
precision = "{precision}"
device = "{device}"
compile = {compile}
graphs = {graphs}
"""


Compile = Literal["replayed", "default", "static", "graphs"]
COMPILE: dict[Compile, dict[str, Any]] = {
    "replayed": {},
    "default": {},
    "static": {"dynamic": False},
    "graphs": {"dynamic": False, "mode": "reduce-overhead"},
}


@dataclass
class Arguments:
    """What to time."""

    models: tuple[str, ...] = ("mini/random", "ViT-B-32/random")
    batch_sizes: tuple[int, ...] = ()
    """16 on a CPU, 256 and 1,024 on CUDA by default."""
    precisions: tuple[str, ...] = ("fp32", "bf16")
    steps: int = 5
    """Timed steps of both."""
    warmup: int = 2
    """Warm-up steps of both; with `compile` they include the compilation."""
    device: str = "auto"
    json: Path | None = None
    """File for the results."""
    compile: tuple[Compile, ...] = ()
    """Run our image tower through torch.compile: `default` as `train.compile` does, `static` with a graph for each
    batch size, `graphs` with these as CUDA graphs. `replayed` compiles nothing and replays passes as `train.graphs`
    does."""
    profile: Path | None = None
    """Folder for profiles of our step: its operations and kernels by time, and the host's share of the time."""
    all: bool = False
    """Run without torch.compile, and the last model at the last precision also with it."""

    def runs(self, batch_sizes: Sequence[int]) -> Iterator[tuple[str, int, bool, str, Compile | None]]:
        """Model, batch size, regularised, precision, how it is compiled."""
        for name, size in itertools.product(self.models, batch_sizes):
            for how in itertools.product((False, True), self.precisions, self.compile or (None,)):
                yield name, size, *how
        if self.all:
            for size, regularised in itertools.product(batch_sizes, (False, True)):
                yield self.models[-1], size, regularised, self.precisions[-1], "default"


class PlainConv2d(torch.nn.Conv2d):
    """As open_clip's, but in float32 even under bf16, in which rounding would lose the perturbations."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


PLAIN: dict[type, Any] = {**ORIGINALS, Float32Conv2d: PlainConv2d}


class Transcription:
    """Algorithm 1, PyTorch-style, as printed, on open_clip's own layers."""

    def __init__(self, model: CLIP, recipe: Recipe, regularised: bool) -> None:
        for module in model.modules():
            module.__class__ = PLAIN.get(type(module), type(module))
        self.f = model
        self.F = deepcopy(model)
        self.recipe = recipe
        self.regularised = regularised
        self.optimizer = torch.optim.SGD(
            model.visual.parameters(), lr=recipe.optim.lr, momentum=recipe.optim.momentum
        )

    def encode_text(self, captions: list[str]) -> torch.Tensor:
        """With the padding behind the captions, as open_clip encodes them."""
        with self.f._autocast():
            features = self.f.net.encode_text(to_device(self.f.tokenizer(captions), self.f.device))
        return F.normalize(features.float(), dim=-1)

    def l_clip(self, images: torch.Tensor, captions: list[str]) -> torch.Tensor:
        logits = self.f.logit_scale * self.f.encode_image(images) @ self.encode_text(captions).T
        target = torch.arange(len(images), device=images.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def step(self, images: torch.Tensor, captions: list[str], start: torch.Tensor) -> float:
        attack = self.recipe.attack
        delta = start - images
        for _ in range(attack.steps):
            delta.requires_grad_(True)
            self.l_clip(images + delta, captions).backward()
            assert delta.grad is not None
            delta = (delta.detach() + attack.step_size * delta.grad.sign()).clamp(-attack.eps, attack.eps)
            delta = (images + delta).clamp(0, 1) - images
        loss = self.l_clip(images + delta, captions)
        if self.regularised:
            x = self.f.encode_image(images + delta)
            x_c = self.f.encode_image(images)
            x_ori = self.F.encode_image(images + delta).detach()
            t = self.encode_text(captions)
            l_feat = (x - x_c).norm(dim=-1) + (x - x_ori).norm(dim=-1)
            s = self.f.logit_scale
            p, p_c, p_ori = ((s * z @ t.T).log_softmax(-1) for z in (x, x_c, x_ori))
            l_logit = (p.exp() * (p - p_c)).sum(-1) + (p.exp() * (p - p_ori)).sum(-1)
            loss = loss + l_logit.mean() + l_feat.mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def measure(
    name: str,
    regularised: bool,
    batch_size: int,
    precision: str,
    compiled: Compile | None,
    arguments: Arguments,
    folder: Path,
) -> dict[str, Any]:
    """What one method needs at one precision.

    "arithmetic_ratio", the transcription's operations divided by ours, is None for compiled code, which cannot be
    counted, and without warm-up.
    """
    path = folder / "recipe.toml"
    path.write_text(
        RECIPE.format(
            model=name,
            batch_size=batch_size,
            weight=float(regularised),
            precision=precision,
            device=arguments.device,
            compile=str(compiled not in (None, "replayed")).lower(),
            graphs=str(compiled == "replayed").lower(),
        ),
        encoding="utf-8",
    )
    recipe = read_recipe(path)
    run = build(recipe, folder / "run")
    run.meter.counts = False  # a whole step is counted here
    if compiled is not None and recipe.train.compile:
        for model in filter(None, (run.model, run.method.original)):
            model.visual.compile(**COMPILE[compiled])
    batches = of_its_size(run)
    plain = Transcription(deepcopy(run.model), recipe, regularised)
    plain.f.requires_grad_(False).visual.requires_grad_(True)
    sync = torch.cuda.synchronize if run.device.type == "cuda" else lambda: None

    times: dict[str, list[float]] = {"ours": [], "transcription": []}
    flops = Flops(), Flops()
    ours = theirs = 0.0
    for index in range(arguments.warmup + arguments.steps):
        batch = next(batches)
        images, captions = batch.images, batch.captions
        start = random_start(images, recipe.attack.threat, recipe.train.seed, run.state.step)
        counts = compiled is None and index == 0 < arguments.warmup
        sync()
        begin = perf_counter()
        with flops[0] if counts else nullcontext():
            metrics = update(run, batch).metrics
        sync()
        middle = perf_counter()
        with flops[1] if counts else nullcontext():
            theirs = plain.step(images, captions, start)
        sync()
        end = perf_counter()
        ours = metrics["loss"].item()
        run.state.step += 1
        if index >= arguments.warmup:
            times["ours"].append(middle - begin)
            times["transcription"].append(end - middle)
    if arguments.profile is not None:
        name = "-".join([name.replace("/", "-"), recipe.method_name, str(batch_size), precision])
        name += ("-full" if regularised else "") + (f"-{compiled}" if compiled else "")
        write_profile(run, batches, arguments.profile / f"{name}.txt")
    run.close()
    median = medians(times)
    return {
        "seconds": median["ours"],
        "seconds_each": times["ours"],
        "algorithm_1_seconds": median["transcription"],
        "algorithm_1_seconds_each": times["transcription"],
        "ratio": median["transcription"] / median["ours"],
        "arithmetic_ratio": flops[1].total / flops[0].total if flops[0].total else None,
        "losses": (ours, theirs),
    }


def of_its_size(run: TrainingRun) -> Iterator[Batch]:
    """The run's batches, resized to the model's image size."""
    for batch in run.pairs.epoch(0):
        images = F.interpolate(batch.images.to(run.model.device), run.model.image_size, mode="bilinear")
        yield replace(batch, images=images)


def write_profile(run: TrainingRun, batches: Iterator[Batch], path: Path, steps: int = 3) -> None:
    """Profile where the time of a step goes: operations and kernels, and how long the device waits for the host."""
    cuda = run.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    some = [next(batches) for _ in range(steps)]
    with torch.profiler.profile(activities=activities) as profiler:
        begun = perf_counter()
        for batch in some:
            update(run, batch)
            run.state.step += 1
        if cuda:
            torch.cuda.synchronize()
        step = (perf_counter() - begun) / steps
    events = profiler.key_averages()
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    kernels = [event for event in events if (event.device_type.name != "CPU") == cuda]
    computing = sum(getattr(event, key) for event in kernels) / 1e6 / steps
    count = sum(event.count for event in kernels) // steps
    what = ("kernels", "it waits for the host") if cuda else ("operations", "Python takes")
    said = (
        f"{1000 * step:.1f} ms a step under the profiler, {1000 * computing:.1f} ms of them in {count:,} {what[0]}; "
        f"{what[1]} {max(0.0, 1 - computing / step):.0%}\n\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(said + events.table(sort_by=key, row_limit=40), encoding="utf-8")
    print(f"  {path}: {said.strip()}", flush=True)


def shown(seconds: list[float]) -> str:
    """The median with the range: "0.345 s 0.340–0.352"."""
    return f"{statistics.median(seconds):.3f} s {min(seconds):.3f}–{max(seconds):.3f}"


def main() -> None:
    arguments = tyro.cli(Arguments)
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns of every random initialisation
    # The corpus is read, and each image decoded, only once for all measurements.
    compose.read_shards = cache(compose.read_shards)
    device = str(pick_device(arguments.device))
    record = Record("train_step", arguments.json, arguments, describe_machine(device))
    about = record.machine
    print(
        f"{about['device']}, {about['processor']}, {about['threads']} thread(s), torch {about['torch']}, PGD-2, "
        f"medians of {arguments.steps} steps",
        flush=True,
    )
    print(
        f"{'model':16} {'method':13} {'batch':>5} {'':5} {'ours':>21} {'Algorithm 1':>21} {'ratio':>6} {'FLOPs':>6} "
        f"{'pairs/s':>8}"
    )
    sizes = arguments.batch_sizes or ((256, 1024) if device.startswith("cuda") else (16,))
    for name, batch_size, regularised, precision, compiled in arguments.runs(sizes):
        method = "AdvFLYP_full" if regularised else "AdvFLYP"
        try:
            with tempfile.TemporaryDirectory() as folder:
                found = measure(name, regularised, batch_size, precision, compiled, arguments, Path(folder))
        except torch.OutOfMemoryError:
            print(f"{name:16} {method:13} {batch_size:5} {precision:5} out of memory", flush=True)
            continue
        record.add(
            model=name,
            method=method,
            batch_size=batch_size,
            precision=precision,
            compiled=compiled,
            **found,
        )
        arithmetic = f"{found['arithmetic_ratio']:.2f}" if found["arithmetic_ratio"] else "–"
        ours, theirs = found["losses"]
        print(
            f"{name:16} {method:13} {batch_size:5} {precision:5} "
            f"{shown(found['seconds_each']):>21} {shown(found['algorithm_1_seconds_each']):>21} "
            f"{found['ratio']:6.2f} {arithmetic:>6} {batch_size / found['seconds']:8.1f}   "
            f"losses {ours:.4f} and {theirs:.4f}"
            f"{f', compiled: {compiled}' if compiled else ''}",
            flush=True,
        )


if __name__ == "__main__":
    main()
