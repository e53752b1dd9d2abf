"""Attacks as objects that run on any classifier, and the one loop that runs their stages."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from advflyp.attack.checks import (
    check_batch,
    check_index,
    check_logits,
    check_numbers,
    ordinary,
    outside_inference_mode,
)
from advflyp.attack.losses import LOSSES, count_targets
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import Victim, predicted
from advflyp.dtypes import whole
from advflyp.identity import defined, foreign, source_sha256
from advflyp.model.precision import for_use

# (victim, images, labels, threat, streams=…) → adversarial images
Stage = Callable[..., Tensor]
STAGE_SEEDS = 1_000_003


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """An attack on any classifier: `PGD(steps=10)(classifier, images, labels, Threat(eps=4 / 255))`.

    Subclasses are frozen dataclasses whose fields are the parameters. They implement `perturb` (as a `SingleAttack`) or
    combine other attacks in `stages`. Results record the name and every parameter.

    Args:
        restarts: Number of runs, each on the images that are still classified correctly.
    """

    restarts: int = 1
    perturbs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        ours = next(kind for kind in type(self).__mro__ if not foreign([kind]))
        for field in fields(self):
            value: Any = getattr(self, field.name)
            called = f"{type(self).__name__}: {field.name}"
            if isinstance(value, np.generic):  # which cannot be stored as JSON
                object.__setattr__(self, field.name, value.item())
            if field.type not in ("int", int):
                continue
            number = whole(value, called)
            object.__setattr__(self, field.name, number)
            # Numbers of the user's own may be anything.
            if number < 1 and field.name in ours.__dataclass_fields__:
                raise ValueError(f"{called} must be at least 1, not {number}")

    def __call__(
        self,
        classifier: Callable[[Tensor], Tensor],
        images: Tensor,
        labels: Tensor,
        threat: Threat,
        *,
        seed: int = 0,
        generator: torch.Generator | None = None,
        index: Tensor | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        """Adversarial images, found as in an evaluation.

        Args:
            classifier: (N, 3, H, W) pixels in [0, 1] → (N, K) logits, K at least 2, differentiable, with its own
                normalisation. A module is attacked in evaluation mode; its modes and parameter gradients are preserved.
            images: (N, 3, H, W) float32 or float64 pixels in [0, 1], on any device.
            labels: (N,) int64, the true classes.
            threat: The ball around each image.
            seed: Random seed.
            generator: Draws the seed, in place of `seed`.
            index: (N,) int64, the images' places in their dataset, 0 … N − 1 by default. The outcome for an image
                depends on the seed and its place, not on the rest of the batch.
            batch_size: Images at a time; all by default.

        Returns:
            (N, 3, H, W) images inside `threat`, detached. Images that are already misclassified are returned unchanged.

        Raises:
            ValueError: An argument or the logits have a wrong shape, type or value; or a gradient is needed and there
                is none.
        """
        check_batch(images, labels)
        size = max(len(images), 1) if batch_size is None else batch_size
        seed, batch_size = check_numbers(threat, seed, size)
        index = torch.arange(len(images)) if index is None else index
        check_index(index, len(images))
        if not len(images):
            return images.detach().clone()
        if generator is not None:
            seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        with outside_inference_mode():
            images, labels, index = ordinary(images.detach(), labels.cpu(), index.cpu())
            return self._run(classifier, images, labels, index, threat, seed, batch_size)

    def _run(
        self,
        classifier: Callable[[Tensor], Tensor],
        images: Tensor,
        labels: Tensor,
        index: Tensor,
        threat: Threat,
        seed: int,
        batch_size: int,
    ) -> Tensor:
        encoder: Any = classifier if hasattr(classifier, "encode_tokens") else None
        result = images.clone()
        # A classifier may change its input in place.
        victim = Victim(lambda x: classifier(x.clone()), encoder=encoder, batch_size=batch_size)
        with for_use(classifier):
            for rows, found, _ in run_stages(
                self.stages(threat),
                victim,
                images,
                labels,
                threat,
                seed=seed,
                index=index,
                survived=_survived_none(victim, images, labels, batch_size),
                batch_size=batch_size,
            ):
                result[rows.to(images.device)] = found
        return result

    @abstractmethod
    def stages(self, threat: Threat) -> list[Stage]:
        """The searches to run in sequence, each on the images that are still classified correctly."""

    @property
    def needs_patches(self) -> bool:
        """Whether it searches through the embeddings of an image's patches, which not every architecture has."""
        return False

    @property
    def name(self) -> str:
        """The name in results; it includes the parameters that differ from the defaults."""
        return self._named(type(self).__name__)

    def arguments(self, threat: Threat | None, classes: int) -> dict[str, Any]:
        """Every parameter that changes the outcome; results record a hash of what JSON cannot store."""
        # The name alone would not show that the code has changed.
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "source_sha256": source_sha256(type(self))}

    def _named(self, short: str, *said: str) -> str:
        """`short`, the restarts, and all changed fields but those in `said`, whose values `short` already states."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        changed = [
            f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
            for name, (value, default) in values.items()
            if value != default and name not in (*said, "restarts")
        ]
        restarts = f"x{self.restarts}" if self.restarts > 1 else ""
        return short + restarts + (f"({', '.join(changed)})" if changed else "")


def run_stages(
    stages: Sequence[Stage],
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    threat: Threat,
    *,
    seed: int,
    index: Tensor,
    survived: Tensor,
    batch_size: int | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Run an attack's stages in sequence, each on the images that no earlier stage has fooled.

    Args:
        stages: The attack's stages.
        victim: The classifier.
        images: (N, 3, H, W) pixels in [0, 1].
        labels: (N,) int64, on the CPU.
        threat: The ball around each image; ValueError if a stage returns an image outside it.
        seed: Random seed of the attack.
        index: (N,) int64 on the CPU, the images' places in their dataset.
        survived: (N,) int64 on the CPU, how many stages each image has already survived; −1 skips it.
        batch_size: Images at a time; all by default.

    Yields:
        After each batch, its rows (M,), the adversarial images (M, 3, H, W) and their predicted classes (M,).
    """
    survived, robust = survived.clone(), torch.ones(len(labels), dtype=torch.bool)
    for number, stage in enumerate(stages):
        here = (robust & (survived == number)).nonzero().squeeze(1)
        for rows in here.split(batch_size or len(here)) if len(here) else ():
            there = rows.to(images.device)
            origin = images[there]
            streams = Streams(seed * STAGE_SEEDS + number, index[rows].to(images.device))
            found = stage(victim, origin, labels[rows].to(images.device), threat, streams=streams)
            # Not against `origin`, which a user's attack may have changed.
            _check_found(found, images[there], threat)
            # Logits that are not finite mean that the attack broke the model: ties and NaN never count as correct.
            with torch.no_grad():
                answers = predicted(victim.judge(found).cpu(), labels[rows])
            robust[rows] = answers == labels[rows]
            survived[rows] += 1
            yield rows, found, answers


def _check_found(found: Any, images: Tensor, threat: Threat) -> None:
    """ValueError unless `found` are valid adversarial images: a user's attack may return anything."""
    if not isinstance(found, Tensor) or found.shape != images.shape:
        returned = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"an attack must return images of the shape {tuple(images.shape)}, not {returned}")
    if not threat.contains(images, found).all():
        if not found.isfinite().all():
            raise ValueError(
                "an attack found no direction: the gradient of the classifier's logits is NaN, or infinite in L2; the "
                "attack Square needs no gradient"
            )
        raise ValueError(
            "an attack returned images outside the ball or the pixel range; return threat.project(images, found)"
        )


@dataclass(frozen=True, kw_only=True)
class Clean(Attack):
    """No attack: the images as they are."""

    perturbs: ClassVar[bool] = False

    def stages(self, threat: Threat) -> list[Stage]:
        return []

    @property
    def name(self) -> str:
        return "clean"

    def arguments(self, threat: Threat | None, classes: int) -> dict[str, Any]:
        return {}


@dataclass(frozen=True, kw_only=True)
class SingleAttack(Attack):
    """An attack that consists of a single search, `perturb`, run `restarts` times."""

    @abstractmethod
    def perturb(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: Threat, *, streams: Streams
    ) -> Tensor:
        """One run of the attack, on images that are still classified correctly.

        Args:
            victim: The classifier.
            images: (N, 3, H, W) float32 or float64 pixels in [0, 1].
            labels: (N,) int64, on the same device.
            threat: The ball around each image.
            streams: The images' random numbers; no others may be used.

        Returns:
            (N, 3, H, W) inside `threat`, detached.
        """

    def stages(self, threat: Threat) -> list[Stage]:
        return [self.perturb] * self.restarts


@dataclass(frozen=True, kw_only=True)
class Noise(SingleAttack):
    """One uniform draw from the ball: a baseline that any attack has to beat."""

    def perturb(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: Threat, *, streams: Streams
    ) -> Tensor:
        return threat.random_start(images, streams)

    @property
    def name(self) -> str:
        return self._named("noise")

    def arguments(self, threat: Threat | None, classes: int) -> dict[str, Any]:
        return {"restarts": self.restarts} if self.restarts > 1 else {}


@dataclass(frozen=True, kw_only=True)
class Member(SingleAttack):
    """An attack that can be a member of AutoAttack; on its own, results record it as an ensemble of one."""

    kind: ClassVar[str] = ""
    in_kind: ClassVar[tuple[str, ...]] = ()  # fields whose values are part of `member`

    @property
    def member(self) -> str:
        """Its name as a member of AutoAttack."""
        return self.kind

    @property
    def name(self) -> str:
        return self._named(self.member, *self.in_kind)

    def arguments(self, threat: Threat | None, classes: int) -> dict[str, Any]:
        values = {name: value for name, value in asdict(self).items() if name not in ("restarts", "against")}
        if "loss" in values:
            values["loss"] = LOSSES[values["loss"]].__name__
        if "targets" in values:
            values["targets"] = count_targets(classes, values["targets"])
        return {self.member: values | ({"restarts": self.restarts} if self.restarts > 1 else {})}


@dataclass(frozen=True, kw_only=True)
class Custom(SingleAttack):
    """A user-defined attack function with the arguments of `SingleAttack.perturb`.

    Args:
        function: (victim, images, labels, threat, streams=…) → images inside the ball.
        called: Its name in results; "module:function" by default.
    """

    function: Stage
    called: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        called = self.called or repr(self.function)
        if isinstance(self.function, type):
            raise ValueError(f"{called} is a class; name an instance of it")
        if not callable(self.function):
            raise ValueError(f"{called} cannot be called; an attack is a function or an `Attack`")
        parameters = inspect.signature(self.function).parameters.values()
        if not any(one.name == "streams" or one.kind is one.VAR_KEYWORD for one in parameters):
            raise ValueError(f"{self.name} must take the keyword argument `streams`, its random numbers")

    def perturb(
        self, victim: Victim, images: Tensor, labels: Tensor, threat: Threat, *, streams: Streams
    ) -> Tensor:
        return self.function(victim, images, labels, threat, streams=streams)

    @property
    def name(self) -> str:
        made = defined(self.function)
        called = self.called or f"{made.__module__}:{made.__qualname__}"
        return called + (f"x{self.restarts}" if self.restarts > 1 else "")

    @cached_property
    def source_sha256(self) -> str:
        """The hash of the function before it runs, which may change the values that it holds."""
        return source_sha256(self.function)

    def arguments(self, threat: Threat | None, classes: int) -> dict[str, Any]:
        return {"source_sha256": self.source_sha256}


@torch.no_grad()
def _survived_none(victim: Victim, images: Tensor, labels: Tensor, batch_size: int) -> Tensor:
    """(N,) 0, or −1 for images that are misclassified when clean; ValueError if the logits have a wrong shape."""
    survived = torch.zeros_like(labels)
    for rows in torch.arange(len(images)).split(batch_size):
        logits = victim(images[rows.to(images.device)]).cpu()
        check_logits(logits, labels[rows])
        survived[rows[predicted(logits, labels[rows]) != labels[rows]]] = -1
    return survived
