import torch

from advflyp.attack.pgd import PGD
from advflyp.attack.threat import Threat
from advflyp.attack.typographic import BLACK, WHITE, Typographic, lettering
from attack.mini import correct_on


def test_a_wrong_classs_name_as_strong_as_the_ball_allows() -> None:
    clip, food, images, labels = correct_on("mini")
    classifier = clip.classifier(food.classes, food.templates)
    with torch.no_grad():
        likeliest = classifier(images).scatter(1, labels[:, None], float("-inf")).argmax(1).tolist()
    whole = Typographic()(classifier, images, labels, Threat(eps=1.0))
    for found, image, target in zip(whole, images, likeliest, strict=True):
        mask = lettering(food.classes[target], *image.shape[-2:])
        assert set(mask.unique().tolist()) == {0, BLACK, WHITE}
        assert (found[:, mask == WHITE] == 1).all() and (found[:, mask == BLACK] == 0).all()
        assert torch.equal(found[:, mask == 0], image[:, mask == 0])


def test_in_a_small_ball_it_is_a_control_that_pgd_beats() -> None:
    clip, food, images, labels = correct_on("mini")
    classifier, threat = clip.classifier(food.classes, food.templates), Threat(eps=2 / 255)
    right = {}
    for attack in (Typographic(), PGD(steps=5)):
        found = attack(classifier, images, labels, threat)
        assert threat.contains(images, found).all() and not torch.equal(found, images)
        with torch.no_grad():
            right[attack.name] = int((classifier(found).argmax(1) == labels).sum())
    assert right["typographic"] > right["pgd5"] + 3


def test_other_words_are_other_letters_that_fit() -> None:
    cat, dog = lettering("cat", 64, 64), lettering("dog", 64, 64)
    assert not torch.equal(cat, dog) and torch.equal(cat, lettering("cat", 64, 64))
    long = lettering("strawberry cake", 64, 96)
    assert (long == WHITE).any() and not (long[:, [0, -1]] == WHITE).any()
