import copy
import re
from pathlib import Path

import open_clip
import pytest
import torch
from torch import nn

from advflyp.attack.text import edit_texts
from advflyp.data.sets.classnames import wordnet_imagenet
from advflyp.evaluation.classifier import Classifier
from advflyp.model import zeroshot
from advflyp.model.clip import CLIP, TextCache
from advflyp.model.layers import Float32Conv2d
from advflyp.model.text_store import TextStore
from advflyp.model.zeroshot import ClassTexts, check_told_apart, class_embeddings, class_logits
from helpers import assert_equal64


def data(model: CLIP, n: int = 4) -> torch.Tensor:
    eight_bit = torch.randint(0, 256, (n, 3, *model.image_size), generator=torch.Generator().manual_seed(0))
    return eight_bit / 255


def test_embeddings_are_open_clips(any_tiny: CLIP) -> None:
    """Pixels in [0, 1] in, normalisation inside: the same as open_clip on images normalised by hand."""
    any_tiny, images = any_tiny.double(), data(any_tiny).double()
    mean, std = torch.tensor([0.5, 0.4, 0.3]).double(), torch.tensor([0.25, 0.3, 0.2]).double()
    by_hand = (images - mean[:, None, None]) / std[:, None, None]
    plain = copy.deepcopy(any_tiny.net)
    expected = nn.functional.normalize(plain.encode_image(by_hand), dim=-1)
    assert_equal64(any_tiny.encode_image(images), expected)
    tokens = any_tiny.tokenizer(["a red circle"])
    assert_equal64(
        any_tiny.encode_text(["a red circle"]), nn.functional.normalize(plain.encode_text(tokens), dim=-1)
    )
    assert_equal64(any_tiny.encode_image(images).norm(dim=1), torch.ones(4, dtype=torch.float64))
    assert any_tiny.logit_scale == any_tiny.net.logit_scale.exp()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_is_of_the_models_type(any_tiny: CLIP, dtype: torch.dtype) -> None:
    """A model in float64 is one from end to end; of its pixels, whatever type they are of."""
    model = any_tiny.to(dtype)
    assert model.dtype == dtype and model.logit_scale.dtype == dtype
    texts = model.encode_text(["a cat", "a dog"])
    for images in (data(model), data(model).double()):
        leaf = images.requires_grad_(True)
        with model.computing_in("bf16" if dtype == torch.float64 else "fp32"):
            embeddings = model.encode_image(leaf)
        assert texts.dtype == embeddings.dtype == dtype
        (gradient,) = torch.autograd.grad((model.logit_scale * embeddings @ texts.T).sum(), leaf)
        assert gradient.dtype == leaf.dtype


def test_preprocess_is_open_clips_without_the_normalisation(tiny: CLIP) -> None:
    from PIL import Image

    picture = Image.effect_noise((70, 50), 80).convert("RGB")
    ours = tiny.preprocess(picture)
    assert ours.shape == (3, 32, 32)
    assert ours.min() >= 0 and ours.max() <= 1
    theirs = open_clip.image_transform(32, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))(picture)
    assert torch.equal(ours, theirs)


def test_perturbations_survive_bf16(any_tiny: CLIP) -> None:
    """The first convolution sees float32 pixels, so that ±1/255 keeps its exact size and sign."""
    seen = []
    first = next(m for m in any_tiny.visual.modules() if isinstance(m, Float32Conv2d))
    first.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    images = data(any_tiny)
    delta = torch.where(torch.rand(images.shape) < 0.5, -1.0, 1.0) / 255
    with any_tiny.computing_in("bf16"):
        any_tiny.encode_image(images)
        any_tiny.encode_image(images + delta)
    (clean, clean_out), (perturbed, perturbed_out) = seen
    assert clean.dtype == clean_out.dtype == torch.float32
    # Normalised pixels, below 4, are rounded to 2⁻²³, and twice 2⁻²⁴ of 1 before.
    torch.testing.assert_close(
        perturbed - clean, delta / any_tiny.std, rtol=0, atol=2 * (2**-23 + 4 * 2**-23)
    )
    # Sums of n products are in error by n·2⁻²⁴ of the sum of their sizes, at most; pixels by what was said.
    pixels, weight = perturbed.abs().maximum(clean.abs()), first.weight.abs()
    bound = 2 * (weight[0].numel() + 12) * 2**-24 * first._conv_forward(pixels, weight, None)
    expected = first.double()._conv_forward((delta / any_tiny.std).double(), first.weight, None)
    assert ((perturbed_out - clean_out - expected).abs() <= bound).all()
    assert bound.max() < expected.abs().max(), "the bound says something"

    rounded = ((images - any_tiny.mean) / any_tiny.std).bfloat16().float()
    rounded_adv = ((images + delta - any_tiny.mean) / any_tiny.std).bfloat16().float()
    lost = ((rounded_adv - rounded) * any_tiny.std - delta).norm() / delta.norm()
    assert lost > 0.05, "what this test guards against is real: cast pixels lose the perturbation"


def test_bf16_changes_embeddings_little_and_comes_back(any_tiny: CLIP) -> None:
    images = data(any_tiny)
    exact = any_tiny.encode_image(images)
    with any_tiny.computing_in("bf16"):
        rough = any_tiny.encode_image(images)
    assert rough.dtype == torch.float32
    # Some 20 operations one after the other, each in error by up to 2⁻⁹ of a number: in all by 20·2⁻⁹ of the length, 1.
    assert 0 < (rough - exact).abs().max() < 20 * 2**-9
    assert torch.equal(any_tiny.encode_image(images), exact)


def test_parameter_names_are_open_clips(tiny: CLIP) -> None:
    plain = open_clip.model.CLIP(**copy.deepcopy(tiny.config["model_cfg"]))
    assert set(tiny.net.state_dict()) == set(plain.state_dict())


def test_text_cache_encodes_each_text_once(tiny: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    original = tiny.double().encode_text

    def spy(texts: list[str], tokens: torch.Tensor | None) -> torch.Tensor:
        asked.extend(texts)
        return original(texts, tokens)

    monkeypatch.setattr(tiny, "encode_text", spy)
    cache = TextCache(tiny, capacity=3)
    first = cache(["a", "b", "a"])
    assert_equal64(first, original(["a", "b", "a"]))
    assert not first.requires_grad
    assert_equal64(cache(["b", "c", "d"]), original(["b", "c", "d"]))
    assert asked == ["a", "b", "c", "d"]
    cache(["a", "d"])
    assert asked == ["a", "b", "c", "d", "d"], "beyond its capacity it encodes again"


@pytest.mark.parametrize("kind", ["no cache", "memory", "disk"])
def test_texts_whose_tokens_are_known(
    tiny: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Their embeddings are the same, and the tokenizer is not asked; some are encoded before, some come twice."""
    tiny.double()
    encode = {"no cache": tiny.encode_text, "memory": TextCache(tiny), "disk": TextStore(tiny, tmp_path)}[
        kind
    ]
    texts = ["a red cat", "two dogs", "a red cat", "three cows", "two dogs"]
    with torch.no_grad():
        expected = tiny.encode_text(texts)
        encode(texts[1:2], None)
    tokens = tiny.tokenizer(texts)
    monkeypatch.setattr(tiny, "tokenizer", None)
    with torch.no_grad():
        assert_equal64(encode(texts, tokens), expected)
    with pytest.raises(TypeError):
        encode(["new"], None)


def test_a_text_is_not_a_list_of_its_letters(tiny: CLIP) -> None:
    for call in (
        lambda: tiny.encode_text("cat"),
        lambda: tiny.classifier("cat", "a {}"),
        lambda: edit_texts(tiny.encode_text, "cat"),
    ):
        with pytest.raises(ValueError, match=r"must be a list, not the text 'cat'; write \['cat'\]"):
            call()
    for given, odd in (([1, 2], "1 (int)"), (["cat", None], "None (NoneType)"), (5, "5 (int)")):
        with pytest.raises(ValueError, match=re.escape(f"must be text, not {odd}")):
            tiny.encode_text(given)  # pyright: ignore[reportArgumentType]
    one, several = (tiny.classifier(["cat", "dog"], given) for given in ("a {}", ["a {}"]))
    assert torch.equal(one.weights, several.weights)
    with pytest.raises(ValueError, match="must contain {} exactly once"):
        tiny.classifier(["cat", "dog"], ["a photo"])


def test_classifier_averages_the_templates(tiny: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zeroshot, "AT_ONCE", 3)
    weights = class_embeddings(tiny.double(), ["cat", "dog"], ["a {}", "the {}."])
    dogs = tiny.encode_text(["a dog", "the dog."]).mean(0)
    assert_equal64(weights[1], dogs / dogs.norm())
    logits = class_logits(weights, weights, torch.tensor(10.0))
    assert_equal64(logits.diagonal(), torch.tensor([10.0, 10.0], dtype=torch.float64))


@pytest.mark.parametrize("frozen", [True, False])
def test_captions_of_labels_are_prompts_of_the_first_template(tiny: CLIP, frozen: bool) -> None:
    texts = ClassTexts(tiny, ["cat", "dog"], ["a {}", "the {}"], frozen=frozen)
    expected = tiny.encode_text(["a dog", "a cat", "a dog"])
    found = texts(torch.tensor([1, 0, 1]))["text_embeddings"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_names_that_are_one_text_to_the_model_are_refused(tiny: CLIP) -> None:
    """A prompt that fills the context cuts every name off: all logits would tie, and no image count as correct."""
    long = "a very detailed description " * 40
    classes = ["cat", "dog"]
    for templates in ([long + "of {}"], [long + "of {}", long + "with {}"]):
        with pytest.raises(ValueError, match="'cat' and 'dog' are the same text"):
            tiny.classifier(classes, templates)
        with pytest.raises(ValueError, match="'cat' and 'dog' are the same text"):
            ClassTexts(tiny, classes, templates, frozen=True)
        with pytest.raises(ValueError, match="'cat' and 'dog' are the same text"):
            _ = Classifier(tiny, classes, templates).weights
    # One template tells them apart; a name that occurs twice is the caller's.
    assert tiny.classifier(classes, [long + "of {}", "a {}"]).weights.shape[0] == 2
    assert tiny.classifier(["cat", "dog", "cat"], ["a {}"]).weights.shape[0] == 3


def test_released_names_that_repeat_are_the_protocols_business(tiny: CLIP) -> None:
    """Two of WordNet's first words for ImageNet, which several protocols take, differ in case alone."""
    names = list(wordnet_imagenet().values())
    assert {"Cardigan", "cardigan"} <= {*names} and len({*names}) < len(names) == 1000
    check_told_apart(tiny, names, ["a photo of a {}."])
