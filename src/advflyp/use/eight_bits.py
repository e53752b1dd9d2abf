"""Round adversarial images to what image files hold, whole grey levels, inside the same ball."""

import math

import torch
from torch import Tensor

from advflyp.attack.threat import Threat
from advflyp.attack.victim import Victim
from advflyp.dtypes import in_float64
from advflyp.evaluation.classifier import Classifier
from advflyp.model.precision import Precision

BISECTIONS = 40


def check_reach(threat: Threat) -> None:
    """ValueError if the original is the only 8-bit image inside the ball."""
    if levels(threat) < 1:
        raise ValueError(
            f"eps must be at least 1/255, one grey level of an image file, not {255 * threat.eps:.3g}/255"
        )


def levels(threat: Threat) -> int:
    """ε in whole grey levels, rounded down."""
    return math.floor(255 * threat.eps + 1e-9)


def eight_bits(clean: Tensor, adversarial: Tensor, threat: Threat) -> Tensor:
    """(N, 3, H, W): `adversarial` rounded to multiples of 1/255 without leaving the ball around `clean`.

    Args:
        clean: (1 or N, 3, H, W), multiples of 1/255 already, as every model's preprocessing gives them.

    L∞: each pixel is rounded, then clamped to ε in whole levels. L2: rounding may lengthen a perturbation; it is then
    scaled down until its rounding is short enough.
    """
    origin = (in_float64(clean) * 255).round()
    delta = in_float64(adversarial) * 255 - origin
    if threat.norm == "linf":
        whole = delta.round().clamp(-levels(threat), levels(threat))
    else:
        whole = torch.stack([_within(one, 255 * threat.eps) for one in delta])
    return ((origin + whole).clamp(0, 255) / 255).to(adversarial)


def _within(delta: Tensor, radius: float) -> Tensor:
    """round(t·δ) for the largest t ≤ 1 at which its norm is at most `radius`: the norm is monotone in t."""
    low, high = 0.0, 1.0
    if delta.round().norm() <= radius:
        return delta.round()
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if (middle * delta).round().norm() <= radius else (low, middle)
    return (low * delta).round()


class EightBitClassifier(Classifier):
    """A classifier that is fooled only if an image rounded to 8 bits is misclassified.

    Attacks use gradients at the unrounded image; an image leaves an attack when its rounding is misclassified.

    Args:
        plain: The classifier whose model and class weights are used.
        clean: (1, 3, H, W), the one image that is attacked.
        threat: The ball around it.
    """

    def __init__(self, plain: Classifier, clean: Tensor, threat: Threat) -> None:
        super().__init__(plain.model, plain.classes, plain.templates, plain.pixels, plain.repeated)
        self.weights = plain.weights
        self.clean, self.threat = clean, threat

    def logits_fp32(self, images: Tensor) -> Tensor:
        return super().logits_fp32(eight_bits(self.clean, images, self.threat))

    def victim(self, precision: Precision = "auto") -> Victim:
        found = super().victim(precision)
        found.logits_fp32 = self.logits_fp32
        return found
