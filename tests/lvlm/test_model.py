import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from advflyp.lvlm.model import LVLM
from helpers import assert_equal64

PROMPTS = ["what is in the image ?", "is there a cat ?", "a"]
TARGETS = ["a red circle", "no", "the blue square is a bar"]


def reference(
    model: LVLM, image: torch.Tensor, prompt: str, target: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """One sample's mean cross-entropy in float64 and transformers' own loss, unpadded, on hand-made tokens."""
    before = model.tokenizer(f"user : <image> {prompt} assistant :").input_ids
    place = before.index(model.net.config.image_token_id)
    before[place : place + 1] = [before[place]] * model.image_tokens
    after = [*model.tokenizer(target).input_ids, model.tokenizer.eos_token_id]
    ids = torch.tensor([before + after])
    labels = torch.tensor([[-100] * len(before) + after])
    found = model.net(input_ids=ids, labels=labels, **model._vision(image[None]))
    wanted = F.cross_entropy(found.logits[0, len(before) - 1 : -1], torch.tensor(after))
    return wanted, found.loss


def in_float32(logits: float) -> float:
    """How far transformers' loss may be off, which rounds logits of at most this size to float32: each by 2⁻²⁴ of
    itself, and the log-softmax of some 50 terms by as many roundings more.
    """
    return 2**-24 * (2 * logits + 64)


def test_each_loss_is_the_models_own(lvlm: LVLM, images: torch.Tensor) -> None:
    found = lvlm.per_sample_loss(images, PROMPTS, TARGETS)
    pairs = [reference(lvlm, *one) for one in zip(images, PROMPTS, TARGETS, strict=True)]
    assert_equal64(found, torch.stack([exact for exact, _ in pairs]))
    theirs = torch.stack([own for _, own in pairs])
    assert (found - theirs).abs().max() <= in_float32(30)


def test_the_mean_is_the_loss_of_the_batch(lvlm: LVLM, images: torch.Tensor) -> None:
    targets = ["a red circle", "a blue bar", "the green square"]
    found = lvlm.per_sample_loss(images, PROMPTS[:1] * 3, targets)
    ids = torch.tensor([[*lvlm._prompt_ids(PROMPTS[0]), *lvlm._target_ids(target)] for target in targets])
    labels = ids.clone()
    labels[:, :-4] = -100  # three words and the end
    theirs = lvlm.net(input_ids=ids, labels=labels, **lvlm._vision(images))
    assert theirs.logits.abs().max() < 30
    assert abs(found.mean() - theirs.loss) <= in_float32(30)


def test_the_gradient_reaches_every_pixel_of_its_image_alone(lvlm: LVLM, images: torch.Tensor) -> None:
    images.requires_grad_()
    losses = lvlm.per_sample_loss(images, PROMPTS, TARGETS)
    (gradient,) = torch.autograd.grad(losses[1], images)
    assert (gradient[1] != 0).all()
    assert not gradient[[0, 2]].any()


def test_it_answers_the_same_alone_and_in_company(lvlm: LVLM, images: torch.Tensor) -> None:
    together = lvlm.answer(images, PROMPTS, max_new_tokens=6)
    alone = [
        lvlm.answer(image[None], [prompt], max_new_tokens=6)[0]
        for image, prompt in zip(images, PROMPTS, strict=True)
    ]
    assert together == alone
    assert any(together)


def test_the_answer_is_the_likeliest_next_token(lvlm: LVLM, images: torch.Tensor) -> None:
    words = [word for word in lvlm.tokenizer.get_vocab() if not word.startswith("<")]
    (answer,) = lvlm.answer(images[:1], PROMPTS[:1], max_new_tokens=1)
    losses = lvlm.per_sample_loss(images[:1].repeat(len(words), 1, 1, 1), PROMPTS[:1] * len(words), words)
    assert not answer or answer == words[int(losses.argmin())]


def test_the_encoders_tokens_are_what_the_projector_reads(lvlm: LVLM, images: torch.Tensor) -> None:
    seen = []
    handle = lvlm.net.model.multi_modal_projector.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    lvlm.per_sample_loss(images, PROMPTS, TARGETS)
    handle.remove()
    tokens = lvlm.encode_tokens(images, patches=True)
    assert_equal64(tokens[:, 1:].flatten(0, 1), torch.nn.functional.normalize(seen[0].flatten(0, 1), dim=-1))
    assert torch.equal(lvlm.encode_tokens(images, patches=False), tokens[:, :1])


def test_preprocessing(lvlm: LVLM) -> None:
    """LLaVA-1.5 sees all of an oblong image, on a square of the mean colour; LLaVA-NeXT the middle."""
    image = Image.new("RGB", (60, 30), (255, 0, 128))
    side = lvlm.image_side
    pixels = lvlm.preprocess(image)
    assert pixels.shape == (3, side, side) and pixels.amin() >= 0 and pixels.amax() <= 1
    inside = torch.tensor((255, 0, 128))[:, None, None] / 255
    if lvlm.is_next:
        assert torch.allclose(pixels, inside.expand_as(pixels), atol=1e-6)
        return
    around = (lvlm.mean[0] * 255).int() / 255
    assert torch.allclose(pixels[:, side // 2], inside[:, 0], atol=1e-6)
    assert torch.allclose(pixels[:, [0, -1]], around.float(), atol=1e-6)
    square = lvlm.preprocess(image.crop((0, 0, 30, 30)))
    assert torch.allclose(square, inside.expand_as(square), atol=1e-6)


def test_bf16_changes_the_loss_and_only_within(lvlm: LVLM, images: torch.Tensor) -> None:
    lvlm, images = lvlm.float(), images.float()
    exact = lvlm.per_sample_loss(images, PROMPTS, TARGETS)
    with lvlm.computing_in("bf16"):
        rough = lvlm.per_sample_loss(images, PROMPTS, TARGETS)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert torch.equal(lvlm.per_sample_loss(images, PROMPTS, TARGETS), exact)


@pytest.mark.parametrize(
    ("prompt", "target", "message"),
    [
        ("a <image> cat", "a", "must not hold the image token"),
        ("a", "  ", "needs words"),
        ("a", "<image>", "needs"),
    ],
)
def test_what_is_no_question_or_answer(
    lvlm: LVLM, images: torch.Tensor, prompt: str, target: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        lvlm.per_sample_loss(images[:1], [prompt], [target])


def test_images_of_another_size(lvlm: LVLM, images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="use its preprocess"):
        lvlm.answer(images[..., 1:], PROMPTS)
