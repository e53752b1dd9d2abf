"""What an attacker may do: a norm ball around each image, inside the pixel range [0, 1]."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from advflyp.attack.streams import Streams
from advflyp.dtypes import in_float64

# Limits of ε: float32 cannot compute the lengths of far smaller or larger perturbations. Two images of 4,096 × 4,096
# pixels are at most 7,095 apart.
SMALLEST, LARGEST = 1e-12, 10_000


@dataclass(frozen=True, kw_only=True)
class Threat:
    """All images within `eps` of the original in the given norm, with pixels in [0, 1].

    Args:
        norm: "linf" or "l2".
        eps: Radius. L∞: in pixel units, 1/255 is one 8-bit grey level. L2: the length over all pixels.
    """

    norm: Literal["linf", "l2"] = "linf"
    eps: float

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2"):
            raise ValueError(f"the norm is 'linf' or 'l2', not '{self.norm}'")
        # Those of NumPy and torch cannot be stored as JSON.
        given: Any = self.eps
        eps = given.item() if hasattr(given, "item") else given
        if not isinstance(eps, int | float):
            raise ValueError(f"eps is a number, 4 / 255 for four grey levels, not {self.eps!r}")
        object.__setattr__(self, "eps", float(eps))
        if not self.eps > 0:
            raise ValueError(f"eps must be above 0, for example 1/255; it is {self.eps}")
        if self.norm == "linf" and self.eps > 1:
            raise ValueError(
                f"eps is for pixel values from 0 to 1: write 4/255 for four grey levels, not {self.eps:g}"
            )
        if not SMALLEST <= self.eps <= LARGEST:
            raise ValueError(
                f"eps must lie between {SMALLEST:g} and {LARGEST:,} (no two images are further apart), "
                f"not {self.eps:g}"
            )

    def random_start(self, images: Tensor, generator: torch.Generator | Streams | None = None) -> Tensor:
        """(N, 3, H, W): images drawn uniformly from the ball, clamped to valid pixels.

        Args:
            images: (N, 3, H, W).
            generator: A generator for the whole batch, on its device; or a stream for each image.
        """
        return self.project(images, images + self.noise(images, generator))

    def noise(self, images: Tensor, generator: torch.Generator | Streams | None = None) -> Tensor:
        """(N, 3, H, W): uniform draws from the ball, with the shape, type and device of `images`."""
        of_batch = not isinstance(generator, Streams)
        if self.norm == "linf":
            if of_batch:
                return torch.empty_like(images).uniform_(-self.eps, self.eps, generator=generator)
            return (generator.uniform(*images.shape[1:], dtype=images.dtype) * 2 - 1) * self.eps
        if of_batch:
            noise = torch.empty_like(images).normal_(generator=generator)
            radius = images.new_empty(len(images), 1, 1, 1).uniform_(generator=generator)
        else:
            noise = generator.normal(*images.shape[1:], dtype=images.dtype)
            radius = generator.uniform(1, 1, 1, dtype=images.dtype)
        # The d-th root makes the draw uniform in volume.
        return _unit(noise) * self.eps * radius ** (1 / images[0].numel())

    def step(
        self, adversarial: Tensor, gradient: Tensor, step_size: float | Tensor, *, keep_nan: bool = False
    ) -> Tensor:
        """One steepest-ascent step in this norm, not yet projected; `step_size` is one number or (N, 1, 1, 1).

        With `keep_nan` the result is NaN where the gradient is: an image that stayed where it is would count as robust.
        """
        direction = gradient.sign() if self.norm == "linf" else _unit(gradient)
        if keep_nan:
            direction = torch.where(gradient.isnan(), gradient, direction)
        return adversarial + step_size * direction

    def project(self, images: Tensor, adversarial: Tensor) -> Tensor:
        """Project onto the ball, then clamp to the pixel range."""
        if self.norm == "linf":
            return torch.clamp(adversarial, images - self.eps, images + self.eps).clamp(0, 1)
        delta = adversarial - images
        length = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        # Clamping moves every pixel towards the valid original, so the ball still holds it.
        return (images + delta * (self.eps / length.clamp_min(self.eps))).clamp(0, 1)

    def distance(self, images: Tensor, adversarial: Tensor) -> Tensor:
        """(N,) float64 distances in this norm."""
        delta = (in_float64(adversarial) - in_float64(images)).flatten(1)
        return delta.abs().amax(1) if self.norm == "linf" else delta.norm(dim=1)

    def contains(self, images: Tensor, adversarial: Tensor) -> Tensor:
        """(N,) bool: inside the ball and the pixel range, up to float32 rounding."""
        # x + δ is rounded to 2⁻²⁴ relative per pixel; over d pixels that adds up to √d times it in L2.
        slack = 2**-23 * (1 if self.norm == "linf" else images[0].numel() ** 0.5)
        valid = ((adversarial >= 0) & (adversarial <= 1)).flatten(1).all(1)
        near = self.distance(images, adversarial) <= self.eps + slack
        return valid & near.to(valid.device)


def widest(norm: Literal["linf", "l2"]) -> float:
    """The radius of a ball that holds every image."""
    return 1.0 if norm == "linf" else LARGEST


def check_pixels(images: Tensor) -> None:
    """ValueError unless every pixel of (N, 3, H, W) images is a number from 0 to 1."""
    good = ((images >= 0) & (images <= 1)).flatten(1).all(1)
    if not good.all():
        first = int((~good).nonzero()[0])
        raise ValueError(
            f"pixels must be numbers from 0 to 1; those of image {first} of the batch are not: pass images before "
            "normalisation, the model normalises"
        )


def _unit(x: Tensor) -> Tensor:
    """Each image scaled to L2 length 1; an all-zero one stays zero."""
    length = x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return x / length.clamp_min(torch.finfo(x.dtype).tiny)
