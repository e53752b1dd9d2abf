"""What a model card says of the method, its paper, the source and the licence."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from advflyp.cli.main import main
from advflyp.method import METHODS
from advflyp.model.folder import save_model
from advflyp.model.interop.publish import prepare
from advflyp.model.load import load_model
from advflyp.model.zoo import ENTRIES, ZOO
from advflyp.report.pages.model_card import model_card, scrubbed

ADVFLYP, FARE, TECOA = "2604.11576", "2402.12336", "2212.07016"


def card_of(known: dict[str, Any], licence: str | None = None) -> str:
    return model_card("me/m", "open_clip", known, "ab" * 32, [], licence, False)


def of_method(name: str, **keys: Any) -> str:
    recipe = {"method": {"name": name, **keys}, "model": {"name": "ViT-B-32/openai"}, "attack": {"steps": 2}}
    return card_of({"recipe": recipe})


def cited(card: str) -> str:
    return card.partition("## Cite")[2].strip()


def test_a_model_of_the_zoo() -> None:
    card = card_of(ZOO["fare2-vit-l-14"].card())
    assert "A CLIP-like model, made with the method FARE. It is meant for" in card
    assert "How its weights were made" not in card and "start" not in card
    assert "- source: hf-hub:chs20/fare2-clip\n- data: imagenet@train\n" in card
    assert ModelCard(card).data.to_dict()["license"] == "mit" and "## Licence\n\nmit. The model" in card
    assert cited(card).startswith("The method: Schlarmann, Singh, Croce, Hein: Robust CLIP: ")
    assert FARE in cited(card) and ADVFLYP not in card


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_model_of_the_zoo_is_credited_to_its_authors(entry: Any) -> None:
    card = card_of(entry.card())
    assert entry.paper.rpartition("arXiv ")[2] in cited(card) and ADVFLYP not in card
    assert ModelCard(card).data.to_dict().get("license") == entry.licence


@pytest.mark.parametrize(
    ("method", "paper"),
    [
        ("advflyp", ADVFLYP),
        ("tecoa", TECOA),
        ("fare", FARE),
        ("pmg_aft", "PMG-AFT (Wang et al. 2024)"),
        ("tga_zsr", "TGA-ZSR (Yu et al. 2024)"),
        ("flyp", "FLYP (Goyal et al. 2023)"),
        ("agft", "agft, whose paper is not known to advflyp"),
        ("my:Own", "my:Own, whose paper is not known to advflyp"),
    ],
)
def test_a_method_is_credited_to_its_own_paper(method: str, paper: str) -> None:
    card = of_method(method)
    assert paper in cited(card) and (ADVFLYP in card) == (method == "advflyp")
    said = f"with advflyp's method `{method}`" if method in METHODS else f"with the method {method}."
    assert said in card and "finetuned from `ViT-B-32/openai` against" in card


def test_tecoa_with_the_regularisers_of_advflyp() -> None:
    assert ADVFLYP not in cited(of_method("tecoa", feature_weight=0.0, logit_weight=0.0))
    both = cited(of_method("tecoa", feature_weight=0.0, logit_weight=1.0))
    assert TECOA in both and "; its regularisers: *Finetune Like You Pretrain" in both


def test_a_card_that_says_more_than_its_recipe() -> None:
    known = {
        "recipe": {"method": {"name": "tecoa"}, "data": {}},
        "paper": "Me: *Mine*",
        "trained_on": ["a", "b"],
    }
    card = card_of(known)
    assert cited(card).startswith(r"The method: Me: \*Mine\*. The software: ")
    assert "- start: not known\n- data: a, b\n" in card
    assert cited(card_of({"method": "X"})).startswith(
        "The method: X, whose paper is not known to advflyp. The"
    )


def test_nothing_is_known() -> None:
    card = card_of({"trained_on": []})
    assert "How its weights were made is not known" in card and "- data: not known" in card
    assert cited(card).startswith("The software: advflyp") and "license" not in card


@pytest.mark.parametrize(
    ("recorded", "given", "metadata", "text"),
    [
        ("mit", None, "mit", "mit."),
        ("mit", "mit", "mit", "mit."),
        ("Apache-2.0; see NOTICE", None, "apache-2.0", "Apache-2.0; see NOTICE."),
        ("Apache-2.0; see NOTICE", "apache-2.0", "apache-2.0", "Apache-2.0; see NOTICE."),
        ("as in LICENCE", None, None, "as in LICENCE."),
        ("as in LICENCE", "mit", "mit", "mit. The card of the weights says: as in LICENCE."),
        (None, "mit", "mit", "mit."),
        (None, None, None, "Of these weights: not known."),
    ],
)
def test_the_licence(recorded: str | None, given: str | None, metadata: str | None, text: str) -> None:
    card = card_of({"licence": recorded}, given)
    assert ModelCard(card).data.to_dict().get("license") == metadata
    assert f"## Licence\n\n{text} The model" in card


def test_a_licence_that_contradicts_the_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load_model("mini-vit")
    save_model(model, tmp_path / "m", {"licence": "mit"})
    message = "--licence apache-2.0 contradicts the card of these weights, which are under mit: leave it out"
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "m", "me/m", licence="apache-2.0")
    with pytest.raises(SystemExit) as stopped:
        main(["publish", str(tmp_path / "m"), "--repo", "me/m", "--licence", "Apache 2.0"])
    assert stopped.value.code == 2 and message in " ".join(capsys.readouterr().err.split())
    main(["publish", str(tmp_path / "m"), "--repo", "me/m"])
    shown = capsys.readouterr()
    assert "license: mit" in shown.out and "no licence" not in shown.err
    assert json.loads(prepare(tmp_path / "m", "me/m").written["card.json"])["licence"] == "mit"


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("/home/me/x.pt", "x.pt"),
        ("~/runs/my run", "my run"),
        ("~other/x", "x"),
        ("folder:/home/me/pets", "folder:pets"),
        ("wds:/home/me/{0..9}.tar", "wds:{0..9}.tar"),
        ("file:///home/me/x", "file://x"),
        ("/home/me/x.pt@ViT-B-32/openai", "x.pt@ViT-B-32/openai"),
        ("/home/me/x.pt@hf-hub:me/clip", "x.pt@hf-hub:me/clip"),
        ("/home/me/x.pt@mini-vit", "x.pt@mini-vit"),
        ("/home/me/x.pt@/home/me/run", "x.pt@run"),
        ("/home/me@company/secret/x.pt", "x.pt"),
        ("/home/me@company/secret/x.pt@ViT-B-32/openai", "x.pt@ViT-B-32/openai"),
        ("pgd10@/home/me/x.pt", "pgd10@x.pt"),
        ("pgd10@/home/me/x.pt@ViT-B-32/openai", "pgd10@x.pt@ViT-B-32/openai"),
        ("pgd10@hf-hub:me/clip", "pgd10@hf-hub:me/clip"),
        ("r.jsonl, then /home/me/a b/x", "r.jsonl, then x"),
        (["/a/b", ("~/c/d", 1)], ["b", ("d", 1)]),
        ({"/a/b": {"x": "/c/d"}}, {"b": {"x": "d"}}),
    ],
)
def test_paths_of_this_machine(said: Any, left: Any) -> None:
    assert scrubbed(said) == left


@pytest.mark.parametrize(
    "said",
    [
        "https://example.org/a/b", "s3://bucket/a", "1/255", "ε = 4/255, 8/255", "~5 h", "about ~2/3", "text / image",
        "/", "and/or", "mini/food", "ViT-B-32/openai", "hf-hub:me/clip", "a photo of a {}.", "</s>", "", 3, None,
    ],
)  # fmt: skip
def test_what_only_looks_like_a_path(said: Any) -> None:
    assert scrubbed(said) == said
