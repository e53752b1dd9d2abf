"""How an image becomes a model's input, and at which stage an attack perturbs it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize, ToTensor
from torchvision.transforms.functional import pil_to_tensor

from advflyp.devices import to_device
from advflyp.model.clip import CLIP

Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Turns an image into the tensor that is perturbed, and that into the model's input; by default as the model does.

    Attributes:
        resize: The shorter side before the centre crop, in pixels; None is the size of the model's input.
        of: The input size that `resize` is meant for; for models of another size, `resize` is scaled. None: not scaled.
        interpolation: How images are resized; None is bicubic.
        native: Perturb the image at its own size. Resizing it is then part of the model under attack, differentiable
            and without antialiasing. All images of the set must have one size.
    """

    resize: int | None = None
    of: int | None = None
    interpolation: Interpolation | None = None
    native: bool = False

    def transform(self, model: CLIP) -> Callable[[Image.Image], Tensor]:
        """An RGB image → (3, H, W) float32 in [0, 1], which an attack perturbs.

        Raises:
            ValueError: The image would be smaller than the model's input.
        """
        if self.native:
            return ToTensor()
        if self.resize is None and self.interpolation is None:
            return model.preprocess
        side, needed = self._side(model), max(model.image_size)
        if side < needed:
            raise ValueError(f"--resize {side} is smaller than the input of {model.name}, {needed} pixels")
        mode = InterpolationMode(self.interpolation or "bicubic")
        return Compose([Resize(side, mode), CenterCrop(model.image_size), ToTensor()])

    def to_input(self, images: Tensor, model: CLIP) -> Tensor:
        """(N, 3, H, W) as `transform` made them → (N, 3, *model.image_size), with gradients."""
        if not self.native:
            return images
        mode = self.interpolation or "bicubic"
        return F.interpolate(images, size=model.image_size, mode=mode, align_corners=False)

    def settings(self, model: CLIP | None) -> dict[str, Any]:
        """What differs from the model's own transform, as results record it.

        Without a model, `resize` is None if it depends on the size of the model's input.
        """
        mode = self.interpolation or "bicubic"
        if self.native:
            return {"perturbation": "native pixels", "upsampling": mode}
        if self.resize is None and self.interpolation is None:
            return {}
        if model is not None:
            return {"resize": self._side(model), "interpolation": mode}
        return {"resize": self.resize if self.of is None else None, "interpolation": mode}

    def _side(self, model: CLIP) -> int:
        needed = max(model.image_size)
        if self.resize is None:
            return needed
        return self.resize if self.of is None else round(self.resize * needed / self.of)


def in_bytes(transform: Callable[[Image.Image], Tensor]) -> Callable[[Image.Image], Tensor]:
    """`transform` without the final division by 255, to (3, H, W) uint8; unchanged if it does not end with that."""
    steps = list(transform.transforms) if isinstance(transform, Compose) else [transform]
    return Compose([*steps[:-1], _bytes_of]) if isinstance(steps[-1], ToTensor) else transform


def on_device(images: Tensor, device: torch.device) -> Tensor:
    """(N, 3, H, W), bytes or pixels in [0, 1] → pixels in [0, 1] on the device, bit-identical to `ToTensor`."""
    images = to_device(images, device)
    if images.dtype != torch.uint8:
        return images
    # Divide by a tensor on the device: for a Python number, CUDA would multiply by its rounded reciprocal.
    return images.to(torch.get_default_dtype()) / torch.full((), 255.0, device=device)


def _bytes_of(image: Image.Image) -> Tensor:
    return pil_to_tensor(image).contiguous()
