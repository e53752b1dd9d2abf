"""`advflyp predict`: what a model makes of pictures, among labels of the user's."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from advflyp.evaluation.classifier import Classifier, for_use
from advflyp.model.clip import CLIP
from advflyp.model.load import load_model, pick_device
from advflyp.use.labels import choose_labels
from advflyp.use.pictures import Picture, check_picture, name_of, read_picture


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A label and its probability among the labels given: these sum to 1, whatever the picture shows."""

    label: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model makes of one picture.

    image:   its file, as it was named
    guesses: the likeliest first
    """

    image: str
    guesses: list[Guess]

    @property
    def label(self) -> str:
        """The likeliest label."""
        return self.guesses[0].label


def predict(
    model: CLIP | str | Path,
    images: Picture | Sequence[Picture],
    labels: str | Sequence[str],
    *,
    templates: str | Sequence[str] | None = None,
    top: int = 5,
    batch_size: int = 64,
    device: str | torch.device = "auto",
) -> list[Prediction]:
    """Zero-shot classification of pictures, in float32.

    model:     a model or the name of one
    images:    files or PIL images, one or several
    labels:    two or more names, or a text that says where they are; see `choose_labels`, also for `templates`
    top:       how many guesses of each picture
    device:    where a model given by name is put: "auto", "cpu", "cuda", "cuda:1", "mps"
    ValueError for an unknown model, unusable labels, a file that is no readable picture.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, not {top}")
    place = pick_device(device)
    pictures = [images] if isinstance(images, str | Path | Image.Image) else list(images)
    if not pictures:
        raise ValueError("name at least one picture")
    chosen = choose_labels(labels, templates)
    for picture in pictures:
        check_picture(picture)
    if not isinstance(model, CLIP):
        model = load_model(model, device=place)
    classifier = chosen.classifier(model)
    result = []
    for start in range(0, len(pictures), batch_size):
        part = pictures[start : start + batch_size]
        pixels = torch.stack([model.preprocess(read_picture(picture)) for picture in part])
        for picture, guesses in zip(part, guess(classifier, pixels, chosen.names, top), strict=True):
            result.append(Prediction(image=name_of(picture), guesses=guesses))
    return result


@torch.no_grad()
def guess(classifier: Classifier, pixels: Tensor, names: Sequence[str], top: int) -> list[list[Guess]]:
    """(N, 3, H, W) pixels in [0, 1] → for each picture the `top` likeliest names, equal ones in any order.

    ValueError for a model whose answers are not finite.
    """
    with for_use(classifier.model):
        probabilities = classifier.logits_fp32(pixels.to(classifier.model.device)).softmax(1)
    if not bool(probabilities.isfinite().all()):
        raise ValueError(
            f"{classifier.model.name} gives probabilities that are not finite: its weights are damaged or its training "
            "diverged"
        )
    values, places = probabilities.topk(min(top, len(names)), dim=1)
    return [
        [Guess(label=str(names[place]), probability=value) for value, place in zip(some, at, strict=True)]
        for some, at in zip(values.tolist(), places.tolist(), strict=True)
    ]
