"""Checks for masked gradients: does an attack behave as it must if gradients can be trusted?

After Carlini et al., "On Evaluating Adversarial Robustness" (2019): a model that hides its gradients looks robust to
attacks that follow them.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from advflyp.attack.base import Attack, Noise, SingleAttack
from advflyp.attack.losses import LOSSES
from advflyp.attack.pgd import PGD, pgd
from advflyp.attack.square import Square
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import predicted
from advflyp.evaluation.evaluator import Evaluator
from advflyp.model.precision import for_use

STEPS = (1, 5, 10, 40)
QUERIES = 200
# A difference in this fraction of the images may be chance.
SLACK = 0.02


def sanity_check(
    evaluator: Evaluator, attack: Attack, threat: Threat, *, seed: int = 0, limit: int = 200
) -> dict[str, Any]:
    """What PGD, random noise and Square do to up to `limit` correctly classified images.

    The loss is that of `attack` (cross-entropy, if it is not pgd or cw); everything is in float32.

    Args:
        evaluator: The model on a dataset.
        attack: The attack to check.
        threat: The ball around each image.
        seed: Random seed.
        limit: The largest number of images to check.

    Returns:
        n, how many images were checked; passed, whether no check failed; the figure behind each check; and failed,
        the names of the failed checks:
        - "more steps help the defender": accuracy after 1, 5, 10, 40 steps (last iterate) must not rise;
        - "survives a ball of every image": at ε = 1 (L2: √d) PGD from the image must bring accuracy to zero;
        - "Square beats PGD": 200 queries without gradients must not fool the model more often than PGD-40;
        - "noise beats PGD": neither must one random draw from the ball;
        - "gradients are zero": they must not be exactly zero in more than a tenth of the pixels;
        - "the loss does not rise": it must, from the start to the tenth step, on average.
    """
    with for_use(evaluator.model):
        own = _look(evaluator, attack, threat, seed, limit)
    every = evaluator.ranks.all_gather_object(own)
    return _verdict({name: sum(figures[name] for figures in every) for name in own})


def _verdict(found: dict[str, float]) -> dict[str, Any]:
    n = int(found["n"])
    if n == 0:
        return {"n": 0, "passed": False, "failed": ["no image is classified correctly"]}
    by_steps = [int(found[f"steps {steps}"]) for steps in STEPS]
    unbounded, white_box, black_box, noise = (
        int(found[name]) for name in ("unbounded", "white box", "black box", "noise")
    )
    zero, rise = found["zeros"] / found["pixels"], found["rise"] / n
    slack = max(1, round(SLACK * n))
    checks = {
        "more steps help the defender": any(b > a + slack for a, b in pairwise(by_steps)),
        "survives a ball of every image": unbounded > slack,
        "Square beats PGD": white_box > black_box + slack,
        "noise beats PGD": white_box > noise + slack,
        "gradients are zero": zero > 0.1,
        "the loss does not rise": not rise > 0,
    }
    failed = [name for name, bad in checks.items() if bad]
    return {
        "n": n,
        "passed": not failed,
        "failed": failed,
        "survivors_by_steps": dict(zip(map(str, STEPS), by_steps, strict=True)),
        "survivors_unbounded": unbounded,
        "survivors_pgd40": white_box,
        f"survivors_square{QUERIES}": black_box,
        "survivors_noise": noise,
        "zero_gradient_share": round(zero, 4),
        "loss_rise": round(rise, 4),
    }


def _look(evaluator: Evaluator, attack: Attack, threat: Threat, seed: int, limit: int) -> dict[str, float]:
    """Figures for this rank's images, to be summed over all ranks: how many survive which attack, …"""
    images, labels, streams = _correct_images(evaluator, seed, limit)
    name = attack.loss if isinstance(attack, PGD) else "ce"
    loss = LOSSES[name]
    every = torch.arange(len(images), device=images.device)
    parts = every.split(evaluator.batch_size) if len(every) else ()

    def survivors(run: Any) -> int:
        left = 0
        for part in parts:
            found = run(images[part], labels[part], streams[part])
            left += int((predicted(evaluator.logits_fp32(found), labels[part]) == labels[part]).sum())
        return left

    def last_iterate(
        images: Tensor, labels: Tensor, streams: Streams, steps: int, ball: Threat = threat
    ) -> Tensor:
        # In a ball of every image, a random start would be misclassified already.
        start = threat.random_start(images, streams) if ball is threat else images
        return pgd(images, ascent(labels), ball, steps=steps, step_size=_step_size(ball, steps), start=start)

    def ascent(labels: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda x: loss(evaluator.logits(x), labels)

    def survivors_of(attack: SingleAttack) -> int:
        return survivors(lambda x, labels, own: attack.perturb(victim, x, labels, threat, streams=own))

    victim = evaluator.victim("fp32")
    everything = Threat(
        norm=threat.norm, eps=1.0 if threat.norm == "linf" else math.sqrt(math.prod(images.shape[1:]))
    )
    return {
        "n": len(images),
        **{f"steps {steps}": survivors(partial(last_iterate, steps=steps)) for steps in STEPS},
        "unbounded": survivors(partial(last_iterate, steps=STEPS[-1], ball=everything)),
        "white box": survivors_of(PGD(loss=name, steps=STEPS[-1], step_size=_step_size(threat, STEPS[-1]))),
        "black box": survivors_of(Square(queries=QUERIES)),
        "noise": survivors_of(Noise()),
        "pixels": images.numel(),
        **_gradients(images, labels, streams, ascent, threat, parts),
    }


def _correct_images(evaluator: Evaluator, seed: int, limit: int) -> tuple[Tensor, Tensor, Streams]:
    """Up to `limit` correctly classified images of this rank's share."""
    chosen = evaluator.labelled.subset(limit, seed)
    wanted = set(evaluator.index.tolist())
    inside = [index for index in chosen if index in wanted] or evaluator.index[:limit].tolist()
    own = inside[evaluator.ranks.rank :: evaluator.ranks.size]
    device = evaluator.model.device
    # A rank may have none.
    none = torch.empty(0, dtype=torch.int64)
    kept = [(none, torch.empty(0), none)]
    # As in the evaluation, 1 % of all images may be unreadable, not of these few.
    batches = evaluator.labelled.batches(
        evaluator.transform, evaluator.batch_size, own, of=len(evaluator.index)
    )
    for places, images, labels in batches:
        there = labels.to(device)
        right = (predicted(evaluator.logits_fp32(images.to(device)), there) == there).cpu()
        kept.append((places[right], images[right], labels[right]))
    places, images, labels = (torch.cat(column).to(device) for column in zip(*kept, strict=True))
    return images, labels, Streams(seed, places)


def _step_size(threat: Threat, steps: int) -> float:
    return 2.5 * threat.eps / steps


def _gradients(
    images: Tensor,
    labels: Tensor,
    streams: Streams,
    ascent: Callable[[Tensor], Callable[[Tensor], Tensor]],
    threat: Threat,
    parts: Sequence[Tensor],
) -> dict[str, float]:
    """How many components of the gradient at the images are exactly zero; by how much ten steps increase the loss."""
    zeros, rise = 0.0, 0.0
    for part in parts:
        value = ascent(labels[part])
        leaf = images[part].requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(value(leaf).sum(), leaf, allow_unused=True)
        zeros += float((gradient == 0).sum()) if gradient is not None else leaf.numel()
        start = threat.random_start(images[part], streams[part])
        end = pgd(images[part], value, threat, steps=10, step_size=_step_size(threat, 10), start=start)
        with torch.no_grad():
            rise += float(value(end).sum()) - float(value(start).sum())
    return {"zeros": zeros, "rise": rise}
