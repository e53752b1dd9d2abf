from pathlib import Path

import pytest
import torch
from PIL import Image

import advflyp
from advflyp.attack.threat import Threat
from advflyp.data.labelled import LabelledSet
from advflyp.evaluation import suite
from advflyp.evaluation.results import read_cells
from advflyp.evaluation.suite import Attack, Judge, evaluate
from advflyp.model.clip import CLIP
from advflyp.model.hub import weights_sha256


@pytest.fixture
def noise_set(tiny: CLIP) -> LabelledSet:
    """20 pictures labelled with the tiny model's own answer, so that it is right on every one of them."""
    classes = ["cat", "dog", "house"]
    random = torch.Generator().manual_seed(0)
    arrays = (torch.rand(20, 32, 32, 3, generator=random) * 255).byte().numpy()
    pictures = [(Image.fromarray(array), 0) for array in arrays]
    labelled = LabelledSet(
        name="mini/noise",
        split="test",
        classes=classes,
        templates=["a {}", "the {}"],
        pictures=pictures,
        info={},
    )
    judge = Judge(tiny, labelled)
    images = torch.cat([images for images, _ in labelled.batches(tiny.preprocess, 20)])
    with torch.no_grad():
        answers = judge.logits(images).argmax(1).tolist()
    labelled.pictures[:] = [(picture, answer) for (picture, _), answer in zip(pictures, answers, strict=True)]
    return labelled


@pytest.fixture
def known_sets(noise_set: LabelledSet, monkeypatch: pytest.MonkeyPatch) -> LabelledSet:
    monkeypatch.setattr(suite, "load_set", lambda name: noise_set)
    monkeypatch.setattr(suite, "set_names", lambda names: ["mini/noise"])
    return noise_set


def test_clean_and_attacked(tiny: CLIP, noise_set: LabelledSet) -> None:
    judge = Judge(tiny, noise_set, batch_size=7)
    assert judge.correct(Attack.parse("clean"), None).all()
    accuracy = [
        judge.correct(Attack.parse("pgd10"), Threat(eps=eps)).float().mean().item()
        for eps in (0.1 / 255, 2 / 255, 32 / 255)
    ]
    assert accuracy[0] >= accuracy[1] >= accuracy[2]
    assert accuracy[2] < 0.5


def test_batch_size_and_order_change_nothing(tiny: CLIP, noise_set: LabelledSet) -> None:
    attack, threat = Attack.parse("pgd3"), Threat(eps=2 / 255)
    images, labels = next(iter(noise_set.batches(tiny.preprocess, 20)))
    judge = Judge(tiny, noise_set)
    whole = judge.attack(images, labels, attack, threat, index=torch.arange(20))
    part = judge.attack(images[5:9], labels[5:9], attack, threat, index=torch.arange(5, 9))
    assert (whole[5:9] != part).float().mean() < 1e-3
    outcomes = [Judge(tiny, noise_set, batch_size=b).correct(attack, threat) for b in (3, 20)]
    assert torch.equal(*outcomes)


def test_judged_in_float32_even_if_found_in_bf16(tiny: CLIP, noise_set: LabelledSet) -> None:
    seen: list[str] = []
    original = tiny.encode_image
    tiny.encode_image = lambda images: (seen.append(tiny.precision), original(images))[1]  # type: ignore[method-assign]
    judge = Judge(tiny, noise_set, batch_size=20)
    judge.correct(Attack.parse("pgd3"), Threat(eps=1 / 255), precision="bf16")
    assert seen == ["fp32", "bf16", "bf16", "bf16", "fp32"]


def test_an_image_that_is_wrong_when_clean_stays_wrong(tiny: CLIP, noise_set: LabelledSet) -> None:
    noise_set.pictures[:] = [(picture, (label + 1) % 3) for picture, label in noise_set.pictures]
    judge = Judge(tiny, noise_set)
    assert not judge.correct(Attack.parse("clean"), None).any()
    assert not judge.correct(Attack.parse("pgd2"), Threat(eps=8 / 255)).any()


def test_cells(tiny: CLIP, known_sets: LabelledSet, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    told = []
    cells = evaluate(
        tiny,
        ["mini"],
        ["clean", "pgd2"],
        [1 / 255, 4 / 255],
        out=out,
        limit=10,
        name="m",
        progress=told.append,
    )
    assert [(c.attack, c.eps) for c in cells] == [("clean", 0.0), ("pgd2", 1 / 255), ("pgd2", 4 / 255)]
    assert told == cells == read_cells(out)
    clean, weak, _ = cells
    assert (clean.n, clean.correct, clean.accuracy, clean.norm, clean.attack_args) == (10, 10, 1.0, None, {})
    assert clean.ci95[0] == pytest.approx(0.722, abs=1e-3)
    assert weak.attack_args == {"steps": 2, "step_size": 1 / 255, "restarts": 1, "random_start": True}
    assert (weak.norm, weak.precision, weak.prompt, weak.split) == ("linf", "fp32", "a {} | the {}", "test")
    assert weak.checkpoint_sha256 == weights_sha256(tiny)
    assert weak.version == advflyp.__version__
    assert weak.accuracy == weak.correct / weak.n


def test_what_is_stored_is_not_computed_again(
    tiny: CLIP, known_sets: LabelledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r.jsonl"
    first = evaluate(tiny, ["mini"], ["clean", "pgd2"], [1 / 255], out=out)
    monkeypatch.setattr(Judge, "correct", lambda *_, **__: pytest.fail("computed again"))
    assert evaluate(tiny, ["mini"], ["clean", "pgd2"], [1 / 255], out=out) == first
    monkeypatch.undo()
    monkeypatch.setattr(suite, "load_set", lambda name: known_sets)
    monkeypatch.setattr(suite, "set_names", lambda names: ["mini/noise"])
    with torch.no_grad():
        tiny.net.logit_scale += 0.1
    evaluate(tiny, ["mini"], ["clean"], [1 / 255], out=out)
    assert len(read_cells(out)) == 3, "other weights are another measurement"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attacks": ["pgd"]}, "there is no attack 'pgd'; known: clean, pgdN"),
        ({"attacks": ["autoattack"]}, "there is no attack 'autoattack'"),
        ({"eps": [0.0]}, "eps must be above 0"),
        ({"sets": ["mini/foood"]}, "there is no set 'mini/foood'; did you mean 'mini/food'"),
        ({"limit": 0}, "limit must be at least 1"),
    ],
)
def test_mistakes(tiny: CLIP, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(tiny, **arguments)
