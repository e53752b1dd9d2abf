"""The paper's figures, as its text states them, and ours only where all of a mean is there."""

from dataclasses import replace

import pytest

from advflyp.paper.published import ACCURACIES, ANGLES, ROBUST, published_table
from report.cells import cell
from report.sample import cloud

SETS = ["cifar10", "dtd"]

# Copied from the text once more: Sec. 4.3, 8.1 and 10.
STATED = {
    ("AdvFLYP", "robust", 1): 35.61,
    ("AdvFLYP_full", "robust", 1): 38.39,
    ("AdvFLYP_full", "clean", 0): 55.84,
    ("AdvFLYP", "robust", 2): 20.07,
    ("AdvFLYP_full", "robust", 2): 21.69,
    ("PMG-AFT", "robust", 2): 18.31,
    ("AdvFLYP", "robust", 4): 5.87,
    ("AdvFLYP_full", "robust", 4): 5.93,
    ("PMG-AFT", "robust", 4): 4.00,
}


def test_every_figure_with_its_setting() -> None:
    ours = {
        (one.method, "clean" if one.attacks == ("clean",) else "robust", round(255 * one.eps)): one.value
        for one in ACCURACIES
    }
    assert ours == STATED
    assert all(one.attacks in {("clean",), ("pgd10", "cw10", "autoattack")} for one in ACCURACIES)
    assert ANGLES == {"original": 0.5859, "AdvFLYP": 0.1191, "AdvFLYP_full": 0.0983}


def test_margins_that_the_text_derives_from_them() -> None:
    # "outperforming PMG-AFT by a relative margin of 9.61 % and 18.46 %"
    pmg = STATED["PMG-AFT", "robust", 2]
    assert round(100 * (STATED["AdvFLYP", "robust", 2] / pmg - 1), 2) == 9.61
    assert round(100 * (STATED["AdvFLYP_full", "robust", 2] / pmg - 1), 2) == 18.46


def test_ours_is_the_mean_over_sets_attacks_and_seeds() -> None:
    made = [
        cell("AdvFLYP", name, 1, correct, 100, attack=attack, checkpoint_sha256=sha)
        for sha, shift in (("a", 0), ("b", 10))
        for name, attack, correct in (
            ("cifar10", "pgd10", 40 + shift),
            ("cifar10", "cw10", 30 + shift),
            ("cifar10", "autoattack", 20 + shift),
            ("dtd", "pgd10", 10 + shift),
            ("dtd", "cw10", 10 + shift),
            ("dtd", "autoattack", 4 + shift),
        )
    ]
    row = published_table(made, SETS).rows[0]
    assert row == ["AdvFLYP", "PGD-10, CW-10, AutoAttack, ε = 1/255", "35.61 %", f"{114 / 6 + 5:.2f} %"]


@pytest.mark.parametrize("lacking", ["autoattack", "dtd"])
def test_of_a_part_of_a_mean_nothing_is_said(lacking: str) -> None:
    made = [
        cell("AdvFLYP", name, 1, 1, 10, attack=attack)
        for name in ("cifar10", "dtd")
        for attack in ("pgd10", "cw10", "autoattack")
        if lacking not in (name, attack)
    ]
    assert published_table(made, SETS).rows[0][-1] == "–"


def test_a_seed_counts_only_with_every_set_and_attack() -> None:
    """The second was interrupted after a set on which it is better; the third after its first attacks."""
    whole = [("a", name, attack, 20 if name == "cifar10" else 90) for name in SETS for attack in ROBUST]
    parts = [("b", "cifar10", attack, 40) for attack in ROBUST]
    parts += [("c", name, attack, 99) for name in SETS for attack in ROBUST[:2]]
    made = [
        cell("AdvFLYP", name, 1, correct, 100, attack=attack, checkpoint_sha256=sha)
        for sha, name, attack, correct in (*whole, *parts)
    ]
    assert published_table(made, SETS).rows[0][-1] == "55.00 %"
    assert published_table(made[len(whole) :], SETS).rows[0][-1] == "–", "no seed has all"


@pytest.mark.parametrize(
    ("images", "ours"),
    [
        (["imagenet"] * 4, "0.2500"),
        (["dtd", "cifar10", "cifar10", "dtd"], "0.2500 (4 images of 2 sets)"),
        (["imagenet", "imagenet", "imagenet", "dtd"], "0.2500 (4 images of 2 sets)"),
    ],
)
def test_of_phi_the_images_are_named(images: list[str], ours: str) -> None:
    embedded = replace(cloud("AdvFLYP", 0.1, n=4), sets=images, phi=[0.1, 0.2, 0.3, 0.4])
    rows = published_table([], SETS, [embedded]).rows[-3:]
    assert rows == [
        ["original", "φ, radians, 256 images of ImageNet", "0.5859", "–"],
        ["AdvFLYP", "φ, radians, 256 images of ImageNet", "0.1191", ours],
        ["AdvFLYP_full", "φ, radians, 256 images of ImageNet", "0.0983", "–"],
    ]
