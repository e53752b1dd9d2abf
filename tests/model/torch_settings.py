"""A program: for everything a user may set torch to, what `Float32Conv2d` makes of it, as JSON.

Each setting in a fork of its own, since torch's defaults cannot be restored: what is inherited reads as if it was set.
"""

import json
import os
import sys
from collections.abc import Callable

import torch
from torch import nn

from advflyp.model.layers import Float32Conv2d, rounds_products

B = torch.backends


def old_and_new() -> None:
    B.cuda.matmul.allow_tf32 = True
    B.cuda.matmul.fp32_precision = "ieee"
    B.cudnn.allow_tf32 = False
    B.cudnn.conv.fp32_precision = "tf32"


SETTINGS: dict[str, Callable[[], object]] = {
    "defaults": lambda: None,
    "old matmul": lambda: setattr(B.cuda.matmul, "allow_tf32", True),
    "old cudnn off": lambda: setattr(B.cudnn, "allow_tf32", False),
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "new tf32": lambda: setattr(B, "fp32_precision", "tf32"),
    "new ieee": lambda: setattr(B, "fp32_precision", "ieee"),
    "new cpu bf16": lambda: setattr(B.mkldnn, "fp32_precision", "bf16"),
    "new conv ieee": lambda: setattr(B.cudnn.conv, "fp32_precision", "ieee"),
    "old and new": old_and_new,
}


def read() -> list[str]:
    """By the names that can be read in every state."""
    places = (B, B.cudnn, B.cuda.matmul, B.cudnn.conv, B.mkldnn, B.mkldnn.matmul, B.mkldnn.conv)
    return [place.fp32_precision for place in places]


def error(**how: int) -> float:
    """Of the effect that ±1/255 has on the layer's output, the share that is lost."""
    layer = nn.Conv2d(3, 32, bias=False, **how)
    layer.__class__ = Float32Conv2d
    g = torch.Generator().manual_seed(0)
    x = (torch.randint(0, 256, (4, 3, 32, 32), generator=g) / 255 - 0.5) / 0.25
    moved = x + torch.where(torch.rand(x.shape, generator=g) < 0.5, -1.0, 1.0) / 255 / 0.25
    with torch.no_grad():
        effect = layer(moved).double() - layer(x).double()
        expected = layer.double()(moved.double()) - layer(x.double())
    return float((effect - expected).norm() / expected.norm())


def main() -> None:
    for name, apply in SETTINGS.items():
        if os.fork():
            _, status = os.wait()
            if status:
                sys.exit(f"failed: {name}")
            continue
        torch.manual_seed(0)
        apply()
        before = read()
        rounds = [rounds_products(d, convolution=c) for d in ("cuda", "cpu", "mps") for c in (False, True)]
        errors = [error(kernel_size=8, stride=8), error(kernel_size=3, stride=2, padding=1)]
        print(
            json.dumps({"name": name, "rounds": rounds, "errors": errors, "kept": read() == before}),
            flush=True,
        )
        os._exit(0)


main()
