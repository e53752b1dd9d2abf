"""PMG-AFT: TeCoA, guided by the pretrained model (Wang et al. 2024).

With P = softmax(τ⁻¹·f(·)·Tᵀ) over the classes, the loss is CE(P_adv, y) + α·KL(P_adv ‖ P⁰_adv) + β·KL(P_adv ‖ P_clean):
P⁰_adv is the original model's P on the same adversarial image, P_clean the model's own on the clean image.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from advflyp.config import above_zero, at_least
from advflyp.method.base import Batch, FromEmbeddings
from advflyp.method.regularisers import logit_divergence
from advflyp.method.tecoa import class_loss
from advflyp.model.zeroshot import class_logits


@dataclass(frozen=True, kw_only=True)
class PMGAFTConfig:
    """Recipe table `method` with name = "pmg_aft".

    Attributes:
        original_weight: α, of the divergence from the original model; 0 leaves it out.
        clean_weight: β, of the divergence from the clean image; 0 leaves it out.
        logit_temperature: τ⁻¹ in all three terms and in the attack; none takes the model's own. The
            released code effectively uses 1: it scales the texts and then normalises them again.
        divergence: Reduction of the divergences over a batch, "mean" or "sum" (the released code).
    """

    original_weight: float = 1.0
    clean_weight: float = 1.0
    logit_temperature: float | None = None
    divergence: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        at_least(0, self, "method.", "original_weight", "clean_weight")
        above_zero(self, "method.", "logit_temperature")


class PMGAFT(FromEmbeddings):
    """TeCoA's inner loss; the outer loss adds two divergences to TeCoA's cross-entropy."""

    trains_on = "labelled"
    config: PMGAFTConfig

    @classmethod
    def without_effect(
        cls, config: PMGAFTConfig, *, attacks: bool, trains_texts: bool
    ) -> list[tuple[str, str]]:
        has_weight = config.original_weight or config.clean_weight
        return [] if has_weight else [("method.divergence", "neither divergence has a weight")]

    @property
    def needs_original(self) -> bool:
        return self.config.original_weight > 0

    @property
    def shares_clean(self) -> bool:
        return self.config.clean_weight > 0

    def attack_loss_of(self, embeddings: Tensor, batch: Batch) -> Tensor:
        """(N, d) → (N,)."""
        return class_loss(self.model, embeddings, batch, self.config.logit_temperature)

    def losses(self, images: Tensor, images_adv: Tensor, batch: Batch) -> dict[str, Tensor]:
        """{"ce", "original", "clean"}, each already weighted; gradients flow through P_adv and P_clean."""
        config, classes = self.config, batch.class_embeddings
        adversarial, clean, original = self.encode_branches(images, images_adv, batch)
        scale, constant = self.model.logit_scale, self.model.logit_scale.detach()
        if config.logit_temperature is not None:
            scale = constant = config.logit_temperature
        logits = class_logits(adversarial, classes, scale)
        result = {"ce": self.ranks.mean(F.cross_entropy(logits, batch.labels, reduction="none"))}
        terms = {"original": (config.original_weight, original), "clean": (config.clean_weight, clean)}
        for name, (weight, anchor) in terms.items():
            if anchor is not None:
                mean = logit_divergence(adversarial, anchor, classes.detach(), constant, ranks=self.ranks)
                count = self.ranks.rows(len(images)) if config.divergence == "sum" else 1
                result[name] = weight * count * mean
        return result
