"""Passes of an image tower as CUDA graphs: recorded once for each shape of batch, then replayed with one launch each.

Where a model or a batch is small, a GPU waits for its host to launch the hundreds of kernels of a pass.
"""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Sizes of batches that are padded have this many leading binary digits: at most a quarter of a pass is padding.
DIGITS, SMALLEST = 3, 8


class Graphs:
    """The recorded passes of one image tower, whose weights may change in place, but get no gradients.

    Args:
        pads: Whether batches are padded with black images to one of a few sizes, for an attack that images leave.
    """

    def __init__(self, *, pads: bool) -> None:
        self.pads = pads
        self._recorded: dict[Hashable, Callable[[Tensor], Tensor]] = {}
        self._pool: Any = None
        # What the recordings hold activations of: they share their memory.
        self._held: Tensor | None = None

    def __call__(self, encode: Callable[[Tensor], Tensor], images: Tensor, kind: Hashable) -> Tensor:
        """`encode(images)`, (N, 3, H, W) → (N, d), differentiable once with respect to the images.

        Args:
            encode: Computes each image by itself, on the images' CUDA device, without waiting for it.
            images: A batch.
            kind: Everything but the images that `encode` depends on and that changes from call to call.

        Raises:
            ValueError: `encode` cannot be recorded.
        """
        has_gradient = images.requires_grad and torch.is_grad_enabled()
        size = padded_size(len(images)) if self.pads else len(images)
        key = (kind, size, *images.shape[1:], images.dtype, has_gradient)
        with torch.cuda.device(images.device):
            if key not in self._recorded:
                sample = images.new_zeros(size, *images.shape[1:]).requires_grad_(has_gradient)
                self._recorded[key] = self._record(encode, sample)
            replay = self._recorded[key]
            # A copy, in both directions: the gradient does not stay in the recording's memory.
            padded = F.pad(images, (0, 0, 0, 0, 0, 0, 0, size - len(images)))
            return _Replayed.apply(replay(padded), len(images), self, replay, padded.detach())

    def _record(self, encode: Callable[[Tensor], Tensor], sample: Tensor) -> Callable[[Tensor], Tensor]:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        # A pass without gradients would otherwise be recorded with those of weights that require them.
        with torch.set_grad_enabled(sample.requires_grad):
            try:
                make: Any = torch.cuda.make_graphed_callables
                return make(
                    encode,
                    (sample,),
                    pool=self._pool,
                    capture_error_mode="thread_local",  # threads that load data may allocate meanwhile
                )
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                raise ValueError(
                    f"the image tower cannot be recorded as a CUDA graph ({reason}); leave out `graphs`"
                ) from error


def check_device(device: torch.device, key: str) -> None:
    """ValueError, which names the option `key`, unless this is a CUDA device."""
    if device.type != "cuda":
        raise ValueError(f"{key} needs a CUDA device, and the model is on {device}; leave it out")


def padded_size(count: int) -> int:
    """The least size of a padded batch that holds `count` images."""
    unit = 2 ** max(0, count.bit_length() - DIGITS)
    return max(SMALLEST, -(-count // unit) * unit)


class _Replayed(torch.autograd.Function):
    """The first `count` embeddings, out of the recording's memory, which the next replay overwrites.

    Before gradients are replayed, the recording gets this batch's activations back, if it holds those of another.
    """

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        count: int,
        graphs: Graphs,
        replay: Callable[[Tensor], Tensor],
        images: Tensor,
    ) -> Tensor:
        ctx.graphs, ctx.replay, ctx.images = graphs, replay, images
        graphs._held = images
        return embeddings[:count].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.graphs._held is not ctx.images:
            ctx.replay(ctx.images)
            ctx.graphs._held = ctx.images
        return F.pad(gradient, (0, 0, 0, len(ctx.images) - len(gradient))), None, None, None, None
