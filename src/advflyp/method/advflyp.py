"""AdvFLYP: finetune with CLIP's own contrastive loss on adversarial image–text pairs (arXiv 2604.11576).

The equations as functions of embeddings, then the method. All embeddings are unit-norm rows.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from advflyp.method.base import Batch, Method


def clip_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor | float,
    *,
    ignore: Tensor | None = None,
) -> Tensor:
    """Eq. 1: the mean of the image-to-text and text-to-image cross-entropies of N pairs; a scalar.

    image_embeddings, text_embeddings: (N, d), row i of one belongs to row i of the other
    logit_scale: τ⁻¹
    ignore:      (N, N) bool, pairs that are not counted as negatives; its diagonal must be False
    """
    logits = logit_scale * image_embeddings @ text_embeddings.T
    if ignore is not None:
        logits = logits.masked_fill(ignore, float("-inf"))
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def feature_deviation(a: Tensor, b: Tensor, *, norm: Literal["row", "frobenius"] = "row") -> Tensor:
    """One term of Eq. 8, a scalar: how far the (N, d) embeddings `a` lie from `b`.

    norm: "row", the mean of the rows' L2 distances (Algorithm 1 and the released code), or
          "frobenius", ‖a − b‖_F / N (the equation as printed)
    """
    difference = a - b
    if norm == "frobenius":
        return torch.linalg.vector_norm(difference) / len(a)
    return torch.linalg.vector_norm(difference, dim=1).mean()


def logit_divergence(
    image_a: Tensor, image_b: Tensor, text: Tensor, logit_scale: Tensor | float = 1.0
) -> Tensor:
    """One term of Eq. 12, a scalar: the mean over N images of KL(P_a ‖ P_b), P = softmax(τ⁻¹·X·Tᵀ), Eqs. 9–11.

    image_a, image_b: (N, d) embeddings;  text: (M, d)
    logit_scale: τ⁻¹; 1 gives the equations as printed
    """
    log_a = F.log_softmax(logit_scale * image_a @ text.T, dim=-1)
    log_b = F.log_softmax(logit_scale * image_b @ text.T, dim=-1)
    return F.kl_div(log_b, log_a, reduction="batchmean", log_target=True)


@dataclass(frozen=True, kw_only=True)
class AdvFLYPConfig:
    """Recipe table `method` with name = "advflyp".

    feature_weight: weight of L_feat (Eq. 8); 0 leaves it out
    logit_weight:   weight of L_logit (Eq. 12); 0 leaves it out. Both at 1 is AdvFLYP_full (Eq. 13)
    reference:      against what both regularisers hold the adversarial embeddings: "both" the frozen
                    original model on the same adversarial image and the model itself on the clean image,
                    or "frozen" alone (AdvFLYP_2nd)
    feature_norm:   "row" or "frobenius", see `feature_deviation`
    logit_temperature: τ⁻¹ in Eqs. 9–11; none takes the model's own, 1 the equations as printed
    mask_same_caption: do not count pairs with the same caption as negatives (for small corpora)
    """

    feature_weight: float = 0.0
    logit_weight: float = 0.0
    reference: Literal["both", "frozen"] = "both"
    feature_norm: Literal["row", "frobenius"] = "row"
    logit_temperature: float | None = None
    mask_same_caption: bool = False

    def __post_init__(self) -> None:
        for name in ("feature_weight", "logit_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"method.{name} must be 0 or above, not {getattr(self, name)}")


class AdvFLYP(Method):
    """Eqs. 6, 7 and 13: perturbations joint over the batch raise the loss that the encoder then lowers."""

    config: AdvFLYPConfig

    @property
    def regularised(self) -> bool:
        return self.config.feature_weight > 0 or self.config.logit_weight > 0

    @property
    def needs_original(self) -> bool:
        return self.regularised

    def attack_loss(self, images_adv: Tensor, batch: Batch) -> Tensor:
        """Eq. 6: L_CLIP of the perturbed batch."""
        embeddings = self.model.encode_image(images_adv)
        return self._clip_loss(embeddings, batch["text_embeddings"].detach(), batch)

    def losses(self, images: Tensor, images_adv: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Eq. 13: {"clip", "feature", "logit"}, each already weighted."""
        text = batch["text_embeddings"]
        if not self.regularised:
            return {"clip": self._clip_loss(self.model.encode_image(images_adv), text, batch)}
        anchors = []
        if self.config.reference == "both":
            both = self.model.encode_image(torch.cat([images_adv, images]))
            adversarial, clean = both.chunk(2)
            anchors.append(clean)
        else:
            adversarial = self.model.encode_image(images_adv)
        with torch.no_grad():
            assert self.original is not None
            anchors.append(self.original.encode_image(images_adv))
        result = {"clip": self._clip_loss(adversarial, text, batch)}
        config = self.config
        if config.feature_weight > 0:
            deviation = [feature_deviation(adversarial, a, norm=config.feature_norm) for a in anchors]
            result["feature"] = config.feature_weight * torch.stack(deviation).sum()
        if config.logit_weight > 0:
            scale: Any = config.logit_temperature or self.model.logit_scale.detach()
            divergence = [logit_divergence(adversarial, a, text.detach(), scale) for a in anchors]
            result["logit"] = config.logit_weight * torch.stack(divergence).sum()
        return result

    def _clip_loss(self, image_embeddings: Tensor, text_embeddings: Tensor, batch: Batch) -> Tensor:
        ignore = None
        if self.config.mask_same_caption:
            # Once a batch: every step of the attack asks for it again.
            if "same_captions" not in batch:
                batch["same_captions"] = same_captions(batch["captions"]).to(image_embeddings.device)
            ignore = batch["same_captions"]
        return clip_loss(image_embeddings, text_embeddings, self.model.logit_scale, ignore=ignore)


def same_captions(captions: list[str]) -> Tensor:
    """(N, N) bool: off-diagonal pairs whose captions are equal."""
    first = {caption: index for index, caption in reversed(list(enumerate(captions)))}
    group = torch.tensor([first[caption] for caption in captions])
    same = group[:, None] == group[None, :]
    return same.fill_diagonal_(False)
