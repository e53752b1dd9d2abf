"""Passes of an image tower as CUDA graphs: recorded once for each shape of batch, then replayed with one launch each.

Where a model or a batch is small, a GPU waits for its host to launch the hundreds of kernels of a pass.
"""

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

Encode = Callable[[Tensor], Tensor]

# Sizes of padded batches have at most this many significant binary digits: at most a fifth of a pass is padding.
DIGITS, SMALLEST = 3, 8
# Passes before a recording: what is loaded, tuned or allocated once must not be part of it.
WARMUP = 3


class Graphs:
    """The recorded passes of one image tower, whose weights may change in place, but get no gradients.

    Args:
        pads: Whether batches are padded to one of a few sizes, for an attack that images leave.
    """

    def __init__(self, *, pads: bool) -> None:
        self.pads = pads
        self.last_replay: object = None
        self._recordings: dict[Hashable, _Recording] = {}
        self._pool: Any = None

    def __call__(self, encode: Encode, images: Tensor, kind: Hashable) -> Tensor:
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
            if key not in self._recordings:
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                sample = images.detach().new_zeros(size, *images.shape[1:]).requires_grad_(has_gradient)
                self._recordings[key] = _recorded(encode, sample, self._pool)
            return _Replayed.apply(images, self._recordings[key], self)

    def replay(self, recording: "_Recording", images: Tensor) -> object:
        """Replay the forward pass of (N, 3, H, W) images, N at most the recording's. Returns the new `last_replay`."""
        recording.images[: len(images)] = images
        recording.forward.replay()
        self.last_replay = object()
        return self.last_replay


def check_device(device: torch.device, key: str) -> None:
    """ValueError, which names the option `key`, unless this is a CUDA device."""
    if device.type != "cuda":
        raise ValueError(f"{key} needs a CUDA device, and the model is on {device}; leave it out")


def padded_size(count: int) -> int:
    """The least size of a padded batch that holds `count` images."""
    unit = 2 ** max(0, count.bit_length() - DIGITS)
    return max(SMALLEST, -(-count // unit) * unit)


def _recorded(encode: Encode, sample: Tensor, pool: Any) -> "_Recording":
    try:
        # A pass without gradients would otherwise be recorded with those of weights that require them.
        with torch.set_grad_enabled(sample.requires_grad):
            return _Recording(encode, sample, pool)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"the image tower cannot be recorded as a CUDA graph ({reason}); leave out `graphs`"
        ) from error


class _Recording:
    """The passes for one shape of batch. They read `images` and `flow`, and write `embeddings` and `slope`.

    Recordings with one pool share the memory of their activations.
    """

    def __init__(self, encode: Encode, images: Tensor, pool: Any) -> None:
        self.images = images
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARMUP):
                warm = encode(images)
                if images.requires_grad:
                    torch.autograd.grad(warm, images, torch.ones_like(warm))
        torch.cuda.current_stream().wait_stream(stream)
        # By default no thread at all may allocate meanwhile, not even one that loads data.
        how: dict[str, Any] = {"pool": pool, "stream": stream, "capture_error_mode": "thread_local"}
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.forward, **how):
            self.embeddings = encode(images)
        if images.requires_grad:
            self.flow = torch.zeros_like(self.embeddings)
            with torch.cuda.graph(self.backward, **how):
                (self.slope,) = torch.autograd.grad(self.embeddings, images, self.flow)


class _Replayed(torch.autograd.Function):
    """The results of a replay, copied: the next one overwrites them."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, recording: _Recording, graphs: Graphs) -> Tensor:
        ctx.save_for_backward(images)
        ctx.recording, ctx.graphs = recording, graphs
        ctx.replay = graphs.replay(recording, images)
        return recording.embeddings[: len(images)].clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (images,), recording = ctx.saved_tensors, ctx.recording
        if ctx.graphs.last_replay is not ctx.replay:  # the activations are no longer those of this batch
            ctx.graphs.replay(recording, images)
        recording.flow[: len(gradient)] = gradient
        recording.backward.replay()
        ctx.graphs.last_replay = None  # it writes where they were
        return recording.slope[: len(gradient)].clone(), None, None
