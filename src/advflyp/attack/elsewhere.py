"""Attacks that search on a surrogate instead of the evaluated classifier: under other prompts, or on another model."""

from abc import abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from advflyp.attack.base import SingleAttack
from advflyp.attack.encoder import EncoderPGD
from advflyp.attack.pgd import PGD
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import Victim
from advflyp.data.sets.prompts import choose_templates
from advflyp.model.clip import CLIP
from advflyp.model.folder import config_sha256, weights_sha256
from advflyp.model.precision import for_use
from advflyp.model.zeroshot import ZeroShotClassifier, barred, class_embeddings, class_logits


class Surrogate(Victim):
    """A classifier used for the search only: it never reports success, so no image leaves early."""

    def fooled(self, images: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        return torch.zeros_like(labels, dtype=torch.bool)


@dataclass(frozen=True, kw_only=True)
class _Elsewhere(SingleAttack):
    """An attack whose every step is taken on a surrogate; the victim gets the last iterate.

    Args:
        attack: The attack to run there; AutoAttack's members would only return images that fool the surrogate.
        restarts: Number of runs, each on the images that are still classified correctly; those of `attack` by default.
    """

    attack: PGD | EncoderPGD

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.attack, PGD | EncoderPGD):
            raise ValueError(
                f"{type(self).__name__} takes PGD or EncoderPGD, not {type(self.attack).__name__}, which returns only "
                "images that fool the surrogate"
            )
        # One number in two places: `stages` reads it here, names and results there.
        runs = max(self.restarts, self.attack.restarts)
        object.__setattr__(self, "restarts", runs)
        object.__setattr__(self, "attack", replace(self.attack, restarts=runs))

    def perturb(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: Threat, *, streams: Streams
    ) -> Tensor:
        surrogate = victim.once(self, lambda: self.surrogate(victim))
        return self.attack.perturb(surrogate, images, labels, threat, streams=streams)

    @abstractmethod
    def surrogate(self, victim: Victim) -> Victim:
        """The surrogate to search on."""


@dataclass(frozen=True, kw_only=True)
class CrossPrompt(_Elsewhere):
    """The same model under other prompts: does a perturbation against one prompt, or an ensemble, fool another?

    Args:
        templates: The prompts of the search, each with one "{}", or "openai" for its 80; the evaluation uses the
            classifier's own.
        called: Their name in results.
    """

    templates: str | Sequence[str]
    called: str = "prompts"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "templates", tuple(choose_templates(self.templates)))

    def surrogate(self, victim: Victim) -> Victim:
        encoder = victim.encoder
        scale = encoder.model.logit_scale.detach()
        with encoder.model.computing_in("fp32"):
            weights = class_embeddings(encoder.model, encoder.classes, self.templates)

        def search(images: Tensor) -> Tensor:
            logits = class_logits(encoder.encode_tokens(images, False)[:, 0], weights, scale)
            return barred(logits, encoder.repeated)

        return Surrogate(search, encoder=encoder)

    @property
    def needs_patches(self) -> bool:
        return self.attack.needs_patches

    @property
    def name(self) -> str:
        return f"{self.attack.name}@{self.called}"

    def arguments(self, threat: Threat | None, classes: int) -> dict[str, Any]:
        return {**self.attack.arguments(threat, classes), "searched_under": list(self.templates)}


@dataclass(frozen=True, kw_only=True)
class Transfer(_Elsewhere):
    """Adversarial images made on another model, with the classes and prompts of the evaluated classifier.

    Args:
        model: The surrogate. If its input size differs, images are resized as part of the model.
        called: Its name in results; its own by default.
    """

    model: CLIP
    called: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attack.needs_patches:
            _ = self.model.patch_grid  # ValueError if it has none

    def perturb(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: Threat, *, streams: Streams
    ) -> Tensor:
        with for_use(self.model):
            return super().perturb(victim, images, labels, threat, streams=streams)

    def surrogate(self, victim: Victim) -> Victim:
        encoder, model = victim.encoder, self.model
        if model.device != encoder.model.device:
            model = deepcopy(model).to(encoder.model.device)  # the caller's stays where it is
        classifier = _Resizing(model, encoder.classes, encoder.templates)
        classifier.precision, classifier.repeated = encoder.precision, encoder.repeated
        return Surrogate(classifier, encoder=classifier)

    @property
    def name(self) -> str:
        return f"{self.attack.name}@{self.called or self.model.name}"

    def arguments(self, threat: Threat | None, classes: int) -> dict[str, Any]:
        return {
            **self.attack.arguments(threat, classes),
            "surrogate_sha256": weights_sha256(self.model),
            "surrogate_config_sha256": config_sha256(self.model),
        }


class _Resizing(ZeroShotClassifier):
    """A surrogate that takes images of the victim's size."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(self._resized(images))

    def encode_tokens(self, images: Tensor, patches: bool) -> Tensor:
        return super().encode_tokens(self._resized(images), patches)

    def _resized(self, images: Tensor) -> Tensor:
        size = self.model.image_size
        if tuple(images.shape[-2:]) == size:
            return images
        return F.interpolate(images, size=size, mode="bicubic", align_corners=False).clamp(0, 1)
