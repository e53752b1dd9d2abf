"""Clean against robust accuracy along the line between two models' weights."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from advflyp.evaluation.results import Cell
from advflyp.evaluation.suite import evaluate
from advflyp.model.clip import CLIP
from advflyp.model.mix import interpolate


def curve(
    original: CLIP,
    robust: CLIP,
    alphas: Sequence[float],
    *,
    name: str,
    out: str | Path | None = None,
    progress: Callable[[Cell], None] = lambda cell: None,
    **settings: Any,
) -> dict[float, list[Cell]]:
    """Evaluate interpolated models.

    Args:
        original: The model at α = 0.
        robust: The model at α = 1.
        alphas: The points.
        name: What results call the models: "NAME, α = 0.3".
        out: As for `evaluate`.
        progress: Called with each cell as it is known.
        settings: `sets`, `attacks`, `eps` and the others of `evaluate`.

    Returns:
        α → result cells.
    """
    for alpha in alphas:
        interpolate(original, robust, alpha)  # a mistake shows before an hour of evaluation
    return {
        alpha: evaluate(
            interpolate(original, robust, alpha),
            out=out,
            name=f"{name}, α = {alpha:g}",
            progress=progress,
            **settings,
        )
        for alpha in alphas
    }
