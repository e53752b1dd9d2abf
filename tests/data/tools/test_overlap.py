"""Near-duplicates between training and evaluation: found through every usual change, and few others."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from advflyp.cli.main import main
from advflyp.data.pairs.images import on_white, read_image
from advflyp.data.pairs.samples import in_order
from advflyp.data.pairs.sources import open_source
from advflyp.data.sets.labelled import load_set
from advflyp.data.tools import overlap as module
from advflyp.data.tools.overlap import CANDIDATE_LIMIT, HASH_LIMIT, image_hash, overlap, within, without
from advflyp.model.load import load_model
from helpers import class_folder, encoded_png, pairs, write_folder, write_tar

SETS = ("mini/food", "mini/animals", "mini/objects-3d")


def jpeg(image: Image.Image, quality: int = 50) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


CHANGES: dict[str, tuple[Callable[[Image.Image], Image.Image], float, float]] = {
    # the change, the share that the hash alone finds, the share it proposes to a model
    "compressed": (jpeg, 0.85, 0.95),
    "resized": (lambda image: image.resize((43, 43), Image.Resampling.BICUBIC), 0.97, 1.0),
    "darker": (lambda image: ImageEnhance.Brightness(image).enhance(0.8), 0.97, 1.0),
    "paler": (lambda image: ImageEnhance.Color(image).enhance(0.3), 0.95, 1.0),
    "mirrored": (lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 1.0, 1.0),
    "cropped by 3 %": (lambda image: image.crop((2, 2, image.width - 2, image.height - 2)), 0.25, 0.8),
}


@pytest.fixture(scope="module")
def pictures() -> dict[str, list[Image.Image]]:
    return {name: [on_white(load_set(name).image(i)) for i in range(80)] for name in SETS}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found(pictures: dict[str, list[Image.Image]], change: str) -> None:
    alter, alone, proposed = CHANGES[change]
    for images in pictures.values():
        hashes = codes(images)
        changed = np.array([image_hash(alter(image)) for image in images], np.uint64)
        bits = [one for query, reference, one, _ in within(changed, hashes, 64) if query == reference]
        assert np.mean(np.array(bits) <= HASH_LIMIT) >= alone
        assert np.mean(np.array(bits) <= CANDIDATE_LIMIT) >= proposed


def test_other_pictures_are_left_alone(pictures: dict[str, list[Image.Image]]) -> None:
    """Drawings on white resemble one another more than photographs do: at most one pair in a thousand."""
    for images in pictures.values():
        found = within(codes(images)[:, 0], codes(images), 64)
        others = np.array([bits for query, reference, bits, _ in found if query < reference])
        assert len(others) == len(images) * (len(images) - 1) / 2
        assert np.mean(others <= HASH_LIMIT) < 0.001 and np.mean(others <= CANDIDATE_LIMIT) < 0.01


def codes(images: list[Image.Image]) -> np.ndarray:
    both = [(image_hash(i), image_hash(i.transpose(Image.Transpose.FLIP_LEFT_RIGHT))) for i in images]
    return np.array(both, np.uint64)


@pytest.mark.parametrize("piece", (3, 2048))
def test_distances_are_hamming_distances(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", piece)
    rng = np.random.default_rng(0)
    queries, references = rng.integers(0, 2**63, 5, np.uint64), rng.integers(0, 2**63, (7, 2), np.uint64)
    expected = []
    for i, query in enumerate(queries.tolist()):
        for j, (plain, flipped) in enumerate(references.tolist()):
            one, other = bin(query ^ plain).count("1"), bin(query ^ flipped).count("1")
            expected.append((i, j, min(one, other), other < one))
    for bits in (0, 28, 30, 64):
        assert within(queries, references, bits) == [found for found in expected if found[2] <= bits]
    assert within(queries, np.empty((0, 2), np.uint64), 64) == []


@pytest.fixture
def leaked(tmp_path: Path) -> tuple[str, str]:
    """Training shards that hold two pictures of an evaluation folder, one of them mirrored, and one broken file."""
    foods = [on_white(load_set("mini/food").image(i)) for i in range(12)]
    test = class_folder(tmp_path / "test", foods)
    others = [on_white(load_set("mini/animals-3d").image(i)) for i in range(10)]
    training = [*others, jpeg(foods[3], 95), foods[7].transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    members = [(f"{i:02d}.png", encoded_png(image)) for i, image in enumerate(training)] + [("99.png", b"x")]
    texts = [(name.replace("png", "txt"), b"caption") for name, _ in members]
    return str(write_tar(tmp_path / "t.tar", sorted(members + texts))), str(test)


def test_leaks_are_found_with_and_without_a_model(leaked: tuple[str, str]) -> None:
    training, test = leaked
    for model in (None, load_model("mini")):
        found = overlap(training, [test], model=model)
        assert found.seen == 13 and found.skipped.counts == {"not an image": 1}
        assert [(match.key, match.mirrored) for match in found.matches] == [
            ("t.tar:10", False),
            ("t.tar:11", True),
        ]
        assert all((match.cosine is None) == (model is None) for match in found.matches)
        assert found.matches[0].image.endswith("03.png") and found.matches[1].image.endswith("07.png")
    assert all(match.cosine is not None and match.cosine > 0.95 for match in found.matches)
    assert not overlap(training, [test], model=load_model("mini"), cosine=1.0, bits=2).keys - {
        (11, "t.tar:11")
    }


def test_shards_of_one_name_in_two_folders(tmp_path: Path) -> None:
    """They give two pairs one key: only the one that matches goes."""
    leaked, other = (on_white(load_set(name).dataset[3][0]) for name in ("mini/food", "mini/animals-3d"))
    for folder, image in (("a", other), ("b", leaked)):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "0.tar", [("0.png", encoded_png(image)), ("0.txt", folder.encode())])
    pairs = str(tmp_path / "{a,b}" / "0.tar")
    found = overlap(pairs, [str(class_folder(tmp_path / "test", [leaked, leaked.rotate(90)]))])
    assert found.keys == {(1, "0.tar:0")}
    assert [sample.captions() for sample in without(found)] == [("a",)]


@pytest.mark.parametrize("change", ["completed", "replaced", "inserted", "appended"])
def test_only_what_was_compared_is_kept(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody else writes the pairs while they are compared, and again before they are copied."""
    leaked, *others = (on_white(load_set("mini/food").dataset[i][0]) for i in (3, 20, 40, 60))
    training = write_folder(tmp_path / "train", len(others))
    files = [training / f"{number:04d}.png" for number in range(len(others))]
    for file, image in zip(files, others, strict=True):
        file.write_bytes(encoded_png(image))
    if change == "completed":
        files[1].write_bytes(files[1].read_bytes()[:200])
    real = module.overlap

    def compared_then_changed(*arguments: Any, **options: Any) -> Any:
        found = real(*arguments, **options)
        if change in ("completed", "replaced"):
            files[1].write_bytes(encoded_png(leaked))
        else:
            name = "+" if change == "inserted" else "z"
            (training / f"{name}.png").write_bytes(encoded_png(leaked))
            (training / f"{name}.txt").write_text("a leak")
        return found

    monkeypatch.setattr(module, "overlap", compared_then_changed)
    test = str(class_folder(tmp_path / "test", [leaked, leaked.rotate(90)]))
    clean = str(tmp_path / "clean")
    command = ["data", "overlap", str(training), "--against", test, "--drop", clean]
    if change == "inserted":  # every number stands for another pair now
        with pytest.raises(SystemExit) as stopped:
            main(command)
        assert stopped.value.code == 2 and not Path(clean).exists()
        assert "4 image is not the one that was compared" in capsys.readouterr().err
        return
    main(command)
    kept = [read_image(sample.image_bytes()) for sample in in_order(open_source(clean))]
    assert len(kept) == (3 if change == "appended" else 2)
    assert not within(codes(kept)[:, 0], codes([leaked]), HASH_LIMIT)
    manifest = json.loads((Path(clean) / "manifest.json").read_text())
    assert manifest["failures"] == {"image is not the one that was compared": 1}


def test_cosines_are_those_of_each_pair_by_itself(
    leaked: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is embedded together, and however often an evaluation picture comes."""
    training, test = leaked
    model = load_model("mini").double()
    whole = overlap(training, [test], model=model, bits=32, cosine=-1).matches
    monkeypatch.setattr(module, "_BLOCK", 5)
    parts = overlap(training, [test], model=model, bits=32, cosine=-1).matches
    assert len(whole) > 20 and {match.mirrored for match in whole} == {True, False}
    evaluated = {load_set(test).key(i): on_white(load_set(test).dataset[i][0]) for i in range(12)}
    samples = list(in_order(open_source(training)))
    for one, other in zip(whole, parts, strict=True):
        assert (one.number, one.image) == (other.number, other.image)
        image = evaluated[one.image]
        if one.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        both = torch.stack(
            [model.preprocess(i) for i in (read_image(samples[one.number].image_bytes()), image)]
        )
        with torch.no_grad():
            expected = model.encode_image(both)
        assert one.cosine == pytest.approx(float(expected[0] @ expected[1]), abs=1e-9)
        assert other.cosine == pytest.approx(one.cosine, abs=1e-9)


def test_the_command_reports_and_drops(
    leaked: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training, test = leaked
    out, clean = tmp_path / "out", tmp_path / "clean"
    main(["data", "overlap", training, "--against", test, "--out", str(out), "--drop", str(clean)])
    printed = capsys.readouterr().out
    assert "of 13 training pairs, 2 are near-duplicates of evaluation images" in printed
    assert (
        "of the training pairs, 2 are near-duplicates of 2 of its" in printed
        and "10 pairs in 1 shard of" in printed
    )
    matches = [json.loads(line) for line in (out / "matches.jsonl").read_text().splitlines()]
    assert [match["key"] for match in matches] == ["t.tar:10", "t.tar:11"]
    assert (out / "index.html").read_text().count("data:image/jpeg") == 4
    assert len(list(in_order(open_source(str(clean))))) == 10
    for arguments, message in (
        (["--drop", str(clean)], "already exists"),
        (["--bits", "40"], "--bits must be from 0 to 32"),
        (["--drop", str(tmp_path / "x"), "--limit", "3"], "leave out --limit"),
        (["--drop", str(tmp_path / "x"), "--out", str(tmp_path / "x")], "--out would fill it first"),
        (["--drop", str(tmp_path / "x"), "--out", str(tmp_path / "x" / "y")], "--out would fill it first"),
        (["--against", "mini/fod"], "did you mean 'mini/food'?"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(
                [
                    "data",
                    "overlap",
                    training,
                    *(["--against", test] if "--against" not in arguments else []),
                    *arguments,
                ]
            )
        assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_nothing_in_common(tmp_path: Path) -> None:
    images = [image for image, _ in pairs(8)]
    members = [part for i, image in enumerate(images) for part in ((f"{i}.png", image), (f"{i}.txt", b"x"))]
    assert not overlap(str(write_tar(tmp_path / "a.tar", members)), ["mini/flags"]).matches


def test_an_image_that_can_be_read_once_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its server does not answer again when the block is compared: one skipped sample, and the rest is known."""
    foods = [on_white(load_set("mini/food").image(i)) for i in range(4)]
    for number, image in enumerate(foods[:2]):
        (tmp_path / f"pairs/{number}.png").parent.mkdir(exist_ok=True)
        image.save(tmp_path / f"pairs/{number}.png")
        (tmp_path / f"pairs/{number}.txt").write_text("a caption")

    def within_and_gone(*arguments: Any) -> Any:
        (tmp_path / "pairs/0.png").unlink()
        return within(*arguments)

    monkeypatch.setattr(module, "within", within_and_gone)
    found = overlap(str(tmp_path / "pairs"), [str(class_folder(tmp_path / "test", foods))])
    assert found.skipped.counts == {"image file cannot be read": 1} and found.keys == {(1, "1.png")}


def test_evaluation_pictures_that_cannot_be_read_are_named(
    leaked: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training, test = leaked
    bad = next(Path(test).rglob("*.png"))
    bad.write_bytes(b"no picture")
    main(["data", "overlap", training, "--against", test, "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "not compared, unreadable: 1 image: " in printed
    assert str(bad.relative_to(test)) in printed
    (tmp_path / "out" / "matches.jsonl").write_text("mine")
    before = (tmp_path / "out" / "index.html").read_bytes()
    monkeypatch.setattr(
        "advflyp.data.tools.overlap.overlap", lambda *_, **__: pytest.fail("it is asked first")
    )
    with pytest.raises(SystemExit) as stopped:
        main(["data", "overlap", training, "--against", test, "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2 and "matches.jsonl was not written by advflyp" in capsys.readouterr().err
    assert (tmp_path / "out" / "index.html").read_bytes() == before


def test_several_near_duplicates_of_one_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Counted are the images and the pairs, not how often they meet: "26 near-duplicates of its 24 pictures"."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (4, 4, 3), np.uint8)).resize(
        (64, 64), Image.Resampling.BICUBIC
    )
    for name in ("set/a/0", "set/b/0", "pairs/0", "pairs/1", "pairs/2"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / f"{name}.png")
        if name.startswith("pairs"):
            (tmp_path / f"{name}.txt").write_text("a caption")
    main(["data", "overlap", str(tmp_path / "pairs"), "--against", str(tmp_path / "set")])
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        f"{tmp_path / 'set'}: of the training pairs, 3 are near-duplicates of 2 of its 2 images",
        "of 3 training pairs, 3 are near-duplicates of evaluation images",
    ]
