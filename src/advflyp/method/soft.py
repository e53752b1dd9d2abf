"""Soft contrastive targets: they punish second matches in the batch and wrong captions less than plain AdvFLYP does.

Not in the paper. The identity targets of Eq. 1 are mixed with the frozen original's predictions for the clean batch:

    Q = (1 − m) I + m · softmax_rows(τ₀⁻¹ F_θ₀(x) Tᵀ),    Q′ = (1 − m) I + m · softmax_columns(τ₀⁻¹ F_θ₀(x) Tᵀ).
"""

import torch
from torch import Tensor

from advflyp.distributed import ALONE, Ranks
from advflyp.method.blocks import in_row_blocks, without


def soft_clip_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor | float,
    clean_embeddings: Tensor,
    clean_scale: Tensor | float,
    mixture: float,
    *,
    ignore: Tensor | None = None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """½ [ 1/N Σ_i −Q_i · log softmax(z_i) + 1/N Σ_j −Q′_j · log softmax(z′_j) ], z = τ⁻¹ X Tᵀ; a scalar.

    z_i is a row of z, z′_j a column. A mixture of 0 gives `clip_loss`. No gradient reaches the targets.

    Args:
        image_embeddings, text_embeddings, logit_scale: X, T (N, d) and τ⁻¹, as in `clip_loss`.
        clean_embeddings: F_θ₀(x), (N, d): the original's embeddings of the clean images.
        clean_scale: τ₀⁻¹ of the original.
        mixture: m, from 0 to 1.
        ignore, ranks: As in `clip_loss`; ignored pairs also get no weight in the targets.
    """
    masks, columns = [] if ignore is None else [ignore], len(text_embeddings)
    own = ranks.first_row + torch.arange(len(image_embeddings), device=image_embeddings.device)
    texts = text_embeddings.detach()

    def similarities(images: Tensor, *ignored: Tensor) -> Tensor:
        return without(clean_scale * images @ texts.T, ignored)

    with torch.no_grad():
        parts = in_row_blocks(
            lambda *rows: similarities(*rows).logsumexp(0), clean_embeddings, *masks, columns=columns
        )
        of_texts = ranks.logsumexp(torch.stack(parts).logsumexp(0))

    def sums(images: Tensor, clean: Tensor, own: Tensor, *ignored: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = logit_scale * images @ text_embeddings.T
        with torch.no_grad():
            known = similarities(clean, *ignored)
            # Q + Q′, since both directions weight the same logits.
            targets = mixture * (known.softmax(1) + (known - of_texts).exp())
            targets.scatter_add_(1, own[:, None], torch.full_like(targets[:, :1], 2 * (1 - mixture)))
        masked = without(logits, ignored)
        return masked.logsumexp(1), masked.logsumexp(0), (targets * logits).sum(1)

    blocks = in_row_blocks(sums, image_embeddings, clean_embeddings, own, *masks, columns=columns)
    rows, over_images, expected = zip(*blocks, strict=True)
    per_text = ranks.logsumexp(torch.stack(over_images).logsumexp(0))
    return (ranks.mean(torch.cat(rows) - torch.cat(expected)) + per_text.mean()) / 2
