"""Run the library's attacks on a large vision-language model by treating it as a classifier of two classes.

An answer's loss L becomes the logits (−L, 0), the given answer against all others. With two classes the margin and the
DLR loss are L itself, so `APGD(loss="dlr")` and `PGD(loss="margin")` maximise L; the cross-entropy is log(1 + e^L),
which increases with L. A targeted attack uses the logits (L, 0), and so minimises L.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from advflyp.attack.apgd import APGD
from advflyp.attack.base import SingleAttack
from advflyp.attack.encoder import EncoderPGD
from advflyp.attack.pgd import PGD
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import Victim
from advflyp.lvlm.model import LVLM


class AnswerVictim(Victim):
    """N images with their prompts and answers under attack; none stops early, and the worst point of each is kept.

    Whether a model is fooled depends on its answer, not on L; the protocol checks the answers between two attacks.

    Args:
        model: The model.
        prompts: N questions.
        answers: N answers, which the attack makes unlikely, or likely where `targeted`.
        start: (N, 3, H, W), where the ascent starts; by default the attack's own start.

    Attributes:
        worst: (N, 3, H, W), the images with the highest objective (L, or −L where targeted) so far.
        objective: (N,), that objective.
    """

    def __init__(
        self,
        model: LVLM,
        prompts: Sequence[str],
        answers: Sequence[str],
        *,
        targeted: bool = False,
        start: Tensor | None = None,
    ) -> None:
        # Attacks on answers only use `encode_tokens` of an encoder.
        encoder: Any = model
        super().__init__(self._logits, encoder=encoder, start=start)
        self.model, self.targeted = model, targeted
        self.tokens = model.tokens_of(prompts, answers)
        self.worst: Tensor | None = None
        self.objective = torch.full((len(prompts),), -torch.inf, device=model.device)

    def _logits(self, images: Tensor) -> Tensor:
        loss = self.model.loss_of(images, self.tokens)
        return torch.stack([loss if self.targeted else -loss, torch.zeros_like(loss)], dim=1)

    @torch.no_grad()
    def fooled(self, images: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        """(N,) bool, all False."""
        found = -logits[:, 0]
        better = found > self.objective
        before = images if self.worst is None else self.worst
        self.worst = torch.where(better[:, None, None, None], images, before)
        self.objective = torch.where(better, found.to(self.objective.dtype), self.objective)
        return torch.zeros_like(labels, dtype=torch.bool)


def perturb(
    model: LVLM,
    attack: SingleAttack,
    images: Tensor,
    prompts: Sequence[str],
    answers: Sequence[str],
    threat: Threat,
    *,
    seed: int = 0,
    index: Tensor | None = None,
    targeted: bool = False,
    start: Tensor | None = None,
) -> Tensor:
    """One run of an attack on N images.

    Args:
        model: The model; its `precision` is that of the search.
        attack: `PGD`, `APGD`, or `EncoderPGD`, which uses the vision tower alone.
        images: (N, 3, image_side, image_side) float32 or float64 pixels in [0, 1].
        prompts: N questions.
        answers: N answers whose loss is maximised, or minimised where `targeted`.
        threat: The ball around each image.
        seed: Random seed.
        index: (N,) the images' places in their dataset, which determine their random numbers; 0 … N − 1 by default.
        targeted: Whether to make the answers likely.
        start: Where the ascent starts, inside the ball.

    Returns:
        (N, 3, H, W): for each image, the evaluated point with the highest objective; for `EncoderPGD`, the last
        iterate.

    Raises:
        ValueError: The attack is of another kind, or an encoder attack is targeted.
    """
    if not isinstance(attack, PGD | APGD | EncoderPGD):
        raise ValueError(f"{attack.name} does not attack answers; choose apgdN, pgdN or encoder-patchesN")
    images = images.detach()
    index = torch.arange(len(images)) if index is None else index
    streams = Streams(seed, index.to(images.device))
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    victim = AnswerVictim(model, prompts, answers, targeted=targeted, start=start)
    found = attack.perturb(victim, images, labels, threat, streams=streams)
    if isinstance(attack, EncoderPGD):
        if targeted:
            raise ValueError("an attack on the vision tower alone has no targeted form; choose apgdN")
        return found
    with torch.no_grad():
        # The last iterate of PGD has not been evaluated yet.
        victim.fooled(found, labels, victim(found))
    assert victim.worst is not None
    return victim.worst
