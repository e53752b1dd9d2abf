"""Predictions and attacked pictures on a terminal."""

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from advflyp.report.measured import attack_title, radius
from advflyp.use.attack_image import AttackedPicture
from advflyp.use.predict import Guess, Prediction

BAR = 16


def predictions_table(predictions: Sequence[Prediction]) -> Table:
    """A line for each guess."""
    table = _table("picture", "label", "probability", "")
    table.columns[2].justify = "right"
    for prediction in predictions:
        for rank, guess in enumerate(prediction.guesses):
            bar = "█" * round(BAR * guess.probability)
            name = Text(prediction.image, overflow="fold") if rank == 0 else Text()
            table.add_row(
                name, Text(guess.label, overflow="fold"), percent(guess.probability), Text(bar, "cyan")
            )
        table.add_section()
    return table


def attacked_table(found: AttackedPicture) -> Table:
    """What each model says of the clean picture and of each adversarial one; ✓ where it is the label."""
    table = _table("picture", *found.models)
    table.add_row(Text("clean"), *(_answer(guesses[0], found.label) for guesses in found.clean))
    for made in found.made:
        name = f"made against {made.against}" if len(found.made) > 1 else "attacked"
        table.add_row(Text(name), *(_answer(guesses[0], found.label) for guesses in made.guesses))
    return table


def title(found: AttackedPicture) -> str:
    """The picture and what was done to it."""
    attack = f"{attack_title(found.attack)}, ε = {radius(found.eps, found.norm)}"
    return f"{found.image}, '{found.label}' among {len(found.labels)} labels; {attack}"


def verdict(found: AttackedPicture, number: int) -> str:
    """One sentence: what the attack did to model `number`."""
    made = found.made[number]
    within = f"within ε = {radius(found.eps, found.norm)}"
    if made.outcome == "wrong":
        return (
            f"{made.against} says '{found.clean[number][0].label}' without an attack: there was nothing to do"
        )
    if made.outcome == "withstood":
        return f"{made.against} withstands: {found.attack} finds no picture {within} that it takes for something else"
    if made.outcome == "rounding":
        return (
            f"{made.against} is fooled {within} by float pixels only: rounded to the 8 bits of a picture file the "
            "effect is lost"
        )
    changed = f"no pixel changes by more than {made.largest} of 255 grey levels"
    return (
        f"{made.against} is fooled: '{found.label}' becomes '{made.guesses[number][0].label}', and {changed}"
    )


def percent(probability: float) -> str:
    """ "83.1 %"."""
    return f"{100 * probability:.1f} %"


def _answer(guess: Guess, label: str) -> Text:
    right = guess.label == label
    return Text.assemble(
        f"{guess.label} ", (percent(guess.probability), "dim"), (" ✓", "green") if right else (" ✗", "red")
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=Text(title) if title else None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for column in columns:
        table.add_column(Text(column))
    return table
