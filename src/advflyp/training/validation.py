"""Choose the best weights by their accuracy on the validation set, clean or under attack."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from advflyp.__about__ import __version__
from advflyp.attack.base import Attack
from advflyp.data.lineage import trained_on
from advflyp.evaluation.attacks import find_attack
from advflyp.evaluation.evaluator import Evaluator
from advflyp.model.folder import card_of, save_model
from advflyp.training.failures import check_finite, writing
from advflyp.training.recipe import Recipe
from advflyp.training.runlog import AnyLog
from advflyp.training.update import attack_config
from advflyp.wording import counted

if TYPE_CHECKING:
    from advflyp.training.build import TrainingRun

# A drop in clean accuracy, in points, that deserves a warning; on a few hundred images, less is noise.
LOSS = 5


def validate_original(run: "TrainingRun", log: AnyLog) -> None:
    """Evaluate the model that the run starts from, which is never saved as the best."""
    if run.validation_set is None or run.state.before is not None:  # already evaluated before an interruption
        return
    run.state.before = _accuracies(run)
    log.write("validate", 0, epoch=0, best=False, **run.state.before)
    log.say(f"step 0: {run.recipe.validate.set} {shown(run.state.before)}")


def validate(run: "TrainingRun", log: AnyLog) -> None:
    """Evaluate, keep the weights if they are the best so far, and count towards patience."""
    state, recipe = run.state, run.recipe
    if state.validated_at == state.step:
        return  # `validate.every` fell on the end of the epoch
    check_finite(run)
    if run.validation_set is None:
        _keep(run, run.folder.best, {"step": state.step})
        state.validated_at = state.step
        return
    accuracies = _accuracies(run)
    state.validated_at = state.step
    score = accuracies.get("robust", accuracies["clean"])
    better = state.best is None or score > state.best
    if better:
        state.best, state.after = score, accuracies
        state.validations_without_gain = 0
        _keep(run, run.folder.best, {"step": state.step, "validation": accuracies, "original": state.before})
    else:
        state.validations_without_gain += 1
    log.write("validate", state.step, epoch=state.epoch, best=better, **accuracies)
    log.say(f"step {state.step}: {recipe.validate.set} {shown(accuracies)}{' (best)' if better else ''}")
    _watch_overfitting(run, accuracies, log)
    patience = recipe.train.patience
    if patience is not None and state.validations_without_gain >= patience:
        log.say(f"no gain in {counted(patience, 'validation')}: stopped")
        state.finished = True


def _accuracies(run: "TrainingRun") -> dict[str, float]:
    """Clean and robust accuracy (0–1) of the model as it is now on the validation set."""
    assert run.validation_set is not None
    recipe, seed = run.recipe, run.recipe.train.seed
    evaluator = Evaluator(
        run.unsharded_model(), run.validation_set, limit=recipe.validate.limit, seed=seed, ranks=run.ranks
    )
    # With several ranks, one cannot stop in the middle and leave the others waiting.
    watch = run.signals.raise_if_any if run.ranks.size == 1 else lambda progress: None

    def accuracy(attack: Attack) -> float:
        threat = recipe.attack.threat if attack.perturbs else None
        precision = run.precision.precision
        return evaluator.run(attack, threat, precision=precision, seed=seed, watch=watch).accuracy

    attack = run.validation_attack
    found = {"clean": accuracy(find_attack("clean"))}
    if attack.perturbs:
        found["robust"] = accuracy(attack)
        if attack_config(run).steps == 1:
            found["fgsm"] = accuracy(find_attack("fgsm"))
    return found


def _watch_overfitting(run: "TrainingRun", accuracies: dict[str, float], log: AnyLog) -> None:
    """Switch to two attack steps if the model resists one step only (catastrophic overfitting; Wong et al. 2020)."""
    gap = accuracies.get("fgsm", 0) - accuracies.get("robust", 0)
    if gap > run.recipe.attack.overfitting_gap:
        run.state.attack_steps = 2
        log.say(
            f"step {run.state.step}: accuracy under one step is {100 * gap:.1f} points above that under "
            f"{run.recipe.validate.attack}: the model overfits to one step; further updates attack with two"
        )


def keep_last(run: "TrainingRun") -> None:
    """Save the current weights in last/, whatever their validation accuracy."""
    _keep(run, run.folder.last, {"step": run.state.step})


def _keep(run: "TrainingRun", folder: Path, about: dict[str, Any]) -> None:
    recipe, state, model = run.recipe, run.state, run.unsharded_model()
    card = {
        **about,
        "pairs_seen": state.pairs_seen,
        **({"attack_steps": state.attack_steps} if state.attack_steps else {}),
        **({"pflops": state.flops / 1e15} if state.flops else {}),
        "version": __version__,
        "precision": vars(run.precision),
        "recipe": recipe.tree(),
        "trained_on": trained_on(card_of(model), recipe.data.train, recipe.data.also),
    }
    if run.ranks.rank == 0:
        with writing(folder, run.folder.last_good):
            save_model(model, folder, card)


def shown(accuracies: dict[str, float]) -> str:
    """ "clean 55.0 %, robust 21.5 %"."""
    return ", ".join(f"{name} {100 * value:.1f} %" for name, value in accuracies.items())


def changes(
    before: dict[str, float] | None, after: dict[str, float] | None, recipe: Recipe, rate: float
) -> list[str]:
    """The closing lines of a run: accuracies before and after it, and a warning if it did harm.

    Args:
        before: Accuracies (0–1) by name, such as "clean"; None if nothing was evaluated.
        after: The same after the run.
        recipe: The run's recipe.
        rate: Its highest learning rate, which in a short run is below the recipe's.
    """
    if before is None or after is None:
        return []
    # The accuracy under one step is no longer measured once a run attacks with two.
    points = {name: 100 * (after[name] - value) for name, value in before.items() if name in after}
    moved = [
        f"{name} {100 * before[name]:.1f} → {100 * after[name]:.1f} % ({points[name]:+.1f})"
        for name in points
    ]
    lines = [f"{recipe.validate.set} before and after: {', '.join(moved)}"]
    ruined = points["clean"] < -LOSS
    if ruined:
        attacked = f" or attack.eps (it was {_radius(recipe)})" if recipe.attack.steps else ""
        lines.append(
            f"warning: clean accuracy fell by {-points['clean']:.1f} points; a lower optim.lr (it was {rate:g})"
            f"{attacked} keeps more of it"
        )
    if recipe.attack.steps and points.get("robust", 1) <= 0:
        other = "higher" if rate < recipe.optim.lr and not ruined else "lower"
        lines.append(
            "warning: the run made the model no more robust; it needs more steps, more data or a "
            f"{other} optim.lr (it was {rate:g})"
        )
    return lines


def _radius(recipe: Recipe) -> str:
    eps = recipe.attack.eps
    return f"{round(255 * eps, 2):g}/255" if recipe.attack.norm == "linf" else f"{eps:g}"
