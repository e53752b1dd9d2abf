"""Show predictions and attacked images on a terminal."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from advflyp.escape import for_rich, for_terminal
from advflyp.report.measure.estimates import Condition, radius
from advflyp.use.attack_image import AttackedImage
from advflyp.use.predict import Guess, Prediction
from advflyp.wording import counted

BAR = 16


def predictions_table(predictions: Sequence[Prediction]) -> Table:
    """A row for each guess."""
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
    """Each model's answers for the clean image and for each adversarial one.

    If it is known what the image shows, ✓ and ✗ say whether an answer is correct. Otherwise answers for adversarial
    images are only marked as same or changed.
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
    attack = Condition(found.attack, found.norm, found.eps).title
    shows = "" if found.label is None else f" '{found.label}'"
    return f"{found.image}:{shows} among {counted(len(found.labels), 'label')}; {attack}"


def legend(found: AttackedImage) -> str:
    """What the marks of `attacked_table` mean."""
    if found.label is not None:
        return f"✓: '{found.label}', as --label says; ✗: anything else"
    return "same, changed: compared with the model's answer for the clean image; no right label was given (--label)"


def verdict(found: AttackedImage, model: int) -> str:
    """One sentence: what the adversarial image made against model `model` does to that model."""
    made, name = found.made[model], found.models[model]
    if made.outcome == "wrong":
        return f"{name} says '{found.clean[model][0].label}' without an attack: there was nothing to attack"
    if made.outcome == "withstood":
        within = f"within ε = {radius(found.eps, found.norm)}"
        return f"{name} withstands: {found.attack} finds no image {within} that it takes for something else"
    whose, answer = "its answer " if found.label is None else "", made.guesses[model][0].label
    changed = f"no pixel changes by more than {made.largest} of 255 grey levels"
    return f"{name} is fooled: {whose}'{made.label}' becomes '{answer}', and {changed}"


def percent(probability: float) -> str:
    """ "83.1 %"."""
    return f"{100 * probability:.1f} %"


def _answer(guess: Guess, label: str | None, before: str | None = None) -> Text:
    """label: the correct one, None if unknown; before: the answer for the clean image."""
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
