"""Attack several target classes of an image at once, with the same outcome as one after another."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from advflyp.attack.losses import attack_targets, count_targets
from advflyp.attack.streams import Streams
from advflyp.attack.victim import AT_ONCE_ON_CPU, CorrectPoints, Points, Victim, correct_points
from advflyp.devices import lowered, to_device

NONE = 2**31  # later than any target


class Finds:
    """What an attack has found so far.

    Attributes:
        images: (N, 3, H, W), the adversarial images found; originals where none was.
        rank: (N,) int64, the rank of the target that fooled the image; `NONE` if none has.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images.detach().clone()
        self.rank = torch.full((len(images),), NONE, device=images.device)


@dataclass
class Attempts(Points):
    """Images, each repeated once for every target that is tried on it at the same time.

    Attributes:
        targets: (M,) int64, the target classes.
        rank: (M,) int64, each target's position in the sequential order.
    """

    targets: Tensor
    rank: Tensor

    def settle(self, fooled: Tensor, adversarial: Tensor, finds: Finds) -> None:
        """Record successes, and drop an image's attempts at the successful target and all later ones.

        Attempts at earlier targets continue: their success takes precedence, as it would in sequential order.

        Args:
            fooled: (M,) bool, which attempts have fooled the victim.
            adversarial: (M, 3, H, W), the current point of each attempt.
            finds: Receives the successes.
        """
        if not fooled.cpu().any():  # as in most steps
            return
        finds.rank.copy_(lowered(finds.rank, self.rows, torch.where(fooled, self.rank, NONE)))
        first = finds.rank[self.rows]
        over, found = self.rank >= first, fooled & (self.rank == first)
        over, found = torch.stack([over, found]).cpu()
        write, stay = (to_device(of.nonzero().squeeze(1), self.rows.device) for of in (found, ~over))
        finds.images[self.rows[write]] = adversarial[write]
        self.take(stay)


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
    """Try the most likely wrong classes of each image until one of them fools the victim.

    Args:
        victim: The classifier.
        images: (N, 3, H, W).
        labels: (N,) int64.
        streams: The images' random numbers.
        targets: Number of target classes, the most likely on the clean image first.
        search: Runs attempts, ordered by target and then by image, on the remaining images.

    Returns:
        (N, 3, H, W); images on which every attempt failed are returned unchanged.
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
