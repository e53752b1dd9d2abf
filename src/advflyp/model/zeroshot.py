"""Zero-shot classification: class names × templates → one weight vector a class (Eq. 2)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from advflyp.model.clip import CLIP


@torch.no_grad()
def class_embeddings(
    model: CLIP, classes: Sequence[str], templates: Sequence[str], *, batch_size: int = 512
) -> Tensor:
    """(K, d) unit-norm classifier weights: per class the normalised mean of its prompts' embeddings.

    classes:   K names
    templates: each with one "{}" for the name
    """
    prompts = [template.format(name) for name in classes for template in templates]
    chunks = [model.encode_text(prompts[i : i + batch_size]) for i in range(0, len(prompts), batch_size)]
    embeddings = torch.cat(chunks).view(len(classes), len(templates), -1)
    return F.normalize(embeddings.mean(1), dim=-1)


def class_logits(image_embeddings: Tensor, weights: Tensor, logit_scale: Tensor) -> Tensor:
    """(N, d) image embeddings and (K, d) class weights → (N, K) logits τ⁻¹·cos."""
    return logit_scale * image_embeddings @ weights.T
