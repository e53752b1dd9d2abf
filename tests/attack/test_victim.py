import pytest
import torch
from torch import Tensor

from advflyp.attack.apgd import APGD
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import Victim, predicted

IMAGES = torch.linspace(0.05, 0.95, 10).view(10, 1, 1, 1).expand(10, 3, 2, 2).contiguous()


def float32(images: Tensor) -> Tensor:
    """Two classes: the darker half is class 0, the brighter one class 1."""
    brightness = images.flatten(1).mean(1)
    return torch.stack([0.5 - brightness, brightness - 0.5], 1)


def rounded(images: Tensor) -> Tensor:
    """A coarse search, which sees the boundary at 0.3."""
    return float32(images + 0.2)


def test_without_float32_logits_the_search_has_the_last_word() -> None:
    labels = torch.zeros(10, dtype=torch.long)
    fooled = Victim(float32).fooled(IMAGES, labels, float32(IMAGES))
    assert fooled.tolist() == [False] * 5 + [True] * 5


def test_what_the_search_finds_is_confirmed() -> None:
    asked = []

    def asked_fp32(images: Tensor) -> Tensor:
        asked.append(images)
        return float32(images)

    victim = Victim(rounded, asked_fp32)
    labels = torch.zeros(10, dtype=torch.long)
    logits = victim(IMAGES)
    assert (logits.argmax(1) != labels).sum() == 7, "two of these are the search's error"
    assert victim.fooled(IMAGES, labels, logits).tolist() == [False] * 5 + [True] * 5
    assert len(asked) == 1
    assert torch.equal(asked[0], IMAGES[3:]), "only what was found"
    before = logits.clone()
    victim.fooled(IMAGES, torch.ones_like(labels), logits)
    assert torch.equal(logits, before)


def test_float32_is_not_asked_where_nothing_was_found() -> None:
    def asked_fp32(images: Tensor) -> Tensor:
        raise AssertionError("asked")

    labels = rounded(IMAGES).argmax(1)
    assert not Victim(rounded, asked_fp32).fooled(IMAGES, labels, rounded(IMAGES)).any()


def test_no_graph_is_kept() -> None:
    weight = torch.ones(1, requires_grad=True)
    victim = Victim(rounded, lambda images: float32(images) * weight)
    assert not victim.fooled(IMAGES, torch.zeros(10, dtype=torch.long), rounded(IMAGES)).requires_grad


def test_an_attack_goes_on_until_float32_agrees() -> None:
    """An image that only the search believes fooled must not leave and count as robust afterwards."""
    labels = float32(IMAGES).argmax(1)
    streams = Streams(0, torch.arange(10))
    found = APGD(steps=20).perturb(
        Victim(rounded, float32), IMAGES, labels, Threat(eps=0.12), streams=streams
    )
    # 0.35 and 0.45 look fooled from the beginning, 0.25 soon; only 0.45 can truly cross 0.5. For the brighter half
    # the search sees no boundary within reach.
    assert (found != IMAGES).flatten(1).any(1).nonzero().flatten().tolist() == [4]
    assert float32(found)[4].argmax() == 1


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
def test_a_tie_or_nan_is_never_correct_wherever_it_stands(kind: torch.dtype) -> None:
    nan, inf = float("nan"), float("inf")
    rows = [
        ([0, 0, 0], False), ([1, 1, 0], False), ([2, 1, 0], True), ([nan, 0, 0], False), ([1, nan, 0], False),
        ([nan, nan, nan], False), ([-inf, -inf, -inf], False), ([inf, 0, 0], True), ([inf, inf, 0], False),
        ([nan, -inf, -inf], False), ([0, -inf, -inf], True),
    ]  # fmt: skip
    for values, is_correct in rows:
        for place in range(3):
            # The same answer with the classes in another order.
            logits = torch.tensor([values], dtype=kind).roll(place, dims=1)
            answer = predicted(logits, torch.tensor([place]))
            assert (int(answer) == place) == is_correct and 0 <= int(answer) < 3
            fooled = Victim(lambda x: x).fooled(torch.zeros(1, 3, 2, 2), torch.tensor([place]), logits)
            assert bool(fooled) != is_correct


def test_without_ties_it_is_the_largest_logit() -> None:
    logits = torch.randn(200, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(200) % 7
    assert torch.equal(predicted(logits, labels), logits.argmax(1))
