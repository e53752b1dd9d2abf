"""Naive FLYP (Table 8): the contrastive loss of AdvFLYP on labelled images, with class prompts as captions.

Like FLYP (Goyal et al. 2023), the paper ignores that classes recur in a batch: another image of the same class is a
negative. `mask_same_caption = true` leaves those out.
"""

from dataclasses import dataclass

from torch import Tensor

from advflyp.data.batch import Batch
from advflyp.method.advflyp import AdvFLYP, AdvFLYPConfig, same_numbers


@dataclass(frozen=True, kw_only=True)
class FLYPConfig(AdvFLYPConfig):
    """Recipe table `method` with name = "flyp": the keys of `AdvFLYPConfig`."""


class FLYP(AdvFLYP):
    """Eqs. 6, 7 and 13 with the prompts of the labels in place of captions."""

    trains_on = "labelled"
    needs_classes = False
    config: FLYPConfig

    def _same(self, batch: Batch) -> Tensor:
        # Images of one class differ in their captions if there are several templates.
        return super()._same(batch) | same_numbers(batch.labels, self.ranks)
