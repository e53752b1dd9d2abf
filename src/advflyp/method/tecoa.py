"""TeCoA: text-guided contrastive adversarial training (Mao et al. 2023), here with AdvFLYP's regularisers as an option.

Labelled images, classified by the embeddings T (K, d) of their classes' prompts.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from advflyp.method.base import Batch
from advflyp.method.regularisers import Regularised, RegularisedConfig
from advflyp.model.clip import CLIP
from advflyp.model.zeroshot import class_logits


def class_loss(
    model: CLIP, embeddings: Tensor, batch: Batch, logit_scale: Tensor | float | None = None
) -> Tensor:
    """(N, d) unit-norm → (N,) cross-entropies against the labels of the batch, with constant class embeddings.

    Args:
        logit_scale: τ⁻¹; by default the model's own.
    """
    scale = model.logit_scale if logit_scale is None else logit_scale
    logits = class_logits(embeddings, batch.class_embeddings.detach(), scale)
    return F.cross_entropy(logits, batch.labels, reduction="none")


@dataclass(frozen=True, kw_only=True)
class TeCoAConfig(RegularisedConfig):
    """Recipe table `method` with name = "tecoa": the keys of `RegularisedConfig`, with classes as texts.

    With both weights at 0 it is TeCoA as published, else that of Table 9.
    """


class TeCoA(Regularised):
    """min over θ, max over δ: cross-entropy of softmax(τ⁻¹·f_θ(x + δ)·Tᵀ) against the label."""

    trains_on = "labelled"
    config: TeCoAConfig

    def attack_loss_of(self, embeddings: Tensor, batch: Batch) -> Tensor:
        """(N, d) → (N,): each image for itself."""
        return class_loss(self.model, embeddings, batch)

    def losses(self, images: Tensor, images_adv: Tensor, batch: Batch) -> dict[str, Tensor]:
        """{"ce", "feature", "logit"}, each already weighted."""
        classes = batch.class_embeddings
        adversarial, anchors = self.branches(images, images_adv, batch)
        logits = class_logits(adversarial, classes, self.model.logit_scale)
        return {
            "ce": self.ranks.mean(F.cross_entropy(logits, batch.labels, reduction="none")),
            **self.penalties(adversarial, anchors, classes),
        }
