"""Several target classes of an image at once, with the outcome of one after the other."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from advflyp.attack.losses import attack_targets, count_targets
from advflyp.attack.streams import Streams
from advflyp.attack.victim import AT_ONCE_ON_CPU, CorrectPoints, Points, Victim, correct_points
from advflyp.devices import to_device

NONE = 2**31  # later than any target


class Finds:
    """What an attack has found so far.

    Attributes:
        images: (N, 3, H, W), the originals where there is nothing.
        rank: (N,) int64, which target fooled the image; `NONE` where none has.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images.detach().clone()
        self.rank = torch.full((len(images),), NONE, device=images.device)


@dataclass
class Attempts(Points):
    """Images, each as often as targets are tried on it at the same time.

    Attributes:
        targets: (M,) int64, the target classes.
        rank: (M,) int64, when each comes where they are tried one after the other.
    """

    targets: Tensor
    rank: Tensor

    def settle(self, fooled: Tensor, adversarial: Tensor, finds: Finds) -> Tensor | None:
        """Write down what is found, and end the attempts at that target and the later ones of the image.

        Those at earlier targets go on: what they find counts in its place, as it would one after the other.

        Args:
            fooled: (M,) bool, which attempts have fooled the victim.
            adversarial: (M, 3, H, W), with what.
            finds: Receives it.

        Returns:
            (M',) int64, which attempts go on; None where all do.
        """
        finds.rank.scatter_reduce_(0, self.rows, torch.where(fooled, self.rank, NONE), "amin")
        first = finds.rank[self.rows]
        over, found = self.rank >= first, fooled & (self.rank == first)
        # The only wait for the device.
        over, found = torch.stack([over, found]).cpu()
        if not over.any():
            return None
        write, stay = (to_device(of.nonzero().squeeze(1), self.rows.device) for of in (found, ~over))
        finds.images[self.rows[write]] = adversarial[write]
        self.take(stay)
        return stay


def untargeted(points: CorrectPoints) -> Attempts:
    """One attempt at each image, away from its label."""
    return Attempts(
        points.rows, points.images, points.labels, targets=points.labels, rank=torch.zeros_like(points.rows)
    )


def each_target(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    streams: Streams,
    targets: int,
    search: Callable[[CorrectPoints, Attempts, Finds], None],
) -> Tensor:
    """Try the likeliest wrong classes of every image, until one of them fools it.

    Args:
        victim: The classifier.
        images: (N, 3, H, W).
        labels: (N,) int64.
        streams: The images' random numbers.
        targets: How many classes, the likeliest on the clean image first.
        search: Makes attempts at the images that are left: all of them at one target, then all at the next.

    Returns:
        (N, 3, H, W); an image that nothing has fooled comes back as it is.
    """
    finds = Finds(images)
    points = correct_points(victim, finds.images, labels, streams)
    most = victim.batch_size if images.device.type != "cpu" else min(victim.batch_size, AT_ONCE_ON_CPU)
    rank, end = 1, 1 + count_targets(points.logits.shape[1], targets)
    while rank < end and len(points):
        ranks = range(rank, min(end, rank + max(1, most // len(points))))
        search(points, _attempts(points, ranks), finds)
        points.keep(finds.rank[points.rows] == NONE)
        rank = ranks.stop
    return finds.images


def _attempts(points: CorrectPoints, ranks: range) -> Attempts:
    count = len(ranks)
    return Attempts(
        points.rows.repeat(count),
        points.images.repeat(count, 1, 1, 1),
        points.labels.repeat(count),
        targets=torch.cat([attack_targets(points.logits, points.labels, rank) for rank in ranks]),
        rank=torch.arange(ranks.start, ranks.stop, device=points.rows.device).repeat_interleave(len(points)),
    )
