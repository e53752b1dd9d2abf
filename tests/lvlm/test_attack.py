import pytest
import torch

from advflyp.attack.apgd import APGD
from advflyp.attack.autoattack import AutoAttack
from advflyp.attack.encoder import EncoderPGD, cosine_distances
from advflyp.attack.pgd import PGD
from advflyp.attack.threat import Threat
from advflyp.lvlm.attack import AnswerVictim, perturb
from advflyp.lvlm.model import LVLM

PROMPTS = ["what is in the image ?", "is there a cat ?", "a"]
TARGETS = ["a red circle", "no", "the blue square is a bar"]
THREAT = Threat(eps=8 / 255)
ATTACKS = [APGD(loss="dlr", steps=6), APGD(steps=6), PGD(loss="margin", steps=4, step_size=2 / 255)]


@pytest.mark.parametrize("attack", ATTACKS, ids=["apgd-dlr", "apgd-ce", "pgd"])
@pytest.mark.parametrize("targeted", [False, True], ids=["away", "toward"])
def test_it_moves_the_loss_of_every_sample(
    lvlm: LVLM, images: torch.Tensor, attack: APGD | PGD, targeted: bool
) -> None:
    found = perturb(lvlm, attack, images, PROMPTS, TARGETS, THREAT, targeted=targeted)
    assert THREAT.contains(images, found).all()
    before, after = (lvlm.per_sample_loss(x, PROMPTS, TARGETS) for x in (images, found))
    assert ((after < before) if targeted else (after > before)).all()


def test_margin_and_dlr_are_the_loss_itself(lvlm: LVLM, images: torch.Tensor) -> None:
    victim = AnswerVictim(lvlm, PROMPTS, TARGETS)
    logits = victim(images)
    assert torch.equal(logits[:, 1] - logits[:, 0], lvlm.per_sample_loss(images, PROMPTS, TARGETS))


def test_a_sample_is_attacked_the_same_alone(lvlm: LVLM, images: torch.Tensor) -> None:
    attack = APGD(loss="dlr", steps=3)
    together = perturb(lvlm, attack, images, PROMPTS, TARGETS, THREAT, seed=5, index=torch.tensor([4, 7, 9]))
    alone = perturb(
        lvlm, attack, images[1:2], PROMPTS[1:2], TARGETS[1:2], THREAT, seed=5, index=torch.tensor([7])
    )
    assert (together[1] - alone[0]).abs().max() < 1e-9


def test_it_goes_on_from_a_start(lvlm: LVLM, images: torch.Tensor) -> None:
    """Never worse than where it began, even with a single step that is far too long."""
    begin = perturb(lvlm, APGD(loss="dlr", steps=8), images, PROMPTS, TARGETS, THREAT)
    found = perturb(lvlm, APGD(loss="dlr", steps=1), images, PROMPTS, TARGETS, THREAT, seed=1, start=begin)
    first, then = (lvlm.per_sample_loss(x, PROMPTS, TARGETS) for x in (begin, found))
    assert (then >= first - 1e-12).all()


def test_the_encoder_attack_turns_the_patches_away(lvlm: LVLM, images: torch.Tensor) -> None:
    attack = EncoderPGD(tokens="patches", steps=4)
    found = perturb(lvlm, attack, images, PROMPTS, TARGETS, THREAT)
    clean = lvlm.encode_tokens(images, patches=True)
    noise = perturb(
        lvlm, EncoderPGD(tokens="patches", steps=1, step_size=1e-9), images, PROMPTS, TARGETS, THREAT
    )
    far, near = (cosine_distances(lvlm.encode_tokens(x, patches=True), clean) for x in (found, noise))
    assert (far > 1.5 * near).all()


def test_what_does_not_attack_answers(lvlm: LVLM, images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="does not attack answers"):
        perturb(lvlm, AutoAttack(), images, PROMPTS, TARGETS, THREAT)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no targeted form"):
        perturb(lvlm, EncoderPGD(steps=1), images, PROMPTS, TARGETS, THREAT, targeted=True)
