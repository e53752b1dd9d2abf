"""Predictions and attacked images on a terminal."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from advflyp.escape import for_rich, for_terminal
from advflyp.report.measure.estimates import attack_title, radius
from advflyp.use.attack_image import AttackedImage
from advflyp.use.predict import Guess, Prediction
from advflyp.wording import counted

BAR = 16


def predictions_table(predictions: Sequence[Prediction]) -> Table:
    """A line for each guess."""
    table = _table("image", "label", "probability", "")
    table.columns[2].justify = "right"
    for prediction in predictions:
        for rank, guess in enumerate(prediction.guesses):
            bar = "█" * round(BAR * guess.probability)
            name = for_rich(prediction.image) if rank == 0 else Text()
            table.add_row(name, for_rich(guess.label), percent(guess.probability), Text(bar, "cyan"))
        table.add_section()
    return table


def attacked_table(found: AttackedImage) -> Table:
    """What each model says of the clean image and of each adversarial one.

    ✓ and ✗ say whether an answer is right, which takes somebody who said what the image shows. Otherwise all that can
    be said of an answer to an adversarial image is whether the attack has changed it.
    """
    table = _table("image", *found.models)
    clean = [guesses[0] for guesses in found.clean]
    table.add_row(Text("clean"), *(_answer(guess, found.label) for guess in clean))
    for made in found.made:
        name = f"made against {made.against}" if len(found.made) > 1 else "attacked"
        answers = (guesses[0] for guesses in made.guesses)
        table.add_row(
            for_rich(name),
            *(_answer(guess, found.label, was.label) for guess, was in zip(answers, clean, strict=True)),
        )
    return table


def title(found: AttackedImage) -> str:
    """The image and what was done to it."""
    attack = f"{attack_title(found.attack)}, ε = {radius(found.eps, found.norm)}"
    shows = "" if found.label is None else f" '{found.label}'"
    return f"{found.image}:{shows} among {counted(len(found.labels), 'label')}; {attack}"


def legend(found: AttackedImage) -> str:
    """What the marks of `attacked_table` mean."""
    if found.label is not None:
        return f"✓: '{found.label}', as --label says; ✗: anything else"
    return (
        "same, changed: against the model's answer for the clean image; what is right was not said (--label)"
    )


def outcome(found: AttackedImage, model: int, made: int) -> str:
    """The outcome of `AdversarialImage` for model `model` and the image made against model `made`."""
    if made == model:
        return found.made[made].outcome
    # Where nobody said what the image shows, no answer is wrong: each model is held to its own.
    label, attacked = found.made[model].label, found.made[made].guesses[model][0].label
    if found.clean[model][0].label != label:
        return "wrong"
    return "withstood" if attacked == label else "fooled"


def verdict(found: AttackedImage, model: int, made: int | None = None) -> str:
    """One sentence: what the image made against model `made`, by default the same, does to model `model`."""
    made = model if made is None else made
    result, name = found.made[made], found.models[model]
    within = f"within ε = {radius(found.eps, found.norm)}"
    what = outcome(found, model, made)
    if what == "wrong":
        return f"{name} says '{found.clean[model][0].label}' without an attack: there was nothing to attack"
    if what == "withstood" and made == model:
        return f"{name} withstands: {found.attack} finds no image {within} that it takes for something else"
    if what == "rounding":
        return f"{name} is fooled {within} by float pixels only: in the 8 bits of an image file the effect is lost"
    changed = f"no pixel changes by more than {result.largest} of 255 grey levels"
    label, answer = found.made[model].label, result.guesses[model][0].label
    if what == "withstood":
        return f"{name} withstands the image made against {found.models[made]}: still '{label}'"
    whose = "its answer " if found.label is None else ""
    return f"{name} is fooled: {whose}'{label}' becomes '{answer}', and {changed}"


def percent(probability: float) -> str:
    """ "83.1 %"."""
    return f"{100 * probability:.1f} %"


def _answer(guess: Guess, label: str | None, before: str | None = None) -> Text:
    """label: the right one, None where nobody knows;  before: the answer for the clean image"""
    if label is not None:
        mark = (" ✓", "green") if guess.label == label else (" ✗", "red")
    elif before is None:
        mark = ("", "")
    else:
        mark = (" same", "green") if guess.label == before else (" changed", "red")
    return Text.assemble(f"{for_terminal(guess.label)} ", (percent(guess.probability), "dim"), mark)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(for_rich(column), overflow="fold")
    return table
