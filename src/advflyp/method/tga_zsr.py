"""TGA-ZSR: TeCoA that also keeps text-guided attention near the original model's (Yu et al. 2024).

With A(x) the attention map of an image for its true class, the loss is
CE(P_adv, y) + α·mean‖A_θ(x + δ) − A_θ₀(x)‖₂ + β·mean‖A_θ(x) − A_θ₀(x)‖₂.

The definition of the map varies: the paper uses cosines of patches and text; its released code, and AdvFLYP's version
of it, instead divide each feature of an image's tokens by its norm over these tokens.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from advflyp.config import at_least
from advflyp.method.base import Batch, Method
from advflyp.method.regularisers import feature_deviation
from advflyp.method.tecoa import class_loss
from advflyp.model.clip import CLIP
from advflyp.model.patches import Patches
from advflyp.model.zeroshot import class_logits

# Smaller differences of cosines are rounding; stretched to [0, 1], they would give a map of noise with huge gradients.
FLAT = 1e-6


def attention_map(tokens: Tensor, text: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The attention maps A of N images: (N, height · width) in [0, 1].

    They are dot products of patches and text, min–max normalised per image, resized bilinearly and flattened. A map is
    zero, without a gradient, if all patches of its image are equally near to the text.

    Args:
        tokens: (N, rows · columns, d) normalised patches; text: (N, d) unit-norm, one per image.
        grid: (rows, columns); size: (height, width) of the images.
    """
    cosines = torch.einsum("nld,nd->nl", tokens, text)
    lowest, highest = cosines.amin(1, keepdim=True), cosines.amax(1, keepdim=True)
    flat = highest - lowest < FLAT
    attention = ((cosines - lowest) / (highest - lowest).masked_fill(flat, 1)).masked_fill(flat, 0)
    return F.interpolate(attention.unflatten(1, grid)[:, None], size, mode="bilinear").flatten(1)


def normalised_over_tokens(patches: Patches) -> Tensor:
    """(N, L, d) patches, with each of the d features divided by its L2 norm over the image's tokens.

    Args:
        patches: Unnormalised vectors. The image's embedding counts as one of the tokens, as the class token does in the
            released code.
    """
    every = torch.cat([patches.image[:, None], patches.tokens], dim=1)
    return F.normalize(every, dim=1)[:, 1:]


@dataclass(frozen=True, kw_only=True)
class TGAZSRConfig:
    """Recipe table `method` with name = "tga_zsr".

    Attributes:
        refinement_weight: α, of the adversarial image's attention; 0 leaves it out.
        constraint_weight: β, of the clean image's attention; 0 leaves it out.
        attention_norm: What a patch is divided by before its dot product with the text: "token", its own L2 norm
            (the paper; gives a cosine), or "dim", for each of the d dimensions the norm over all tokens of the image
            (the released code).
    """

    refinement_weight: float = 0.08
    constraint_weight: float = 0.05
    attention_norm: Literal["token", "dim"] = "token"

    def __post_init__(self) -> None:
        at_least(0, self, "method.", "refinement_weight", "constraint_weight")


class TGAZSR(Method):
    """TeCoA's inner loss; the outer loss adds two distances between attention maps to TeCoA's cross-entropy.

    ValueError if either distance is on and the model has no patch tokens.
    """

    trains_on = "labelled"
    any_size = False  # attention maps need a fixed grid of patches
    config: TGAZSRConfig

    @classmethod
    def without_effect(
        cls, config: TGAZSRConfig, *, attacks: bool, trains_texts: bool
    ) -> list[tuple[str, str]]:
        has_weight = config.refinement_weight or config.constraint_weight
        return [] if has_weight else [("method.attention_norm", "neither attention map has a weight")]

    def __init__(self, config: TGAZSRConfig, model: CLIP) -> None:
        super().__init__(config, model)
        if self.needs_original:
            # Accessed here so that an architecture without patches is refused before the run begins.
            _ = model.patch_grid

    @property
    def needs_original(self) -> bool:
        return self.config.refinement_weight > 0 or self.config.constraint_weight > 0

    @property
    def images_per_row(self) -> int:
        return 2 if self.config.constraint_weight > 0 else 1

    def attack_loss(self, images_adv: Tensor, batch: Batch) -> Tensor:
        """(N, 3, H, W) → (N,)."""
        return class_loss(self.model, self.model.encode_image(images_adv), batch)

    def losses(self, images: Tensor, images_adv: Tensor, batch: Batch) -> dict[str, Tensor]:
        """{"ce", "refinement", "constraint"}, each already weighted; gradients flow through A_θ, not through A_θ₀."""
        config, labels, classes = self.config, batch.labels, batch.class_embeddings
        if self.original is None:
            logits = class_logits(self.model.encode_image(images_adv), classes, self.model.logit_scale)
            return {"ce": self.ranks.mean(F.cross_entropy(logits, labels, reduction="none"))}
        text = classes.detach()[labels]

        def attention(patches: Patches) -> Tensor:
            texts = text.repeat(len(patches.tokens) // len(text), 1)
            return attention_map(patches.tokens, texts, patches.grid, (images.shape[-2], images.shape[-1]))

        with torch.no_grad():
            target = attention(self._encode_patches(self.original, images))
        clean = [images] if config.constraint_weight > 0 else []
        patches = self._encode_patches(self.model, torch.cat([images_adv, *clean]))
        maps = attention(patches).split(len(images))
        logits = class_logits(patches.image[: len(images)], classes, self.model.logit_scale)
        result = {"ce": self.ranks.mean(F.cross_entropy(logits, labels, reduction="none"))}

        def deviation(found: Tensor) -> Tensor:
            return feature_deviation(found, target, ranks=self.ranks)

        if config.refinement_weight > 0:
            result["refinement"] = config.refinement_weight * deviation(maps[0])
        if config.constraint_weight > 0:
            result["constraint"] = config.constraint_weight * deviation(maps[1])
        return result

    def _encode_patches(self, model: CLIP, images: Tensor) -> Patches:
        """Unit-norm embeddings of the images, and patches normalised as `attention_norm` says."""
        if self.config.attention_norm == "token":
            return model.encode_patches(images)
        raw = model.encode_patches_raw(images)
        return Patches(F.normalize(raw.image, dim=-1), normalised_over_tokens(raw), raw.grid)
