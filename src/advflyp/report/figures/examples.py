"""Images that show what an attack does to two models, chosen by a rule that ignores the outcome."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from advflyp.attack.base import Attack
from advflyp.attack.threat import Threat
from advflyp.attack.victim import predicted
from advflyp.data.sets.labelled import load_set
from advflyp.evaluation.attacks import find_attack
from advflyp.evaluation.evaluator import Evaluator
from advflyp.model.clip import CLIP
from advflyp.model.precision import for_use

CHUNK = 32


@dataclass(frozen=True, kw_only=True)
class View:
    """One image as one model sees it.

    Attributes:
        clean: (3, H, W) float32 pixels in [0, 1] on the CPU, at the model's resolution.
        adversarial: The same after the attack.
        top_clean: The three likeliest classes of `clean` with their probabilities, likeliest first.
        top_adversarial: Those of `adversarial`.
    """

    clean: Tensor
    adversarial: Tensor
    top_clean: list[tuple[str, float]]
    top_adversarial: list[tuple[str, float]]

    def is_right(self, label: str) -> bool:
        """Whether the model still says `label` of the adversarial image."""
        return self.top_adversarial[0][0] == label


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image before and after finetuning, each model attacked separately.

    Attributes:
        attack: How it was attacked, with `norm`, `eps` and `seed`; the same perturbation as in `evaluate`.
        before: What the first model makes of it.
        after: What the second model makes of it.
    """

    set: str
    index: int
    label: str
    attack: str
    norm: Literal["linf", "l2"]
    eps: float
    seed: int
    before: View
    after: View

    @property
    def threat(self) -> Threat:
        return Threat(norm=self.norm, eps=self.eps)


def examples(
    before: CLIP,
    after: CLIP,
    set_names: Sequence[str],
    *,
    eps: float,
    n: int = 8,
    seed: int = 0,
    attack: str = "pgd10",
    norm: Literal["linf", "l2"] = "linf",
) -> list[Example]:
    """Up to `n` images chosen by `rule`, attacked on both models.

    Fewer than `n` if the first model classifies fewer images correctly.

    Args:
        eps: Radius of the attack, in pixels of [0, 1].
        seed: Random seed of the choice and of the attack's start.
        attack: Name of the attack, in the notation of `advflyp eval`.

    Raises:
        ValueError: For unknown sets or attacks.
    """
    threat = Threat(norm=norm, eps=eps)
    search = find_attack(attack)
    order = list(set_names)
    random.Random(seed).shuffle(order)

    @cache
    def evaluator(model: CLIP, name: str) -> Evaluator:
        return Evaluator(model, load_set(name))

    queues = {name: _correct(partial(evaluator, before, name), seed) for name in order}
    result = []
    for name, index in islice(_in_turns(queues), n):
        views = [_view(evaluator(model, name), index, search, threat, seed) for model in (before, after)]
        labelled = load_set(name)
        result.append(
            Example(
                set=name,
                index=index,
                label=labelled.classes[int(labelled.labels[index])],
                attack=search.name,
                norm=norm,
                eps=eps,
                seed=seed,
                before=views[0],
                after=views[1],
            )
        )
    return result


def _in_turns(queues: dict[str, Iterator[int]]) -> Iterator[tuple[str, int]]:
    """Take one image from each set in turn until all sets are exhausted."""
    while queues:
        for name in list(queues):
            index = next(queues[name], None)
            if index is None:
                del queues[name]
            else:
                yield name, index


def amplification(clean: Tensor, adversarial: Tensor, threat: Threat) -> float:
    """The factor that scales the perturbation to the full range [0, 1] around middle grey."""
    reach = threat.eps if threat.norm == "linf" else (adversarial - clean).abs().max().item()
    return 0.5 / reach if reach > 0 else 1.0


def perturbation(clean: Tensor, adversarial: Tensor, threat: Threat) -> Tensor:
    """(3, H, W) pixels: the amplified perturbation around middle grey."""
    return (0.5 + amplification(clean, adversarial, threat) * (adversarial - clean)).clamp(0, 1)


def rule(seed: int) -> str:
    """How the images were chosen, in sentences for the reader."""
    return (
        f"How they were chosen: the sets are put in an order shuffled with seed {seed}; each in turn gives the next "
        "image, in an order of its own shuffled with the same seed, that the original model classifies correctly "
        "without an attack. Nothing else is looked at: neither whether the attack succeeds nor what the finetuned "
        "model says."
    )


def _correct(make_evaluator: Callable[[], Evaluator], seed: int) -> Iterator[int]:
    """Indices of the images that the model classifies correctly, in a shuffled order.

    The evaluator is made only when the first index is requested: a set that is not needed costs nothing.
    """
    evaluator = make_evaluator()
    labels = evaluator.labelled.labels.tolist()
    places = list(range(len(evaluator)))
    random.Random(seed).shuffle(places)
    for start in range(0, len(places), CHUNK):
        chunk = places[start : start + CHUNK]
        images = torch.stack([_pixels(evaluator, place) for place in chunk])
        own = torch.tensor([labels[place] for place in chunk])
        with for_use(evaluator.model):
            answers = predicted(evaluator.logits_fp32(images.to(evaluator.model.device)).cpu(), own)
        yield from (place for place, right in zip(chunk, (answers == own).tolist(), strict=True) if right)


def _view(evaluator: Evaluator, index: int, attack: Attack, threat: Threat, seed: int) -> View:
    device = evaluator.model.device
    clean = _pixels(evaluator, index)[None].to(device)
    label = evaluator.labelled.labels[index : index + 1].to(device)
    adversarial = evaluator.attack(clean, label, attack, threat, "fp32", seed, torch.tensor([index]))
    return View(
        clean=clean[0].cpu(),
        adversarial=adversarial[0].cpu(),
        top_clean=_top(evaluator, clean),
        top_adversarial=_top(evaluator, adversarial),
    )


def _pixels(evaluator: Evaluator, index: int) -> Tensor:
    return evaluator.model.preprocess(evaluator.labelled.image(index))


def _top(evaluator: Evaluator, images: Tensor) -> list[tuple[str, float]]:
    """The three likeliest classes of the one image."""
    with for_use(evaluator.model):
        probabilities = evaluator.logits_fp32(images).softmax(1)[0]
    values, indices = probabilities.topk(min(3, len(probabilities)))
    names = evaluator.labelled.classes
    return [(names[i], value) for i, value in zip(indices.tolist(), values.tolist(), strict=True)]
