"""The builder of the tiny LLaVA, at sizes of seconds: it learns, resumes, and writes what `lvlm eval` reads."""

from pathlib import Path

import pytest
import torch

from advflyp.lvlm.load import load_lvlm
from advflyp.lvlm.tasks import load_task
from tools import mini_llava

SMALL = {"batch_size": 4, "width": 48, "layers": 1, "words": 400}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava") / "model"
    mini_llava.train(folder, texts=1, images=2, **SMALL)
    return folder


def test_it_is_a_llava_of_transformers(trained: Path) -> None:
    model = load_lvlm(trained, vision="mini-vit", device="cpu")
    assert (model.image_side, model.image_tokens) == (64, 65)
    assert model.template("What?") == mini_llava.template("What?"), "the template is the one of the training"
    assert sum(file.stat().st_size for file in trained.iterdir()) < 10e6
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    own = load_lvlm(trained, device="cpu")
    losses = own.per_sample_loss(images, [mini_llava.QUESTION] * 2, ["pizza", "red apple"])
    # The tower is mini-vit's own: in half precision, whose weights are within 2⁻¹¹ of those in float32.
    swapped = model.per_sample_loss(images, [mini_llava.QUESTION] * 2, ["pizza", "red apple"])
    torch.testing.assert_close(losses, swapped, rtol=0.02, atol=0)


def test_a_stopped_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights to the last bit, from the state after two of three updates."""

    def weights(folder: Path) -> dict[str, torch.Tensor]:
        return load_lvlm(folder, device="cpu").net.state_dict()

    monkeypatch.setattr(mini_llava, "EVERY", 2)
    mini_llava.train(tmp_path / "whole", texts=1, images=2, **SMALL)
    cut = tmp_path / "cut"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(mini_llava, "right", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        mini_llava.train(cut, texts=1, images=2, **SMALL)
    assert (cut / "state.pt").is_file()
    mini_llava.train(cut, texts=1, images=2, **SMALL)
    whole, again = weights(tmp_path / "whole"), weights(cut)
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_held_out_images_in_the_layouts_of_coco_and_vqav2(tmp_path: Path) -> None:
    mini_llava.tasks(tmp_path / "data")
    coco, vqav2 = (load_task(name, tmp_path / "data") for name in ("coco", "vqav2"))
    assert len(coco.samples) == len(vqav2.samples) == 330
    for one, two in zip(coco.samples, vqav2.samples, strict=True):
        assert one.image == two.image and one.image.is_file()
        assert two.references == one.references * 10
        assert (one.prompt, two.prompt) == mini_llava.PROMPTS
    mini_llava.tasks(tmp_path / "others", without=100)
    drawn, others = coco.drawn(100, 42), load_task("coco", tmp_path / "others")
    names = [{sample.image.name for sample in task.samples} for task in (drawn, others)]
    assert (len(names[0]), len(names[1])) == (100, 230) and not names[0] & names[1]


def test_the_model_of_the_package_names_held_out_images() -> None:
    """It gives more than a third of the images their name, out of 1,504; docs/lvlm.md has all figures."""
    assert mini_llava.right(load_lvlm("mini-llava", device="cpu"), 48) > 1 / 3
