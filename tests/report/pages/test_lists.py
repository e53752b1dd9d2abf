from pathlib import Path

import pytest
from PIL import Image

from advflyp.cli.main import main
from advflyp.method import METHODS


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    main(["attacks"])
    text = capsys.readouterr().out
    assert "fgsm" in text and "autoattack-rand" in text, text
    main(["methods"])
    assert set(METHODS) <= set(capsys.readouterr().out.split())
    main(["sets"])
    assert "eurosat" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, shown",
    [
        (["attacks", "pgd10x5"], ["pgd10x5", "steps", "10", "restarts", "5", "1/255"]),
        (["attacks", "encoder-patches-5"], ["encoder-patches5", "steps", "5"]),
        (["methods", "pmg_aft"], ["KL(P_adv", "--method.clean_weight", "mini/pmg_aft"]),
        (["sets", "mini/food"], ["88", "avocado", "package"]),
        (["sets", "eurosat@test"], ["10", "MIT", "https://github.com/phelber/EuroSAT"]),
    ],
)
def test_one(words: list[str], shown: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(words)
    text = capsys.readouterr().out
    assert all(one in text for one in shown), text
    with pytest.raises(SystemExit) as stop:
        main([words[0], "nothing-of-this-name"])
    assert stop.value.code == 2


def test_a_folder_is_not_the_set_that_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        (tmp_path / "food" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "food" / name / "0.png")
    monkeypatch.chdir(tmp_path)
    main(["sets", "food"])
    text = capsys.readouterr().out
    assert "2: a, b" in text and "comes with the package" not in text


OWN = '''
from dataclasses import dataclass

from advflyp.method import Method


@dataclass(frozen=True)
class StillConfig:
    pass


class Still(Method):
    """Nothing moves."""

    config: StillConfig
    needs_original = False

    def attack_loss(self, images_adv, batch):
        return images_adv.sum()

    def losses(self, images, images_adv, batch):
        return {}


class Bare(Still):
    pass


def grey(victim, images, labels, threat, *, streams):
    """Towards grey."""
    return threat.project(images, images * 0 + 0.5)


def bare(victim, images, labels, threat, *, streams):
    return images
'''


@pytest.mark.parametrize(
    "words, shown",
    [
        ("attacks my_things:grey", "my_things:grey Towards grey. parameters at ε = 1/255 source_sha256"),
        ("methods my_things:Still", "my_things:Still Nothing moves. trains on"),
        ("methods my_things:Bare", "my_things:Bare trains on"),
        ("attacks my_things:bare", "my_things:bare parameters at"),
    ],
)
def test_ones_own(
    words: str,
    shown: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What its own docstring says, not what that of the class below it does."""
    monkeypatch.chdir(tmp_path)
    Path("my_things.py").write_text(OWN)
    main(words.split())
    assert " ".join(capsys.readouterr().out.split()).startswith(shown)
