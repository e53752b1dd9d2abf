"""The classifier as attacks see it, and the images that are still under attack."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from advflyp.attack.streams import Streams
from advflyp.devices import to_device
from advflyp.dtypes import at_least_float32
from advflyp.model.graphs import Steps
from advflyp.model.precision import Resolved

T = TypeVar("T")
S = TypeVar("S")
# Attempts per forward pass when few images are left. On a CPU, larger batches are hardly faster, and waste
# time on attempts that an earlier success makes unnecessary.
AT_ONCE_ON_CPU = 16


NO_GRADIENT = (
    "the classifier's logits have no gradient with respect to the pixels (does it detach them, run under no_grad, or "
    "round its input?); the attack Square needs none"
)


def pixel_gradient(value: Tensor, images: Tensor) -> Tensor:
    """The gradient of the sum of `value` with respect to (N, 3, H, W) images; ValueError if there is none."""
    (gradient,) = torch.autograd.grad(value.sum(), images, allow_unused=True)
    if gradient is None:
        raise ValueError(NO_GRADIENT)
    return gradient


def predicted(logits: Tensor, labels: Tensor) -> Tensor:
    """The predicted class of each image: its label only if the label's logit is above all others.

    Neither a tie nor a NaN ever counts as correct, whatever the label's index.

    Args:
        logits: (N, K), K at least 2.
        labels: (N,) int64, the true classes.

    Returns:
        (N,) int64, the label if the image is classified correctly, else the most likely other class.
    """
    own = logits.gather(1, labels[:, None]).squeeze(1)
    values, rivals = logits.scatter(1, labels[:, None], float("-inf")).max(1)
    # Where all others are −inf, the first of them may be the label itself.
    rivals = torch.where(rivals == labels, (labels + 1) % logits.shape[1], rivals)
    return torch.where(own > values, labels, rivals)


def is_wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) bool: `predicted(logits, labels) != labels`, in fewer operations."""
    own = logits.gather(1, labels[:, None]).squeeze(1)
    return ~(own > logits.scatter(1, labels[:, None], float("-inf")).amax(1))


class Encoder(Protocol):
    """The interface for attacks that need more than logits.

    Attributes:
        model: The CLIP.
        classes: K class names.
        templates: Prompts, each with one "{}" for the name.
        weights: (K, d) unit-norm class embeddings.
        precision: That of the search.
        repeated: Classes that are never predicted because an earlier one has the same name.
    """

    model: Any

    @property
    def precision(self) -> Resolved: ...

    @property
    def classes(self) -> Sequence[str]: ...

    @property
    def templates(self) -> Sequence[str]: ...

    @property
    def weights(self) -> Tensor: ...

    @property
    def repeated(self) -> Sequence[int]: ...

    def encode_tokens(self, images: Tensor, patches: bool) -> Tensor:
        """(N, 1 + L, d) unit-norm embeddings of each image and, if `patches`, of its L patches; differentiable."""
        ...


class Victim:
    """A classifier under attack: attacks call it for logits, and may stop on images that `fooled` reports.

    Args:
        search: (N, 3, H, W) pixels in [0, 1] → (N, K) logits, in the precision of the search; differentiable.
        logits_fp32: The same in float32, to decide whether an image is misclassified. None if `search` already runs in
            float32.
        encoder: The CLIP behind the classifier; None for a plain function that returns logits.
        start: (N, 3, H, W) inside the ball, where `PGD` and `APGD` start instead of at random.
        batch_size: Number of images whose gradients fit in memory at once; when fewer images are left, an attack may
            try several targets at once.
        steps: Replays the steps of a search; None computes them.
    """

    def __init__(
        self,
        search: Callable[[Tensor], Tensor],
        logits_fp32: Callable[[Tensor], Tensor] | None = None,
        encoder: Encoder | None = None,
        start: Tensor | None = None,
        batch_size: int = 1,
        steps: Steps | None = None,
    ) -> None:
        self.search = search
        self.logits_fp32 = logits_fp32
        self.start = start
        self.batch_size = batch_size
        self.steps = steps
        self._encoder = encoder
        self._computed: dict[Hashable, Any] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) → (N, K) logits, at least float32.

        Raises:
            ValueError: A gradient is wanted and there is none, or the classifier returns something other than a tensor.
        """
        logits = self.search(images)
        if not isinstance(logits, Tensor):
            raise ValueError(
                f"the classifier must return a tensor of logits, not a {type(logits).__name__}; wrap it, as in "
                "lambda x: model(x).logits"
            )
        if images.requires_grad and torch.is_grad_enabled() and not logits.requires_grad:
            raise ValueError(NO_GRADIENT)
        return at_least_float32(logits)

    def judge(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) → (N, K) float32 logits, which decide whether an image is misclassified."""
        return self(images) if self.logits_fp32 is None else self.logits_fp32(images)

    def advance(self, step: Callable[[S], tuple[Tensor, ...]], at: S, kind: Hashable) -> tuple[Tensor, ...]:
        """Make one step of a search.

        Args:
            step: Sets fields of `at`, and returns tensors with a row for each image. It computes each row by itself,
                does not wait for the device, and changes no tensor in place.
            at: The state of the search, a dataclass of tensors with a row for each image.
            kind: Everything that `step` depends on besides `at` and the victim; None if it is bound to these images, as
                a defence's terms are, and so cannot be replayed for others.

        Returns:
            What `step` returns. Where steps are replayed, the next one overwrites that and the tensors of `at`.
        """
        return step(at) if self.steps is None or kind is None else self.steps(step, at, kind)

    @property
    def encoder(self) -> Encoder:
        """The CLIP behind the classifier; ValueError if there is none."""
        if self._encoder is None:
            raise ValueError(
                "this attack needs the image encoder behind the classifier: attack model.classifier(classes, "
                "templates) of a CLIP, not a function of logits"
            )
        return self._encoder

    def once(self, name: Hashable, compute: Callable[[], T]) -> T:
        """Compute something once for the victim instead of once per batch."""
        if name not in self._computed:
            self._computed[name] = compute()
        return self._computed[name]

    @torch.no_grad()
    def fooled(self, images: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        """(N,) bool: which `images`, for which the search computed `logits`, are misclassified in float32.

        If the search runs in a lower precision, successes are confirmed in float32. Otherwise, a rounding error could
        end the attack on an image that then counts as robust.
        """
        found = is_wrong(logits, labels)
        if self.logits_fp32 is not None:
            rows = found.nonzero().squeeze(1)
            if len(rows):
                found[rows] = is_wrong(self.logits_fp32(images[rows]), labels[rows])
        return found


@dataclass
class Points:
    """Tensors with one row for each of M images; subclasses add an attack's own state.

    Attributes:
        rows: (M,) int64, the image's row in the attack's input.
        images: (M, 3, H, W), the originals.
        labels: (M,) int64.
    """

    rows: Tensor
    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def keep(self, mask: Tensor) -> None:
        """Keep only the images where `mask` (M,), on the device or the host, is true."""
        # Indexing each tensor with the mask would wait for the device every time, to learn the number of rows.
        self.take(to_device(mask.nonzero().squeeze(1), self.rows.device))

    def take(self, stay: Tensor) -> None:
        """Keep only the images at the places `stay` (M',)."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[stay])

    def leave(self, found: Tensor, adversarial: Tensor, result: Tensor) -> None:
        """Drop the images where `found` (M,) is true, and write their `adversarial` (M, 3, H, W) into `result`."""
        gone = to_device(found.nonzero().squeeze(1), self.rows.device)
        if len(gone):
            result[self.rows[gone]] = adversarial[gone]
            self.keep(~found)


@dataclass
class CorrectPoints(Points):
    """Images that are still classified correctly.

    Attributes:
        logits: (M, K), of the originals.
        streams: Each image's random numbers.
    """

    logits: Tensor
    streams: Streams


@torch.no_grad()
def correct_points(victim: Victim, images: Tensor, labels: Tensor, streams: Streams) -> CorrectPoints:
    """The correctly classified ones of (N, 3, H, W) images, which need attacking; `streams` itself does not advance."""
    logits = victim(images)
    rows = (~victim.fooled(images, labels, logits)).nonzero().squeeze(1)
    return CorrectPoints(rows, images[rows], labels[rows], logits[rows], streams[rows])
