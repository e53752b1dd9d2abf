"""How many images at a time: the most that an attack's step has memory for."""

import torch

from advflyp.attack.victim import for_use
from advflyp.model.clip import CLIP
from advflyp.model.recompute import largest_that_fits

# On a CPU larger batches are no faster; on an accelerator those are tried from the largest down.
ON_CPU, LARGEST = 128, 1024
# An attack keeps about so many copies of its images: the clean ones, the best so far, steps, draws.
COPIES = 8


def largest_batch(model: CLIP) -> int:
    """How many images fit: `LARGEST`, halved for as long as a step on so many runs out of memory.

    A step is a forward and a backward pass to the pixels, in float32. One image is assumed to fit.
    """
    if model.device.type == "cpu":
        return ON_CPU

    def step(count: int) -> None:
        copies = torch.zeros(COPIES, count, 3, *model.image_size, device=model.device)
        images = copies[0].detach().requires_grad_()
        torch.autograd.grad(model.encode_image(images).sum(), images)

    with for_use(model), model.computing_in("fp32"):
        return largest_that_fits(step, LARGEST)
