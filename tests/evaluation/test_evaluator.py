import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from advflyp.attack.threat import Threat
from advflyp.data.sets.labelled import LabelledSet
from advflyp.evaluation import evaluator as module
from advflyp.evaluation.attacks import find_attack
from advflyp.evaluation.evaluator import Evaluator, SetProgress
from advflyp.evaluation.journal import Journal
from advflyp.model.clip import CLIP
from advflyp.model.load import load_model
from helpers import Unreadable, labelled_by

CLEAN = find_attack("clean")


def test_clean_and_attacked(tiny: CLIP, noise_set: LabelledSet) -> None:
    evaluator = Evaluator(tiny, noise_set, batch_size=7)
    assert evaluator.run(CLEAN, None).correct.all()
    accuracy = [
        evaluator.run(find_attack("pgd10"), Threat(eps=eps)).accuracy
        for eps in (0.1 / 255, 2 / 255, 32 / 255)
    ]
    assert accuracy[0] >= accuracy[1] >= accuracy[2]
    assert accuracy[2] < 0.5


def test_what_became_of_each_image(tiny: CLIP, noise_set: LabelledSet) -> None:
    attack, threat = find_attack("pgd3x2"), Threat(eps=4 / 255)
    evaluator = Evaluator(tiny.double(), noise_set, limit=11, seed=3)
    outcome = evaluator.run(attack, threat)
    assert outcome.index.tolist() == noise_set.subset(11, 3)
    assert torch.equal(outcome.label, noise_set.labels[outcome.index])
    assert torch.equal(outcome.clean, outcome.label)
    rows = torch.stack([outcome.index, outcome.label, outcome.attacked], dim=1).tolist()
    for place, label, attacked in rows:
        image = tiny.preprocess(noise_set.dataset[place][0])[None]
        found = evaluator.attack(image, torch.tensor([label]), attack, threat, index=torch.tensor([place]))
        assert evaluator.logits_fp32(found).argmax(1).item() == attacked
        assert threat.contains(image, found).all()


def test_batch_size_and_company_change_nothing(tiny: CLIP) -> None:
    labelled = labelled_by(tiny.double(), 40)
    for name in ("pgd3", "noise", "cw4x2"):
        attack, threat = find_attack(name), Threat(eps=2 / 255)
        outcomes = [Evaluator(tiny, labelled, batch_size=b).run(attack, threat) for b in (3, 40)]
        assert torch.equal(outcomes[0].attacked, outcomes[1].attacked)
        part = Evaluator(tiny, labelled, limit=13, batch_size=4).run(attack, threat)
        assert torch.equal(part.attacked, outcomes[1].attacked[part.index])


def test_seeds_differ(tiny: CLIP, noise_set: LabelledSet) -> None:
    evaluator = Evaluator(tiny, noise_set)
    images = torch.cat([images for _, images, _ in noise_set.batches(tiny.preprocess, 20)])
    found = [
        evaluator.attack(images, noise_set.labels, find_attack("noise"), Threat(eps=1 / 255), seed=seed)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_judged_in_float32_even_if_found_in_bf16(
    tiny: CLIP, noise_set: LabelledSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    original = tiny.encode_image
    monkeypatch.setattr(
        tiny, "encode_image", lambda images: (seen.append(tiny.precision), original(images))[1]
    )
    Evaluator(tiny, noise_set, batch_size=20).run(find_attack("pgd3"), Threat(eps=1e-6), precision="bf16")
    assert seen[0] == seen[-1] == "fp32"
    assert seen.count("bf16") == 3


def test_bf16_and_fp32_searches_agree(tiny: CLIP) -> None:
    """The accuracy left by a search in bf16 is that of one in float32, within sampling noise."""
    labelled = labelled_by(tiny, 300)
    evaluator = Evaluator(tiny, labelled)
    # An ε at which about half of them fall, where a difference would show.
    threat = Threat(eps=1.2 / 255)
    left = [evaluator.run(find_attack("pgd10"), threat, precision=p).correct for p in ("fp32", "bf16")]
    share = [x.float().mean().item() for x in left]
    assert 0.1 < share[0] < 0.9
    # Of m images that only one of the searches fools, by chance either fools half, with a standard deviation of √m of
    # the difference; three of these.
    discordant = (left[0] != left[1]).sum().item()
    assert abs(share[0] - share[1]) * 300 <= 3 * max(1, discordant) ** 0.5


def test_an_image_that_is_wrong_when_clean_stays_wrong_and_is_not_attacked(
    tiny: CLIP, noise_set: LabelledSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = [(image, (label + 1) % 3) for image, label in noise_set.dataset]
    evaluator = Evaluator(tiny, replace(noise_set, dataset=wrong))
    assert not evaluator.run(CLEAN, None).correct.any()
    monkeypatch.setattr("advflyp.evaluation.evaluator._Run._record", lambda *_: pytest.fail("attacked"))
    outcome = evaluator.run(find_attack("pgd2"), Threat(eps=8 / 255))
    assert not outcome.correct.any()
    assert torch.equal(outcome.attacked, outcome.clean)


def test_each_stage_gets_the_points_still_standing_in_full_batches(
    tiny: CLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled = labelled_by(tiny, 60)
    sizes: list[tuple[int, int]] = []
    record = module._Run._record

    def spy(self, rows, answers) -> None:
        sizes.append((int(self.survived[rows[0]]), len(rows)))
        record(self, rows, answers)

    monkeypatch.setattr(module._Run, "_record", spy)
    outcome = Evaluator(tiny, labelled, batch_size=10).run(find_attack("pgd3x3"), Threat(eps=1 / 255))
    totals = [sum(size for stage_number, size in sizes if stage_number == n) for n in range(3)]
    assert totals[0] == 60 > totals[1] >= totals[2] >= int(outcome.correct.sum())
    for n in range(3):
        *full, _ = [size for stage_number, size in sizes if stage_number == n]
        assert all(size == 10 for size in full)


class Cut(Exception):
    pass


def test_an_interrupted_run_goes_on_from_its_last_batch(
    tiny: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No image is classified twice, and none goes through a stage twice."""
    labelled = labelled_by(tiny.double(), 50)
    attack, threat, journal = find_attack("pgd3x2"), Threat(eps=1.5 / 255), Journal(tmp_path / "x.journal")
    classified: list[int] = []
    passed: list[tuple[int, int]] = []  # (image, stage)
    classify, record = module.Evaluator.logits_fp32, module._Run._record

    def count_classified(self: Evaluator, images: torch.Tensor) -> torch.Tensor:
        classified.append(len(images))
        return classify(self, images)

    def count_passed(self: Any, rows: torch.Tensor, answers: torch.Tensor) -> None:
        passed.extend((int(row), int(self.survived[row])) for row in rows)
        record(self, rows, answers)

    monkeypatch.setattr(module.Evaluator, "logits_fp32", count_classified)
    monkeypatch.setattr(module._Run, "_record", count_passed)
    whole = Evaluator(tiny, labelled, batch_size=10).run(attack, threat)
    assert 0 < whole.correct.sum() < 50
    expected = sum(classified), sorted(passed)
    assert len(expected[1]) == len(set(expected[1])) > 50
    classified.clear()
    passed.clear()

    def cut_after(batches: int) -> Callable[[SetProgress], None]:
        told = itertools.count(1)

        def watch(progress: SetProgress) -> None:
            if next(told) == batches:
                raise Cut

        return watch

    for batches in (2, 3, 2):
        with pytest.raises(Cut):
            Evaluator(tiny, labelled, batch_size=10).run(
                attack, threat, journal=journal, watch=cut_after(batches)
            )
        saved = journal.read()
        assert (saved["survived"].sum() > 0) or (saved["attacked"] >= 0).any()
    resumed = Evaluator(tiny, labelled, batch_size=10).run(attack, threat, journal=journal)
    assert torch.equal(resumed.attacked, whole.attacked)
    assert (sum(classified), sorted(passed)) == expected


@pytest.mark.parametrize("bad", [(140,), (20,), (20, 140)])
def test_what_is_left_of_an_interrupted_run_may_hold_unreadable_pictures(
    tiny: CLIP, tmp_path: Path, bad: tuple[int, ...]
) -> None:
    """One of 150 is tolerated, though it is more than 1 % of the 40 that are left; two are not."""
    labelled = labelled_by(tiny.double(), 150)
    images = Unreadable(labelled.dataset)
    images.bad, images.targets = bad, labelled.labels.tolist()
    attack, threat, journal = find_attack("pgd1"), Threat(eps=1 / 255), Journal(tmp_path / "x.journal")

    def cut(progress: SetProgress) -> None:
        if progress.finished > 75:
            raise Cut

    def evaluator() -> Evaluator:
        return Evaluator(tiny, replace(labelled, dataset=images, unreadable={}), batch_size=10)

    with pytest.raises(Cut):
        evaluator().run(attack, threat, journal=journal, watch=cut)
    if len(bad) > 1:
        with pytest.raises(ValueError, match="more than 1% of"):
            evaluator().run(attack, threat, journal=journal)
        return
    resumed = evaluator().run(attack, threat, journal=journal)
    assert resumed.index.tolist() == [place for place in range(150) if place not in bad]
    whole = Evaluator(tiny, labelled).run(attack, threat)
    assert torch.equal(resumed.attacked, whole.attacked[resumed.index])


def test_what_a_watcher_is_told(tiny: CLIP) -> None:
    labelled = labelled_by(tiny, 30)
    told: list[SetProgress] = []
    outcome = Evaluator(tiny, labelled, batch_size=5).run(
        find_attack("pgd2x2"), Threat(eps=2 / 255), watch=told.append
    )
    finished = [progress.finished for progress in told]
    assert finished == sorted(finished) and finished[-1] == 30
    assert told[-1].left == 0 and told[-1].images == 30
    assert told[-1].accuracy == int(outcome.correct.sum()) / 30
    assert told[-1].seconds_left == 0
    assert all(progress.left + progress.finished <= 30 for progress in told)


def test_the_model_is_left_as_it_was(tiny: CLIP, noise_set: LabelledSet) -> None:
    tiny.train()
    frozen = next(tiny.visual.children())
    frozen.eval()
    flags = [module.training for module in tiny.modules()]
    before = torch.get_rng_state()
    Evaluator(tiny, noise_set).run(find_attack("pgd2"), Threat(eps=1 / 255))
    assert flags == [module.training for module in tiny.modules()]
    assert torch.equal(before, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in tiny.parameters())


def test_pixels_that_are_no_numbers(
    tiny: CLIP, noise_set: LabelledSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "preprocess", lambda picture: torch.full((3, 32, 32), float("nan")))
    with pytest.raises(ValueError, match="mini/noise, at 00000: pixels must be numbers from 0 to 1"):
        Evaluator(tiny, noise_set).run(CLEAN, None)


def test_classes_are_encoded_when_an_image_is_and_in_float32(
    tiny: CLIP, noise_set: LabelledSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation whose results are known encodes no text; a search in bf16 sees float32 embeddings."""
    expected = Evaluator(tiny, noise_set).weights
    seen: list[str] = []
    original = tiny.encode_text
    monkeypatch.setattr(tiny, "encode_text", lambda texts: (seen.append(tiny.precision), original(texts))[1])
    evaluator = Evaluator(tiny, noise_set)
    assert seen == []
    evaluator.victim("bf16").search(torch.rand(2, 3, 32, 32))
    assert seen and set(seen) == {"fp32"}
    assert torch.equal(evaluator.weights, expected)


@pytest.mark.parametrize("attack", ["clean", "pgd2", "noise", "apgd-ce+square"])
def test_a_tie_is_a_wrong_answer_for_every_class(tiny: CLIP, noise_set: LabelledSet, attack: str) -> None:
    """A model that says the same of everything: by position, class 0 would be right."""
    evaluator = Evaluator(tiny, noise_set)
    evaluator.__dict__["weights"] = torch.zeros_like(evaluator.weights)
    threat = None if attack == "clean" else Threat(eps=1 / 255)
    outcome = evaluator.run(find_attack(attack), threat)
    assert not outcome.correct.any() and set(outcome.label.tolist()) >= {0, 1}
    assert not (outcome.clean == outcome.label).any() and int(outcome.clean.min()) >= 0


def test_logits_that_are_no_numbers_end_an_evaluation(noise_set: LabelledSet, tiny_folder: Path) -> None:
    model = load_model(tiny_folder)
    with torch.no_grad():
        model.visual.conv1.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"gives logits that are not finite on .*, first at .*: its weights"):
        Evaluator(model, noise_set).run(CLEAN, None)
