import pytest

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
