"""FARE: unsupervised adversarial finetuning of the embeddings themselves (Schlarmann et al. 2024).

It uses no labels and no text: adversarial images are pulled to the original model's embeddings of the clean ones.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from advflyp.method.base import Batch, Method


@dataclass(frozen=True, kw_only=True)
class FAREConfig:
    """Recipe table `method` with name = "fare"; it has no further keys."""


class FARE(Method):
    """min over θ, max over δ: ‖f_θ(x + δ) − f_θ₀(x)‖₂² of raw, unnormalised embeddings."""

    trains_on = "images"
    flat_at_clean = True
    config: FAREConfig

    @property
    def needs_original(self) -> bool:
        return True

    def attack_loss(self, images_adv: Tensor, batch: Batch) -> Tensor:
        """(N, 3, H, W) → (N,)."""
        target = batch.once("original_embeddings", lambda: self._embed_original(batch.images))
        return (self.model.encode_image_raw(images_adv) - target).square().sum(dim=1)

    def losses(self, images: Tensor, images_adv: Tensor, batch: Batch) -> dict[str, Tensor]:
        """{"embedding"}: the mean over the batch."""
        return {"embedding": self.ranks.mean(self.attack_loss(images_adv, batch))}

    @torch.no_grad()
    def _embed_original(self, images: Tensor) -> Tensor:
        assert self.original is not None
        return self.original.encode_image_raw(images)
