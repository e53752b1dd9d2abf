"""Zero-shot classification: class names × templates → one weight vector per class (Eq. 2)."""

from collections.abc import Sequence
from textwrap import shorten
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advflyp.data.sets.prompts import choose_templates, fill, several_texts
from advflyp.model.precision import Resolved, without_autocast

if TYPE_CHECKING:
    from advflyp.model.clip import CLIP

# Prompts encoded at a time.
AT_ONCE = 512
# A logit far below that of any class (a cosine times a scale of about 100), which adds nothing to a softmax.
BARRED = -10_000.0


def check_told_apart(model: "CLIP", classes: Sequence[str], templates: Sequence[str]) -> None:
    """ValueError if two different names are the same text to the model: their logits would tie on every image.

    Names that differ in case alone may repeat: released ones do (ImageNet's "Cardigan", a dog, and "cardigan"), and
    protocols say what such a class counts as. The arguments are those of `prompt_embeddings`.
    """

    def tokens(names: Sequence[str], template: str) -> list[tuple[int, ...]]:
        return [tuple(row) for row in model.tokenizer([fill(template, name) for name in names]).tolist()]

    first: dict[tuple[int, ...], str] = {}
    for name, row in zip(classes, tokens(classes, templates[0]), strict=True):
        other = first.setdefault(row, name)
        if other.casefold() != name.casefold() and all(
            len(set(tokens([other, name], one))) == 1 for one in templates[1:]
        ):
            raise ValueError(
                f"'{shorten(other, 60)}' and '{shorten(name, 60)}' are the same text to {model.name}: its tokenizer "
                "cuts off the end of long texts; shorten names and prompts, or keep one of the two"
            )


def prompt_embeddings(model: "CLIP", classes: Sequence[str], templates: Sequence[str]) -> Tensor:
    """(K, T, d) unit-norm embeddings of every template of every class, with gradients.

    Args:
        classes: K names.
        templates: T templates, each with one "{}" for the name.
    """
    prompts = [fill(template, name) for name in classes for template in templates]
    parts = [model.encode_text(prompts[i : i + AT_ONCE]) for i in range(0, len(prompts), AT_ONCE)]
    return torch.cat(parts).view(len(classes), len(templates), -1)


def class_means(prompts: Tensor) -> Tensor:
    """(K, T, d) embeddings of prompts → (K, d) unit-norm classifier weights: each class's normalised mean."""
    return F.normalize(prompts.mean(1), dim=-1)


@torch.no_grad()
def class_embeddings(model: "CLIP", classes: Sequence[str], templates: Sequence[str]) -> Tensor:
    """(K, d) unit-norm classifier weights; constants. The arguments are those of `prompt_embeddings`."""
    return class_means(prompt_embeddings(model, classes, templates))


class ClassTexts:
    """The text embeddings that a batch of labelled images needs.

    Attributes:
        frozen: Whether the text tower is frozen: prompts are then encoded once, else in every call, with gradients.
    """

    def __init__(
        self, model: "CLIP", classes: Sequence[str], templates: Sequence[str], *, frozen: bool
    ) -> None:
        check_told_apart(model, classes, templates)
        self.model, self.classes, self.templates, self.frozen = model, classes, templates, frozen
        self.known: tuple[Tensor, Tensor] | None = None

    def __call__(self, labels: Tensor) -> dict[str, Tensor]:
        """(N,) labels → "class_embeddings" (K, d), means over the templates, and "text_embeddings" (N, d), those of
        each label's prompt with the first template.
        """
        first, means = self.known or self._encode()
        return {"class_embeddings": means, "text_embeddings": first[labels]}

    def _encode(self) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(not self.frozen):
            prompts = prompt_embeddings(self.model, self.classes, self.templates)
            result = prompts[:, 0].contiguous(), class_means(prompts)
        if self.frozen:
            self.known = result
        return result


def class_logits(image_embeddings: Tensor, weights: Tensor, logit_scale: Tensor | float) -> Tensor:
    """(N, d) image embeddings and (K, d) class weights → (N, K) logits τ⁻¹·cos, in no lower precision than theirs."""
    with without_autocast(weights.device.type):
        return logit_scale * image_embeddings @ weights.T


def barred(logits: Tensor, repeated: Sequence[int]) -> Tensor:
    """(N, K) logits in which the classes `repeated` are far below any other."""
    if not repeated:
        return logits
    logits = logits.clone()
    for number in repeated:  # one by one, since a list of them would have to be copied to the device
        logits[:, number] = BARRED
    return logits


class ZeroShotClassifier(nn.Module):
    """(N, 3, H, W) pixels in [0, 1] → (N, K) float32 logits τ⁻¹·cos, differentiable; `CLIP.classifier` makes one.

    The class embeddings are computed once, when the classifier is made.

    Attributes:
        precision: That of the image tower.
        repeated: Classes that are never predicted because an earlier one has the same name.
    """

    weights: Tensor
    precision: Resolved = "fp32"
    repeated: Sequence[int] = ()

    def __init__(self, model: "CLIP", classes: Sequence[str], templates: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.classes, self.templates = several_texts(classes, "classes"), choose_templates(templates)
        check_told_apart(model, self.classes, self.templates)
        with model.computing_in("fp32"):
            self.register_buffer(
                "weights", class_embeddings(model, self.classes, self.templates), persistent=False
            )

    def forward(self, images: Tensor) -> Tensor:
        with self.model.computing_in(self.precision):
            scale = self.model.logit_scale.detach()
            logits = class_logits(self.model.encode_image(images), self.weights, scale)
        return barred(logits, self.repeated)

    def encode_tokens(self, images: Tensor, patches: bool) -> Tensor:
        """`CLIP.encode_tokens` of the model, for attacks on the encoder alone."""
        with self.model.computing_in(self.precision):
            return self.model.encode_tokens(images, patches)
