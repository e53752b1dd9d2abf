import pytest
import torch

from advflyp.attack.threat import Threat
from advflyp.data.sets.labelled import LabelledSet
from advflyp.evaluation.attacks import find_attack
from advflyp.evaluation.evaluator import Evaluator
from advflyp.model.clip import CLIP
from advflyp.report.figures.examples import Example, amplification, examples, perturbation, rule

NAMES = ["mini/one", "mini/two"]


def test_the_rule(tiny: CLIP, other: CLIP, sets: dict[str, LabelledSet]) -> None:
    shown = examples(tiny, other, NAMES, eps=2 / 255, n=6)
    assert len(shown) == 6
    assert {e.set for e in shown[:2]} == set(NAMES), "spread over the sets before a second picture of one"
    assert len({(e.set, e.index) for e in shown}) == 6
    for example in shown:
        labelled = sets[example.set]
        assert example.label == labelled.classes[labelled.dataset[example.index][1]]
        assert example.before.top_clean[0][0] == example.label, "the original model is right"
        for view in (example.before, example.after):
            inside = Threat(eps=2 / 255).contains(view.clean[None], view.adversarial[None])
            assert bool(inside.all()) and not torch.equal(view.clean, view.adversarial)
            probabilities = [p for _, p in view.top_clean]
            assert probabilities == sorted(probabilities, reverse=True) and len(probabilities) == 3
            assert sum(probabilities) <= 1 + 1e-5


def test_the_choice_knows_nothing_of_the_second_model(
    tiny: CLIP, other: CLIP, sets: dict[str, LabelledSet]
) -> None:
    def places(shown: list[Example]) -> list[tuple[str, int]]:
        return [(e.set, e.index) for e in shown]

    first = places(examples(tiny, other, NAMES, eps=2 / 255, n=4))
    assert first == places(examples(tiny, tiny, NAMES, eps=8 / 255, n=4))
    assert first != places(examples(tiny, other, NAMES, eps=2 / 255, n=4, seed=3))


def test_it_is_the_attack_of_the_evaluation(tiny: CLIP, other: CLIP, sets: dict[str, LabelledSet]) -> None:
    shown = examples(tiny, other, NAMES, eps=8 / 255, n=8)
    threat, attack = Threat(eps=8 / 255), find_attack("pgd10")
    outcome = {name: Evaluator(tiny, labelled).run(attack, threat).correct for name, labelled in sets.items()}
    for example in shown:
        assert (example.before.top_adversarial[0][0] == example.label) == bool(
            outcome[example.set][example.index]
        )


def test_fewer_where_the_original_is_rarely_right(
    tiny: CLIP, other: CLIP, sets: dict[str, LabelledSet]
) -> None:
    right = sum(
        int(Evaluator(tiny, labelled).run(find_attack("clean"), None).correct.sum())
        for labelled in sets.values()
    )
    assert len(examples(tiny, other, NAMES, eps=2 / 255, n=1000)) == right > 0


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_amplified_perturbation_fills_the_range(
    tiny: CLIP, other: CLIP, sets: dict[str, LabelledSet], norm: str
) -> None:
    (example,) = examples(tiny, other, NAMES, eps=2 / 255 if norm == "linf" else 0.5, n=1, norm=norm)  # type: ignore[arg-type]
    view = example.before
    picture = perturbation(view.clean, view.adversarial, example.threat)
    factor = amplification(view.clean, view.adversarial, example.threat)
    if norm == "linf":
        assert factor == pytest.approx(63.75, rel=1e-6)
    assert picture.min() >= 0 and picture.max() <= 1
    # Float32 pixels, rounded to 2⁻²⁵ in either picture.
    torch.testing.assert_close(
        (picture - 0.5) / factor, view.adversarial - view.clean, rtol=0, atol=2**-24 * (1 + 1 / factor)
    )


def test_the_rule_says_its_seed() -> None:
    assert "seed 7" in rule(7)
