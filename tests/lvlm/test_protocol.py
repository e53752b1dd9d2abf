"""What the protocol does, on a model whose answers and losses are made up."""

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from advflyp.attack.apgd import APGD
from advflyp.attack.encoder import EncoderPGD
from advflyp.attack.pgd import PGD, pgd
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.lvlm import protocol as module
from advflyp.lvlm.evaluate import evaluate_lvlm
from advflyp.lvlm.load import load_lvlm
from advflyp.lvlm.model import LVLM
from advflyp.lvlm.protocol import (
    ENCODER,
    PROTOCOLS,
    ROBUSTVLM,
    LVLMProtocol,
    Round,
    Runner,
    captions_of,
    find_protocol,
)
from advflyp.lvlm.tasks import Sample, Task, load_task
from helpers import assert_equal64, loaded_vit

REFERENCES = tuple(f"caption {i}" for i in range(5))
THREAT = Threat(eps=4 / 255)


class Recorder:
    """Stands for model and attack: notes each round, and answers with the number of the round that made the image."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, scores: dict[str, float]) -> None:
        self.rounds: list[dict[str, Any]] = []
        self.scores, self.precision = scores, "fp32"
        monkeypatch.setattr(module, "perturb", self.perturb)

    @contextmanager
    def computing_in(self, precision: str) -> Any:
        before, self.precision = self.precision, precision
        yield
        self.precision = before

    def perturb(
        self, model: Any, attack: Any, images: Tensor, prompts: Any, targets: Any, threat: Any, **how: Any
    ) -> Tensor:
        self.rounds.append({"precision": self.precision, "targets": list(targets), **how})
        return images + len(self.rounds) / 10_000

    def answer(self, images: Tensor, prompts: Sequence[str], *, max_new_tokens: int) -> list[str]:
        assert self.precision == "fp32"
        return [f"round {round(float(image.flatten()[0]) * 10_000)}" for image in images]

    def score(self, place: int, answer: str) -> float:
        return self.scores.get(f"{place} {answer}", self.scores.get(answer, 50.0))


def task(name: str, metric: Any, count: int = 1, references: tuple[str, ...] = REFERENCES) -> Task:
    samples = tuple(Sample(str(i), Path("x"), "what ?", references) for i in range(count))
    return Task(name, metric, samples, count)


def run(model: Recorder, what: Task, how: LVLMProtocol = ROBUSTVLM) -> Any:
    runner = Runner(model, what, how, THREAT, model.score)  # type: ignore[arg-type]
    return runner.run(list(range(len(what.samples))), torch.zeros(len(what.samples), 3, 2, 2))


def test_captions_half_then_float32_from_the_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Recorder(monkeypatch, {"round 0": 90, "round 3": 20, "round 6": 30})
    found = run(model, task("coco", "cider"))
    assert [one["precision"] for one in model.rounds] == ["bf16"] * 5 + ["fp32"]
    assert [one["targets"] for one in model.rounds] == [[one] for one in REFERENCES] + [["caption 2"]]
    assert not any(one["start"].any() for one in model.rounds[:5]), "from the image itself"
    # From the image of round 3, which was the worst, with its caption.
    assert torch.allclose(model.rounds[5]["start"], torch.full((1, 3, 2, 2), 3e-4))
    # Round 6 was not worse: the worst case stays.
    assert (found.clean, found.answers) == (["round 0"], ["round 3"])
    assert found.scores.tolist() == [20]
    assert torch.allclose(found.images, torch.full((1, 3, 2, 2), 3e-4))


def test_without_a_worse_answer_the_last_round_begins_at_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Recorder(monkeypatch, {})  # every answer scores 50
    found = run(model, task("coco", "cider"))
    assert not model.rounds[5]["start"].any() and model.rounds[5]["targets"] == ["caption 0"]
    assert found.answers == found.clean and not found.images.any()


def test_another_attack_starts_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Recorder(monkeypatch, {})
    run(model, task("coco", "cider"), find_protocol("apgd7"))
    assert [one["start"] for one in model.rounds] == [None]


def test_what_is_scored_of_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorder, "answer", lambda *_, **__: [' a "red" cat Output: a dog'])
    assert run(Recorder(monkeypatch, {}), task("coco", "cider")).clean == ["a red cat"]
    monkeypatch.setattr(Recorder, "answer", lambda *_, **__: ["red, white Question: what"])
    assert run(Recorder(monkeypatch, {}), task("vqav2", "vqa")).clean == ["red"]
    monkeypatch.setattr(Recorder, "answer", lambda *_, **__: ["Yes, Short"])
    assert run(Recorder(monkeypatch, {}), task("pope-random", "yes-no")).clean == ["Yes, Short"]


def test_answers_have_as_many_tokens_as_the_task_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(Recorder, "answer", lambda *_, max_new_tokens: seen.append(max_new_tokens) or ["a"])
    run(Recorder(monkeypatch, {}), replace(task("pope-random", "yes-no"), longest=7))
    assert seen == [7]


@pytest.mark.parametrize(("name", "threshold"), [("coco", 10), ("flickr30k", 2)])
def test_a_sample_leaves_below_its_threshold(
    monkeypatch: pytest.MonkeyPatch, name: str, threshold: float
) -> None:
    scores = {"0 round 2": threshold - 0.1, "1 round 2": float(threshold)}
    model = Recorder(monkeypatch, scores)
    found = run(model, task(name, "cider", 2))
    assert [len(one["targets"]) for one in model.rounds] == [2, 2, 1, 1, 1, 1]
    assert [one["index"].tolist() for one in model.rounds] == [[0, 1]] * 2 + [[1]] * 4
    assert found.rounds.tolist() == [2, 6]
    assert found.scores.tolist() == pytest.approx([threshold - 0.1, threshold])


def test_answers_then_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    references = ("no", "red", "red", "red", "Blue", "blue")
    model = Recorder(monkeypatch, {"round 2": 40})
    run(model, task("vqav2", "vqa", references=references))
    assert [one["targets"][0] for one in model.rounds] == ["red", "no", "Blue", "blue", "no", "maybe", "Word"]
    assert [one["precision"] for one in model.rounds] == ["bf16"] * 4 + ["fp32"] * 3
    assert [one["targeted"] for one in model.rounds] == [False] * 5 + [True] * 2


def test_an_answer_that_is_wrong_is_not_attacked(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Recorder(monkeypatch, {"0 round 0": 0, "1 round 1": 0})
    found = run(model, task("textvqa", "vqa", 2))
    assert [one["index"].tolist() for one in model.rounds] == [[1]]
    assert found.rounds.tolist() == [0, 1]


def test_pope_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Recorder(monkeypatch, {})
    assert run(model, task("pope-random", "yes-no")).rounds.tolist() == [0]
    assert not model.rounds


SAID = [
    ("a red circle", "a circle"),
    ("a cat", "the cat"),
    ("a red circle", "red"),
    ("there is a dog", "a dog"),
]


@pytest.fixture(params=["llava", "llava_next"])
def with_clip(request: pytest.FixtureRequest, llava_folder: Path, next_folder: Path, tmp_path: Path) -> LVLM:
    """Either kind with the tower of a tiny CLIP, in float64."""
    folder = llava_folder if request.param == "llava" else next_folder
    return load_lvlm(folder, loaded_vit(tmp_path, size=16), device="cpu").double()


def captions(count: int = len(SAID)) -> Task:
    samples = tuple(Sample(str(i), Path("x"), "what ?", said) for i, said in enumerate(SAID[:count]))
    return Task("coco", "cider", samples, count)


def test_the_encoder_protocol_pushes_images_to_other_captions(with_clip: LVLM) -> None:
    """PGD on the tower's CLIP, written out; the same image alone as in a batch."""
    attack = PGD(steps=5, step_size=2 / 255)
    side = with_clip.image_side
    images = torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    how = replace(ENCODER, attack=attack)
    runner = Runner(with_clip, captions(), how, THREAT, lambda place, answer: 1000.0 - len(answer))
    found = runner._away_from_captions(images, torch.arange(4), seed=1)

    clip = with_clip.known_clip()
    texts = clip.encode_text(["a red circle", "a cat", "there is a dog"])
    own = torch.tensor([0, 1, 0, 2])

    def loss(pixels: Tensor) -> Tensor:
        if with_clip.is_next:
            pixels = F.interpolate(pixels, size=side // 2, mode="bicubic", antialias=True)
        return F.cross_entropy(clip.logit_scale * clip.encode_image(pixels) @ texts.T, own, reduction="none")

    start = THREAT.random_start(images, Streams(1, torch.arange(4)))
    assert_equal64(found, pgd(images, loss, THREAT, steps=5, step_size=2 / 255, start=start))
    alone = runner._away_from_captions(images[2:3], torch.tensor([2]), seed=1)
    assert_equal64(alone[0], found[2])
    assert runner.run([0, 1, 2, 3], images).rounds.tolist() == [1] * 4


def test_what_the_encoder_protocol_needs(lvlm: LVLM, with_clip: LVLM, root: Path) -> None:
    tasks = [load_task(name, root) for name in ("vizwiz", "coco")]
    with pytest.raises(ValueError, match="name it with --vision"):
        evaluate_lvlm(lvlm, tasks, ENCODER, [2 / 255])
    assert [cell.attack for cell in evaluate_lvlm(lvlm, tasks, ENCODER, [])] == ["clean"] * 2
    with pytest.raises(ValueError, match="the samples of vizwiz share one: raise --limit"):
        evaluate_lvlm(with_clip, tasks, ENCODER, [2 / 255])


def test_the_callers_clip_is_left_alone(llava_folder: Path, tmp_path: Path) -> None:
    mine = loaded_vit(tmp_path, size=16)
    model = load_lvlm(llava_folder, mine, device="cpu").double()
    model.caption_classifier(["a", "b"])
    assert mine.dtype == torch.float32 and any(value.requires_grad for value in mine.parameters())
    assert not any(value.requires_grad for value in model.known_clip().parameters())
    assert not any(value.requires_grad for value in model.parameters())


def test_questions_go_with_their_answer() -> None:
    asked = [("blue", "red", "red"), ("no",)]
    samples = tuple(Sample(str(i), Path("x"), "what ?\nIn a word.", said) for i, said in enumerate(asked))
    assert captions_of(Task("vqav2", "vqa", samples, 2)) == ["what ? red", "what ? no"]


def test_names() -> None:
    assert find_protocol("robustvlm") is ROBUSTVLM
    assert ROBUSTVLM.attack == APGD(loss="dlr", steps=100, first_step=1)
    assert PROTOCOLS["encoder"].attack == PGD(loss="ce", steps=100) and PROTOCOLS["encoder"].of_tower
    assert find_protocol("apgd7").attack == APGD(loss="dlr", steps=7)
    assert find_protocol("pgd3").attack == PGD(loss="margin", steps=3)
    assert find_protocol("encoder-patches5").attack == EncoderPGD(tokens="patches", steps=5)
    assert find_protocol("apgd7").rounds["vqa"] == (Round(0),)
    for name in ("square", "apgd", "apgd0", "apgd1x", "pgd10x5", "encoder10x5", "pgd-patches5", "nothing"):
        with pytest.raises(ValueError, match="no attack"):
            find_protocol(name)
