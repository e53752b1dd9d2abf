"""AdvFLYP: finetune with CLIP's own contrastive loss on adversarial image–text pairs (arXiv 2604.11576).

Not in the paper: a model that was pretrained with SigLIP's sigmoid loss is finetuned with that.

The losses as functions of embeddings (unit-norm rows), then the method. Its regularisers are in `regularisers.py`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from advflyp.method.base import Batch
from advflyp.method.regularisers import Regularised, RegularisedConfig
from advflyp.model.clip import CLIP


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


def sigmoid_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    *,
    ignore: Tensor | None = None,
) -> Tensor:
    """SigLIP's −1/N Σ_ij log σ(z_ij·(τ⁻¹ x_i·t_j + b)) (Zhai et al. 2023), z_ij = 1 for a pair, else −1; a scalar.

    image_embeddings, text_embeddings: (N, d), row i of one belongs to row i of the other
    logit_scale, logit_bias: τ⁻¹ and b
    ignore:      (N, N) bool, pairs that are not counted as negatives; its diagonal must be False
    """
    logits = logit_scale * image_embeddings @ text_embeddings.T + logit_bias
    sign = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    terms = F.logsigmoid(sign * logits)
    if ignore is not None:
        terms = terms.masked_fill(ignore, 0)
    return -terms.sum() / len(logits)


@dataclass(frozen=True, kw_only=True)
class AdvFLYPConfig(RegularisedConfig):
    """Recipe table `method` with name = "advflyp": the keys of `RegularisedConfig` (both weights at 1 is AdvFLYP_full,
    Eq. 13), and

    loss:              "contrastive" (Eq. 1), "sigmoid" (`sigmoid_loss`), or "auto", what the model was pretrained
                       with: sigmoid where it has a logit bias
    mask_same_caption: do not count pairs with the same caption as negatives (for small corpora)
    """

    loss: Literal["auto", "contrastive", "sigmoid"] = "auto"
    mask_same_caption: bool = False


class AdvFLYP(Regularised):
    """Eqs. 6, 7 and 13: perturbations joint over the batch raise the loss that the encoder then lowers.

    ValueError where the sigmoid loss is asked for and the model has no logit bias.
    """

    config: AdvFLYPConfig

    def __init__(self, config: AdvFLYPConfig, model: CLIP) -> None:
        super().__init__(config, model)
        self.sigmoid = config.loss == "sigmoid" or (config.loss == "auto" and model.logit_bias is not None)
        if self.sigmoid and model.logit_bias is None:
            raise ValueError(
                "method.loss = 'sigmoid' needs a model with a logit bias, such as SigLIP, and "
                f"{model.name} has none; use 'auto' or 'contrastive'"
            )

    def attack_loss(self, images_adv: Tensor, batch: Batch) -> Tensor:
        """Eq. 6: L_CLIP of the perturbed batch."""
        embeddings = self.model.encode_image(images_adv)
        return self._pair_loss(embeddings, batch["text_embeddings"].detach(), batch)

    def losses(self, images: Tensor, images_adv: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Eq. 13: {"clip" or "sigmoid", "feature", "logit"}, each already weighted."""
        text = batch["text_embeddings"]
        adversarial, anchors = self.branches(images, images_adv)
        return {
            "sigmoid" if self.sigmoid else "clip": self._pair_loss(adversarial, text, batch),
            **self.penalties(adversarial, anchors, text),
        }

    def _pair_loss(self, image_embeddings: Tensor, text_embeddings: Tensor, batch: Batch) -> Tensor:
        ignore = None
        if self.config.mask_same_caption:
            # Once a batch: every step of the attack asks for it again.
            if "same_captions" not in batch:
                batch["same_captions"] = same_captions(batch["captions"]).to(image_embeddings.device)
            ignore = batch["same_captions"]
        scale, bias = self.model.logit_scale, self.model.logit_bias
        if self.sigmoid:
            assert bias is not None
            return sigmoid_loss(image_embeddings, text_embeddings, scale, bias, ignore=ignore)
        return clip_loss(image_embeddings, text_embeddings, scale, ignore=ignore)


def same_captions(captions: list[str]) -> Tensor:
    """(N, N) bool: off-diagonal pairs whose captions are equal."""
    first = {caption: index for index, caption in reversed(list(enumerate(captions)))}
    group = torch.tensor([first[caption] for caption in captions])
    same = group[:, None] == group[None, :]
    return same.fill_diagonal_(False)
