"""PMG-AFT: TeCoA, guided by the pretrained model (Wang et al. 2024).

With P = softmax(τ⁻¹·f(·)·Tᵀ) over the classes, the loss is CE(P_adv, y) + α·KL(P_adv ‖ P⁰_adv) + β·KL(P_adv ‖ P_clean):
P⁰ is the original model's on the same adversarial picture, P_clean the model's own on the clean one.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from advflyp.method.base import Batch, Method
from advflyp.method.regularisers import encode_branches, logit_divergence
from advflyp.method.tecoa import class_loss
from advflyp.model.zeroshot import class_logits


@dataclass(frozen=True, kw_only=True)
class PMGAFTConfig:
    """Recipe table `method` with name = "pmg_aft".

    original_weight: α, of the divergence from the original model; 0 leaves it out
    clean_weight:    β, of the divergence from the clean picture; 0 leaves it out
    """

    original_weight: float = 1.0
    clean_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("original_weight", "clean_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"method.{name} must be 0 or above, not {getattr(self, name)}")


class PMGAFT(Method):
    """TeCoA's inner loss; in the outer one two divergences beside TeCoA's cross-entropy."""

    trains_on = "labelled"
    config: PMGAFTConfig

    @property
    def needs_original(self) -> bool:
        return self.config.original_weight > 0

    def attack_loss(self, images_adv: Tensor, batch: Batch) -> Tensor:
        """(N, 3, H, W) → (N,)."""
        return class_loss(self.model, images_adv, batch)

    def losses(self, images: Tensor, images_adv: Tensor, batch: Batch) -> dict[str, Tensor]:
        """{"ce", "original", "clean"}, each already weighted; gradients flow through P_adv and P_clean."""
        classes, scale = batch["class_embeddings"], self.model.logit_scale
        adversarial, clean, original = encode_branches(
            self.model, images, images_adv, clean=self.config.clean_weight > 0, original=self.original
        )
        logits = class_logits(adversarial, classes, scale)
        result = {"ce": self.ranks.mean(F.cross_entropy(logits, batch["labels"], reduction="none"))}
        constant = classes.detach(), scale.detach()
        if original is not None:
            divergence = logit_divergence(adversarial, original, *constant, ranks=self.ranks)
            result["original"] = self.config.original_weight * divergence
        if clean is not None:
            divergence = logit_divergence(adversarial, clean, *constant, ranks=self.ranks)
            result["clean"] = self.config.clean_weight * divergence
        return result
