"""How the image tower computes within the memory there is: in parts, with recomputed activations; and compiled."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from advflyp.method.base import FromEmbeddings, Method
from advflyp.model.cast import product_weights
from advflyp.model.clip import CLIP
from advflyp.model.recompute import largest_that_fits
from advflyp.training.recipe import TrainConfig

# Tensors of a weight's size that an optimiser keeps.
STATES = {"sgd": 1, "adamw": 2}
# Of a batch's images: clean, adversarial, the attack's iterate and its gradient.
COPIES = 4


def apply_memory_options(model: CLIP, config: TrainConfig) -> None:
    """How the tower computes: in parts, with recomputed activations, compiled. ValueError where it cannot."""
    model.micro_batch = None if config.micro_batch == "auto" else config.micro_batch
    if config.activation_checkpointing:
        blocks = model.net.visual
        blocks.set_grad_checkpointing(True)
        if not any(getattr(module, "grad_checkpointing", False) for module in blocks.modules()):
            raise ValueError(
                f"train.activation_checkpointing: the image tower of {model.name} has no blocks to recompute; use "
                "train.micro_batch"
            )
    if config.compile:
        model.visual.compile()


def copied(model: CLIP, config: TrainConfig) -> CLIP:
    """A copy with the same memory options: a deep copy leaves the compiled call behind."""
    # The tokenizer, a large table, never changes.
    copy = deepcopy(model, {id(model.tokenizer): model.tokenizer})
    if config.compile:
        copy.visual.compile()
    return copy


def images_at_once(method: Method, parameters: list[nn.Parameter], rows: int, optimizer: str) -> int | None:
    """The most images whose activations fit, with everything beside them that a step keeps.

    Args:
        method: What is trained; its model computes in the precision of the run.
        parameters: Those that are trained.
        rows: Of a batch, on this rank.
        optimizer: Its name.

    Returns:
        None where a whole batch fits, and on a CPU, where nothing says beforehand that memory ends.
    """
    model = method.model
    if model.device.type == "cpu":
        return None
    branches = 2 if isinstance(method, FromEmbeddings) and method.shares_clean else 1

    def step(count: int) -> None:
        held: list[Tensor] = [torch.empty_like(p) for p in parameters for _ in range(STATES[optimizer])]
        held.append(torch.empty(COPIES, rows, 3, *model.image_size, device=model.device, dtype=model.dtype))
        held += [torch.empty_like(getattr(*at), dtype=torch.bfloat16) for at in product_weights(model)]
        images = torch.zeros(count, 3, *model.image_size, device=model.device, dtype=model.dtype)
        loss = model.encode_image(images.requires_grad_()).sum()
        torch.autograd.grad(loss, [images, *parameters], allow_unused=True)

    whole = branches * rows
    # In parts, the activations of one part are there at a time.
    found = largest_that_fits(step, whole)
    return None if found == whole else min(found, max(1, rows // 2))
