"""The command `leaderboard`."""

from pathlib import Path
from typing import Annotated

from advflyp.cli.arguments import Arg, Device, OutFolder
from advflyp.cli.evaluate import EvalBatchSize, ProtocolName, batch_size_of
from advflyp.cli.heavy import heavy_imports
from advflyp.cli.paths import check_model_path
from advflyp.config import check_there
from advflyp.terminal import say


def leaderboard(
    *,
    models: Annotated[tuple[str, ...], Arg("MODEL")] = (),
    protocol: Annotated[ProtocolName, Arg("NAME")] = "advflyp-2026",
    out: OutFolder = Path("leaderboard"),
    batch_size: EvalBatchSize = "auto",
    device: Device = "auto",
) -> None:
    """Evaluate models under one protocol, check submitted results, and write a page, a CSV and submission rules.

    Args:
        models: Models of the zoo (`advflyp models`), any other models, and submitted results (*.jsonl). Models that are
            already in FOLDER/results and FOLDER/submissions stay on the leaderboard.
        protocol: Protocol to measure under; `advflyp protocols` lists them.
        out: Folder for index.html, leaderboard.csv, SUBMISSION.md and results/. The same command resumes.
        batch_size: As in `advflyp eval`.
    """
    for one in models:
        if one.endswith(".jsonl"):
            check_there(one, "there are no results at")
        else:
            check_model_path(one)
    with heavy_imports():
        from advflyp.console import rank0_console
        from advflyp.report.console import evaluation_progress
        from advflyp.report.pages.leaderboard import leaderboard

    with evaluation_progress(rank0_console()) as watch:
        page = leaderboard(
            models, protocol, out, batch_size=batch_size_of(batch_size), device=device, watch=watch
        )
    say(f"the leaderboard is {page}")
