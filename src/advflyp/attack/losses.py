"""The losses that evaluation attacks maximise: functions of logits (N, K) and labels (N,), one value per image."""

from collections.abc import Callable, Iterable

from torch import Tensor
from torch.nn import functional as F

from advflyp.config import suggest


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) −log softmax(z)_y."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) max_{j≠y} z_j − z_y (Carlini & Wagner 2017); positive if misclassified."""
    own = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return others.amax(1) - own


def log_sum_exp(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) log Σ_{j≠y} exp z_j − z_y: the margin with a smooth maximum."""
    own = logits.gather(1, labels[:, None]).squeeze(1)
    return logits.scatter(1, labels[:, None], float("-inf")).logsumexp(1) - own


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) difference of logits ratio (Croce & Hein 2020, Eq. 6): margin / (z_π1 − z_π3).

    With two classes there is no third logit, and it is the margin.
    """
    if logits.shape[1] < 3:
        return margin(logits, labels)
    top = logits.topk(3, dim=1).values
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """(N,) targeted DLR (Croce & Hein 2020, Eq. 7): (z_t − z_y) / (z_π1 − (z_π3 + z_π4) / 2).

    The published divisor needs four classes: with three it is z_π1 − z_π3, with two it is 1.

    Args:
        logits: (N, K).
        labels: (N,) int64.
        targets: (N,) int64, the target class of each image.
    """
    difference = (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)
    classes = logits.shape[1]
    if classes < 3:
        return difference
    top = logits.topk(min(4, classes), dim=1).values
    return difference / (top[:, 0] - top[:, 2:].mean(1) + 1e-12)


def attack_targets(logits: Tensor, labels: Tensor, rank: int) -> Tensor:
    """(N,) the `rank`-th most likely wrong class (1 is the first), for images that are classified correctly."""
    return logits.scatter(1, labels[:, None], float("-inf")).topk(rank, dim=1).indices[:, rank - 1]


def count_targets(classes: int, wanted: int = 9) -> int:
    """The number of target classes: `wanted`, but at most all wrong classes."""
    return min(wanted, classes - 1)


# The untargeted losses by the names that attacks take; `APGD` names its members after them.
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "lse": log_sum_exp,
}


def check_loss(loss: str, known: Iterable[str]) -> None:
    """ValueError unless `loss` is one of `known`."""
    if loss not in known:
        raise ValueError(f"there is no loss '{loss}'{suggest(loss, known)}")
