"""AdvFLYP: finetune with CLIP's own contrastive loss on adversarial image–text pairs (arXiv 2604.11576).

Not in the paper: a model that was pretrained with SigLIP's sigmoid loss is finetuned with the same loss.

The losses are functions of embeddings (unit-norm rows). The regularisers are in `regularisers.py`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from advflyp.devices import to_device
from advflyp.distributed import ALONE, Ranks
from advflyp.method.base import Batch
from advflyp.method.blocks import MOST_LOGITS, in_row_blocks, without
from advflyp.method.regularisers import Regularised, RegularisedConfig
from advflyp.method.soft import soft_clip_loss
from advflyp.model.clip import CLIP


def clip_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor | float,
    *,
    ignore: Tensor | None = None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Eq. 1: the mean of the image-to-text and text-to-image cross-entropies of N pairs; a scalar.

    Args:
        image_embeddings, text_embeddings: (N, d), row i of one belongs to row i of the other.
        logit_scale: τ⁻¹.
        ignore: (N, N) bool, pairs that do not count as negatives; its diagonal must be False.
        ranks: With several ranks, `image_embeddings` and `ignore` hold this rank's n rows and `text_embeddings` all N
            texts; the loss is that of all N pairs, as a function of this rank's rows.
    """
    if ranks.size == 1 and len(image_embeddings) * len(text_embeddings) <= MOST_LOGITS:
        logits = logit_scale * image_embeddings @ text_embeddings.T
        if ignore is not None:
            logits = logits.masked_fill(ignore, float("-inf"))
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    # A cross-entropy is a log-sum-exp minus the pair's own logit. The log-sum-exps of the columns (texts) run over the
    # row blocks and over the ranks, which exchange N numbers instead of N embeddings.
    own = ranks.first_row + torch.arange(len(image_embeddings), device=image_embeddings.device)

    def sums(images: Tensor, own: Tensor, *ignored: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = without(logit_scale * images @ text_embeddings.T, ignored)
        return logits.logsumexp(1), logits.logsumexp(0), logits.gather(1, own[:, None])[:, 0]

    masks = [] if ignore is None else [ignore]
    blocks = in_row_blocks(sums, image_embeddings, own, *masks, columns=len(text_embeddings))
    rows, columns, pairs = zip(*blocks, strict=True)
    per_text = ranks.logsumexp(torch.stack(columns).logsumexp(0))
    return (ranks.mean(torch.cat(rows) - 2 * torch.cat(pairs)) + per_text.mean()) / 2


def sigmoid_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    *,
    ignore: Tensor | None = None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """SigLIP's −1/N Σ_ij log σ(z_ij·(τ⁻¹ x_i·t_j + b)) (Zhai et al. 2023), z_ij = 1 for a pair, else −1; a scalar.

    Args:
        image_embeddings, text_embeddings: (N, d), row i of one belongs to row i of the other.
        logit_scale, logit_bias: τ⁻¹ and b.
        ignore, ranks: As in `clip_loss`.
    """
    own = ranks.first_row + torch.arange(len(image_embeddings), device=image_embeddings.device)

    def terms(images: Tensor, own: Tensor, *ignored: Tensor) -> Tensor:
        logits = logit_scale * images @ text_embeddings.T + logit_bias
        sign = torch.full_like(logits, -1).scatter_(1, own[:, None], 1)
        result = F.logsigmoid(sign * logits)
        for mask in ignored:
            result = result.masked_fill(mask, 0)
        return result.sum()

    masks = [] if ignore is None else [ignore]
    blocks = in_row_blocks(terms, image_embeddings, own, *masks, columns=len(text_embeddings))
    return -ranks.all_reduce_sum(torch.stack(blocks).sum()) / ranks.rows(len(image_embeddings))


@dataclass(frozen=True, kw_only=True)
class AdvFLYPConfig(RegularisedConfig):
    """Recipe table `method` with name = "advflyp".

    It includes the keys of `RegularisedConfig`: both weights at 1 give AdvFLYP_full (Eq. 13), at 0 AdvFLYP.

    Attributes:
        loss: "contrastive" (Eq. 1), "sigmoid" (`sigmoid_loss`), or "auto", that of the model's
            pretraining (sigmoid if it has a logit bias, else contrastive).
        mask_same_caption: Do not count pairs with the same caption as negatives (for small corpora).
        soft_targets: m, the weight of the frozen original's clean similarities in the contrastive targets (`soft.py`),
            from 0 (Eq. 1) to 1.
    """

    loss: Literal["auto", "contrastive", "sigmoid"] = "auto"
    mask_same_caption: bool = False
    soft_targets: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.soft_targets <= 1:
            raise ValueError(f"method.soft_targets must lie between 0 and 1, not {self.soft_targets:g}")


class AdvFLYP(Regularised):
    """Eqs. 6, 7 and 13: the batch is perturbed jointly to maximise the loss that the encoder then minimises.

    ValueError if the sigmoid loss is combined with soft targets or with a model without a logit bias.
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
        if self.sigmoid and config.soft_targets > 0:
            raise ValueError(
                "method.soft_targets is for the contrastive loss; set method.loss = 'contrastive'"
            )

    @property
    def needs_original(self) -> bool:
        return self.is_regularised or self.config.soft_targets > 0

    @property
    def flat_at_clean(self) -> bool:  # type: ignore[reportIncompatibleVariableOverride]
        """With soft targets alone, the original's predictions for the clean images are the minimum of the loss."""
        return self.config.soft_targets == 1

    def attack_loss_of(self, embeddings: Tensor, batch: Batch) -> Tensor:
        """Eq. 6: L_CLIP of the perturbed batch."""
        return self._pair_loss(embeddings, batch.text_embeddings.detach(), batch)

    def losses(self, images: Tensor, images_adv: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Eq. 13: {"clip" or "sigmoid", "feature", "logit"}, each already weighted."""
        text = batch.text_embeddings
        adversarial, anchors = self.branches(images, images_adv, batch)
        return {
            "sigmoid" if self.sigmoid else "clip": self._pair_loss(adversarial, text, batch),
            **self.penalties(adversarial, anchors, text),
        }

    def _pair_loss(self, image_embeddings: Tensor, text_embeddings: Tensor, batch: Batch) -> Tensor:
        ignore = batch.once("ignored", lambda: self._same(batch)) if self.config.mask_same_caption else None
        scale, bias = self.model.logit_scale, self.model.logit_bias
        if self.sigmoid:
            assert bias is not None
            return sigmoid_loss(
                image_embeddings, text_embeddings, scale, bias, ignore=ignore, ranks=self.ranks
            )
        if self.config.soft_targets > 0:
            assert self.original is not None
            clean = batch.once("original_embeddings", lambda: self._embed_original(batch.images))
            return soft_clip_loss(
                image_embeddings,
                text_embeddings,
                scale,
                clean,
                self.original.logit_scale,
                self.config.soft_targets,
                ignore=ignore,
                ranks=self.ranks,
            )
        return clip_loss(image_embeddings, text_embeddings, scale, ignore=ignore, ranks=self.ranks)

    def _same(self, batch: Batch) -> Tensor:
        """(n, N) bool: which other pairs of the batch `mask_same_caption` ignores."""
        return same_captions(batch.captions, self.ranks, self.model.device)

    @torch.no_grad()
    def _embed_original(self, images: Tensor) -> Tensor:
        assert self.original is not None
        return self.original.encode_image(images)


def same_captions(
    captions: Sequence[str], ranks: Ranks = ALONE, device: torch.device | str = "cpu"
) -> Tensor:
    """(n, N) bool: which other captions of the batch are equal to each of this rank's n captions."""
    digests = (
        hashlib.blake2b(caption.encode("utf-8", "surrogatepass"), digest_size=8) for caption in captions
    )
    numbers = [int.from_bytes(digest.digest(), "big", signed=True) for digest in digests]
    return same_numbers(to_device(torch.tensor(numbers), device), ranks)


def same_numbers(mine: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """(n, N) bool: which other numbers of the batch are equal to each of this rank's (n,) int64."""
    every = ranks.gather(mine)
    own = ranks.first_row + torch.arange(len(mine), device=mine.device)
    return (mine[:, None] == every) & (own[:, None] != torch.arange(len(every), device=mine.device))
