"""A training batch, as the data source passes it to a method."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


def _nothing() -> Tensor:
    return torch.empty(0)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A training batch: this rank's rows, and the text embeddings of all ranks.

    Tensors that the method's kind of data (`Method.trains_on`) does not provide are empty.

    Attributes:
        images: (n, 3, H, W) clean pixels in [0, 1].
        captions: n texts; for labelled images, the prompts of their classes.
        tokens: (n, context) int64, the tokenized captions, if the data source has tokenized them.
        labels: (n,) int64 class indices, for labelled images.
        text_embeddings: (N, d) unit-norm embeddings of the captions of all ranks.
        class_embeddings: (K, d) unit-norm embeddings of the classes, for labelled images.
        clean_embeddings: f_θ(x) with its graph, if the losses reuse the attack's only forward pass.
        position: Resume position after this batch, in the source's own terms.
    """

    images: Tensor
    captions: list[str]
    tokens: Tensor | None = None
    labels: Tensor = field(default_factory=_nothing)
    text_embeddings: Tensor = field(default_factory=_nothing)
    class_embeddings: Tensor = field(default_factory=_nothing)
    clean_embeddings: Tensor | None = None
    position: dict[str, Any] = field(default_factory=dict)
    _computed: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def once(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        """Compute something once per batch, since every step of the attack asks for it again.

        Args:
            name: Key under which the result is kept.
            compute: Called the first time.
        """
        if name not in self._computed:
            self._computed[name] = compute()
        return self._computed[name]
