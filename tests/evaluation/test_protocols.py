"""Each protocol on small copies of real layouts: prompts, pixels and attacks against what is written out by hand."""

import json
import typing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from advflyp.attack.apgd import APGD, TargetedAPGD
from advflyp.attack.autoattack import AutoAttack
from advflyp.attack.base import Clean
from advflyp.attack.threat import Threat
from advflyp.cli.evaluate import ProtocolName
from advflyp.cli.main import main
from advflyp.data.sets.catalogue import PAPER
from advflyp.data.sets.labelled import LabelledSet, load_set, set_names
from advflyp.evaluation import suite
from advflyp.evaluation.attacks import find_attack
from advflyp.evaluation.classifier import Classifier
from advflyp.evaluation.evaluator import Evaluator
from advflyp.evaluation.pixels import Pixels
from advflyp.evaluation.protocols import ADVFLYP, PROTOCOLS, QUICK, Protocol, find_protocol
from advflyp.evaluation.results import read_cells
from advflyp.evaluation.suite import evaluate
from advflyp.model.clip import CLIP
from advflyp.model.load import load_model
from advflyp.model.zeroshot import BARRED
from advflyp.report.pages.protocols import EXAMPLES, describe, example, facts, protocols_table
from helpers import assert_equal64, small_model
from layouts import BUILDERS, webdataset

FAMILY = ("tecoa", "pmg-aft", "tga-zsr")
BOARDS = ("advflyp-2026", "advflyp-2026-mini")
FILES = ("advflyp", "advflyp-code", *FAMILY)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADVFLYP_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layouts that no test changes."""
    folder = tmp_path_factory.mktemp("sets")
    for name in ("cifar10", "cifar100", "caltech101", "eurosat", "flowers102", "sun397", "pcam"):
        BUILDERS[name](folder)
    for name in ("wds_vtab-eurosat", "wds_vtab-cifar10"):
        webdataset(folder / name, (4, 3), ["annual crop land", "lake or sea"])
    rng = np.random.default_rng(0)
    for path in (folder / "eurosat/2750").rglob("*_1.jpg"):
        Image.fromarray(rng.integers(0, 256, (301, 402, 3), np.uint8)).save(path, "png")
    return folder


def prompts(model: CLIP, labelled: LabelledSet) -> torch.Tensor:
    """The tokens of the texts that the model encodes."""
    given: list[torch.Tensor] = []
    encode = model.encode_text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            model, "encode_text", lambda texts: (given.append(model.tokenizer(texts)), encode(texts))[1]
        )
        assert Evaluator(model, labelled).weights.shape[0] == len(labelled.classes)
    return torch.cat(given)


EUROSAT = {
    "advflyp": [
        "This is a photo of a annual crop land.",
        "This is a photo of a forest.",
        "This is a photo of a brushland or shrubland.",
        "This is a photo of a highway or road.",
        "This is a photo of a industrial buildings.",
        "This is a photo of a pasture land.",
        "This is a photo of a permanent crop land.",
        "This is a photo of a residential buildings.",
        "This is a photo of a river.",
        "This is a photo of a sea or lake.",
    ],
    "advflyp-code": [
        "A centered satellite photo of annual crop land.",
        "A centered satellite photo of a forest.",
        "A centered satellite photo of brushland or shrubland.",
        "A centered satellite photo of a highway or a road.",
        "A centered satellite photo of industrial buildings.",
        "A centered satellite photo of pasture land.",
        "A centered satellite photo of permanent crop land.",
        "A centered satellite photo of residential buildings.",
        "A centered satellite photo of a river.",
        "A centered satellite photo of a sea or a lake.",
    ],
    "webdataset": [
        "a photo of a annual crop land.",
        "a photo of the annual crop land.",
        "a photo of a lake or sea.",
        "a photo of the lake or sea.",
    ],
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_tokens(name: str, built: Path, tiny: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVFLYP_DATA", str(built))
    protocol = PROTOCOLS[name]
    kind = (
        "webdataset"
        if name in ("robustvlm", "clip-benchmark")
        else "advflyp"
        if name in ("advflyp", *BOARDS)
        else "advflyp-code"
    )
    labelled = load_set("eurosat@vtab" if kind == "webdataset" else "eurosat", source=protocol.source)
    assert torch.equal(prompts(tiny, protocol.apply(labelled)), tiny.tokenizer(EUROSAT[kind]))


@pytest.mark.parametrize(
    ("name", "protocol", "number", "prompt"),
    [
        ("cifar100", "advflyp", 1, "This is a photo of a aquarium fish."),
        ("cifar100", "advflyp-code", 1, "This is a photo of a aquarium_fish."),
        ("cifar100", "tecoa", 1, "This is a photo of a aquarium fish"),
        ("caltech101", "advflyp", 0, "This is a photo of a off-center face."),
        ("caltech101", "advflyp-code", 0, "This is a photo of a person."),
        ("caltech101", "pmg-aft", 1, "This is a photo of a person"),
        ("flowers102", "advflyp", 59, "This is a photo of a pink-yellow dahlia."),
        ("flowers102", "advflyp-code", 59, "A photo of a pink yellow dahlia?, a type of flower."),
        ("flowers102", "tga-zsr", 59, "A photo of a pink yellow dahlia?, a type of flower."),
        ("sun397", "advflyp", 1, "This is a photo of a apartment building outdoor."),
        ("sun397", "advflyp-code", 1, "This is a photo of a apartment_building/outdoor."),
        ("sun397", "tecoa", 1, "This is a photo of a apartment building/outdoor"),
        ("sun397", "pmg-aft", 1, "This is a photo of a apartment building outdoor"),
        ("sun397", "tga-zsr", 1, "This is a photo of a apartment building outdoor"),
        ("pcam", "advflyp", 0, "This is a photo of a lymph node."),
        ("pcam", "tecoa", 0, "Tthis is a photo of healthy lymph node tissue."),
        ("pcam", "tga-zsr", 1, "This is a photo of lymph node tumor tissue."),
    ],
)
def test_tokens_of_one_class(
    name: str,
    protocol: str,
    number: int,
    prompt: str,
    built: Path,
    tiny: CLIP,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ADVFLYP_DATA", str(built))
    found = prompts(tiny, PROTOCOLS[protocol].apply(load_set(name)))
    assert torch.equal(found[number : number + 1], tiny.tokenizer([prompt]))


def as_pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image, np.float32).transpose(2, 0, 1).copy()) / 255


def by_hand(image: Image.Image, side: int, mode: Image.Resampling) -> torch.Tensor:
    """A landscape image, its shorter side to `side`, then the middle 224 × 224."""
    image = image.resize((side * image.width // image.height, side), mode)
    left, top = round((image.width - 224) / 2), round((image.height - 224) / 2)
    return as_pixels(image.crop((left, top, left + 224, top + 224)))


@pytest.fixture(scope="module")
def model224() -> CLIP:
    vision = {"image_size": 224, "patch_size": 112, "width": 32, "head_width": 16, "layers": 1}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    return small_model({"embed_dim": 8, "vision_cfg": vision, "text_cfg": text})


@pytest.mark.parametrize("name", PROTOCOLS)
def test_pixels(name: str, built: Path, model224: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVFLYP_DATA", str(built))
    protocol = PROTOCOLS[name]
    labelled = load_set("eurosat")
    evaluator = Evaluator(model224, labelled, pixels=protocol.pixels_of(labelled.name))
    place = labelled.dataset.keys.index("River/River_1.jpg")
    image = labelled.image(place)
    assert image.size == (402, 301)
    ((_, found, _),) = labelled.batches(evaluator.transform, 1, [place])
    if name in ("advflyp", "robustvlm", "clip-benchmark", *BOARDS):
        expected = by_hand(image, 224, Image.Resampling.BICUBIC)
    else:
        expected = by_hand(image, 256, Image.Resampling.BILINEAR)
    assert torch.equal(found[0], expected)
    assert torch.equal(evaluator.pixels.to_input(found, model224), found)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_pixels_of_cifar(name: str, built: Path, model224: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    """Native in three of them, and larger only inside the model; else enlarged first."""
    monkeypatch.setenv("ADVFLYP_DATA", str(built))
    labelled = load_set("cifar10")
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8))
    pixels = PROTOCOLS[name].pixels_of(labelled.name)
    found = pixels.transform(model224)(image)
    if name in ("tecoa", "pmg-aft", "robustvlm"):
        assert torch.equal(found, as_pixels(image))
        inside = pixels.to_input(found[None], model224)
        assert torch.equal(
            inside, F.interpolate(found[None], (224, 224), mode="bicubic", align_corners=False)
        )
    else:
        side, mode = {"advflyp-code": (256, "BILINEAR"), "tga-zsr": (224, "BILINEAR")}.get(
            name, (224, "BICUBIC")
        )
        assert torch.equal(found, by_hand(image, side, Image.Resampling[mode]))
        assert torch.equal(pixels.to_input(found[None], model224), found[None])


def test_a_smaller_model_has_a_smaller_margin(tiny: CLIP) -> None:
    pixels = PROTOCOLS["tecoa"].pixels
    assert pixels.settings(tiny) == {"resize": 37, "interpolation": "bilinear"}
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 50, 3), np.uint8))
    small = image.resize((37, 37), Image.Resampling.BILINEAR)
    assert torch.equal(pixels.transform(tiny)(image), as_pixels(small.crop((2, 2, 34, 34))))


@pytest.fixture
def cifar(built: Path, tiny_rn_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Evaluator]:
    """TeCoA's CIFAR-10, 32 × 32, for a model whose input is 64 × 64, in float64."""
    monkeypatch.setenv("ADVFLYP_DATA", str(built))

    def make(**how: object) -> Evaluator:
        protocol = PROTOCOLS["tecoa"]
        model = load_model(tiny_rn_folder).double()
        labelled = protocol.apply(load_set("cifar10"))
        rng = np.random.default_rng(2)
        images = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)) for _ in range(16)]
        pixels = protocol.pixels_of(labelled.name)
        stacked = torch.stack([pixels.transform(model)(image) for image in images]).double()
        with torch.no_grad():
            embeddings = model.encode_image(pixels.to_input(stacked, model))
            # Directions in which the images differ: a random model's own classes are all alike.
            weights = F.normalize(embeddings[:10] - embeddings.mean(0), dim=-1)
            labels = (embeddings @ weights.T).argmax(1).tolist()
        evaluator = Evaluator(
            model, replace(labelled, dataset=list(zip(images, labels, strict=True))), pixels=pixels, **how
        )
        evaluator.weights = weights
        return evaluator

    return make


def test_the_gradient_goes_through_the_upsampling(cifar: Callable[..., Evaluator]) -> None:
    evaluator = cifar()
    image = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    ours, theirs = image.clone().requires_grad_(), image.clone().requires_grad_()
    evaluator.logits(ours)[:, 3].sum().backward()
    larger = F.interpolate(theirs, (64, 64), mode="bicubic", align_corners=False)
    embedding = F.normalize(evaluator.model.encode_image_raw(larger), dim=-1)
    (evaluator.model.logit_scale * embedding @ evaluator.weights[3]).sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    assert_equal64(ours.grad, theirs.grad)


@pytest.mark.parametrize(
    "name", ["noise", "pgd10", "cw10", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"]
)
def test_every_attack_perturbs_native_pixels(name: str, cifar: Callable[..., Evaluator]) -> None:
    evaluator = cifar(limit=4)
    attack, threat = find_attack(name), Threat(eps=16 / 255)
    ((_, images, labels),) = evaluator.labelled.batches(evaluator.transform, 4, evaluator.index.tolist())
    assert images.shape == (4, 3, 32, 32)
    images = images.double()
    found = evaluator.attack(images, labels, attack, threat, index=evaluator.index)
    assert found.shape == images.shape and threat.contains(images, found).all()
    outcome = evaluator.run(attack, threat)
    assert torch.equal(outcome.clean, outcome.label), "the labels are what the model says of clean images"
    assert torch.equal(outcome.attacked == outcome.label, evaluator.logits_fp32(found).argmax(1) == labels)
    if name != "noise":
        assert not outcome.correct.all()


def test_autoattack_means_what_the_protocol_says() -> None:
    expected = {
        "advflyp": "autoattack",
        "advflyp-code": "apgd-ce+apgd-dlr",
        **dict.fromkeys(FAMILY, "apgd-ce+apgd-dlr"),
        "robustvlm": "apgd-cex5+apgd-t",
        "clip-benchmark": "autoattack",
        "advflyp-2026": "autoattack",
        "advflyp-2026-mini": "autoattack",
    }
    assert {name: p.attack("AutoAttack").name for name, p in PROTOCOLS.items()} == expected
    robustvlm = PROTOCOLS["robustvlm"].attack("autoattack")
    assert robustvlm == AutoAttack(members=(APGD(restarts=5), TargetedAPGD()))
    assert len(robustvlm.stages(Threat(eps=2 / 255))) == 6
    assert PROTOCOLS["tecoa"].attack("pgd7") == find_attack("pgd7")
    assert PROTOCOLS["tecoa"].attack("autoattack-rand") == find_attack("autoattack-rand")


def test_a_leaderboard_records_the_protocol_that_it_chooses_from() -> None:
    board = PROTOCOLS["advflyp-2026"]
    assert (board.recorded, PROTOCOLS["tecoa"].recorded) == ("advflyp", "tecoa")
    assert (
        board.changed(resize=256).recorded
        == PROTOCOLS["advflyp"].changed(resize=256).name
        == "advflyp (resize 256)"
    )


def test_sets_and_attacks_exist() -> None:
    assert set(PROTOCOLS) == set(typing.get_args(ProtocolName))
    assert PROTOCOLS["advflyp"].sets == PAPER and QUICK.name == "advflyp" and QUICK.sets == ("mini",)
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name and find_protocol(name) is protocol
        assert protocol.sets == ("mini",) or set_names(list(protocol.sets)) == list(protocol.sets)
        assert isinstance(protocol.attack(protocol.attacks[0]), Clean)
        assert set(protocol.small) <= {"cifar10", "cifar100", "stl10"}, "images of one size"
    with pytest.raises(ValueError, match="there is no protocol 'tecao'; did you mean 'tecoa'"):
        find_protocol("tecao")


def test_of_equal_names_the_first_can_be_right(
    built: Path, tiny: CLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADVFLYP_DATA", str(built))
    protocol = PROTOCOLS["advflyp-code"]
    labelled = protocol.apply(load_set("caltech101"))
    assert labelled.classes[:2] == ["person", "person"]
    assert protocol.repeated(labelled.classes) == [1]
    assert protocol.repeated(["Audi", "audi", "BMW", "AUDI"]) == [1, 3]
    assert ADVFLYP.repeated(["Audi", "audi"]) == []
    model = tiny.double()
    names, images = ["person", "person", "a leopard", "a dog"], torch.rand(8, 3, 32, 32, dtype=torch.float64)
    barred = Classifier(model, names, ["{}"], repeated=[1]).logits(images)
    plain = Classifier(model, names, ["{}"]).logits(images)
    assert (barred[:, 1] == BARRED).all() and torch.equal(plain[:, 0], plain[:, 1])
    assert torch.equal(barred[:, [0, 2, 3]], plain[:, [0, 2, 3]])


def test_cells_of_protocols_are_never_taken_for_another_s(
    built: Path, tiny: CLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADVFLYP_DATA", str(built))
    out = tmp_path / "r.jsonl"

    def run(protocol: Protocol = ADVFLYP) -> list:
        return evaluate(tiny, ["eurosat"], ["clean"], out=out, limit=10, protocol=protocol)

    every = [ADVFLYP, *(PROTOCOLS[name] for name in ("advflyp-code", *FAMILY))]
    every.append(ADVFLYP.changed(resize=40, interpolation="bilinear"))
    every.append(ADVFLYP.changed(templates="a view of {}."))
    every.append(ADVFLYP.changed(classnames=[f"class {number}" for number in range(10)]))
    cells = [cell for protocol in every for cell in run(protocol)]
    assert len({cell.key() for cell in cells}) == len(cells) == 8
    monkeypatch.setattr(suite.Evaluator, "run", lambda *_, **__: pytest.fail("computed again"))
    assert [cell for protocol in every for cell in run(protocol)] == cells == read_cells(out)
    assert [cell.protocol for cell in cells] == [
        "advflyp", "advflyp-code", "tecoa", "pmg-aft", "tga-zsr", "advflyp (resize 40, bilinear)",
        "advflyp (own templates)", "advflyp (own class names)",
    ]  # fmt: skip
    assert cells[0].settings == cells[6].settings == {}
    assert cells[5].settings == {"resize": 40, "interpolation": "bilinear"}
    assert cells[2].settings.keys() == {"resize", "interpolation", "classnames_sha256"}
    assert cells[7].settings.keys() == {"classnames_sha256"} and cells[6].prompt == "a view of {}."


def test_changes(built: Path, tiny: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVFLYP_DATA", str(built))
    tecoa = PROTOCOLS["tecoa"]
    assert tecoa.changed() is tecoa
    bicubic = tecoa.changed(interpolation="bicubic")
    assert bicubic.pixels == Pixels(resize=256, of=224, interpolation="bicubic")
    assert bicubic.pixels_of("cifar10") == Pixels(native=True, interpolation="bicubic"), "only what is named"
    assert tecoa.changed(templates="{}").pixels_of("cifar10") == Pixels(native=True)
    assert tecoa.changed(resize=300).pixels == Pixels(resize=300, interpolation="bilinear")
    assert tecoa.changed(resize=300).pixels_of("cifar10") == Pixels(resize=300)
    tga = PROTOCOLS["tga-zsr"].changed(interpolation="bicubic").pixels_of("stl10")
    assert tga == Pixels(resize=224, of=224, interpolation="bicubic")
    openai = ADVFLYP.changed(templates=["openai"]).apply(load_set("mini/food"))
    assert len(openai.templates) == 80
    with pytest.raises(ValueError, match="--resize 20 is smaller than the input of .*, 32 pixels"):
        Evaluator(tiny, load_set("mini/food"), pixels=ADVFLYP.changed(resize=20).pixels)
    with pytest.raises(ValueError, match="must contain {} exactly once and no other braces"):
        ADVFLYP.changed(templates=["a {c}"])
    with pytest.raises(ValueError, match="resize must be at most 4,096 pixels, not 5,000"):
        ADVFLYP.changed(resize=5000)
    with pytest.raises(ValueError, match="no class names are given"):
        ADVFLYP.changed(classnames=[])
    with pytest.raises(ValueError, match="eurosat has 10 classes, and --classnames 2 names"):
        ADVFLYP.changed(classnames=["a", "b"]).apply(load_set("eurosat"))
    with pytest.raises(ValueError, match="eurosat has two classes called 'a', numbers 0 and 1"):
        ADVFLYP.changed(classnames=["a"] * 10).apply(load_set("eurosat"))
    own = [f"class {number}" for number in range(10)]
    ours = PROTOCOLS["tecoa"].changed(classnames=own).apply(load_set("eurosat"))
    assert ours.classes == own, "not by the protocol's rules"
    mini = PROTOCOLS["tecoa"].apply(load_set("mini/food"))
    assert mini.templates == load_set("mini/food").templates, "what is not in the table keeps its prompts"


def test_the_command(tiny_folder: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVFLYP_DATA", str(built))
    out, names = tmp_path / "r.jsonl", tmp_path / "names.json"
    names.write_text(json.dumps([f"class {number}" for number in range(10)]))
    words = ["eval", str(tiny_folder), "--sets", "eurosat", "--limit", "10", "--out", str(out)]
    main([*words, "--protocol", "advflyp-code", "--attacks", "clean"])
    main([*words, "--attacks", "clean", "--templates", "a photo, or so, of {}.", "the {}.", "--resize", "40",
          "--interpolation", "bilinear", "--classnames", str(names)])  # fmt: skip
    one, two = read_cells(out)
    assert (one.protocol, one.prompt) == ("advflyp-code", "A centered satellite photo of {}.")
    assert two.protocol == "advflyp (resize 40, bilinear, own templates, own class names)"
    assert two.prompt == "a photo, or so, of {}. | the {}."
    main(["eval", str(tiny_folder), "--protocol", "robustvlm", "--sets", "eurosat@vtab", "--attacks", "clean",
          "--out", str(out)])  # fmt: skip
    wds = read_cells(out)[-1]
    assert (wds.protocol, wds.split, wds.n) == ("robustvlm", "vtab (webdataset)", 7)
    assert wds.prompt == "a photo of a {}. | a photo of the {}."


def test_listing(capsys: pytest.CaptureFixture[str]) -> None:
    main(["protocols"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in PROTOCOLS)
    main(["protocols", "tecoa"])
    assert "not here:      Hateful Memes" in capsys.readouterr().out
    main(["protocols", "tga-zsr"])
    printed = capsys.readouterr().out
    assert "tiny-imagenet, cifar10" in printed and "not here:      none" in printed
    assert "A photo of a boeing 707-320, a type of aircraft." in printed
    assert "steps 100" in printed and "APGD-CE + APGD-DLR" in printed
    for protocol in PROTOCOLS.values():
        lines = describe(protocol)
        assert all(any(fact in line for line in lines) for fact in facts(protocol).values())
        assert all(f"note: {note}" in lines for note in protocol.notes)
    assert len(protocols_table().rows) == len(PROTOCOLS)


def test_examples_are_prompts_of_the_protocol(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVFLYP_DATA", str(built))
    for name in ("cifar100", "caltech101", "eurosat", "sun397", "pcam"):
        for protocol in (PROTOCOLS[p] for p in FILES):
            labelled = protocol.apply(load_set(name))
            number = load_set(name).own_names.index(EXAMPLES[name])
            assert example(protocol, name) == labelled.templates[0].replace("{}", labelled.classes[number])
