"""Batches larger than memory: encoded in micro-batches, with activations recomputed for the gradient (GradCache).

A contrastive loss needs all embeddings of a batch at once, but not all activations (Gao et al. 2021). A first pass
keeps only the embeddings; once the loss's gradient with respect to them is known, each micro-batch goes through the
model again and backpropagates its share. The result is that of the whole batch, at the cost of one more forward pass;
memory holds the activations of one micro-batch at a time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def largest_that_fits(step: Callable[[int], object], largest: int) -> int:
    """Halve `largest` until `step` on that many images no longer runs out of memory; one image is assumed to fit."""
    while largest > 1:
        try:
            step(largest)
            return largest
        except torch.OutOfMemoryError:
            largest //= 2
        torch.cuda.empty_cache()  # not above: the failed step lives until the block ends
    return largest


def in_parts(
    encode: Callable[[Tensor], Tensor], images: Tensor, size: int, parameters: Sequence[Tensor]
) -> Tensor:
    """`encode(images)`, `size` images at a time, in the forward and the backward pass.

    Args:
        encode: (n, …) → (n, …), each row independent of the others; deterministic.
        parameters: All parameters that `encode` uses and that may need a gradient.
    """
    trained = [p for p in parameters if p.requires_grad]
    if len(images) <= size:
        return encode(images)
    if not (torch.is_grad_enabled() and (images.requires_grad or trained)):
        return torch.cat([encode(part) for part in images.split(size)])
    return _Parts.apply(encode, size, images, *trained)


class _Parts(torch.autograd.Function):
    """One autograd function rather than a checkpoint per micro-batch: it writes the image gradients into one tensor,
    whereas checkpoints would hold those of all micro-batches and their concatenation at once.
    """

    @staticmethod
    def forward(
        ctx: Any, encode: Callable[[Tensor], Tensor], size: int, images: Tensor, *parameters: Tensor
    ) -> Tensor:
        ctx.encode, ctx.size = encode, size
        ctx.save_for_backward(images, *parameters)
        with torch.no_grad():
            return torch.cat([encode(part) for part in images.split(size)])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, *parameters = ctx.saved_tensors
        of_images = torch.empty_like(images) if ctx.needs_input_grad[2] else None
        of_parameters: list[Tensor | None] = [None] * len(parameters)
        for number, gradient in enumerate(gradients[0].split(ctx.size)):
            rows = slice(number * ctx.size, number * ctx.size + len(gradient))
            leaf = images[rows].detach().requires_grad_(of_images is not None)
            with torch.enable_grad():
                embeddings = ctx.encode(leaf)
            wanted = [leaf] if of_images is not None else []
            found = list(torch.autograd.grad(embeddings, wanted + parameters, gradient, allow_unused=True))
            if of_images is not None:
                of_images[rows] = found.pop(0)
            for place, part in enumerate(found):
                whole = of_parameters[place]
                of_parameters[place] = part if whole is None else whole.add_(part)
        return None, None, of_images, *of_parameters
