"""How far an attack moves images in the embedding space."""

import torch
from torch import Tensor

from advflyp.dtypes import in_float64


def cosine_deviation(clean: Tensor, adversarial: Tensor) -> Tensor:
    """Eq. 14: the angle between each clean embedding and its adversarial one.

    Args:
        clean, adversarial: (N, d) embeddings of any norm; NaN where it is zero.

    Returns (N,) float64 radians in [0, π]. Kahan's 2·atan2(‖a − b‖, ‖a + b‖) on unit vectors: arccos loses half of
    the digits of a small angle.
    """
    a, b = (x / x.norm(dim=-1, keepdim=True) for x in map(in_float64, (clean, adversarial)))
    return 2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))
