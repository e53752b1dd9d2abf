"""Commands that train: quickstart, train, validate, recipes, reproduce."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

from advflyp.cli.arguments import Arg, OutFolder
from advflyp.cli.heavy import heavy_imports
from advflyp.recipes import check_names, describe_keys, find_recipe, recipe_summaries, recipe_text
from advflyp.terminal import say
from advflyp.wording import counted

Recipe = Annotated[str, Arg("RECIPE")]
# `--table.key value`, which `main` separates from options.
Overrides = Annotated[Mapping[str, str], Arg(hidden=True)]
NO_OVERRIDES: Mapping[str, str] = MappingProxyType({})


def quickstart(*, out: OutFolder = Path("quickstart"), minutes: Annotated[float, Arg(least=0.5)] = 5) -> None:
    """Make a small CLIP robust and show it: evaluate, finetune with AdvFLYP_full, evaluate again, report.

    Args:
        out: Folder for the run, the results and report/index.html.
        minutes: Time limit; on a slow machine the training is shortened to fit.
    """
    from advflyp.console import rank0_console

    console = rank0_console()
    # The imports take long enough to need a message.
    console.print("loading torch and open_clip")
    with heavy_imports():
        from advflyp.use.quickstart import quickstart

    quickstart(out, minutes=minutes, console=console)


def train(
    recipe: Recipe,
    /,
    *,
    out: OutFolder | None = None,
    resume: bool = False,
    overrides: Overrides = NO_OVERRIDES,
) -> None:
    """Train a model from a recipe; override its keys with --table.key value, for example --optim.lr 1e-4.

    Args:
        recipe: A recipe of the package (`advflyp recipes` lists them), or a TOML file.
        out: Run folder (default: runs/RECIPE).
        resume: Continue from the last checkpoint in the run folder, or start from scratch if there is none.
        overrides: Recipe keys with their values.
    """
    path = find_recipe(recipe)
    check_names(path, overrides)
    with heavy_imports():
        from advflyp.console import is_rank0, rank0_console
        from advflyp.training.loop import train

    result = train(
        path, overrides, out=out or Path("runs") / path.stem, resume=resume, console=rank0_console()
    )
    if result.finished and is_rank0():
        say(f"{counted(result.steps, 'step')}; the model is {result.out}")
        if result.best is None:
            say(
                "no validation was run, so the model may be worse than the one it started from; "
                "add --validate.set mini/val to check"
            )


def validate(recipe: Recipe, /, *, overrides: Overrides = NO_OVERRIDES) -> None:
    """Check a recipe, its data and model, and estimate the memory of a step, without training.

    Args:
        recipe: As in `advflyp train`; recipe keys may follow.
        overrides: Recipe keys with their values.
    """
    path = find_recipe(recipe)
    check_names(path, overrides)
    with heavy_imports():
        from advflyp.training.dry_run import dry_run

    say(*dry_run(path, overrides).lines())


def recipes(name: Recipe | None = None, /, *, keys: bool = False) -> None:
    """List the recipes of the package, print one, or explain every recipe key.

    Args:
        name: Print this recipe with the keys of its base filled in, ready to be changed.
        keys: Explain every recipe key, with its default.
    """
    if keys:
        say(*describe_keys())
    elif name is not None:
        say(*recipe_text(name).splitlines())
    else:
        say(*(f"{recipe:26} {about}" for recipe, about in recipe_summaries().items()))


def reproduce(
    *,
    scale: Literal["mini", "paper"] = "mini",
    out: OutFolder | None = None,
    seeds: int = 1,
    steps: int | None = None,
    only: Annotated[tuple[str, ...], Arg("EXPERIMENT")] = (),
    pairs: str | None = None,
    captioned: str | None = None,
    precision: Literal["auto", "fp32", "bf16"] | None = None,
    dry_run: bool = False,
    report_only: bool = False,
) -> None:
    """Run the paper's experiments and print its tables with our numbers.

    Args:
        scale: mini runs on the embedded corpus, on a CPU; paper runs the same plan on the real data, with the published
            numbers beside ours.
        out: Folder for runs, results and report (default: runs/reproduce-SCALE). The same command resumes; several
            processes may share a folder.
        seeds: Number of training seeds for each method.
        steps: Steps of each training (default: 100 at mini scale, the recipes' epochs at paper scale).
        only: Experiments to run: table1 … table14, figure3, figure5, later; at mini scale also cost, cost-other,
            proxies; at paper scale also table14-imagenet (default: all but proxies).
        pairs: With --scale paper: the web pairs, for example "shards/{000..099}.tar".
        captioned: With --scale paper: ImageNet with captions, as pairs.
        precision: Precision of the remaining steps, for example to continue a study on a device where bf16 is slow
            (default: the one the study began with; for a new study, the one that is faster on the device).
        dry_run: Print what is still to be done, with estimated hours and disk space, and stop.
        report_only: Write the report of the results so far, and stop.
    """
    with heavy_imports():
        from advflyp.console import rank0_console
        from advflyp.paper.reproduce import reproduce

    failed = reproduce(
        out or Path("runs") / f"reproduce-{scale}",
        scale=scale,
        seeds=seeds,
        steps=steps,
        only=only,
        pairs=pairs,
        captioned=captioned,
        precision=precision,
        dry_run=dry_run,
        report_only=report_only,
        console=rank0_console(),
    )
    if failed:
        sys.exit(1)
