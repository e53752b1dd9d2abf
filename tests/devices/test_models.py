"""Models, methods and classifiers on a GPU give what they give on a CPU, in float64."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from advflyp.attack.pgd import ascend, pgd
from advflyp.attack.threat import Threat
from advflyp.data.batch import Batch
from advflyp.evaluation.classifier import Classifier
from advflyp.method import METHODS
from advflyp.model.clip import CLIP
from advflyp.model.folder import save_model, weights_sha256
from advflyp.model.load import load_model
from advflyp.model.zeroshot import ClassTexts
from advflyp.training.unfreeze import unfreeze
from devices.conftest import Gpu

CLASSES, TEMPLATES = ["red", "green", "blue", "yellow"], ["a {} thing", "the {} one"]
TEXTS = ["a red circle", "a blue bar", "a green square", "a red circle", "a yellow triangle"]


def images(n: int = 5, size: int = 32) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_model_is_moved_whole_and_saved_from_where_it_is(
    gpu: Gpu, tiny_folder: Path, tmp_path: Path
) -> None:
    model = load_model(tiny_folder, device=gpu.device)
    assert model.device == gpu.device
    assert {value.device for value in (*model.parameters(), *model.buffers())} == {gpu.device}
    assert weights_sha256(model) == weights_sha256(load_model(tiny_folder, device="cpu"))
    save_model(model, tmp_path / "saved", {})
    assert weights_sha256(load_model(tmp_path / "saved", device="cpu")) == weights_sha256(model)
    assert weights_sha256(deepcopy(model)) == weights_sha256(model)
    assert model.to("cpu").device.type == "cpu"


@pytest.mark.parametrize("kind", ["vit", "rn"])
def test_embeddings_are_those_of_a_cpu(kind: str, gpu: Gpu, tiny_folder: Path, tiny_rn_folder: Path) -> None:
    host = load_model(tiny_folder if kind == "vit" else tiny_rn_folder, device="cpu").double()
    model = deepcopy(host).to(gpu.device)
    pixels = images(size=host.image_size[0])
    close = {"rtol": 0, "atol": 1e-12}
    for micro_batch in (None, 2):
        model.micro_batch = micro_batch
        found = model.encode_image(pixels.to(gpu.device))
        assert found.device == gpu.device
        torch.testing.assert_close(found.cpu(), host.encode_image(pixels), **close)
    torch.testing.assert_close(model.encode_text(TEXTS).cpu(), host.encode_text(TEXTS), **close)
    torch.testing.assert_close(model.logit_scale.cpu(), host.logit_scale, **close)
    if kind == "vit":
        ours, theirs = model.encode_patches(pixels.to(gpu.device)), host.encode_patches(pixels)
        torch.testing.assert_close(ours.tokens.cpu(), theirs.tokens, **close)


def test_bf16_is_for_the_towers_only(gpu: Gpu, tiny_folder: Path) -> None:
    model = load_model(tiny_folder, device=gpu.device)
    pixels = images().float().to(gpu.device)
    seen: dict[str, set[torch.dtype]] = {}
    for layer in model.net.visual.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear | torch.nn.LayerNorm):
            kind = type(layer).__name__
            layer.register_forward_hook(
                lambda _, __, out, kind=kind: seen.setdefault(kind, set()).add(out.dtype)
            )
    exact = model.encode_image(pixels)
    assert set().union(*seen.values()) == {torch.float32}
    seen.clear()
    with model.computing_in("bf16"):
        rounded = model.encode_image(pixels)
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
    assert seen.pop("Float32Conv2d") == {torch.float32}, "pixels are not rounded"
    assert seen.pop("LayerNorm") == {torch.float32}
    assert seen and set().union(*seen.values()) == {torch.bfloat16}


def batch_of(model: CLIP, method: Any) -> Batch:
    """What the run promises the method."""
    device = model.device
    labels = torch.arange(5, device=device) % len(CLASSES)
    batch = Batch(images=images().to(device), captions=TEXTS)
    if method.trains_on == "pairs":
        batch = replace(batch, text_embeddings=model.encode_text(TEXTS).detach())
    elif method.trains_on == "labelled":
        texts = ClassTexts(model, CLASSES, TEMPLATES, frozen=True)(labels)
        captions = [CLASSES[label % 4] for label in range(5)]
        batch = replace(batch, labels=labels, captions=captions, **texts)
    return batch


def method_on(device: torch.device | str, name: str, folder: Path) -> Any:
    kind, config = METHODS[name]
    keys: dict[str, Any] = {"mask_same_caption": True} if name in ("advflyp", "flyp") else {}
    keys |= {"feature_weight": 1.0, "logit_weight": 1.0} if name in ("advflyp", "flyp", "tecoa") else {}
    model = load_model(folder, device="cpu").double()
    method = kind(config(**keys), model)
    if method.needs_original:
        # A model that is its original has no distances to differentiate.
        method.original = deepcopy(model).requires_grad_(False)
        noise = torch.Generator().manual_seed(0)
        for weight in method.original.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=noise, dtype=weight.dtype)
        method.original.to(device)
    unfreeze(model, "all")
    model.to(device)
    return method


def outcome(method: Any, batch: Batch) -> dict[str, Tensor]:
    """What the attack finds from a given start, its loss before and after, the losses and the gradients."""
    images, threat = batch.images, Threat(eps=4 / 255)
    start = (images + 2 / 255).clamp(0, 1)

    def loss(x: Tensor) -> Tensor:
        return method.attack_loss(x, batch)

    found = ascend(images, start, loss, threat, steps=2, step_size=4 / 255)
    assert threat.contains(images, found).all()
    losses = method.losses(images, found, batch)
    method.model.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    weights = dict(method.model.named_parameters())
    gradients = {key: weight.grad.clone() for key, weight in weights.items() if weight.grad is not None}
    before, after = (loss(x).detach().mean() for x in (start, found))
    return {"found": found, "before": before, "after": after, **losses, **gradients}


@pytest.mark.parametrize("name", METHODS)
def test_attack_losses_and_gradients_are_those_of_a_cpu(name: str, gpu: Gpu, tiny_folder: Path) -> None:
    values: list[dict[str, Tensor]] = []
    for device in (torch.device("cpu"), gpu.device):
        method = method_on(device, name, tiny_folder)
        values.append(outcome(method, batch_of(method.model, method)))
        assert {value.device for value in values[-1].values()} == {device}
    on_cpu, on_gpu = values
    assert on_gpu["after"] > on_gpu["before"]
    assert on_cpu.keys() == on_gpu.keys()
    for key, value in on_cpu.items():
        torch.testing.assert_close(on_gpu[key].cpu(), value, rtol=1e-9, atol=1e-10, msg=key)


@pytest.mark.parametrize("name", METHODS)
def test_a_deterministic_step_is_the_same_again(
    name: str, gpu: Gpu, tiny_folder: Path, deterministic: None
) -> None:
    method = method_on(gpu.device, name, tiny_folder)
    batch = batch_of(method.model, method)
    first, second = outcome(method, batch), outcome(method, batch)
    assert all(torch.equal(second[key], value) for key, value in first.items())


def test_a_classifier_is_that_of_a_cpu(gpu: Gpu, tiny_folder: Path) -> None:
    host = load_model(tiny_folder, device="cpu").double()
    ours = Classifier(deepcopy(host).to(gpu.device), CLASSES, TEMPLATES)
    theirs = Classifier(host, CLASSES, TEMPLATES)
    logits = ours.logits(images().to(gpu.device))
    torch.testing.assert_close(logits.cpu(), theirs.logits(images()), rtol=0, atol=1e-10)


def test_the_public_pgd_draws_from_a_generator_of_its_device(gpu: Gpu) -> None:
    pixels, threat = images().to(gpu.device), Threat(eps=4 / 255)

    def found(seed: int) -> Tensor:
        generator = torch.Generator(gpu.device).manual_seed(seed)
        return pgd(pixels, lambda x: x.sum(), threat, steps=1, step_size=1 / 255, generator=generator)

    assert threat.contains(pixels, found(0)).all()
    assert torch.equal(found(0), found(0)) and not torch.equal(found(0), found(1))
    with pytest.raises(RuntimeError, match="Expected a 'cuda' device type for generator but found 'cpu'"):
        pgd(pixels, lambda x: x.sum(), threat, steps=1, step_size=1 / 255, generator=torch.Generator())
