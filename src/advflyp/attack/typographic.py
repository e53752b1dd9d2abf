"""The typographic attack (Goh et al. 2021): a class's name, written on the image. Harmless within small balls."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from advflyp.attack.base import SingleAttack
from advflyp.attack.losses import attack_targets
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import Victim

WHITE, BLACK = 255, 1  # 0: no lettering


@dataclass(frozen=True, kw_only=True)
class Typographic(SingleAttack):
    """The name of the likeliest wrong class in white letters with a black rim, as strong as the ball allows.

    At an L∞ radius of 1 the name is written in full; at 4/255 it is a control that any attack has to beat.
    """

    def perturb(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: Threat, *, streams: Streams
    ) -> Tensor:
        with torch.no_grad():
            targets: list[int] = attack_targets(victim(images), labels, 1).tolist()
        height, width = images.shape[-2:]
        drawn = {target: lettering(victim.encoder.classes[target], height, width) for target in set(targets)}
        masks = torch.stack([drawn[target] for target in targets]).to(images.device)[:, None]
        written = torch.where(masks == 0, images, (masks == WHITE).to(images.dtype))
        return threat.project(images, written)

    @property
    def name(self) -> str:
        return self._named("typographic")

    def arguments(self, threat: Threat | None, classes: int) -> dict[str, Any]:
        return {"restarts": self.restarts} if self.restarts > 1 else {}


def lettering(text: str, height: int, width: int) -> Tensor:
    """(height, width) uint8: `WHITE` letters with a `BLACK` rim at the lower edge, as large as fits; 0 elsewhere."""
    size = max(6, height // 5)
    while size > 6 and ImageFont.load_default(size).getlength(text) > width - 2:
        size -= 1
    image = Image.new("L", (width, height))
    draw = ImageDraw.Draw(image)
    draw.fontmode = "1"  # no anti-aliasing
    draw.text(
        (width // 2, height - 2),
        text,
        fill=WHITE,
        font=ImageFont.load_default(size),
        anchor="ms",
        stroke_width=1,
        stroke_fill=BLACK,
    )
    return torch.from_numpy(np.array(image))
