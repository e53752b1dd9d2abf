"""Passes of an image tower, and whole steps of attacks, as CUDA graphs: recorded once, then replayed with one launch.

Where a model or a batch is small, a GPU waits for its host to launch the hundreds of kernels of a pass.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

Encode = Callable[[Tensor], Tensor]
Recorded = TypeVar("Recorded")
# A step of a search: changes its state, a dataclass of tensors with one row for each image, and returns such tensors.
Step = Callable[[Any], tuple[Tensor, ...]]

# Sizes of padded batches have at most this many significant binary digits: at most a fifth of a pass is padding.
DIGITS, SMALLEST = 3, 8
# Passes before a recording: what is loaded, tuned or allocated once must not be part of it.
WARMUP = 3
# Steps of one kind and size before theirs is recorded, which takes some more: a short search does without.
OFTEN = 16


class Graphs:
    """The recorded passes of one image tower, whose weights may change in place, but get no gradients.

    Args:
        pads: Whether batches are padded to one of a few sizes, for an attack that images leave.
    """

    def __init__(self, *, pads: bool) -> None:
        self.pads = pads
        self.last_replay: object = None
        self.are_paused = False
        self._recordings: dict[Hashable, _Recording] = {}

    def __call__(self, encode: Encode, images: Tensor, kind: Hashable) -> Tensor:
        """`encode(images)`, (N, 3, H, W) → (N, d), differentiable once with respect to the images.

        Args:
            encode: Computes each image by itself, on the images' CUDA device, without waiting for it.
            images: A batch.
            kind: Everything but the images that `encode` depends on and that changes from call to call.

        Raises:
            ValueError: `encode` cannot be recorded.
        """
        if self.are_paused:
            return encode(images)
        has_gradient = images.requires_grad and torch.is_grad_enabled()
        size = padded_size(len(images)) if self.pads else len(images)
        key = (kind, size, *images.shape[1:], images.dtype, has_gradient)
        with torch.cuda.device(images.device):
            if key not in self._recordings:
                sample = images.detach().new_zeros(size, *images.shape[1:]).requires_grad_(has_gradient)
                # A pass without gradients would otherwise be recorded with those of weights that require them.
                with torch.set_grad_enabled(has_gradient):
                    self._recordings[key] = _recorded(lambda: _Recording(encode, sample, self.capture))
            return _Replayed.apply(images, self._recordings[key], self)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within the block, run passes as they are: they become part of another recording."""
        self.are_paused = True
        try:
            yield
        finally:
            self.are_paused = False

    @cached_property
    def capture(self) -> "_Capture":
        """Makes all recordings, on the device on which it is first used."""
        return _Capture()

    def replay(self, recording: "_Recording", images: Tensor) -> object:
        """Replay the forward pass of (N, 3, H, W) images, N at most the recording's. Returns the new `last_replay`."""
        recording.images[: len(images)] = images
        recording.forward.replay()
        self.last_replay = object()
        return self.last_replay


class Steps:
    """The steps of attacks on one classifier as CUDA graphs, each recorded once it has been made `OFTEN` times.

    A state stays where the next step reads it, so a step after which no image leaves is one launch without a copy. The
    next step overwrites the state and what the last one returned.

    Args:
        graphs: The recorded passes of the classifier's image tower.
    """

    def __init__(self, graphs: Graphs) -> None:
        self._graphs = graphs
        self._made: Counter[Hashable] = Counter()
        self._recordings: dict[Hashable, _RecordedStep] = {}
        self._memory: dict[Hashable, _Rows] = {}

    def __call__(self, step: Step, state: Any, kind: Hashable) -> tuple[Tensor, ...]:
        """`step(state)`, which may set the state's fields to other tensors, but changes no tensor in place.

        Args:
            step: Computes each row by itself, without waiting for the device.
            state: A dataclass of tensors with one row for each of N images; one is `images`.
            kind: Everything but the state that `step` depends on and that changes from call to call.

        Raises:
            ValueError: `step` cannot be recorded.
        """
        size, tensors = padded_size(len(state)), vars(state)
        key = (kind, size, *((name, rows.shape[1:], rows.dtype) for name, rows in tensors.items()))
        if key not in self._recordings:
            self._made[key] += 1
            if self._made[key] <= OFTEN:
                return step(state)
            memory = {name: self._reserve(name, rows, size) for name, rows in tensors.items()}
            with torch.cuda.device(state.images.device), torch.no_grad(), self._graphs.paused():
                self._recordings[key] = _recorded(
                    lambda: _RecordedStep(step, state, size, memory, self._graphs.capture)
                )
        self._graphs.last_replay = None  # the pool holds other activations now
        return self._recordings[key].replay(state)

    def _reserve(self, name: str, rows: Tensor, size: int) -> "_Rows":
        key = (name, rows.shape[1:], rows.dtype)
        if key not in self._memory or len(self._memory[key].all) < size:
            self._memory[key] = _Rows(rows.new_zeros(size, *rows.shape[1:]))
        return self._memory[key]


def check_device(device: torch.device, key: str) -> None:
    """ValueError, which names the option `key`, unless this is a CUDA device."""
    if device.type != "cuda":
        raise ValueError(f"{key} needs a CUDA device, and the model is on {device}; leave it out")


def padded_size(count: int) -> int:
    """The least size of a padded batch that holds `count` images."""
    unit = 2 ** max(0, count.bit_length() - DIGITS)
    return max(SMALLEST, -(-count // unit) * unit)


def _recorded(record: Callable[[], Recorded]) -> Recorded:
    try:
        return record()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"the model cannot be recorded as a CUDA graph ({reason}); leave out `graphs`"
        ) from error


class _Capture:
    """Makes recordings that share the memory of their activations, which takes one pool and also one stream."""

    def __init__(self) -> None:
        self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def warm_up(self, run: Callable[[], Recorded]) -> Recorded:
        """Run what is to be recorded, until all that it loads, tunes and allocates once is there."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(WARMUP - 1):
                run()
            result = run()
        torch.cuda.current_stream().wait_stream(self.stream)
        return result

    def record(self, run: Callable[[], Recorded]) -> tuple[torch.cuda.CUDAGraph, Recorded]:
        """The graph of `run`, and its result, which replays overwrite."""
        graph = torch.cuda.CUDAGraph()
        # By default no thread at all may allocate meanwhile, not even one that loads data.
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            result = run()
        return graph, result


class _Recording:
    """The passes for one shape of batch. They read `images` and `flow`, and write `embeddings` and `slope`."""

    def __init__(self, encode: Encode, images: Tensor, capture: _Capture) -> None:
        self.images = images

        def both() -> None:
            embeddings = encode(images)
            if images.requires_grad:
                torch.autograd.grad(embeddings, images, torch.ones_like(embeddings))

        capture.warm_up(both)
        self.forward, self.embeddings = capture.record(lambda: encode(images))
        if images.requires_grad:
            self.flow = torch.zeros_like(self.embeddings)
            self.backward, (self.slope,) = capture.record(
                lambda: torch.autograd.grad(self.embeddings, images, self.flow)
            )


class _Rows:
    """Memory for one field of a state. `here`: the rows in use, as the state has them."""

    def __init__(self, rows: Tensor) -> None:
        self.all, self.here = rows, rows

    def put(self, rows: Tensor) -> None:
        """Copy (N, …) rows here, unless they are here."""
        if rows is not self.here:
            self.here = self.all[: len(rows)]
            self.here.copy_(rows)


class _RecordedStep:
    """A step for states of up to `size` rows, which it reads from `memory` and writes there."""

    def __init__(
        self, step: Step, state: Any, size: int, memory: dict[str, _Rows], capture: _Capture
    ) -> None:
        self.memory = memory
        before = {name: rows.all[:size] for name, rows in memory.items()}

        def make() -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
            after = replace(state, **before)
            results = step(after)
            return {name: rows for name, rows in vars(after).items() if rows is not before[name]}, results

        # Outside the pool, where no other recording writes.
        self.results = [torch.empty_like(result) for result in capture.warm_up(make)[1]]

        def make_and_keep() -> None:
            after, results = make()
            # A field may have become what another one was.
            old = {id(rows) for rows in before.values()}
            after = {name: rows.clone() if id(rows) in old else rows for name, rows in after.items()}
            for name, rows in after.items():
                before[name].copy_(rows)
            for kept, result in zip(self.results, results, strict=True):
                kept.copy_(result)

        self.graph, _ = capture.record(make_and_keep)

    def replay(self, state: Any) -> tuple[Tensor, ...]:
        """The results for `state`, whose fields get the new values."""
        here = {id(rows.here) for rows in self.memory.values()}
        for name, rows in vars(state).items():
            # A field may be what another one was, whose memory is about to be written.
            if id(rows) in here and rows is not self.memory[name].here:
                setattr(state, name, rows.clone())
        for name, rows in vars(state).items():
            self.memory[name].put(rows)
            setattr(state, name, self.memory[name].here)
        self.graph.replay()
        return tuple(result[: len(state)] for result in self.results)


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
