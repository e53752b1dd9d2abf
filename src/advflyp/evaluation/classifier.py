"""A zero-shot classifier as evaluations and attacks use it: logits, in float32 too, and its adversarial images."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor

from advflyp.attack.base import Attack, run_stages
from advflyp.attack.threat import Threat
from advflyp.attack.victim import Victim, for_use
from advflyp.evaluation.pixels import Pixels
from advflyp.model.clip import CLIP
from advflyp.model.precision import Precision, Resolved, resolve
from advflyp.model.zeroshot import class_embeddings, class_logits

# A logit that no class ever has, and that no softmax notices: cosines times a scale of 100 or so.
BARRED = -10_000.0


class _Encoder:
    """A classifier's model as attacks see it, in the precision of the search."""

    def __init__(self, classifier: "Classifier", precision: Resolved) -> None:
        self.classifier = classifier
        self.precision: Resolved = precision
        self.model, self.classes, self.templates = classifier.model, classifier.classes, classifier.templates

    @property
    def weights(self) -> Tensor:
        return self.classifier.weights

    def encode_tokens(self, images: Tensor, patches: bool) -> Tensor:
        with self.model.computing_in(self.precision):
            return self.model.encode_tokens(self.classifier.pixels.to_input(images, self.model), patches)


class Classifier:
    """A model and K class names, encoded with their templates when the first image is classified.

    Args:
        model: The model.
        classes: K class names.
        templates: Prompts, each with one "{}" for the class name.
        pixels: What the images that it is given are; by default the model's input.
        repeated: Classes that are never predicted, because an earlier one has the same name: without it both always
            tie.
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
        """The classifier as attacks see it: searched in `precision`, evaluated in float32."""
        resolved = resolve(precision, self.model.device)

        def search(images: Tensor) -> Tensor:
            with self.model.computing_in(resolved):
                return self.logits(images)

        return Victim(search, None if resolved == "fp32" else self.logits_fp32, _Encoder(self, resolved))

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
        """Adversarial images for (N, 3, H, W) `images`, whatever they are classified as when clean.

        Args:
            images: (N, 3, H, W) pixels in [0, 1].
            labels: (N,) int64, the true classes.
            attack: The attack.
            threat: The ball around each image.
            precision: Precision of the search.
            seed: Random seed.
            index: (N,) int64, the images' places in their dataset; 0 … N − 1 by default.
        """
        index = torch.arange(len(images)) if index is None else index.cpu()
        result, labels = images.clone(), labels.cpu()
        with for_use(self.model):
            for rows, found, _ in run_stages(
                attack.stages(threat),
                self.victim(precision),
                images,
                labels,
                threat,
                seed=seed,
                index=index,
                survived=torch.zeros_like(labels),
            ):
                result[rows.to(images.device)] = found
        return result


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
