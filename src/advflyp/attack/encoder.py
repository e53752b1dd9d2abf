"""An attack on the image encoder alone, without labels or prompts, so it hurts whatever the embedding is used for.

It maximises the cosine distance between the embeddings of the adversarial and the clean image,

    max over δ:  1 − cos(f(x + δ), f(x)),    or  1/L Σ_l 1 − cos(p_l(x + δ), p_l(x)),

with f the image's embedding and p_l those of its L patches. VEAttack (Mei et al. 2025) is an attack of this kind.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from advflyp.attack.base import SingleAttack
from advflyp.attack.pgd import PGD, ascend
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import Victim


def cosine_distances(tokens: Tensor, clean: Tensor) -> Tensor:
    """(N, L, d) and (N, L, d) unit-norm tokens → (N,) mean over the tokens of 1 − cos."""
    return 1 - (tokens * clean).sum(-1).mean(1)


@dataclass(frozen=True, kw_only=True)
class EncoderPGD(SingleAttack):
    """PGD on the cosine distance between an image's tokens and the clean ones; all steps run, even once misclassified.

    The classifier must be built on an image encoder, such as `model.classifier(…)`.

    Args:
        tokens: "image", the embedding of the image; "patches", those of its patches; or "both", the sum of both losses.
        steps: Ascent steps.
        step_size: α, as in `PGD`. The ascent starts at a uniform draw from the ball: the image itself is a minimum.
        restarts: Number of runs, each on the images that are still classified correctly.
    """

    tokens: Literal["image", "patches", "both"] = "image"
    steps: int = 100
    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens not in ("image", "patches", "both"):
            raise ValueError(f"tokens is 'image', 'patches' or 'both', not '{self.tokens}'")

    def perturb(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: Threat, *, streams: Streams
    ) -> Tensor:
        encoder, patches = victim.encoder, self.tokens != "image"
        with torch.no_grad():
            clean = encoder.encode_tokens(images, patches)

        image, every_patch = slice(0, 1), slice(1, None)
        parts = {"image": [image], "patches": [every_patch], "both": [image, every_patch]}[self.tokens]

        def loss(candidates: Tensor) -> Tensor:
            found = encoder.encode_tokens(candidates, patches)
            return torch.stack([cosine_distances(found[:, part], clean[:, part]) for part in parts]).sum(0)

        start = threat.random_start(images.detach(), streams)
        return ascend(images.detach(), start, loss, threat, steps=self.steps, step_size=self._alpha(threat))

    @property
    def needs_patches(self) -> bool:
        return self.tokens != "image"

    def _alpha(self, threat: Threat) -> float:
        return PGD(steps=self.steps, step_size=self.step_size).alpha(threat)

    @property
    def name(self) -> str:
        part = "" if self.tokens == "image" else f"-{self.tokens}"
        return self._named(f"encoder{part}{self.steps}", "steps", "tokens")

    def arguments(self, threat: Threat | None, classes: int) -> dict[str, Any]:
        values = {
            "loss": "cosine distance",
            "tokens": self.tokens,
            "steps": self.steps,
            "restarts": self.restarts,
        }
        return values | ({} if threat is None else {"step_size": self._alpha(threat)})
