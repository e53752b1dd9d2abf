"""The classifier as attacks see it, and the images that an attack still works on."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from advflyp.attack.streams import Streams
from advflyp.devices import to_device
from advflyp.dtypes import at_least_float32

T = TypeVar("T")
# Where few images are left, so many attempts at them go through the network together. On a processor more are hardly
# faster, and those that an earlier one makes needless cost time.
AT_ONCE_ON_CPU = 16


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


@contextmanager
def for_use(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards every module is as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class Encoder(Protocol):
    """What attacks that look behind the logits see.

    Attributes:
        model: The CLIP.
        classes: K class names.
        templates: Prompts, each with one "{}" for the name.
        weights: (K, d) unit-norm class embeddings.
    """

    model: Any

    @property
    def classes(self) -> Sequence[str]: ...

    @property
    def templates(self) -> Sequence[str]: ...

    @property
    def weights(self) -> Tensor: ...

    def encode_tokens(self, images: Tensor, patches: bool) -> Tensor:
        """(N, 1 + L, d) unit-norm embeddings of each image and, where `patches`, of its L patches; differentiable."""
        ...


class Victim:
    """A classifier under attack: an attack calls it for logits, and may leave alone what `fooled` says is done.

    Args:
        search: (N, 3, H, W) pixels in [0, 1] → (N, K) logits, in whatever precision the search runs; differentiable.
        logits_fp32: The same in float32, which decides whether an image is misclassified. By default `search` is in
            float32 already.
        encoder: The CLIP behind the classifier; None for a mere function of logits.
        start: (N, 3, H, W) inside the ball, where `PGD` and `APGD` begin in place of a random start.
        batch_size: Images whose gradients the memory has room for at a time: where fewer are left, an attack may try
            several targets at once.
    """

    def __init__(
        self,
        search: Callable[[Tensor], Tensor],
        logits_fp32: Callable[[Tensor], Tensor] | None = None,
        encoder: Encoder | None = None,
        start: Tensor | None = None,
        batch_size: int = 1,
    ) -> None:
        self.search = search
        self.logits_fp32 = logits_fp32
        self.start = start
        self.batch_size = batch_size
        self._encoder = encoder
        self._computed: dict[Hashable, Any] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) → (N, K) logits, at least float32."""
        return at_least_float32(self.search(images))

    def judge(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) → (N, K) logits in float32, which decide whether an image is misclassified."""
        return self(images) if self.logits_fp32 is None else self.logits_fp32(images)

    @property
    def encoder(self) -> Encoder:
        """The CLIP behind the classifier; ValueError where there is none."""
        if self._encoder is None:
            raise ValueError(
                "this attack needs the image encoder behind the classifier: attack model.classifier(classes, "
                "templates) of a CLIP, not a function of logits"
            )
        return self._encoder

    def once(self, name: Hashable, compute: Callable[[], T]) -> T:
        """What an attack needs of the model once, not for every batch."""
        if name not in self._computed:
            self._computed[name] = compute()
        return self._computed[name]

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


@dataclass
class Points:
    """Tensors with one row for each of M images; an attack's own state is a subclass with more of them.

    Attributes:
        rows: (M,) int64, where the image is in the attack's input.
        images: (M, 3, H, W), the originals.
        labels: (M,) int64.
    """

    rows: Tensor
    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def keep(self, mask: Tensor) -> None:
        """Keep only the images where `mask` (M,), there or on the host, is true."""
        # Each choice by a mask would wait for the device, to know how many there are.
        self.take(to_device(mask.nonzero().squeeze(1), self.rows.device))

    def take(self, stay: Tensor) -> None:
        """Keep only the images at the places `stay` (M',)."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[stay])

    def leave(self, found: Tensor, adversarial: Tensor, result: Tensor) -> None:
        """Drop the images where `found` (M,) is true; their `adversarial` (M, 3, H, W) is written into `result`."""
        gone = to_device(found.nonzero().squeeze(1), self.rows.device)
        if len(gone):
            result[self.rows[gone]] = adversarial[gone]
            self.keep(~found)


@dataclass
class CorrectPoints(Points):
    """Images that are classified correctly so far.

    Attributes:
        logits: (M, K), of the originals.
        streams: Each image's random numbers.
    """

    logits: Tensor
    streams: Streams


@torch.no_grad()
def correct_points(victim: Victim, images: Tensor, labels: Tensor, streams: Streams) -> CorrectPoints:
    """Those of (N, 3, H, W) images that need attacking; `streams` itself does not advance."""
    logits = victim(images)
    rows = (~victim.fooled(images, labels, logits)).nonzero().squeeze(1)
    return CorrectPoints(rows, images[rows], labels[rows], logits[rows], streams[rows])
