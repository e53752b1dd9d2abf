"""Images that the bundled models classify correctly, for attacks that need a CLIP."""

from functools import cache

import torch
from torch import Tensor

from advflyp.data.sets.labelled import LabelledSet, load_set
from advflyp.model.clip import CLIP
from advflyp.model.load import load_model


@cache
def correct_on(name: str, n: int = 12) -> tuple[CLIP, LabelledSet, Tensor, Tensor]:
    """A bundled model, mini/food, and the first `n` images (n, 3, H, W) that it classifies correctly, with labels."""
    model, food = load_model(name, device="cpu"), load_set("mini/food")
    classifier = model.classifier(food.classes, food.templates)
    pixels, labels = [], []
    for _, images, truth in food.batches(model.preprocess, 32):
        with torch.no_grad():
            right = classifier(images).argmax(1) == truth
        pixels.append(images[right])
        labels.append(truth[right])
        if sum(map(len, labels)) >= n:
            break
    return model, food, torch.cat(pixels)[:n], torch.cat(labels)[:n]
