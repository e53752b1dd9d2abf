import dataclasses
import math
from typing import Any

import pytest
import torch

from advflyp.attack.threat import Threat
from advflyp.data.sets.labelled import LabelledSet
from advflyp.evaluation import classifier
from advflyp.evaluation import sanity as module
from advflyp.evaluation.attacks import find_attack
from advflyp.evaluation.evaluator import Evaluator
from advflyp.evaluation.sanity import sanity_check
from advflyp.model.clip import CLIP
from helpers import Unreadable, labelled_by

PGD = find_attack("pgd10")


@pytest.fixture
def labelled(tiny: CLIP) -> LabelledSet:
    return labelled_by(tiny, 40)


def check(model: CLIP, labelled: LabelledSet, eps: float = 1.5 / 255) -> dict:
    return sanity_check(Evaluator(model, labelled), PGD, Threat(eps=eps))


def test_a_plain_model_passes(tiny: CLIP, labelled: LabelledSet) -> None:
    verdict = check(tiny, labelled)
    assert verdict["passed"] and verdict["failed"] == []
    assert verdict["n"] == 40
    assert verdict["survivors_unbounded"] == 0
    assert verdict["zero_gradient_share"] < 0.05
    assert verdict["loss_rise"] > 0
    assert verdict["survivors_pgd40"] < verdict["survivors_noise"]


def test_it_computes_in_float32_where_searches_do_not(
    tiny: CLIP, labelled: LabelledSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device that is faster in bf16 "auto" would search in it, and the comparison would be of two precisions."""
    plain = check(tiny, labelled)
    monkeypatch.setattr(classifier, "resolve", lambda wanted, device: "bf16" if wanted == "auto" else wanted)
    assert check(tiny, labelled) == plain


def test_rounded_inputs_are_flagged(
    tiny: CLIP, labelled: LabelledSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen grey levels: the gradient of rounding is zero, PGD goes nowhere, the model is not robust at all."""
    encode = tiny.encode_image
    monkeypatch.setattr(tiny, "encode_image", lambda images: encode((images * 15).round() / 15))
    verdict = check(tiny, labelled)
    assert not verdict["passed"]
    assert "gradients are zero" in verdict["failed"]
    assert "survives a ball of every image" in verdict["failed"]
    assert verdict["zero_gradient_share"] == 1


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return -gradient


def test_gradients_that_point_the_wrong_way_are_flagged(
    tiny: CLIP, labelled: LabelledSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = tiny.encode_image
    monkeypatch.setattr(tiny, "encode_image", lambda images: encode(_Reversed.apply(images)))
    verdict = check(tiny, labelled)
    assert {"the loss does not rise", "survives a ball of every image"} <= set(verdict["failed"])
    assert "noise beats PGD" in verdict["failed"] or "Square beats PGD" in verdict["failed"]


def test_a_few_images_may_be_unreadable(tiny: CLIP, labelled: LabelledSet) -> None:
    """As in the evaluation 1 % of all, though that is more of the images that are checked."""
    labelled = labelled_by(tiny, 150)
    images = Unreadable(labelled.dataset)
    images.bad, images.targets = (labelled.subset(30, 0)[3],), labelled.labels.tolist()
    evaluator = Evaluator(tiny, dataclasses.replace(labelled, dataset=images, unreadable={}), batch_size=10)
    assert sanity_check(evaluator, PGD, Threat(eps=1 / 255), limit=30)["n"] == 29


def test_nothing_to_check(tiny: CLIP, labelled: LabelledSet) -> None:
    evaluator = Evaluator(tiny, labelled)
    # Every embedding turned round: the likeliest class is the one least like the picture.
    evaluator.weights = -evaluator.weights
    assert not evaluator.run(find_attack("clean"), None).correct.any()
    verdict = sanity_check(evaluator, PGD, Threat(eps=1 / 255), limit=5)
    assert verdict == {"n": 0, "passed": False, "failed": ["no image is classified correctly"]}


# The counts of a classifier that passes every check.
GOOD = {
    "n": 100, "steps 1": 80, "steps 5": 60, "steps 10": 50, "steps 40": 45, "unbounded": 0, "white box": 45,
    "black box": 70, "noise": 95, "pixels": 1000, "zeros": 10, "rise": 5.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({}, []),
        ({"steps 10": 62}, []),  # 2 % may be chance
        ({"steps 10": 63}, ["more steps help the defender"]),
        ({"unbounded": 2}, []),
        ({"unbounded": 3}, ["survives a ball of every image"]),
        ({"black box": 43}, []),
        ({"black box": 42}, ["Square beats PGD"]),
        ({"noise": 43}, []),
        ({"noise": 42}, ["noise beats PGD"]),
        ({"zeros": 100}, []),
        ({"zeros": 101}, ["gradients are zero"]),
        ({"rise": 0.0}, ["the loss does not rise"]),
        ({"rise": math.nan}, ["the loss does not rise"]),
    ],
)
def test_each_check_by_itself(change: dict[str, float], failed: list[str]) -> None:
    verdict = module._verdict(GOOD | change)
    assert (verdict["failed"], verdict["passed"]) == (failed, not failed)


def test_the_ball_of_every_image_in_l2(tiny: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, pgd = [], module.pgd

    def spy(images: torch.Tensor, loss: Any, threat: Threat, **how: Any) -> torch.Tensor:
        seen.append(threat)
        return pgd(images, loss, threat, **how)

    monkeypatch.setattr(module, "pgd", spy)
    verdict = sanity_check(
        Evaluator(tiny, labelled_by(tiny, 8)), find_attack("cw10"), Threat(norm="l2", eps=0.2)
    )
    assert Threat(norm="l2", eps=math.sqrt(3 * 32 * 32)) in seen
    assert verdict["survivors_unbounded"] == 0


def test_the_loss_is_that_of_the_attack(tiny: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    called = set()

    def spy(name: str, loss: Any) -> Any:
        return lambda logits, labels: (called.add(name), loss(logits, labels))[1]

    monkeypatch.setattr(module, "LOSSES", {name: spy(name, loss) for name, loss in module.LOSSES.items()})
    sanity_check(Evaluator(tiny, labelled_by(tiny, 4)), find_attack("cw10"), Threat(eps=1 / 255), limit=4)
    assert called == {"margin"}
