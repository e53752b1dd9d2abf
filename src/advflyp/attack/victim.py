"""What an evaluation attack may ask of a classifier."""

from collections.abc import Callable

import torch
from torch import Tensor


class Victim:
    """A classifier under attack.

    search: (N, 3, H, W) pixels in [0, 1] → (N, K) logits, in whatever precision the search runs; differentiable
    judge:  the same in float32; whether an image is misclassified is its word. By default `search` is exact already.

    An attack calls it for logits and may stop working on the images that `fooled` says are done.
    """

    def __init__(
        self, search: Callable[[Tensor], Tensor], judge: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.search = search
        self.judge = judge

    def __call__(self, images: Tensor) -> Tensor:
        return self.search(images)

    @torch.no_grad()
    def fooled(self, images: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        """(N,) bool: misclassified in float32, for `logits` that the search has found for `images`.

        Where the search runs in a lower precision, its finds are confirmed; without that a point would leave
        the attack for a rounding error, and count as robust afterwards.
        """
        found = logits.argmax(1) != labels
        if self.judge is not None:
            rows = found.nonzero().squeeze(1)
            if len(rows):
                found[rows] = self.judge(images[rows]).argmax(1) != labels[rows]
        return found
