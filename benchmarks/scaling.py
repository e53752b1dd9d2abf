"""Weak scaling of a training step over processes, and the bytes they exchange.

    python benchmarks/scaling.py                     # 1, 2 and 4 processes on this machine, mini, 32 pairs each
    python benchmarks/scaling.py --model ViT-B-32/random --per-process 256 --processes 1 2 4 8    # GPUs
    python benchmarks/scaling.py --extrapolate       # arithmetic only: 8, 64 and 512 GPUs

Bytes are counted where they are handed to torch.distributed, per rank and step (DDP's gradients by their size). The
extrapolation states its assumptions; the bytes and operations in it follow from the method.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
import tyro

from advflyp.training.build import build
from advflyp.training.recipe import read_recipe
from advflyp.training.update import update

RECIPE = """
[model]
name = "{model}"
[data]
train = "mini"
batch_size = {batch_size}
[method]
name = "advflyp"
feature_weight = 1.0
logit_weight = 1.0
[optim]
name = "sgd"
warmup_steps = 0
[train]
precision = "{precision}"
"""


@dataclass
class Arguments:
    """What to measure."""

    model: str = "mini/random"
    per_process: int = 32
    """Pairs per process in each batch."""
    processes: tuple[int, ...] = (1, 2, 4)
    precision: str = "fp32"
    steps: int = 6
    """Timed steps per round, after two warm-up steps."""
    rounds: int = 2
    """Rounds over all numbers of processes; the medians are over the steps of all rounds."""
    extrapolate: bool = False
    """Print the table for 8, 64 and 512 GPUs instead."""


def work(folder: Path, steps: int) -> None:
    """One process: measures the times and bytes of its steps."""
    sent: Counter[str] = Counter()
    counting = False

    def counted(name: str) -> None:
        real = getattr(dist, name)

        def call(*arguments: Any, **options: Any) -> Any:
            tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
            if counting and tensors:
                # all_gather(list, own) sends its own; all_reduce(tensor) the tensor.
                sent[f"{name}, {'host' if 'group' in options else 'device'}"] += tensors[-1].nbytes
            return real(*arguments, **options)

        setattr(dist, name, call)

    for name in ("all_reduce", "all_gather"):
        counted(name)
    run = build(read_recipe(folder / "recipe.toml"), folder / "run")
    run.meter.counts = False
    device = run.device
    batches, times = iter(run.pairs.epoch(0)), []
    for step in range(steps + 2):
        batch = next(batches)
        counting = step >= 2
        run.ranks.go_on(True, False)
        begun = perf_counter()
        update(run, batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        run.state.step += 1
        if step >= 2:
            times.append(perf_counter() - begun)
    if run.ranks.rank == 0:
        gradients = sum(p.nbytes for p in run.parameters) if run.ranks.size > 1 else 0
        found = {name: total / steps for name, total in sent.items()}
        result = {"seconds": times, "bytes": {**found, "gradients (DDP)": gradients}}
        (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    run.close()


def measure(count: int, arguments: Arguments) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp())
    text = RECIPE.format(
        model=arguments.model, batch_size=count * arguments.per_process, precision=arguments.precision
    )
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command = [sys.executable, *(torchrun if count > 1 else []), __file__]
    # As many threads as a single process has; torchrun would allow one.
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), **os.environ}
    if subprocess.run([*command, "--worker", str(folder), str(arguments.steps)], env=threads).returncode:
        raise SystemExit(f"a process of {count} failed")
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    shutil.rmtree(folder)
    return result


def scaling(arguments: Arguments) -> None:
    print(
        f"{arguments.model}, AdvFLYP_full, PGD-2, {arguments.per_process} pairs a rank, {arguments.precision}, "
        f"{os.cpu_count()} cores; medians of {arguments.rounds} × {arguments.steps} steps"
    )
    seconds: dict[int, list[float]] = {count: [] for count in arguments.processes}
    sent: dict[int, dict[str, float]] = {}
    for _ in range(arguments.rounds):
        for count in arguments.processes:
            found = measure(count, arguments)
            seconds[count] += found["seconds"]
            sent[count] = found["bytes"]
    median = {count: statistics.median(values) for count, values in seconds.items()}
    alone = median[arguments.processes[0]]
    for count, step in median.items():
        print(
            f"{count:3} rank(s): {step:.3f} s a step, {count * arguments.per_process / step:.1f} pairs/s, "
            f"efficiency {alone / step:.2f}"
        )
        for name, size in sent[count].items():
            print(f"       {size:12,.0f} bytes sent a step and rank: {name}")


# Assumptions of the extrapolation, for H100s in nodes of eight.
PER_GPU = 256
GFLOP_PER_PAIR = 97.0  # AdvFLYP_full with PGD-2 on ViT-B/32: 11 forwards of 8.82 GFLOP
RATE = 370e12  # operations a second in bf16: half the rate of large matrix products
LOGIT_RATE = 30e12  # of the float32 logits
WITHIN, BETWEEN = (
    300e9,
    40e9,
)  # bytes a second and GPU within a node (NVLink), between nodes (400 Gbit/s a GPU)
LATENCY = 30e-6  # per collective, times log2 of the number of processes
DIM, PARAMETERS, STEPS = 512, 87.8e6, 2
COLLECTIVES = 1 + 2 * (STEPS + 1) + 6  # texts, log-sum-exps, scalars of the losses


def extrapolate() -> None:
    print(
        f"ViT-B/32, AdvFLYP_full, PGD-{STEPS}, {PER_GPU} pairs a GPU\n"
        f"{GFLOP_PER_PAIR:.0f} GFLOP a pair at {RATE / 1e12:.0f} TFLOP/s; float32 logits at "
        f"{LOGIT_RATE / 1e12:.0f} TFLOP/s; {WITHIN / 1e9:.0f} GB/s a GPU within\na node of 8, {BETWEEN / 1e9:.0f} GB/s "
        f"between nodes; a collective waits {LATENCY * 1e6:.0f} µs × log2(GPUs)"
    )
    names = ("GPUs", "batch", "towers", "logits", "texts", "log-sum-exps", "gradients", "step", "efficiency")
    rows: list[tuple[str, ...]] = [names]
    towers = PER_GPU * GFLOP_PER_PAIR * 1e9 / RATE
    for gpus in (1, 8, 64, 512):
        batch = PER_GPU * gpus
        # n × N blocks: a product and its gradient in every step of the attack and in Eq. 1, and the three softmaxes of
        # the logit regulariser, two of them with a gradient.
        products = 2 * STEPS + 2 + 5
        logits = products * 2 * PER_GPU * batch * DIM / LOGIT_RATE
        speed = WITHIN if gpus <= 8 else BETWEEN
        wait = LATENCY * (gpus - 1).bit_length()
        texts = 4 * DIM * (batch - PER_GPU)
        # Two all-reduces of N numbers, there and back, in every step of the attack and in the loss.
        sums = (STEPS + 1) * 2 * 2 * 4 * batch if gpus > 1 else 0
        gradients = 2 * 4 * PARAMETERS * (gpus - 1) / gpus
        # They are sent during the last backward pass, 4 of the 11 forward-pass equivalents of a pair.
        late = max(0.0, gradients / speed - towers * 4 / 11)
        step = towers + logits + (texts + sums) / speed + COLLECTIVES * wait + late
        rows.append(
            (
                f"{gpus}",
                f"{batch:,}",
                f"{1e3 * towers:.1f} ms",
                f"{1e3 * logits:.2f} ms",
                f"{texts / 1e6:.1f} MB, {1e3 * texts / speed:.2f} ms",
                f"{sums / 1e6:.2f} MB, {1e3 * sums / speed:.2f} ms",
                f"{gradients / 1e6:.0f} MB, {1e3 * gradients / speed:.1f} ms",
                f"{1e3 * step:.1f} ms",
                f"{towers / step:.2f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        work(Path(sys.argv[2]), int(sys.argv[3]))
        return
    arguments = tyro.cli(Arguments)
    if arguments.extrapolate:
        extrapolate()
    else:
        scaling(arguments)


if __name__ == "__main__":
    main()
