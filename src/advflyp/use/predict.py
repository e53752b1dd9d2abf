"""`advflyp predict`: classify images among the user's labels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from advflyp.dtypes import whole
from advflyp.evaluation.classifier import Classifier
from advflyp.model.clip import CLIP
from advflyp.model.load import load_model, pick_device
from advflyp.model.precision import for_use
from advflyp.use.images import ImageLike, check_image, load_image, name_of
from advflyp.use.labels import choose_labels


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A label and its probability; over the given labels these sum to 1, whatever the image shows."""

    label: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A model's guesses for one image.

    Attributes:
        image: Its file, as named by the user.
        guesses: The most likely first.
    """

    image: str
    guesses: list[Guess]

    @property
    def label(self) -> str:
        """The most likely label."""
        return self.guesses[0].label


def predict(
    model: CLIP | str | Path,
    images: ImageLike | Sequence[ImageLike],
    labels: str | Sequence[str],
    *,
    templates: str | Sequence[str] | None = None,
    top: int = 5,
    batch_size: int = 64,
    device: str | torch.device = "auto",
) -> list[Prediction]:
    """Classify images zero-shot, in float32.

    Args:
        model: A model or the name of one.
        images: Files or PIL images, one or several.
        labels: Two or more names, or a text such as a file name; see `choose_labels`.
        templates: Prompts; see `choose_labels`.
        top: Number of guesses for each image.
        batch_size: Images at a time.
        device: Where a model given by name is put: "auto", "cpu", "cuda", "cuda:1", "mps".

    Raises:
        ValueError: If the model is unknown, the labels cannot be used, or a file is not a readable image.
    """
    top, batch_size = whole(top, "top"), whole(batch_size, "batch_size")
    for name, number in (("top", top), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
    if isinstance(images, str | bytes) or not isinstance(images, Iterable):
        every: list[Any] = [images]
    else:
        every = list(images)
    if not every:
        raise ValueError("name at least one image")
    chosen = choose_labels(labels, templates)
    for image in every:
        check_image(image)
    place = pick_device(device)
    model = model if isinstance(model, CLIP) else load_model(model, device=place)
    classifier = chosen.classifier(model)
    result = []
    for start in range(0, len(every), batch_size):
        part = every[start : start + batch_size]
        pixels = torch.stack([model.preprocess(load_image(image)) for image in part])
        for image, guesses in zip(part, guess(classifier, pixels, chosen.names, top), strict=True):
            result.append(Prediction(image=name_of(image), guesses=guesses))
    return result


@torch.no_grad()
def guess(classifier: Classifier, pixels: Tensor, names: Sequence[str], top: int) -> list[list[Guess]]:
    """(N, 3, H, W) pixels in [0, 1] → for each image the `top` most likely names, ties in any order.

    Raises:
        ValueError: If the model's answers are not finite.
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
