from copy import deepcopy

import pytest
import torch

from advflyp.attack.elsewhere import Transfer
from advflyp.attack.pgd import CW, PGD
from advflyp.cli.main import main
from advflyp.evaluation.batch_size import IN_HOST_MEMORY, largest_batch
from advflyp.evaluation.suite import evaluate
from advflyp.model.clip import CLIP


def test_halved_until_it_fits(tiny: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def encode(images: torch.Tensor) -> torch.Tensor:
        tried.append(len(images))
        if len(images) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images.mean((2, 3))

    monkeypatch.setattr(type(tiny), "device", torch.device("meta"))
    monkeypatch.setattr(tiny, "encode_image", encode)
    assert largest_batch(tiny) == 64
    assert tried == [1024, 512, 256, 128, 64]
    assert all(parameter.grad is None for parameter in tiny.parameters())


def test_another_error_is_told(tiny: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("a launch failed")

    monkeypatch.setattr(type(tiny), "device", torch.device("meta"))
    monkeypatch.setattr(tiny, "encode_image", encode)
    with pytest.raises(RuntimeError, match="a launch failed"):
        largest_batch(tiny)


def test_auto_is_found_once_a_model(tiny: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    assert largest_batch(tiny) == IN_HOST_MEMORY
    asked = []
    monkeypatch.setattr("advflyp.evaluation.suite.largest_batch", lambda model: asked.append(model) or 5)
    cells = evaluate(tiny, ["mini/food", "mini/flags"], "clean", limit=10, batch_size="auto")
    assert asked == [tiny]
    assert [c.correct for c in cells] == [
        c.correct for c in evaluate(tiny, ["mini/food", "mini/flags"], "clean", limit=10, batch_size=128)
    ]


def test_a_surrogate_must_fit_too(tiny: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("advflyp.evaluation.suite.largest_batch", lambda model: asked.append(model) or 5)
    other = deepcopy(tiny)
    attacks = [Transfer(attack=PGD(steps=1), model=other), Transfer(attack=CW(steps=1), model=other)]
    evaluate(tiny, ["mini/food"], attacks, [1 / 255], limit=4)
    assert asked == [tiny, other]


def test_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    for value, message in (
        ("most", "--batch-size must be a whole number"),
        ("0", "--batch-size must be at least 1"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["eval", "mini", "--batch-size", value])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
