"""Optimiser and learning-rate schedule."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from advflyp.config import above_zero, at_least

LARGEST_LR = 1e6


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Recipe table `optim`.

    Attributes:
        name: "sgd" (as in the paper) or "adamw".
        lr: Peak learning rate.
        lr_steps: Number of steps that `lr` is meant for: a shorter run has a proportionally lower rate. An `lr` that
            overrides the recipe's is taken as it is.
        momentum: Momentum of SGD.
        beta2, epsilon: Parameters of AdamW. 0.98 and 1e-6 are CLIP's; torch's defaults are 0.999 and 1e-8.
        weight_decay: Weight decay of the parameters that `decayed` names.
        decayed: Parameters with weight decay: "matrices" (two or more dimensions: not biases, norms or the logit
            scale), or "all".
        warmup_steps: Steps of linear warm-up from 0.
        warmup_share: Largest fraction of the run that the warm-up may take.
        schedule: "cosine" to 0 at the last step, or "constant".
        max_grad_norm: Clip the gradient to this norm; none disables clipping.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 1e-4
    lr_steps: int | None = None
    momentum: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-6
    weight_decay: float = 0.0
    decayed: Literal["matrices", "all"] = "matrices"
    warmup_steps: int = 1000
    warmup_share: float = 0.2
    schedule: Literal["cosine", "constant"] = "cosine"
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        above_zero(self, "optim.", "lr", "epsilon", "max_grad_norm")
        for name in ("momentum", "beta2"):
            if getattr(self, name) >= 1:
                raise ValueError(f"optim.{name} must be below 1, not {getattr(self, name):g}")
        if not 0 <= self.warmup_share <= 1:
            raise ValueError(f"optim.warmup_share must be from 0 to 1, not {self.warmup_share:g}")
        # Beyond it the optimiser's own float32 numbers overflow.
        if self.lr > LARGEST_LR:
            raise ValueError(f"optim.lr must be at most {LARGEST_LR:g}, not {self.lr:g}")
        if self.lr * self.weight_decay > 1:
            raise ValueError(
                f"optim.lr · optim.weight_decay, the share of a weight that a step takes away, must be at most 1, "
                f"not {self.lr * self.weight_decay:g}"
            )
        at_least(0, self, "optim.", "momentum", "beta2", "weight_decay", "warmup_steps")
        at_least(1, self, "optim.", "lr_steps")


def make_optimizer(parameters: Iterable[nn.Parameter], config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser over `parameters`, at the peak learning rate."""
    parameters = list(parameters)
    fused = parameters[0].is_cuda
    # One operation for all weights, instead of several for each in a loop.
    foreach = True if parameters[0].is_cpu else None
    least = 2 if config.decayed == "matrices" else 0
    groups = [
        {"params": [p for p in parameters if p.ndim >= least], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < least], "weight_decay": 0.0},
    ]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused, foreach=foreach)
    # The default β₂ = 0.98 is CLIP's; contrastive gradients are too noisy for 0.999.
    betas = (0.9, config.beta2)
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=betas, eps=config.epsilon, fused=fused, foreach=foreach
    )


def peak_rate(config: OptimConfig, total_steps: int) -> float:
    """The highest learning rate of a run."""
    return config.lr * min(1.0, total_steps / (config.lr_steps or total_steps))


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """The rate of the update that follows `step` finished updates."""
    peak = peak_rate(config, total_steps)
    warmup = min(config.warmup_steps, int(total_steps * config.warmup_share))
    if step < warmup:
        return peak * (step + 1) / warmup
    if config.schedule == "constant":
        return peak
    progress = (step - warmup) / max(1, total_steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
