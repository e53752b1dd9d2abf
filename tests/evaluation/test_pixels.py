"""Images on their way to the device: sent as bytes, and the same pixels to the last bit."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import ToTensor

from advflyp.evaluation.attacks import find_attack
from advflyp.evaluation.evaluator import Evaluator
from advflyp.evaluation.pixels import Pixels, in_bytes, on_device
from advflyp.model.clip import CLIP
from helpers import labelled_by

CPU = torch.device("cpu")


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def test_every_byte_becomes_the_pixel_that_totensor_makes_of_it() -> None:
    image = Image.fromarray(np.arange(768, dtype=np.uint16).astype(np.uint8).reshape(16, 16, 3))
    expected = ToTensor()(image)[None]
    found = on_device(in_bytes(ToTensor())(image)[None], CPU)
    assert len(expected.unique()) == 256
    assert torch.equal(found, expected)
    assert found.dtype == torch.float32 and found.stride() == expected.stride()
    floats = torch.rand(2, 3, 4, 4)
    assert on_device(floats, CPU) is floats


@pytest.mark.parametrize(
    "pixels",
    [Pixels(), Pixels(resize=40), Pixels(resize=36, interpolation="bilinear"), Pixels(native=True)],
    ids=str,
)
def test_a_transform_in_bytes_has_the_same_pixels(pixels: Pixels, tiny: CLIP) -> None:
    transform = pixels.transform(tiny)
    image = noise(50, 41)
    sent = in_bytes(transform)(image)
    assert sent.dtype == torch.uint8 and sent.is_contiguous()
    assert torch.equal(on_device(sent[None], CPU)[0], transform(image))


def test_a_transform_that_ends_otherwise_stays() -> None:
    def own(image: Image.Image) -> torch.Tensor:
        return ToTensor()(image) ** 2

    assert in_bytes(own) is own


@pytest.mark.parametrize("double", [False, True])
def test_an_evaluation_answers_the_same(double: bool, tiny: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logits, to the last bit; and it sends a quarter of the bytes."""
    model = tiny.double() if double else tiny
    labelled = labelled_by(model, 12)
    sent: list[torch.Tensor] = []
    logits: list[list[torch.Tensor]] = []
    for as_bytes in (True, False):
        with monkeypatch.context() as patch:
            evaluator = Evaluator(model, labelled, batch_size=5)
            answered: list[torch.Tensor] = []
            original = evaluator.logits_fp32

            def record(
                images: torch.Tensor, original: Any = original, answered: Any = answered
            ) -> torch.Tensor:
                answered.append(original(images))
                return answered[-1]

            def send(images: torch.Tensor, device: torch.device) -> torch.Tensor:
                sent.append(images)
                return on_device(images, device)

            patch.setattr(evaluator, "logits_fp32", record)
            patch.setattr("advflyp.evaluation.evaluator.on_device", send)
            if not as_bytes:
                patch.setattr("advflyp.evaluation.evaluator.in_bytes", lambda transform: transform)
            evaluator.run(find_attack("clean"), None)
            logits.append(answered)
    assert all(torch.equal(*pair) for pair in zip(*logits, strict=True)) and len(logits[0]) == 3
    assert [images.nbytes * 4 for images in sent[:3]] == [images.nbytes for images in sent[3:]]
