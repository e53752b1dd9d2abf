"""What an evaluation attack may ask of a classifier."""

from collections.abc import Callable

import torch
from torch import Tensor


def predicted(logits: Tensor, labels: Tensor) -> Tensor:
    """The class of each image: its label only where the label's logit is above all others.

    A tie is never a correct answer, wherever the label stands among the classes, and neither is a NaN.

    Args:
        logits: (N, K), K at least 2.
        labels: (N,) int64, the true classes.

    Returns:
        (N,) int64, the label where the image is classified correctly, else the most likely other class.
    """
    own = logits.gather(1, labels[:, None]).squeeze(1)
    values, rivals = logits.scatter(1, labels[:, None], float("-inf")).max(1)
    # Where all others are −inf, the first of them may be the label itself.
    rivals = torch.where(rivals == labels, (labels + 1) % logits.shape[1], rivals)
    return torch.where(own > values, labels, rivals)


class Victim:
    """A classifier under attack.

    search:      (N, 3, H, W) pixels in [0, 1] → (N, K) logits, in whatever precision the search runs; differentiable
    logits_fp32: the same in float32, which decides whether an image is misclassified; None: `search` is float32 already

    An attack calls it for logits and may stop working on the images that `fooled` says are done.
    """

    def __init__(
        self, search: Callable[[Tensor], Tensor], logits_fp32: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.search = search
        self.logits_fp32 = logits_fp32

    def __call__(self, images: Tensor) -> Tensor:
        return self.search(images)

    @torch.no_grad()
    def fooled(self, images: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        """(N,) bool: misclassified in float32, for `logits` that the search has found for `images`.

        Where the search runs in a lower precision, its finds are confirmed; without that a point would leave
        the attack for a rounding error, and count as robust afterwards.
        """
        found = predicted(logits, labels) != labels
        if self.logits_fp32 is not None:
            rows = found.nonzero().squeeze(1)
            if len(rows):
                found[rows] = predicted(self.logits_fp32(images[rows]), labels[rows]) != labels[rows]
        return found
