"""`advflyp predict` and `advflyp attack`: what is said of images, and what is in the files."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

import advflyp
from advflyp.attack.threat import Threat
from advflyp.cli.main import main
from advflyp.data.pairs.images import on_white
from advflyp.data.sets.labelled import load_set
from advflyp.model.load import load_model
from advflyp.model.zeroshot import class_embeddings
from advflyp.use.attack_image import AdversarialImage, AttackedImage, attack_image
from advflyp.use.eight_bits import eight_bits
from advflyp.use.predict import Guess, Prediction, predict
from advflyp.use.shown import attacked_table, legend, predictions_table, title, verdict


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    food = load_set("mini/food")
    paths = []
    for index in (2, 5):
        paths.append(tmp_path / f"{food.classes[food.dataset[index][1]]}.png")
        on_white(food.dataset[index][0]).save(paths[-1])
    return paths


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), int)


def test_predictions_are_those_of_the_equation(
    images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["predict", "mini", *map(str, images), "--labels", "cat,dog,pizza", "--top", "2", "--json"])
    found = json.loads(capsys.readouterr().out)
    model = load_model("mini")
    texts = class_embeddings(model, ["cat", "dog", "pizza"], ["This is a photo of a {}."])
    for path, one in zip(images, found, strict=True):
        pixels = model.preprocess(Image.open(path).convert("RGB"))[None]
        with torch.no_grad():
            expected = (model.logit_scale * model.encode_image(pixels) @ texts.T).softmax(1)[0]
        order = expected.argsort(descending=True)[:2]
        assert [guess["label"] for guess in one["guesses"]] == [["cat", "dog", "pizza"][i] for i in order]
        # Float32: a cosine in error by 100·2⁻²⁴ at most, times τ⁻¹, in an exponent.
        assert [guess["probability"] for guess in one["guesses"]] == pytest.approx(
            expected[order].tolist(), abs=100 * 2**-24 * model.logit_scale.item()
        )


def test_labels_of_a_set_and_of_a_file(images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(load_set("mini/food").classes) + "\n")
    for labels in ("mini/food", str(tmp_path / "labels.txt")):
        for path, one in zip(images, predict("mini", images, labels), strict=True):
            # A file has no prompts of its own: the default one is worse for drawings.
            assert len(one.guesses) == 5 and (labels != "mini/food" or one.guesses[0].label == path.stem)
            assert all(a.probability >= b.probability for a, b in pairwise(one.guesses))


@pytest.mark.parametrize(("norm", "eps"), [("linf", "4/255"), ("l2", "1.0")])
def test_the_files_hold_what_is_said(
    norm: str, eps: str, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["attack", "mini", str(images[0]), "--labels", "mini/food", "--eps", eps, "--norm", norm]
    main([*command, "--against", "mini-vit", "--out", str(out)])
    printed = " ".join(capsys.readouterr().out.split())
    assert "is fooled" in printed
    for end, model in (("", "mini"), ("-2", "mini-vit")):
        clean, adversarial = read(out / f"clean{end}.png"), read(out / f"adversarial{end}.png")
        delta = adversarial - clean
        assert delta.any()
        length = abs(delta).max() if norm == "linf" else np.sqrt((delta**2).sum())
        assert length <= (4 if norm == "linf" else 255) + 1e-9
        # What the files themselves are taken for, by a model that knows nothing of the attack.
        (before, after) = predict(
            model, [out / f"clean{end}.png", out / f"adversarial{end}.png"], "mini/food"
        )
        fooled = f"{model} is fooled: its answer '{before.label}' becomes '{after.label}'" in printed
        assert fooled == (after.label != before.label)
        assert Image.open(out / f"difference{end}.png").size == clean.shape[:2]
    told = json.loads((out / "attack.json").read_text())
    assert str(told).count("probability") >= 6
    asked = told["asked"]
    assert (asked["eps"], asked["labels"], asked["label"], asked["seed"]) == (eps, ["mini/food"], None, 0)


def said(label: str | None, answers: list[list[str]], outcomes: list[str]) -> AttackedImage:
    """What two models say: of the clean image, of the one made against the first, of that against the second."""
    guesses = [[[Guess(label=answer, probability=0.75)] for answer in row] for row in answers]
    made = [
        AdversarialImage(
            against=model,
            label=label or answers[0][place],
            outcome=outcomes[place],  # type: ignore[arg-type]
            clean=b"",
            adversarial=b"",
            difference=b"",
            amplification=1.0,
            largest=4,
            length=1.0,
            guesses=guesses[1 + place],
        )
        for place, model in enumerate(("one", "two"))
    ]
    about = {
        "image": "frog.png",
        "models": ["one", "two"],
        "labels": ["frog", "pizza", "cat"],
        "templates": ["{}"],
    }
    attack = {"attack": "pgd10", "norm": "linf", "eps": 4 / 255, "seed": 0}
    return AttackedImage(**about, **attack, label=label, clean=guesses[0], made=made)  # type: ignore[arg-type]


def lines(table: Table) -> list[str]:
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return [line for line in capture.get().splitlines() if line.strip("─ ")]


def test_an_answer_is_right_only_where_somebody_said_what_the_image_shows() -> None:
    answers = [["pizza", "cat"], ["cat", "cat"], ["pizza", "frog"]]
    unknown = said(None, answers, ["fooled", "fooled"])
    rows = lines(attacked_table(unknown))
    assert not re.search("[✓✗]", "".join([*rows, title(unknown), legend(unknown)]))
    assert [re.findall("same|changed", row) for row in rows[1:]] == [
        [],
        ["changed", "same"],
        ["same", "changed"],
    ]
    assert "is fooled: its answer 'pizza' becomes 'cat'" in verdict(unknown, 0)
    assert "is fooled: its answer 'cat' becomes 'frog'" in verdict(unknown, 1), "not wrong: nobody knows"
    known = said("frog", answers, ["wrong", "wrong"])
    assert [re.findall("[✓✗]", row) for row in lines(attacked_table(known))[1:]] == [["✗", "✗"]] * 2 + [
        ["✗", "✓"]
    ]
    assert "'frog'" in legend(known) and "two says 'cat' without an attack" in verdict(known, 1)


def test_each_model_is_moved_away_from_its_own_answer_or_from_the_label(images: list[Path]) -> None:
    labels = load_set("mini/food").classes
    models = [load_model("mini"), load_model("mini-vit")]
    wanted = {}
    for path in images:
        mine = [predict(model, path, labels, top=1)[0].label for model in models]
        found = attack_image(models[0], path, labels, eps=1 / 255, attack="noise", against=models[1])
        assert found.label is None and [made.label for made in found.made] == mine
        assert "wrong" not in [made.outcome for made in found.made]
        wanted[path] = mine
    assert any(one != two for one, two in wanted.values()), "the models disagree on one of them"
    path, one = next((path, pair[0]) for path, pair in wanted.items() if pair[0] != pair[1])
    found = attack_image(models[0], path, labels, eps=1 / 255, attack="noise", against=models[1], label=one)
    assert found.label == one and [made.label for made in found.made] == [one, one]
    assert found.made[1].outcome == "wrong" and found.made[0].outcome != "wrong"


@pytest.mark.parametrize(
    ("attack", "fools"),
    [("encoder10", True), ("pgd-lse-attention-20", True), ("pgd2@mini", False), ("typographic", False)],
)
def test_attacks_that_need_the_encoder(attack: str, fools: bool, images: list[Path], tmp_path: Path) -> None:
    found = attack_image("mini-vit", images[0], "mini/food", eps=4 / 255, attack=attack)
    (made,) = found.made
    (tmp_path / "a.png").write_bytes(made.adversarial)
    (again,) = predict("mini-vit", tmp_path / "a.png", "mini/food")
    assert found.attack == attack and 0 < made.largest <= 4
    assert (made.outcome == "fooled") == (again.label != made.label) == fools


def test_headings_stand_over_their_columns() -> None:
    head, *rows = lines(
        predictions_table([Prediction(image="a.png", guesses=[Guess(label="cat", probability=0.5)])])
    )
    assert head.split() == ["image", "label", "probability"]
    assert head.index("label") == rows[0].index("cat") and head.index("image") == rows[0].index("a.png") == 0
    assert head.index("probability") + len("probability") == rows[0].index("50.0 %") + len("50.0 %")
    head, *rows = lines(attacked_table(said("frog", [["pizza", "cat"]] * 3, ["wrong", "wrong"])))
    assert head.split() == ["image", "one", "two"]
    assert all(
        (row.index("pizza"), row.index("cat")) == (head.index("one"), head.index("two")) for row in rows
    )


@pytest.mark.parametrize(("norm", "eps"), [("linf", 2.7 / 255), ("l2", 0.3)])
def test_rounding_stays_in_the_ball(norm: str, eps: float) -> None:
    torch.manual_seed(0)
    threat = Threat(norm=norm, eps=eps)  # type: ignore[arg-type]
    clean = (torch.rand(5, 3, 8, 8) * 255).round() / 255
    adversarial = threat.project(clean, (clean + 0.1 * torch.randn(5, 3, 8, 8)).clamp(0, 1))
    rounded = eight_bits(clean, adversarial, threat)
    levels = rounded.double() * 255
    # Pixels are rounded to 2⁻²⁵; over the length of 192 of them that is 14 times as much.
    assert (levels - levels.round()).abs().max() <= 255 * 2**-25
    assert (
        threat.distance(clean, rounded).max() <= eps + 14 * 2**-24
        and 0 <= rounded.min() <= rounded.max() <= 1
    )
    assert (rounded != clean).any()


def test_no_folder_is_written_over(
    images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "adversarial.png").write_text("mine")
    with pytest.raises(SystemExit) as stopped:
        main(["attack", "mini", str(images[0]), "--labels", "cat,dog", "--out", str(own)])
    assert stopped.value.code == 2 and str(own) in capsys.readouterr().err
    assert (own / "adversarial.png").read_text() == "mine" and len(list(own.iterdir())) == 1


def test_wrong_input(images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image")
    half = tmp_path / "half.png"
    half.write_bytes(images[0].read_bytes()[:400])
    image = str(images[0])
    for arguments, message in (
        (["predict", "minni", image, "--labels", "cat,dog"], "there is no model 'minni'"),
        (["predict", "mini", str(tmp_path / "none.png"), "--labels", "cat,dog"], "none.png"),
        (["predict", "mini", str(text), "--labels", "cat,dog"], "text.png is not an image that can be read"),
        (["predict", "mini", str(half), "--labels", "cat,dog"], "half.png"),
        (["predict", "mini", image, "--labels", "cat"], "'cat' is one label; a model needs at least two"),
        (["predict", "mini", image, "--labels", "Cat,dog,cat"], "the label 'cat' is given twice; keep one"),
        (
            ["predict", "mini", image, "--labels", "cat,dog", "--template", "so " * 99 + "{}"],
            "'cat' and 'dog' are the same text to mini",
        ),
        (["predict", "mini", image, "--labels", "cat,cat"], "cat"),
        (
            ["attack", "mini", image, "--labels", "cat,dog", "--label", "cow"],
            "the label 'cow' is not among",
        ),
        (["attack", "mini", image, "--labels", "cat,dog", "--eps", "0"], "eps must be above 0"),
        (
            ["attack", "mini", image, "--labels", "cat,dog", "--eps", "0.5/255"],
            "eps must be at least 1/255",
        ),
        (["attack", "mini", image, "--labels", "cat,dog", "--eps", "much"], "--eps"),
        (["attack", "mini", image, "--labels", "cat,dog", "--attack", "pgdd"], "there is no attack 'pgdd'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, *(["--out", str(tmp_path / "out")] if arguments[0] == "attack" else [])])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and message in error and error.count("\n") == 1, error
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_names_longer_than_a_file_may_have(images: list[Path]) -> None:
    assert len(predict("mini", images[0], ",".join(f"label {i}" for i in range(99)), top=99)[0].guesses) == 99
    with pytest.raises(ValueError, match="is one label"):
        predict("mini", images[0], "a" * 300)
    with pytest.raises(ValueError, match="there is no image aaa"):
        predict("mini", "a" * 300, "cat,dog")


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_has_an_image(size: int, images: list[Path]) -> None:
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, not {size}"):
        predict("mini", images, "cat,dog", batch_size=size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((9, 9, 3), np.uint8)}, "an image is a file or a PIL image, not ndarray"),
        ({"image": [Image.new("RGB", (9, 9)), None]}, "an image is a file or a PIL image, not NoneType"),
        ({"image": b"GIF"}, "an image is a file or a PIL image, not bytes"),
        ({"labels": [1, 2]}, r"labels must be text, not 1 \(int\)"),
        ({"labels": None}, r"labels must be text, not None \(NoneType\)"),
        ({"templates": ["{}", 5]}, r"prompt templates must be text, not 5 \(int\)"),
        ({"top": 1.5}, "top must be a whole number, not 1.5"),
        ({"batch_size": "2"}, "batch_size must be a whole number, not '2'"),
        ({"seed": 1.5}, "seed must be a whole number, not 1.5"),
        ({"label": 5}, r"a label must be text, not 5 \(int\)"),
    ],
)
def test_objects_of_another_kind(change: dict[str, Any], message: str) -> None:
    given = {"image": Image.new("RGB", (9, 9)), "labels": ["cat", "dog"], **change}
    image, labels = given.pop("image"), given.pop("labels")
    with pytest.raises(ValueError, match=message):
        predict("mini", image, labels, **given) if not {"seed", "label"} & {*given} else attack_image(
            "mini", image, labels, eps=8 / 255, **given
        )


@pytest.mark.parametrize("make", [np.array, tuple, iter])
def test_labels_of_another_sequence(make: Any, images: list[Path]) -> None:
    names = ["pizza", images[0].stem]
    assert predict("mini", images[0], make(names)) == predict("mini", images[0], names)


def test_from_python(images: list[Path]) -> None:
    model = advflyp.load_model("mini")
    (found,) = advflyp.predict(model, Image.open(images[0]), ["pizza", images[0].stem])
    assert found.guesses[0].label == images[0].stem


def test_a_model_whose_answers_are_no_numbers(tiny_folder: Path, tmp_path: Path) -> None:
    model = load_model(tiny_folder)
    with torch.no_grad():
        model.visual.conv1.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="gives probabilities that are not finite: its weights are damaged"):
        predict(model, Image.new("RGB", (9, 9)), "cat,dog")


def test_an_answer_that_another_label_equals_is_not_attacked(images: list[Path]) -> None:
    """A text tower to which all labels are alike; without a label there is no name that the message could have."""
    model = load_model("mini")
    torch.nn.init.zeros_(model.net.text_projection)  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match="mini finds 'pizza' and another label equally likely.*choose other labels"
    ):
        attack_image(model, images[0], ["pizza", "salad"], eps=1 / 255)
