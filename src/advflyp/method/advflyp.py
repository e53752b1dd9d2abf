"""AdvFLYP: finetune with CLIP's own contrastive loss on adversarial image–text pairs (arXiv 2604.11576).

The loss as a function of embeddings (unit-norm rows), then the method. Its regularisers are in `regularisers.py`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from advflyp.method.base import Batch
from advflyp.method.regularisers import Regularised, RegularisedConfig


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


@dataclass(frozen=True, kw_only=True)
class AdvFLYPConfig(RegularisedConfig):
    """Recipe table `method` with name = "advflyp": the keys of `RegularisedConfig` (both weights at 1 is AdvFLYP_full,
    Eq. 13), and

    mask_same_caption: do not count pairs with the same caption as negatives (for small corpora)
    """

    mask_same_caption: bool = False


class AdvFLYP(Regularised):
    """Eqs. 6, 7 and 13: perturbations joint over the batch raise the loss that the encoder then lowers."""

    config: AdvFLYPConfig

    def attack_loss(self, images_adv: Tensor, batch: Batch) -> Tensor:
        """Eq. 6: L_CLIP of the perturbed batch."""
        embeddings = self.model.encode_image(images_adv)
        return self._clip_loss(embeddings, batch["text_embeddings"].detach(), batch)

    def losses(self, images: Tensor, images_adv: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Eq. 13: {"clip", "feature", "logit"}, each already weighted."""
        text = batch["text_embeddings"]
        adversarial, anchors = self.branches(images, images_adv)
        return {
            "clip": self._clip_loss(adversarial, text, batch),
            **self.penalties(adversarial, anchors, text),
        }

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
