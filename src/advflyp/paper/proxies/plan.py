"""The plan of `--only proxies`: labelled data by number, breadth and distance, against pairs of the same number.

The hypotheses and their runs were fixed before anything was run. The longer trainings came later, so did CIFAR-10 with
its hypothesis, and AdvFLYP on fewer than all pairs. docs/proxies.md says what may be concluded from it, and by which
rules.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from advflyp.paper.plan import ORIGINAL, OTHER, RADII, Experiment, Measure, Run

PROXIES = "proxies"
NUMBERS = (180, 660, 2200, 6651)
EVERY_PAIR = 24_060
# Number of images → number of classes that together have at least as many.
FEW_CLASSES = {660: 170, 2200: 560}
OTHER_NUMBERS = (660, 2200)  # of all data but those near the pretraining data
VENDOR = {"data__source": "noto | noto-v1"}
FOREIGN = {"data__train": "mini/fashion-train"}
CIFAR = {"data__train": "mini/photos-train"}
SETS = ("mini", "mini/openmoji", "mini/stamps")
# Added when the verdicts on H1 to H6 were known.
ADDED = ("mini/photos", "mini/flashcards")
IMAGES = 200
# Of the family of a training set, or added: these decide nothing.
OUTSIDE = ("mini/fashion", *ADDED)
LABELLED = {"tecoa": "TeCoA", "pmg_aft": "PMG-AFT", "fare": "FARE"}
# AdvFLYP_full and AdvFLYP on pairs; AdvFLYP_full on labelled images.
PAIRS, BASIC, SAME = "pairs", "advflyp-pairs", "same"
# The contrastive loss on images from outside the corpus, which have prompts in place of captions.
PROMPTED = {"method__feature_weight": 1.0, "method__logit_weight": 1.0}
ONE_REGULARISER = {"advflyp_logit": "AdvFLYP + logit", "advflyp_feature": "AdvFLYP + feature"}
# On the ResNet, whose training costs two fifths of mini-vit's.
# Ten epochs of 180 images are only ten steps, so validation and checkpoints are scheduled by steps alone. A run stands
# for its last weights, as everywhere here; those at the best validation are the second column.
COMMON = {
    "model__name": "mini",
    "validate__set": "mini/val",
    "validate__limit": 200,
    "validate__every": 20,
    "validate__epochs": 1000,
    "checkpoint__epochs": 1000,
    "checkpoint__last": True,
}
BEST = "-best"
# (name, label, recipe, rate_of, most_seeds, **recipe keys) → a run, as experiments.py makes all of them.
Make = Callable[..., Run]


@dataclass(frozen=True)
class Cell:
    """A cell of the grid: how many images, and of which data, a key of `WORDS`."""

    number: int
    data: str

    @property
    def name(self) -> str:
        return f"{self.data}-{self.number}"

    @property
    def words(self) -> str:
        """ "one vendor, 660 images"."""
        return f"{WORDS[self.data]}, {with_spaces(self.number)} images"

    def run(self, method: str) -> str:
        """The name of a method's run on this cell; for pairs only the number matters."""
        return f"{method}-{self.number if method in (PAIRS, BASIC) else self.name}"


NEAR = tuple(Cell(number, "near") for number in NUMBERS)
CELLS = (
    *NEAR,
    *(Cell(number, data) for data in ("foreign", "cifar", "vendor", "few") for number in OTHER_NUMBERS),
)
WORDS = {
    "near": "near",
    "few": "few classes",
    "vendor": "one vendor",
    "foreign": "foreign",
    "cifar": "CIFAR-10",
}
# Each method's learning rate is searched on these data and used on all others.
TUNED = Cell(2200, "near")
RATE_OF_PAIRS = TUNED.run(PAIRS)
# Trained with four times the updates, one seed: does the ranking change?
LONGER, TIMES = "-longer", 4
LARGEST = Cell(NUMBERS[-1], "near")
TRAINED_LONGER = ((PAIRS, Cell(EVERY_PAIR, "near")), *((method, LARGEST) for method in (*LABELLED, SAME)))
UNTRAINED = f"{ORIGINAL}{OTHER}"
CORNERS = {
    *(Cell(n, data) for n in OTHER_NUMBERS for data in ("near", "foreign")),
    Cell(2200, "cifar"),
    LARGEST,
}


def proxy_runs(trained: Make) -> list[Run]:
    """All trainings, the corners of the grid first, then the longer ones, then the weights at the best validation.

    Cells that are not corners get one seed.
    """
    make = partial(trained, **COMMON)
    grid = sorted(CELLS, key=lambda cell: cell not in CORNERS)
    runs = [_pairs(make, number) for number in (2200, 660, 6651, EVERY_PAIR, 180)]
    for cell in grid:
        runs += [
            run if cell in CORNERS else replace(run, most_seeds=1)
            for run in (*_labelled(make, cell), _same(make, cell))
        ]
    runs += [_pairs(make, number, BASIC, "AdvFLYP", "advflyp") for number in (EVERY_PAIR, *reversed(NUMBERS))]
    for recipe, label in ONE_REGULARISER.items():
        runs.append(_pairs(make, EVERY_PAIR, f"{recipe}-{PAIRS}", label, recipe))
    best = [replace(r, name=r.name + BEST, label=f"{r.label}, best", best_of=r.name) for r in runs]
    longer = {cell.run(method) for method, cell in TRAINED_LONGER}
    return runs + [_longer(run) for run in runs if run.name in longer] + best


def _longer(run: Run) -> Run:
    keys = {key: TIMES * run.overrides[key] for key in ("train.max_steps", "validate.every")}
    return replace(
        run,
        name=run.name + LONGER,
        label=f"{run.label}, {TIMES} times the updates",
        overrides=run.overrides | keys,
        rate_of=run.rate_of or run.name,
        most_seeds=1,
    )


def proxy_experiment(runs: list[Run]) -> Experiment:
    """All of these runs as one table."""
    measure = Measure(sets=SETS, attacks=("clean", "pgd10"), eps=RADII[:1], limit=IMAGES)
    return Experiment(
        id=PROXIES,
        title="Proxies: number, breadth and distance of the labelled data",
        runs=(UNTRAINED, *(run.name for run in runs)),
        attacks=measure.attacks,
        eps=measure.eps,
        measures=(measure, replace(measure, sets=ADDED)),
        note="Not in the paper. Hypotheses and the rules that decide them, written down before: docs/proxies.md.",
    )


def _pairs(
    make: Make, number: int, method: str = PAIRS, label: str = "AdvFLYP_full", recipe: str = "advflyp_full"
) -> Run:
    keys = {"data__limit": number} if number < EVERY_PAIR else {}
    name = f"{method}-{number}"
    rate_of = None if name == RATE_OF_PAIRS else RATE_OF_PAIRS
    most_seeds = 1 if number == NUMBERS[0] else None
    return make(name, f"{label}, {with_spaces(number)} pairs", recipe, rate_of, most_seeds, **keys)


def _labelled(make: Make, cell: Cell) -> Iterator[Run]:
    for recipe, label in LABELLED.items():
        rate_of = None if cell == TUNED else TUNED.run(recipe)
        yield make(cell.run(recipe), f"{label}, {cell.words}", recipe, rate_of, **cell_keys(cell))


def _same(make: Make, cell: Cell) -> Run:
    """AdvFLYP_full on the labelled methods' images, with the corpus' captions, or prompts if it does not hold them."""
    label = f"AdvFLYP_full on labelled, {cell.words}"
    if cell.data in ("foreign", "cifar"):
        return make(cell.run(SAME), label, "flyp", RATE_OF_PAIRS, **cell_keys(cell), **PROMPTED)
    return make(cell.run(SAME), label, "aft_captioned", RATE_OF_PAIRS, **cell_keys(cell))


def cell_keys(cell: Cell) -> dict[str, Any]:
    """The recipe keys of its data, with two underscores for the dot."""
    keys: dict[str, Any] = {"data__limit": cell.number} if cell.number < NUMBERS[-1] else {}
    if cell.data == "few":
        keys["data__classes"] = FEW_CLASSES[cell.number]
    return keys | {"vendor": VENDOR, "foreign": FOREIGN, "cifar": CIFAR}.get(cell.data, {})


def with_spaces(number: int) -> str:
    """ "24 060" with a narrow no-break space."""
    return f"{number:,}".replace(",", "\u202f")
