"""One-line errors for what ends a run: divergence, a full disk, running out of memory, a lost rank."""

import errno
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from advflyp.errors import GONE, Diverged, LostRank, OutOfMemory, RunError, refusal
from advflyp.model.clip import CLIP
from advflyp.model.folder import broken_weights, not_finite
from advflyp.training.signals import Interrupted

if TYPE_CHECKING:
    from advflyp.training.build import TrainingRun

# Number of noise images on which a model is tested before it is saved.
TRIED = 32


def finite_means(run: "TrainingRun") -> dict[str, float]:
    """The means of the metrics since the last line; `Diverged` if a loss or the gradient norm is not finite."""
    means = run.meter.means()
    judged = {name: mean for name, mean in means.items() if name.startswith("loss") or name == "grad_norm"}
    if wrong := [f"{name} = {mean}" for name, mean in judged.items() if not math.isfinite(mean)]:
        raise _diverged(run, ", ".join(wrong))
    return means


def check_finite(run: "TrainingRun") -> None:
    """`Diverged` if losses, gradients, weights or embeddings are not finite: no checkpoint of such a state is saved."""
    finite_means(run)
    what = broken(run.unsharded_model(), min(TRIED, run.recipe.data.batch_size))
    if what is not None:
        raise _diverged(run, what)


def _diverged(run: "TrainingRun", what: str) -> Diverged:
    return Diverged(
        f"{what} by step {run.state.step}: the run diverged. {run.folder.last_good()} Start again with a lower "
        "optim.lr, longer optim.warmup_steps or an optim.max_grad_norm"
    )


@torch.no_grad()
def broken(model: CLIP, images: int) -> str | None:
    """Say what in a model is not finite: its weights, or its embeddings of noise and of a text.

    Args:
        model: The model, in evaluation mode.
        images: Number of noise images.

    Returns:
        The beginning of a sentence; None if everything is finite.
    """
    if wrong := not_finite(model.net.state_dict()):
        return f"{broken_weights(wrong)} in the model"
    # Weights that are finite but far too large give a NaN in the next step.
    noise = torch.rand(images, 3, *model.image_size, generator=torch.Generator().manual_seed(0))
    found = (model.encode_image(noise.to(model.device, model.dtype)), model.encode_text(["a photo"]))
    if not torch.cat(found).isfinite().all():
        return "the model's embeddings are not finite"
    return None


@contextmanager
def writing(where: Path, last_good: Callable[[], str]) -> Iterator[None]:
    """Turn a failure to write into a `RunError` that says what failed, why, and which checkpoint is left.

    Args:
        where: The file or folder that is written.
        last_good: Returns the end of the message.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save raises an error of its own for some failures of the file.
        cause = error if isinstance(error, OSError) else error.__context__
        if isinstance(cause, KeyboardInterrupt):
            raise cause from None
        reason = cause.strerror if isinstance(cause, OSError) else str(error).splitlines()[0]
        free = (
            " Free some space, then continue with --resume."
            if isinstance(cause, OSError) and cause.errno == errno.ENOSPC
            else ""
        )
        raise RunError(f"cannot write to {where}: {reason}. {last_good()}{free}") from error


@contextmanager
def explaining(run: "TrainingRun") -> Iterator[None]:
    """Turn failures of a step that have a known meaning into a `RunError`."""
    try:
        yield
    except LostRank as error:
        raise RunError(f"step {run.state.step + 1}: {error}. {run.folder.last_good()}") from error
    except (RunError, Interrupted):
        raise
    except ValueError as error:
        if run.ranks.size == 1:
            raise
        # It may be about this rank's data alone.
        raise RunError(str(error)) from error
    except (RuntimeError, MemoryError, OSError) as error:
        meaning = diagnose(error, ranks=run.ranks.size)
        if meaning is None:
            raise
        kind = OutOfMemory if is_out_of_memory(error) else RunError
        raise kind(f"step {run.state.step + 1}: {meaning}. {run.folder.last_good()}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused, by a device, by Python or by torch's allocator on the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def diagnose(error: BaseException, *, ranks: int) -> str | None:
    """What a failure of a step means to the user; None if its meaning is not known.

    Args:
        error: The failure.
        ranks: Number of ranks of the run.
    """
    if isinstance(error, OSError):
        return refusal(error, "continue with --resume")
    if is_out_of_memory(error):
        return (
            "out of memory. Keep the batch and compute it in parts with --train.micro_batch auto (or a number), or set "
            "--train.activation_checkpointing true or --train.precision bf16; or lower data.batch_size"
        )
    # Backends raise plain RuntimeErrors, which only their text tells apart.
    text = str(error)
    signs = ("gloo", "NCCL", "Connection closed", "Connection reset", "Timed out", "Broken pipe")
    if ranks > 1 and isinstance(error, RuntimeError) and any(sign in text for sign in signs):
        return GONE
    return None
