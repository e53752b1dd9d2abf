"""The largest batch size for which a step of an attack fits into memory."""

import torch

from advflyp.model.clip import CLIP
from advflyp.model.precision import for_use
from advflyp.model.recompute import largest_that_fits

# On a CPU, larger batches are no faster, and MPS shares its memory. Elsewhere sizes are tried from the largest down.
IN_HOST_MEMORY, LARGEST = 128, 1024
# About how many copies of its images an attack keeps: the clean ones, the best so far, steps, draws.
COPIES = 8


def largest_batch(model: CLIP) -> int:
    """How many images fit into a GPU's own memory, up to `LARGEST`; `IN_HOST_MEMORY` for a CPU or MPS.

    A step is a forward and a backward pass to the pixels, in float32. One image is assumed to fit.
    """
    if model.device.type in ("cpu", "mps"):
        return IN_HOST_MEMORY

    def step(count: int) -> None:
        copies = torch.zeros(COPIES, count, 3, *model.image_size, device=model.device)
        images = copies[0].detach().requires_grad_()
        torch.autograd.grad(model.encode_image(images).sum(), images)

    with for_use(model), model.computing_in("fp32"):
        return largest_that_fits(step, LARGEST)
