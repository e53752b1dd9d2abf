"""A zero-shot classifier for evaluations and attacks: its logits, also in float32, and adversarial images."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor

from advflyp.attack.base import Attack, run_stages
from advflyp.attack.threat import Threat
from advflyp.attack.victim import Victim
from advflyp.evaluation.pixels import Pixels
from advflyp.model.clip import CLIP
from advflyp.model.graphs import Graphs, Steps, check_device
from advflyp.model.precision import Precision, Resolved, for_use, resolve, without_autocast
from advflyp.model.zeroshot import barred, check_told_apart, class_embeddings, class_logits


class _Encoder:
    """The interface of a classifier's model for attacks, in the precision of the search."""

    def __init__(self, classifier: "Classifier", precision: Resolved) -> None:
        self.classifier = classifier
        self.precision: Resolved = precision
        self.model, self.classes, self.templates = classifier.model, classifier.classes, classifier.templates
        self.repeated = classifier.repeated

    @property
    def weights(self) -> Tensor:
        return self.classifier.weights

    def encode_tokens(self, images: Tensor, patches: bool) -> Tensor:
        with self.model.computing_in(self.precision):
            return self.model.encode_tokens(self.classifier.pixels.to_input(images, self.model), patches)


class Classifier:
    """A zero-shot classifier: a model and K class names, encoded with their templates when first needed.

    Args:
        model: The model.
        classes: K class names.
        templates: Prompts, each with one "{}" for the class name.
        pixels: How the images it is given become the model's input; by default they already are that input.
        repeated: Classes that are never predicted because an earlier one has the same name; otherwise both would always
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
        """(K, d) class embeddings, always in float32, whatever the precision of the search that first needs them.

        ValueError if two names that differ are the same text to the model.
        """
        check_told_apart(self.model, self.classes, self.templates)
        with for_use(self.model), self.model.computing_in("fp32"):
            return class_embeddings(self.model, self.classes, self.templates)

    def logits(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) → (N, K)."""
        images = self.pixels.to_input(images, self.model)
        logits = class_logits(self.model.encode_image(images), self.weights, self.logit_scale)
        return barred(logits, self.repeated)

    def victim(self, precision: Precision = "auto") -> Victim:
        """The classifier as attacks see it: searched in `precision`, evaluated in float32."""
        resolved = resolve(precision, self.model.device)

        def search(images: Tensor) -> Tensor:
            with self.model.computing_in(resolved):
                return self.logits(images)

        graphs = self.model.graphs
        return Victim(
            search,
            None if resolved == "fp32" else self.logits_fp32,
            _Encoder(self, resolved),
            steps=None if graphs is None else Steps(graphs),
        )

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
        """Adversarial images for (N, 3, H, W) `images`, even those that are misclassified when clean.

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
def replayed(model: CLIP) -> Iterator[None]:
    """Within the block, replay passes of the image tower, and steps of attacks, from CUDA graphs.

    ValueError if the model is not on a CUDA device.
    """
    check_device(model.device, "graphs")
    # Recordings read the weights as autocast has cast them, which torch keeps until the outermost autocast ends.
    with without_autocast("cuda"), model.replaying(Graphs(pads=True)):
        yield


@contextmanager
def compiled(model: CLIP) -> Iterator[None]:
    """Within the block, run the image tower through torch.compile, with one graph for all batch sizes."""
    tower = model.visual
    # `Module.compile` stores its result here; torch has no way to undo it.
    before = tower._compiled_call_impl
    tower.compile(dynamic=True)
    try:
        yield
    finally:
        tower._compiled_call_impl = before
