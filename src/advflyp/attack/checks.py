"""What attacks check of their arguments, and what lets them run inside the caller's `torch.inference_mode()`."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from advflyp.attack.threat import Threat, check_pixels
from advflyp.dtypes import whole


def check_batch(images: Tensor, labels: Tensor) -> None:
    """ValueError unless these are (N, 3, H, W) float32 or float64 pixels in [0, 1], and (N,) int64 labels."""
    for name, given in (("images", images), ("labels", labels)):
        if not isinstance(given, Tensor):
            raise ValueError(f"the {name} of an attack must be a tensor, not a {type(given).__name__}")
    if images.ndim != 4 or images.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            "an attack takes float32 or float64 images of shape (N, 3, H, W), not "
            f"{str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape)}; a model in half precision "
            "needs a wrapper that casts them, such as lambda x: model(x.half())"
        )
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"an attack takes one int64 label for each of the {len(images)} images, not "
            f"{str(labels.dtype).removeprefix('torch.')} labels of shape {tuple(labels.shape)}"
        )
    check_pixels(images)


def check_index(index: Any, count: int) -> None:
    """ValueError unless `index` is a tensor of `count` int64 places."""
    if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.shape != (count,):
        raise ValueError(
            f"index must be an int64 tensor of shape ({count},): the place of each image in its dataset"
        )


def check_numbers(threat: Any, seed: Any, batch_size: Any) -> tuple[int, int]:
    """Seed and batch size as ints; ValueError unless both are whole, the size at least 1, and `threat` is a Threat."""
    if not isinstance(threat, Threat):
        raise ValueError(f"the threat of an attack is a Threat, such as Threat(eps=4 / 255), not {threat!r}")
    if (number := whole(batch_size, "batch_size")) < 1:
        raise ValueError(f"batch_size must be at least 1, not {number}")
    return whole(seed, "seed"), number


def check_logits(logits: Tensor, labels: Tensor) -> None:
    """ValueError unless these are (N, K) logits, K at least 2, and `labels` (N,) are below K."""
    if logits.ndim != 2 or len(logits) != len(labels) or logits.shape[1] < 2:
        raise ValueError(
            f"the classifier must give logits of shape ({len(labels)}, K) with two classes or more, not "
            f"{tuple(logits.shape)}"
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        raise ValueError(
            f"labels must be from 0 to {logits.shape[1] - 1}, as many as the classifier has classes; they are from "
            f"{int(labels.min())} to {int(labels.max())}"
        )


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Within the block, gradients can be computed, even inside the caller's `torch.inference_mode()`."""
    # Left alone otherwise, since leaving the mode would also end a `torch.no_grad()`.
    inside = torch.is_inference_mode_enabled()
    try:
        with torch.inference_mode(False) if inside else nullcontext():
            yield
    except RuntimeError as error:
        if "Inference tensors cannot be saved for backward" not in str(error):
            raise
        raise ValueError(
            "the classifier's weights, or other tensors that it computes with, were made inside "
            "torch.inference_mode(), so there is no gradient: make them outside it; the attack Square needs none"
        ) from error


def ordinary(*tensors: Tensor) -> list[Tensor]:
    """The tensors, with which gradients can be computed: those made inside `torch.inference_mode()` are copied."""
    return [one.clone() if one.is_inference() else one for one in tensors]
