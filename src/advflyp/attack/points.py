"""The images an attack still works on, with all it knows about each; those that are fooled leave."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from advflyp.attack.streams import Streams
from advflyp.attack.victim import Victim
from advflyp.dtypes import at_least_float32


@dataclass
class Points:
    """Tensors with one row for each of M images; an attack's own state is a subclass with more of them.

    rows:   (M,) int64, where the image is in the attack's input
    images: (M, 3, H, W) the originals
    labels: (M,) int64
    """

    rows: Tensor
    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def keep(self, mask: Tensor) -> None:
        """Only the images where `mask` (M,) is true stay."""
        # Each choice by a mask would wait for the device, to know how many there are.
        stay = mask.nonzero().squeeze(1)
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[stay])

    def leave(self, found: Tensor, adversarial: Tensor, result: Tensor) -> None:
        """Images where `found` (M,) is true go; their `adversarial` (M, 3, H, W) is written into `result`."""
        gone = found.nonzero().squeeze(1)
        if len(gone):
            result[self.rows[gone]] = adversarial[gone]
            self.keep(~found)


@dataclass
class Standing(Points):
    """Images that are classified correctly so far.

    logits:  (M, K) of the originals
    streams: each image's random numbers
    """

    logits: Tensor
    streams: Streams


@torch.no_grad()
def standing(victim: Victim, images: Tensor, labels: Tensor, streams: Streams) -> Standing:
    """Those of (N, 3, H, W) images that need attacking. `streams` itself stays where it stands."""
    logits = at_least_float32(victim(images))
    rows = (~victim.fooled(images, labels, logits)).nonzero().squeeze(1)
    return Standing(rows, images[rows], labels[rows], logits[rows], streams[rows])
