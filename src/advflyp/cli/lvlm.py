"""The commands for large vision-language models."""

from pathlib import Path
from typing import Annotated, Literal

from advflyp.cli.arguments import Arg, BatchSize, Device, Norm, OutFile, Radii, Seed
from advflyp.cli.evaluate import check_attacks
from advflyp.cli.heavy import heavy_imports
from advflyp.terminal import say
from advflyp.wording import are, counted

# `lvlm.tasks.TASKS`.
TaskName = Literal[
    "coco", "flickr30k", "vqav2", "textvqa", "vizwiz", "pope-random", "pope-popular", "pope-adversarial"
]


def evaluate(
    model: Annotated[str, Arg("MODEL")],
    /,
    *,
    root: Annotated[Path, Arg("FOLDER", input="there is no folder")],
    tasks: Annotated[tuple[TaskName, ...], Arg("TASK")] = ("coco",),
    vision: Annotated[str | None, Arg("CLIP", is_model=True)] = None,
    attack: Annotated[str, Arg("ATTACK")] = "robustvlm",
    eps: Radii = ("2/255", "4/255"),
    norm: Norm = "linf",
    limit: int | None = None,
    out: OutFile | None = None,
    batch_size: BatchSize = 8,
    device: Device = "auto",
    seed: Seed = 0,
) -> None:
    """Measure captions and answers of a LLaVA, clean and under attack, with its own or a robust image tower.

    Args:
        model: A folder that transformers saved, a repository on the Hugging Face hub such as
            llava-hf/llava-1.5-7b-hf, or mini-llava, which comes with the package.
        root: Folder with one subfolder per dataset; docs/lvlm.md describes the layout.
        tasks: coco, flickr30k, vqav2, textvqa, vizwiz, pope-random, pope-popular or pope-adversarial.
        vision: The model whose image tower replaces the LLaVA's own; any name that `advflyp eval` takes.
        attack: robustvlm (its protocol), encoder (pushes images towards other samples' captions in the tower's own
            CLIP), apgdN or pgdN (N steps on the first reference), encoder-patchesN, encoderN or encoder-bothN.
        eps: Radii in pixels of [0, 1], for example 2/255 4/255.
        limit: N random samples of each task (default: the protocol's, 500).
        out: JSON-lines file for the results. What it already holds is not computed again; the rest resumes.
    """
    radii = check_attacks((), eps, norm)
    with heavy_imports():
        from advflyp.console import rank0_console
        from advflyp.lvlm.evaluate import evaluate_lvlm
        from advflyp.lvlm.load import load_lvlm
        from advflyp.lvlm.protocol import find_protocol
        from advflyp.lvlm.tasks import load_task
        from advflyp.report.console import as_rich
        from advflyp.report.measure.answers import answers_table
        from advflyp.training.runlog import Status

    protocol = find_protocol(attack)
    wanted = [load_task(name, root) for name in dict.fromkeys(tasks)]
    console = rank0_console()
    with Status(console, "lvlm") as status:
        cells = evaluate_lvlm(
            load_lvlm(model, vision, device=device),
            wanted,
            protocol,
            radii,
            out=out,
            norm=norm,
            limit=limit,
            batch_size=batch_size,
            seed=seed,
            watch=lambda cell, done, of: status.update(
                f"{cell.task} {cell.attack}: {done:,} of {counted(of, 'sample')}"
            ),
        )
    console.print(as_rich(answers_table(cells)))
    if out is not None:
        say(f"{are(len(cells), 'result')} in {out}")
