"""How the image tower computes: in micro-batches and with recomputed activations, to save memory; compiled."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from advflyp.method.base import Method
from advflyp.model.cast import product_weights
from advflyp.model.clip import CLIP
from advflyp.model.recompute import largest_that_fits
from advflyp.training.recipe import TrainConfig

# Tensors that an optimiser keeps per weight.
STATES = {"sgd": 1, "adamw": 2}
# Copies of a batch's images: clean, adversarial, the attack's iterate and its gradient.
COPIES = 4


def apply_memory_options(model: CLIP, config: TrainConfig) -> None:
    """Set micro-batches, recomputation and compilation. ValueError if the tower has no blocks to recompute."""
    model.micro_batch = None if config.micro_batch == "auto" else config.micro_batch
    if config.activation_checkpointing:
        model.net.visual.set_grad_checkpointing(True)
        if not any(getattr(module, "grad_checkpointing", False) for module in model.visual.modules()):
            raise ValueError(
                f"train.activation_checkpointing: the image tower of {model.name} has no blocks to recompute; use "
                "train.micro_batch"
            )
    if config.compile:
        model.visual.compile()


def copied(model: CLIP, config: TrainConfig) -> CLIP:
    """A copy with the same memory options: a deep copy alone would not be compiled."""
    # The tokenizer, a large table, never changes.
    copy = deepcopy(model, {id(model.tokenizer): model.tokenizer})
    if config.compile:
        copy.visual.compile()
    return copy


def images_at_once(method: Method, parameters: list[nn.Parameter], rows: int, optimizer: str) -> int | None:
    """The largest micro-batch whose activations fit in memory, along with everything else that a step keeps.

    Args:
        method: The method; its model computes in the precision of the run.
        parameters: The trained parameters.
        rows: Rows of a batch on this rank.
        optimizer: The optimiser's name.

    Returns:
        Number of images; None if a whole batch fits, and on a CPU, which gives no warning before memory runs out.
    """
    model = method.model
    if model.device.type == "cpu":
        return None

    def step(count: int) -> None:
        held: list[Tensor] = [torch.empty_like(p) for p in parameters for _ in range(STATES[optimizer])]
        held.append(torch.empty(COPIES, rows, 3, *model.image_size, device=model.device, dtype=model.dtype))
        held += [torch.empty_like(getattr(*at), dtype=torch.bfloat16) for at in product_weights(model)]
        images = torch.zeros(count, 3, *model.image_size, device=model.device, dtype=model.dtype)
        loss = model.encode_image(images.requires_grad_()).sum()
        torch.autograd.grad(loss, [images, *parameters], allow_unused=True)

    whole = method.images_per_row * rows
    # With micro-batches, the activations of only one exist at a time.
    found = largest_that_fits(step, whole)
    return None if found == whole else min(found, max(1, rows // 2))
