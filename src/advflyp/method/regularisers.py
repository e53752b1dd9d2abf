"""AdvFLYP's two regularisers (Eqs. 8–12), which keep an adversarially trained encoder near the original.

First the equations, as functions of embeddings (unit-norm rows), then the branches of the model that they compare. As
texts, AdvFLYP uses the captions of the batch, TeCoA (Table 9) the classes.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from advflyp.config import above_zero, at_least
from advflyp.distributed import ALONE, Ranks
from advflyp.method.base import Batch, FromEmbeddings
from advflyp.method.blocks import in_row_blocks


def feature_deviation(
    a: Tensor, b: Tensor, *, norm: Literal["row", "frobenius"] = "row", ranks: Ranks = ALONE
) -> Tensor:
    """One term of Eq. 8, a scalar: how far the (N, d) embeddings `a` lie from `b`.

    Args:
        norm: "row", the mean of the rows' L2 distances (Algorithm 1 and the released code), or "frobenius", ‖a −
            b‖_F / N (the equation as printed).
        ranks: With several ranks, a and b are this rank's rows, and the deviation is that of all rows.
    """
    difference = a - b
    if norm == "frobenius":
        return torch.linalg.vector_norm(ranks.all_gather(torch.linalg.vector_norm(difference))) / ranks.rows(
            len(a)
        )
    return ranks.mean(torch.linalg.vector_norm(difference, dim=1))


def logit_divergence(
    image_a: Tensor,
    image_b: Tensor,
    text: Tensor,
    logit_scale: Tensor | float = 1.0,
    *,
    logit_scale_b: Tensor | float | None = None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """One term of Eq. 12, a scalar: the mean over N images of KL(P_a ‖ P_b), P = softmax(τ⁻¹·X·Tᵀ), Eqs. 9–11.

    Args:
        image_a, image_b: (N, d) embeddings; text: (M, d).
        logit_scale: τ⁻¹; 1 gives the equations as printed.
        logit_scale_b: τ⁻¹ of P_b; by default that of P_a.
        ranks: With several ranks, the images are this rank's rows, and the mean is over all ranks.
    """
    scale_b = logit_scale if logit_scale_b is None else logit_scale_b

    def rows(a: Tensor, b: Tensor) -> Tensor:
        log_a = F.log_softmax(logit_scale * a @ text.T, dim=-1)
        log_b = F.log_softmax(scale_b * b @ text.T, dim=-1)
        return F.kl_div(log_b, log_a, reduction="none", log_target=True).sum(1)

    return ranks.mean(torch.cat(in_row_blocks(rows, image_a, image_b, columns=len(text))))


@dataclass(frozen=True, kw_only=True)
class RegularisedConfig:
    """Keys of the recipe table `method` that every regularised method has.

    Attributes:
        feature_weight: Weight of L_feat (Eq. 8); 0 leaves it out.
        logit_weight: Weight of L_logit (Eq. 12); 0 leaves it out.
        reference: What both regularisers compare the adversarial embeddings with: "frozen", the frozen original model
            on the same adversarial image (AdvFLYP_2nd), or "both", this and the model itself on the clean image.
        clean_gradients: Whether the regularisers' gradients reach the embedding of the clean image too; false makes it
            a constant, which saves two of eleven forward passes and is not the paper's equation.
        original_sees: The image that the frozen original embeds: "adversarial", as in the paper, or "clean".
        feature_norm: "row" or "frobenius", see `feature_deviation`.
        logit_temperature: τ⁻¹ in Eqs. 9–11; none takes the model's own, 1 the equations as printed.
        logit_gradients: What the gradients of L_logit reach, if more than the image tower is trained: "image",
            the image embeddings only (the paper's frozen T), or "all", the texts and τ too (the released code, in
            which P_θ₀ keeps the τ of the original).
    """

    feature_weight: float = 0.0
    logit_weight: float = 0.0
    reference: Literal["both", "frozen"] = "both"
    clean_gradients: bool = True
    original_sees: Literal["adversarial", "clean"] = "adversarial"
    feature_norm: Literal["row", "frobenius"] = "row"
    logit_temperature: float | None = None
    logit_gradients: Literal["image", "all"] = "image"

    def __post_init__(self) -> None:
        at_least(0, self, "method.", "feature_weight", "logit_weight")
        above_zero(self, "method.", "logit_temperature")


class Regularised(FromEmbeddings):
    """A method whose loss may be extended by L_feat and L_logit."""

    config: RegularisedConfig

    @classmethod
    def without_effect(
        cls, config: RegularisedConfig, *, attacks: bool, trains_texts: bool
    ) -> list[tuple[str, str]]:
        inert = []
        if config.feature_weight == 0:
            inert.append(("method.feature_norm", "method.feature_weight = 0"))
        if config.logit_weight == 0:
            inert.append(("method.logit_temperature method.logit_gradients", "method.logit_weight = 0"))
        elif not trains_texts:
            inert.append(("method.logit_gradients", "only the image tower is trained"))
        if config.feature_weight == 0 == config.logit_weight:
            of_both = "method.reference method.clean_gradients method.original_sees"
            return [*inert, (of_both, "neither regulariser has a weight")]
        if config.reference == "frozen":
            inert.append(("method.clean_gradients", "method.reference = 'frozen'"))
        if not attacks:
            inert.append(("method.original_sees", "attack.steps = 0"))
        return inert

    @property
    def is_regularised(self) -> bool:
        """Whether L_feat or L_logit is on."""
        return self.config.feature_weight > 0 or self.config.logit_weight > 0

    @property
    def needs_original(self) -> bool:
        return self.is_regularised

    @property
    def shares_clean(self) -> bool:
        return self.is_regularised and self.config.reference == "both"

    def branches(self, images: Tensor, images_adv: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """f_θ(x + δ), and what the regularisers compare it with: {"clean": f_θ(x), "original": F_θ₀(x + δ)}, or those
        of them that are needed; as `config.clean_gradients` and `config.original_sees` say.
        """
        if not self.is_regularised:
            return self.model.encode_image(images_adv), {}
        config = self.config
        adversarial, clean, original = self.encode_branches(
            images,
            images_adv,
            batch,
            clean_gradients=config.clean_gradients,
            original_sees=config.original_sees,
        )
        anchors = {"clean": clean, "original": original}
        return adversarial, {name: anchor for name, anchor in anchors.items() if anchor is not None}

    def penalties(self, adversarial: Tensor, anchors: dict[str, Tensor], text: Tensor) -> dict[str, Tensor]:
        """{"feature", "logit"}: the active penalties, weighted.

        Args:
            adversarial, anchors: (N, d) embeddings from `branches`; text: (M, d).
        """
        config = self.config
        result = {}
        if config.feature_weight > 0:
            deviation = [
                feature_deviation(adversarial, a, norm=config.feature_norm, ranks=self.ranks)
                for a in anchors.values()
            ]
            result["feature"] = config.feature_weight * torch.stack(deviation).sum()
        if config.logit_weight > 0:
            divergence = [
                self._divergence(adversarial, anchor, text, name == "original")
                for name, anchor in anchors.items()
            ]
            result["logit"] = config.logit_weight * torch.stack(divergence).sum()
        return result

    def _divergence(self, adversarial: Tensor, anchor: Tensor, text: Tensor, of_original: bool) -> Tensor:
        """KL(P_θ(x + δ) ‖ P of the anchor), with the gradients that `logit_gradients` lets through."""
        scale: Any = self.config.logit_temperature
        scale_b = scale
        if self.config.logit_gradients == "image":
            text = text.detach()
            scale = scale_b = scale or self.model.logit_scale.detach()
        elif scale is None:
            scale = self.model.logit_scale
            scale_b = self.original.logit_scale if of_original and self.original is not None else scale
        return logit_divergence(adversarial, anchor, text, scale, logit_scale_b=scale_b, ranks=self.ranks)
