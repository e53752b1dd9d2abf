"""Make a finished pretraining run one of the models that come with the package.

    python -m tools.mini_corpus.bundle runs/mini mini

writes float16 weights and their card (data, recipe, pairs seen, hardware, accuracy on every embedded set) to
src/advflyp/model/weights/NAME, replacing what was there. If the run started from other weights,
their pairs count, too. `--average RUN …` averages its weights with theirs (a uniform soup).
"""

import os
from pathlib import Path
from typing import Annotated

import torch
import tyro

from advflyp.cli.environment import processor_name
from advflyp.documents import read_json_object
from advflyp.evaluation.suite import evaluate
from advflyp.model.folder import BEST, BUNDLED, CARD_FILE, read_card, save_model
from advflyp.model.load import load_model
from advflyp.model.mix import mix
from advflyp.report.pages.model_card import scrubbed
from advflyp.terminal import say
from advflyp.training.runlog import read_metrics
from advflyp.wording import counted


def bundle(
    run: Annotated[Path, tyro.conf.Positional],
    name: Annotated[str, tyro.conf.Positional],
    average: tuple[Path, ...] = (),
) -> None:
    """Make a finished pretraining run one of the models that come with the package; print its accuracies.

    Args:
        run: A run folder; its best weights are taken.
        name: mini or mini-vit.
        average: Runs or models with the same starting weights, to be averaged with those of the run.
    """
    card = read_json_object(run / BEST / CARD_FILE)
    folder = BUNDLED / name
    # A card is read on other machines, so it must hold no paths of this one.
    recipe = scrubbed(card["recipe"])
    # What the run started from; nothing for random weights.
    before = read_card(card["recipe"]["model"]["name"]).get("pairs_seen", 0)
    # The accuracies have to be those of the rounded weights that users get.
    models = [load_model(path) for path in (run, *average)]
    save_model(mix(models, [1 / len(models)] * len(models)), folder, card, half=True)
    model = load_model(name)
    accuracy = {
        cell.set: cell.accuracy
        for group in (["mini"], ["mini/val"])
        for cell in evaluate(model, group, ["clean"], device="cpu")
    }
    test = [value for key, value in accuracy.items() if key != "mini/val"]
    train_lines = [line for line in read_metrics(run) if line["kind"] == "train"]
    save_model(
        model,
        folder,
        {
            "name": name,
            "licence": "Apache-2.0; the images it learned from are listed in THIRD_PARTY_NOTICES.md",
            "data": "the full mini corpus (`python -m tools.mini_corpus.build`): pictograms with names and keywords",
            "intended use": "trying out and testing adversarial finetuning; not for any other purpose",
            "pairs_seen": before + card["pairs_seen"],
            "pairs_seen_before_this_recipe": before,
            **({"averaged_runs": 1 + len(average)} if average else {}),
            "steps": card["step"],
            "loss": round(train_lines[-1]["loss"], 4),
            "hours": round(train_lines[-1]["time"] / 3600, 2),
            "hardware": hardware(),
            "torch": torch.__version__,
            "version": card["version"],
            "accuracy": {key: round(value, 4) for key, value in accuracy.items()},
            "mean_test_accuracy": round(sum(test) / len(test), 4),
            "recipe": recipe,
        },
        half=True,
    )
    for key, value in accuracy.items():
        say(f"{key:20} {100 * value:5.1f} %")


def hardware() -> str:
    """The accelerator's name, or the processor's with its number of cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{processor_name()}, {counted(os.cpu_count() or 1, 'core')}"


if __name__ == "__main__":
    tyro.cli(bundle)
