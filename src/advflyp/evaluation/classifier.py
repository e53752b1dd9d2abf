"""A zero-shot classifier as evaluations and attacks use it: logits, float32 verdicts, an attack's stages."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn

from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import Victim, predicted
from advflyp.evaluation.attacks import Attack
from advflyp.evaluation.pixels import Pixels
from advflyp.model.clip import CLIP
from advflyp.model.precision import Precision, resolve
from advflyp.model.zeroshot import class_embeddings, class_logits

# A logit that no class ever has, and that no softmax notices: cosines times a scale of 100 or so.
BARRED = -10_000.0


class Classifier:
    """A model and K class names, encoded with their templates when the first image is classified.

    classes, templates: as in `class_embeddings`
    pixels: what the images that it is given are; by default the model's input
    repeated: classes that are never predicted, because an earlier one has the same name: without it both always tie
    """

    def __init__(
        self,
        model: CLIP,
        classes: Sequence[str],
        templates: Sequence[str],
        pixels: Pixels | None = None,
        repeated: Sequence[int] = (),
    ) -> None:
        self.model = model
        self.classes, self.templates = classes, templates
        self.pixels = pixels or Pixels()
        self.repeated = list(repeated)
        self.logit_scale = model.logit_scale.detach()

    @cached_property
    def weights(self) -> Tensor:
        """(K, d) class embeddings, in float32 whatever the search that asks for them first computes in."""
        with for_use(self.model), self.model.computing_in("fp32"):
            return class_embeddings(self.model, self.classes, self.templates)

    def logits(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) → (N, K)."""
        images = self.pixels.to_input(images, self.model)
        logits = class_logits(self.model.encode_image(images), self.weights, self.logit_scale)
        if self.repeated:
            logits = logits.index_fill(1, torch.tensor(self.repeated, device=logits.device), BARRED)
        return logits

    def victim(self, precision: Precision = "auto") -> Victim:
        """The classifier as attacks see it: searched in `precision`, judged in float32."""
        resolved = resolve(precision, self.model.device)

        def search(images: Tensor) -> Tensor:
            with self.model.computing_in(resolved):
                return self.logits(images)

        return Victim(search, None if resolved == "fp32" else self.logits_fp32)

    @torch.no_grad()
    def logits_fp32(self, images: Tensor) -> Tensor:
        """Float32 logits, whatever precision the model is set to."""
        with self.model.computing_in("fp32"):
            return self.logits(images)

    def attack(
        self,
        images: Tensor,
        labels: Tensor,
        attack: Attack,
        threat: Threat,
        precision: Precision = "auto",
        seed: int = 0,
        index: Tensor | None = None,
    ) -> Tensor:
        """Adversarial images for (N, 3, H, W) `images`; `index` are their places in the set."""
        index = torch.arange(len(images)) if index is None else index
        result = images.clone()
        rows = torch.arange(len(images), device=images.device)
        with for_use(self.model):
            for number, stage in enumerate(attack.stages(threat)):
                streams = Streams(stage_seed(seed, number), index.to(images.device)[rows])
                found = stage(self.victim(precision), images[rows], labels[rows], threat, streams=streams)
                result[rows] = found
                rows = rows[predicted(self.logits_fp32(found), labels[rows]) == labels[rows]]
                if not len(rows):
                    break
        return result


@contextmanager
def for_use(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards every module is as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def compiled(model: CLIP) -> Iterator[None]:
    """The image tower through torch.compile, one graph for batches of any size; afterwards it is called as before."""
    tower = model.visual
    # Where `Module.compile` puts it; torch has no way to take it back.
    before = tower._compiled_call_impl
    tower.compile(dynamic=True)
    try:
        yield
    finally:
        tower._compiled_call_impl = before


def stage_seed(seed: int, number: int) -> int:
    """The seed of an attack's stage `number`."""
    return seed * 1_000_003 + number
