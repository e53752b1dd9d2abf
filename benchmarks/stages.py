"""The stages of the calls of `gpu.py`, as commands that one could type."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import figures
from figures import Figures

# A call has to end within nine minutes, including the time to stop its last stage.
SECONDS = 530.0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A command with a time limit of its own.

    Commands are written as one would type them. {device}, {seeds}, {tests} (files), {seconds} (what is left for it) and
    {work} (a folder) are filled in.

    Attributes:
        name: Name of its row.
        limit: Guaranteed seconds; what earlier stages leave over comes on top.
        command: Command at full size.
        tiny: Command at a tiny size, to show that it runs; empty if there is none.
        output: Further arguments, which say where the figures go.
        result: The file with the figures, below {work}.
        read: Reader of the figures in that file.
    """

    name: str
    limit: float
    command: str
    tiny: str
    output: str
    result: str
    read: Callable[[Path], Figures]

    def typed(self, tiny: bool, values: Mapping[str, Any]) -> str:
        return (self.tiny if tiny and self.tiny else self.command).format(**values).strip()

    def words(self, tiny: bool, values: Mapping[str, Any]) -> list[str]:
        """The words of the command line for this Python."""
        first, *others = self.typed(tiny, values).split()
        start = [sys.executable] if first == "python" else [sys.executable, "-m", first]
        # Split before anything is filled in: the folder's name may hold spaces.
        return [*start, *others, *(word.format(**values) for word in self.output.split())]


FULL = "advflyp train configs/advflyp_full.toml "
BRIEF = "--optim.warmup_steps 0 --validate.set none "
TRAIN = FULL + "--data.train mini " + BRIEF
FROM_SHARDS = FULL + "--data.loader {} --train.epochs 100 " + BRIEF
STEP = "python benchmarks/train_step.py --device {device} "
EVALUATE = "python benchmarks/evaluate.py --device {device} "
AUTOATTACK = EVALUATE + "--model mini-vit --set mini/flags --attacks autoattack --ours-only --repeats 1 "
LOADER = "python benchmarks/loader.py --stream 0 "
HEADLINE = "python benchmarks/headline.py --device {device} --seeds {seeds} --seconds {seconds} "

# Short and important stages come first, long ones last, when time may be left over.
CHECK = (
    Stage(
        name="tests",
        limit=75,
        command="pytest -m gpu {tests}",
        tiny="pytest -m gpu {tests}",
        output="-p no:cacheprovider --junit-xml={work}/tests.xml",
        result="tests.xml",
        read=figures.tests,
    ),
    Stage(
        name="train",
        limit=60,
        command=TRAIN + "--model.name ViT-B-32/random --data.batch_size 256 --train.max_steps 80",
        tiny=TRAIN + "--model.name mini/random --data.batch_size 16 --train.max_steps 2 --log.every 1",
        output="--out {work}/train",
        result="train/metrics.jsonl",
        read=figures.training,
    ),
    Stage(
        name="evaluate",
        limit=45,
        command=EVALUATE
        + "--model ViT-B-32/random --classes 1000 --images 128 --batch-size 128 --attacks pgd10 cw10",
        tiny=EVALUATE + "--model mini/random --classes 60 --images 4 --attacks pgd10 --repeats 1",
        output="--json {work}/evaluate.json",
        result="evaluate.json",
        read=figures.evaluation,
    ),
    Stage(
        name="loader",
        limit=25,
        command=LOADER + "--workers 1 4 8 --repeats 3",
        tiny=LOADER + "--workers 1 --repeats 1 --images 64",
        output="--json {work}/loader.json",
        result="loader.json",
        read=figures.loading,
    ),
    Stage(
        name="train_step",
        limit=60,
        command=STEP + "--models ViT-B-32/random --precisions bf16",
        tiny=STEP + "--models mini/random --batch-sizes 8 --precisions fp32 --steps 1 --warmup 1",
        output="--json {work}/train_step.json --profile {work}/profile",
        result="train_step.json",
        read=figures.train_step,
    ),
    Stage(
        name="train_step float32",
        limit=45,
        command=STEP + "--models ViT-B-32/random --precisions fp32 --batch-sizes 256",
        tiny="",
        output="--json {work}/train_step_float32.json",
        result="train_step_float32.json",
        read=figures.train_step,
    ),
    Stage(
        name="quickstart",
        limit=85,
        command="advflyp quickstart",
        tiny="",
        output="--out {work}/quickstart",
        result="quickstart/results.jsonl",
        read=figures.quickstart,
    ),
    Stage(
        name="autoattack",
        limit=60,
        command=AUTOATTACK + "--images 128 --batch-size 128",
        tiny=AUTOATTACK + "--images 2 --eps 64/255",
        output="--json {work}/autoattack.json",
        result="autoattack.json",
        read=figures.evaluation,
    ),
    Stage(
        name="autoattack, graphs",
        limit=45,
        command=AUTOATTACK + "--images 128 --batch-size 128 --graphs",
        tiny=AUTOATTACK + "--images 2 --eps 64/255",  # a processor has no graphs
        output="--json {work}/autoattack_graphs.json",
        result="autoattack_graphs.json",
        read=figures.evaluation,
    ),
)
REPRODUCE = (
    Stage(
        name="shards",
        limit=20,
        command=LOADER + "--images 4000",
        tiny=LOADER + "--images 64",
        output="--write {work}/shards",
        result="shards",
        read=figures.nothing,
    ),
    *(
        Stage(
            name=f"train from shards, loader {loader}",
            limit=35,
            command=FROM_SHARDS.format(loader)
            + "--model.name ViT-B-32/random --data.batch_size 256 --train.max_steps 60 --data.workers 12",
            tiny=FROM_SHARDS.format(loader)
            + "--model.name mini/random --data.batch_size 16 --train.max_steps 2 --log.every 1",
            output=f"--data.train {{work}}/shards --out {{work}}/train-{loader}",
            result=f"train-{loader}/metrics.jsonl",
            read=figures.training,
        )
        for loader in ("threads", "process")
    ),
    Stage(
        name="headline",
        limit=SECONDS - 130,
        command=HEADLINE,
        tiny=HEADLINE + "--methods original advflyp_full --steps 1 --limit 1 --processes 2",
        output="--out {work}/study --json {work}/headline.json",
        result="headline.json",
        read=figures.headline,
    ),
)
COMPILE = tuple(
    Stage(
        name=f"train_step compiled: {how}",
        limit=60 if how == "replayed" else (SECONDS - 90) / 3,
        command=STEP
        + f"--models ViT-B-32/random --batch-sizes 256 --precisions bf16 --compile {how} --warmup 4",
        # Without CUDA nothing is replayed.
        tiny=STEP
        + "--models mini-vit/random --batch-sizes 4 --precisions fp32 --steps 1"
        + (f" --compile {how}" if how != "replayed" else ""),
        output=f"--json {{work}}/train_step_{how}.json --profile {{work}}/profile",
        result=f"train_step_{how}.json",
        read=figures.train_step,
    )
    for how in ("replayed", "default", "static", "graphs")
)
CALLS = {"check": CHECK, "reproduce": REPRODUCE, "compile": COMPILE}
