"""AGFT: adversarial images keep the frozen model's softened predictions for the clean ones; labels are not used.

With T (K, d) the classes' text embeddings and s a scale of cosines, the targets and the (inner and outer) loss are

    q_i = softmax( ρ s f_θ₀(x_i) Tᵀ ),    1/N Σ_i −q_i · log softmax( s f_θ(x_i + δ_i) Tᵀ ).

ρ below 1 flattens the targets: they keep how the pretrained model relates the classes, but not its confidence.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from advflyp.config import above_zero
from advflyp.method.base import Batch, FromEmbeddings
from advflyp.model.zeroshot import class_logits


@dataclass(frozen=True, kw_only=True)
class AGFTConfig:
    """Recipe table `method` with name = "agft"; the defaults are those of the released run.

    Attributes:
        scale: s, the factor of cosines in the softmax.
        ratio: ρ, the fraction of that factor used for the targets.
    """

    scale: float = 180.0
    ratio: float = 0.4

    def __post_init__(self) -> None:
        above_zero(self, "method.", "scale", "ratio")


class AGFT(FromEmbeddings):
    """min over θ, max over δ: cross-entropy of the classes' probabilities against the frozen model's clean ones."""

    trains_on = "labelled"
    config: AGFTConfig

    @property
    def needs_original(self) -> bool:
        return True

    @property
    def shares_clean(self) -> bool:
        return False

    @property
    def flat_at_clean(self) -> bool:  # type: ignore[reportIncompatibleVariableOverride]
        """Targets that are not flattened are the model's own predictions when training starts."""
        return self.config.ratio == 1

    def attack_loss_of(self, embeddings: Tensor, batch: Batch) -> Tensor:
        """(N, d) → (N,): each image for itself."""
        return self._cross_entropy(embeddings, batch.class_embeddings.detach(), batch)

    def losses(self, images: Tensor, images_adv: Tensor, batch: Batch) -> dict[str, Tensor]:
        """{"ce"}: the mean over the batch; no gradient flows through the targets."""
        rows = self._cross_entropy(self.model.encode_image(images_adv), batch.class_embeddings, batch)
        return {"ce": self.ranks.mean(rows)}

    def _cross_entropy(self, embeddings: Tensor, classes: Tensor, batch: Batch) -> Tensor:
        targets = batch.once("clean_probabilities", lambda: self._targets(batch))
        return F.cross_entropy(
            class_logits(embeddings, classes, self.config.scale), targets, reduction="none"
        )

    @torch.no_grad()
    def _targets(self, batch: Batch) -> Tensor:
        """(N, K) probabilities of the clean images."""
        assert self.original is not None
        scale = self.config.ratio * self.config.scale
        return class_logits(self.original.encode_image(batch.images), batch.class_embeddings, scale).softmax(
            1
        )
