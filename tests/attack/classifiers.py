"""Small classifiers of made-up pictures, trained in a second or two, to attack.

All in float64: in float32 a hundred steps make of one processor's rounding another model than of another's, and what
an attack finds then differs by more than what the tests are about.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advflyp.attack.losses import cross_entropy
from advflyp.attack.pgd import pgd
from advflyp.attack.threat import Threat

SIZE = 16
DTYPE = torch.float64


def pictures(classes: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """(n, 3, 16, 16) float64 in [0, 1] and labels: a smooth pattern for each class, moved about, and noise."""
    patterns = torch.rand(classes, 3, 5, 5, generator=torch.Generator().manual_seed(classes), dtype=DTYPE)
    patterns = F.interpolate(patterns, size=(SIZE, SIZE), mode="bicubic")
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=g)
    moves = torch.randint(-2, 3, (n, 2), generator=g).tolist()
    images = torch.stack(
        [torch.roll(patterns[y], move, (1, 2)) for y, move in zip(labels.tolist(), moves, strict=True)]
    )
    contrast = 0.5 + 0.5 * torch.rand(n, 1, 1, 1, generator=g, dtype=DTYPE)
    images = 0.5 + (images - 0.5) * contrast + 0.1 * torch.randn(images.shape, generator=g, dtype=DTYPE)
    return images.clamp(0, 1), labels


def train(classes: int, threat: Threat | None, seed: int = 0, steps: int = 100) -> nn.Module:
    """A convolutional network; against `threat`, trained on adversarial images."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 12, 3, stride=2, padding=1, dtype=DTYPE),
            nn.BatchNorm2d(12, dtype=DTYPE),
            nn.GELU(),
            nn.Conv2d(12, 24, 3, stride=2, padding=1, dtype=DTYPE),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(24 * 16, classes, dtype=DTYPE),
        )
    every_image, every_label = pictures(classes, 1500, 1)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(steps):
        batch = torch.randint(len(every_label), (64,), generator=torch.Generator().manual_seed(step))
        images, labels = every_image[batch], every_label[batch]
        if threat is not None:
            model.eval()
            images = pgd(
                images,
                lambda x, y=labels: cross_entropy(model(x), y),
                threat,
                steps=3,
                step_size=threat.eps / 2,
                generator=torch.Generator().manual_seed(step),
            )
        model.train()
        optimiser.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimiser.step()
    optimiser.zero_grad()
    return model.eval()
