"""What a run did to the model, in words."""

from advflyp.training.recipe import Recipe

# A loss of clean accuracy, in points, that deserves a warning; of a few hundred images, less is noise.
LOSS = 5


def shown(accuracies: dict[str, float]) -> str:
    """ "clean 55.0 %, robust 21.5 %"."""
    return ", ".join(f"{name} {100 * value:.1f} %" for name, value in accuracies.items())


def changes(before: dict[str, float] | None, after: dict[str, float] | None, recipe: Recipe) -> list[str]:
    """The lines that end a run: accuracies (0–1) before and after it, and a warning where it did harm."""
    if before is None or after is None:
        return []
    # One step is no longer measured after a run that went on with two.
    points = {name: 100 * (after[name] - value) for name, value in before.items() if name in after}
    moved = [
        f"{name} {100 * before[name]:.1f} → {100 * after[name]:.1f} % ({points[name]:+.1f})"
        for name in points
    ]
    lines = [f"{recipe.validate.set} before and after: {', '.join(moved)}"]
    lower = f"a lower optim.lr (it was {recipe.optim.lr:g})"
    if points["clean"] < -LOSS:
        attacked = f" or attack.eps (it was {_radius(recipe)})" if recipe.attack.steps else ""
        lines.append(
            f"warning: clean accuracy fell by {-points['clean']:.1f} points; {lower}{attacked} keeps more of it"
        )
    if recipe.attack.steps and points.get("robust", 1) <= 0:
        lines.append(
            f"warning: the run made the model no more robust; it needs more steps, more data or {lower}"
        )
    return lines


def _radius(recipe: Recipe) -> str:
    eps = recipe.attack.eps
    return f"{round(255 * eps, 2):g}/255" if recipe.attack.norm == "linf" else f"{eps:g}"
