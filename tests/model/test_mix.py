"""Weight interpolation against the mean written out, and what the command measures of it."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from advflyp.cli.main import main
from advflyp.evaluation.results import read_cells
from advflyp.evaluation.suite import evaluate
from advflyp.model import mix as module
from advflyp.model.clip import CLIP
from advflyp.model.folder import card_of, read_card, save_model
from advflyp.model.interop.export import export_model
from advflyp.model.load import load_model
from advflyp.model.mix import interpolate, mix
from helpers import assert_equal64

Pair = tuple[CLIP, CLIP]


@pytest.fixture(scope="module")
def pair() -> Pair:
    original, robust = load_model("mini"), load_model("mini")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in robust.state_dict().values():
            if value.is_floating_point():
                value += 0.01 * torch.rand(value.shape, generator=generator)
            else:
                value += 3
    return original, robust


def test_ends_are_the_models_to_the_bit(pair: Pair) -> None:
    original, robust = pair
    for alpha, model in ((0, original), (1, robust)):
        for name, value in interpolate(original, robust, alpha).state_dict().items():
            if value.is_floating_point():
                assert torch.equal(value, model.state_dict()[name]), name


def test_between_every_weight_and_statistic_lies_on_the_line(pair: Pair) -> None:
    original, robust = (deepcopy(model).double() for model in pair)
    mixed = interpolate(original, robust, 0.3).state_dict()
    assert any("running_mean" in name for name in mixed)
    for name, value in mixed.items():
        a, b = original.state_dict()[name], robust.state_dict()[name]
        if value.is_floating_point():
            assert_equal64(value, a + 0.3 * (b - a))
        else:
            assert torch.equal(value, b), "a counter is not a weight"


def test_of_one_linear_layer_the_outputs_mix_as_the_weights(pair: Pair) -> None:
    original, robust = (deepcopy(model).double() for model in pair)
    # The text projection is the last, linear step; only that differs here.
    other = deepcopy(original)
    other.net.text_projection.data = robust.net.text_projection.data.clone()
    mixed = interpolate(original, other, 0.25)
    tokens = original.tokenizer(["a cat", "a red flag"])
    raw = [model.net.encode_text(tokens) for model in (original, other, mixed)]
    assert_equal64(raw[2], 0.75 * raw[0] + 0.25 * raw[1])


def test_the_models_stay_as_they_were(pair: Pair) -> None:
    original, robust = pair
    before = {name: value.clone() for name, value in robust.state_dict().items()}
    mix([original, robust, robust], [0.5, 0.25, 0.25])
    assert all(torch.equal(before[name], value) for name, value in robust.state_dict().items())


def test_other_architectures_and_alphas_are_refused(pair: Pair) -> None:
    with pytest.raises(ValueError, match="different architectures"):
        interpolate(pair[0], load_model("mini-vit"), 0.5)
    with pytest.raises(ValueError, match="alpha must lie between 0"):
        interpolate(*pair, 1.5)
    for weights in ([1.0], [0.5, 0.6], [float("nan"), 0.5]):
        with pytest.raises(ValueError, match="mixing takes one weight for each model, which sum to 1"):
            mix(pair, weights)


def test_models_that_compute_otherwise_are_refused(pair: Pair) -> None:
    """A mixture would be neither."""
    other = deepcopy(pair[1])
    other.mean += 0.1
    with pytest.raises(ValueError, match="differ in their activations, preprocessing or tokenizer"):
        interpolate(pair[0], other, 0.5)


def test_the_command_measures_each_mixture_once(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[float] = []
    monkeypatch.setattr("advflyp.model.mix.interpolate", lambda *of: made.append(of[2]) or interpolate(*of))
    save_model(pair[1], tmp_path / "run", {})
    where = ["--sets", "mini/food", "--attacks", "clean", "--limit", "40", "--out", str(tmp_path / "c.jsonl")]
    main(["interpolate", "mini", str(tmp_path / "run"), "--alphas", "0", "1", "0", *where])
    cells = read_cells(tmp_path / "c.jsonl")
    assert [cell.model for cell in cells] == ["run, α = 0", "run, α = 1"]
    assert made == [0, 1] and cells[0].checkpoint_sha256 != cells[1].checkpoint_sha256


FOOD, ICONS = {"trained_on": ["mini/food"], "pflops": 1.5, "pairs_seen": 7}, {"trained_on": ["mini/icons"]}


@pytest.fixture
def trained(pair: Pair, tmp_path: Path) -> tuple[str, str]:
    """An original, trained on one set, and a robust model, trained on another."""
    folders = [tmp_path / name for name in ("original", "robust")]
    for model, folder, card in zip(pair, folders, (ICONS, FOOD), strict=True):
        save_model(model, folder, {**card, "step": 3, "recipe": {"data": {"train": card["trained_on"][0]}}})
    return str(folders[0]), str(folders[1])


def test_a_saved_mixture_says_what_both_models_learned_from(trained: tuple[str, str], tmp_path: Path) -> None:
    main(["interpolate", *trained, "--save", "0.5", str(tmp_path / "mixed")])
    card = read_card(tmp_path / "mixed")
    assert card.pop("weights_sha256") and card == {
        "alpha": 0.5, "original": trained[0], "robust": trained[1],
        "trained_on": ["mini/icons", "mini/food"], "pflops": 1.5, "pairs_seen": 7,
    }  # fmt: skip
    cells = evaluate(tmp_path / "mixed", ["mini/food", "mini/icons", "mini/flags"], ["clean"], limit=10)
    assert [cell.seen for cell in cells] == [True, True, False]


def test_a_mixture_takes_no_other_s_place(
    trained: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Another process saves one there while the models are loaded."""
    real = module.interpolate

    def meanwhile(*arguments: Any) -> CLIP:
        save_model(load_model(trained[0]), tmp_path / "mixed", {"alpha": 0.25})
        return real(*arguments)

    monkeypatch.setattr(module, "interpolate", meanwhile)
    with pytest.raises(SystemExit) as stopped:
        main(["interpolate", *trained, "--save", "0.5", str(tmp_path / "mixed")])
    assert stopped.value.code == 2 and "already exists; name a new folder" in capsys.readouterr().err
    assert read_card(tmp_path / "mixed")["alpha"] == 0.25


def test_of_python_s_mixtures_and_their_exports_the_same_is_known(
    trained: tuple[str, str], tmp_path: Path
) -> None:
    models = [load_model(name) for name in trained]
    export_model(interpolate(models[0], models[1], 0.5), "open_clip", tmp_path / "exported")
    card = read_card(tmp_path / "exported")
    assert card.pop("weights_sha256")
    # Not the recipe of either.
    assert card == {"trained_on": ["mini/icons", "mini/food"], "pflops": 1.5, "pairs_seen": 7}
    assert card_of(mix(models, [0, 1])) == {"trained_on": ["mini/food"]}
    again = mix([models[0], interpolate(models[0], models[1], 0.5)], [0.5, 0.5])
    assert card_of(again) == {"trained_on": ["mini/icons", "mini/food"]}
    assert card_of(models[1])["step"] == 3, "the models keep theirs"


def test_the_ends_of_a_curve_are_the_models(trained: tuple[str, str], tmp_path: Path) -> None:
    where = ["--sets", "mini/food", "--attacks", "clean", "--limit", "10", "--out", str(tmp_path / "c.jsonl")]
    main(["interpolate", *trained, "--alphas", "0", "0.5", "1", *where])
    cells = read_cells(tmp_path / "c.jsonl")
    assert [(cell.seen, cell.pflops) for cell in cells] == [(False, None), (True, 1.5), (True, 1.5)]
