"""The builder on small made-up packages, and its mistakes; the real ones in the slow test."""

import io
import json
import random
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.mini_corpus import build as builder
from tools.mini_corpus import fetch as fetching
from tools.mini_corpus.clipart import read_flashcards
from tools.mini_corpus.read import finish
from tools.mini_corpus.sets import CIFAR_CLASSES, cifar, fashion, on_demand_set
from tools.mini_corpus.sources import SOURCES, source

MAMMALS = ("dog face", "cat face", "cow", "pig", "fox", "bear")
EMOJI = [
    *((name, "animal-mammal") for name in MAMMALS),
    ("pizza", "food-prepared"),
    ("bus", "transport-ground"),
    ("guitar", "musical-instrument"),
    ("rose", "plant-flower"),
]
SUBGROUPS = sorted({group for _, group in EMOJI})
VENDORS = (
    "noto",
    "twemoji",
    "noto-v1",
    "fluent-emoji-flat",
    "fxemoji",
    "streamline-emojis",
    "emojione",
    "openmoji",
)


def drawing(seed: str) -> str:
    rng = random.Random(seed)
    shapes = [
        f'<rect x="{rng.randint(0, 60)}" y="{rng.randint(0, 60)}" width="{rng.randint(9, 40)}" '
        f'height="{rng.randint(9, 40)}" fill="#{rng.randrange(1 << 24):06x}"/>'
        for _ in range(6)
    ]
    return "".join(shapes)


def iconify(folder: Path, icons: dict[str, str]) -> None:
    folder.mkdir(parents=True)
    data = {"width": 100, "height": 100, "icons": {name: {"body": body} for name, body in icons.items()}}
    (folder / "icons.json").write_text(json.dumps(data))


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny package in the place of every source."""
    root = tmp_path / "packages"
    slugs = [name.replace(" ", "-") for name, _ in EMOJI]
    for row in SOURCES:
        folder = root / row.name
        if row.name in VENDORS:
            iconify(folder, {slug: drawing(f"{row.name} {slug}") for slug in slugs})
        elif row.reader == "flag":
            iconify(folder, {code: drawing(f"{row.name} {code}") for code in ("gh", "de")})
        elif row.reader == "mono" and row.role == "test":
            iconify(folder, {name: drawing(f"{row.name} {name}") for name in ("camera", "key")})
        elif row.reader in ("icon", "mono"):
            iconify(folder, {f"thing-{n}x": drawing(f"{row.name} {n}") for n in range(12)})
    # A training picture that is a copy of a test picture must go.
    copy = {"dog-face": drawing("emojione dog-face"), "cat-face": drawing("noto cat-face")}
    shutil.rmtree(root / "noto")
    iconify(root / "noto", {**{slug: drawing(f"noto {slug}") for slug in slugs}, **copy})

    english = root / "emojibase" / "en"
    english.mkdir(parents=True)
    codes = [f"{0x1F400 + n:X}" for n in range(len(EMOJI))]
    data = [
        {"label": name, "hexcode": code, "tags": ["tag"], "subgroup": SUBGROUPS.index(group)}
        for (name, group), code in zip(EMOJI, codes, strict=True)
    ]
    data += [
        {"label": "flag: Ghana", "hexcode": "1F1EC-1F1ED", "subgroup": 90},
        {"label": "flag: Germany", "hexcode": "1F1E9-1F1EA", "subgroup": 90},
    ]
    (english / "data.json").write_text(json.dumps(data))
    groups = [{"key": key, "message": key, "order": order} for order, key in enumerate(SUBGROUPS)]
    groups.append({"key": "country-flag", "message": "country flags", "order": 90})
    (english / "messages.json").write_text(json.dumps({"subgroups": groups}))

    assets = root / "fluent-emoji-3d" / "assets"
    assets.mkdir(parents=True)
    for n, code in enumerate(codes):
        pixels = np.random.default_rng(n).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(assets / f"{code.lower()}.webp", lossless=True)
    clipart = root / "openclipart/usr/share/openclipart/svg/animals/mammals"
    clipart.mkdir(parents=True)
    for n in range(40):
        name = "".join(chr(97 + int(digit)) for digit in f"{n:03d}")
        (clipart / f"{name}_jane.svg").write_text(
            '<svg xmlns="http://www.w3.org/2000/svg" width="100" height="100">'
            f'<title>animal {name}</title><license resource="http://web.resource.org/cc/PublicDomain"/>'
            f"{drawing(name)}</svg>"
        )
    stamps = root / "tuxpaint/usr/share/tuxpaint/stamps/food/fruit"
    stamps.mkdir(parents=True)
    for n in range(8):
        pixels = np.random.default_rng(50 + n).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((100, 100)).save(stamps / f"apple{n}.png")
    _write_fashion(root / "fashion-mnist")

    archive = tmp_path / "archive"
    archive.write_bytes(b"a package")
    monkeypatch.setattr(builder, "fetch", lambda row, work: (root / row.name, archive, row.version))
    return root


def _write_fashion(folder: Path) -> None:
    import gzip

    data = folder / "usr/share/datasets/fashion-mnist"
    data.mkdir(parents=True)
    labels = np.arange(1200, dtype=np.uint8) % 10
    tiles = np.random.default_rng(0).integers(0, 255, (1200, 4, 4), np.uint8)
    images = tiles.repeat(7, 1).repeat(7, 2)
    (data / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + images.tobytes()))
    (data / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + labels.tobytes()))


def contents(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.long
def test_a_build_is_whole_and_a_rebuild_equal(packages: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = builder.build(out, work=tmp_path / "work", full=True)
    again = builder.build(tmp_path / "again", work=tmp_path / "work", full=True)
    assert again == manifest
    assert tree(out) == tree(tmp_path / "again")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("tmp")]

    members: dict[str, bytes] = {}
    for path in sorted(out.glob("train-*.tar.gz")):
        members |= contents(path)
    assert len(members) == 3 * manifest["pairs"]
    keys = list(dict.fromkeys(name.split(".")[0] for name in members))
    assert [name.split(".")[1] for name in list(members)[:3]] == ["webp", "json", "txt"]
    assert all(members[f"{key}.txt"].strip() for key in keys)
    # The copy of a test picture, and the flat twins of the 3D test pictures, are gone.
    assert "noto_dog-face" not in keys and "noto_cat-face" in keys
    assert manifest["near_duplicates"]["dropped"]["noto"] == 1
    assert manifest["near_duplicates"]["twins"] > 0
    assert "fluent-emoji-flat_guitar" not in keys and "fluent-emoji-flat_pizza" in keys
    counts = {row["name"]: row["count"] for row in manifest["sources"]}
    assert sum(counts.values()) == manifest["pairs"]
    assert counts["emojione"] == counts["streamline-emojis"] == 0 and "openmoji" not in counts

    sets = json.loads((out / "sets.json").read_text())
    assert list(sets) == ["val", "animals", "food", "travel", "objects-3d", "animals-3d", "flags", "fashion", "clipart",
                          "icons", "emoji-groups"]  # fmt: skip
    assert sets["animals"]["classes"] == sorted([*MAMMALS, "rose"])
    assert sets["val"]["split"] == "val" and sets["food"]["split"] == "test"
    assert sets["food"]["in_proxy"] and not sets["flags"]["in_proxy"]
    flags = contents(out / "sets/flags.tar.gz")
    assert len(flags) == 2 * sets["flags"]["n"] == 4
    labels = {int(flags[name]) for name in flags if name.endswith(".cls")}
    assert labels == {0, 1}
    picture = Image.open(io.BytesIO(flags["flags_0000.webp"]))
    assert (picture.mode, picture.size) == ("RGB", (64, 64))


@pytest.mark.long
def test_the_embedded_part_is_a_part(packages: Path, tmp_path: Path) -> None:
    full = builder.build(tmp_path / "full", work=tmp_path, full=True)
    part = builder.build(tmp_path / "part", work=tmp_path, full=False)
    assert 0 < part["pairs"] < full["pairs"]
    assert part["near_duplicates"] == full["near_duplicates"]
    assert tree(tmp_path / "part" / "sets").keys() == tree(tmp_path / "full" / "sets").keys()


@pytest.mark.long
def test_sets_on_demand_join_a_corpus_and_a_corpus_joins_them(
    packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus"
    builder.build(corpus, work=tmp_path, full=True)
    both = tmp_path / "both"
    capsys.readouterr()
    builder.build_sets(["stamps", "openmoji"], both, tmp_path, corpus=corpus)
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["drawing", "looking"], "before each step that takes long"
    assert list(json.loads((both / "sets.json").read_text())) == ["stamps", "openmoji"]
    manifest = builder.build(both, work=tmp_path, full=True)
    assert {"stamps", "openmoji", "val"} <= json.loads((both / "sets.json").read_text()).keys()
    assert {"sets/stamps.tar.gz", "train-0000.tar.gz"} <= manifest["files"].keys()
    assert {"openmoji", "noto"} <= {row["name"] for row in manifest["sources"]}
    with pytest.raises(ValueError, match="holds a corpus already"):
        builder.build(both, work=tmp_path, full=True)


def test_a_picture_of_the_corpus_is_no_test_of_it(packages: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    builder.build(corpus, work=tmp_path, full=True)
    name, picture = next(
        (name, data)
        for name, data in contents(corpus / "train-0000.tar.gz").items()
        if name.endswith(".webp")
    )
    stamps = packages / "tuxpaint/usr/share/tuxpaint/stamps/food/fruit"
    Image.open(io.BytesIO(picture)).convert("RGBA").save(stamps / "copy.png")
    manifest = builder.build_sets(["stamps"], tmp_path / "sets", tmp_path, corpus=corpus)
    assert manifest["files"]["sets/stamps.tar.gz"]["count"] == 8, name


def test_a_flashcard_is_a_class_if_training_names_it(tmp_path: Path) -> None:
    root = tmp_path / "usr/share/games/pysiogame/res/images/art4apps"
    for place in (
        "animals/cow",
        "animals/guinea_pig",
        "animals/gnu",
        "food/ice_cream",
        "actions/cow",
        "food/notes.txt",
    ):
        path = root / place if "." in place else root / f"{place}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    items = finish(source("pysiogame"), read_flashcards(source("pysiogame"), tmp_path))
    assert [Path(item.path).stem for item in items] == ["cow", "gnu", "guinea_pig", "ice_cream"]
    plan = on_demand_set("flashcards", items, 0, {}, named={"cow", "guinea pig", "ice cream", "apple"})
    assert plan.classes == ["cow", "guinea pig", "ice cream"] and plan.gives_way and plan.split == "test"
    assert {
        items[n].name: plan.classes[label] for n, label in zip(plan.members, plan.labels, strict=True)
    } == {name: name for name in plan.classes}


def test_fashion_is_balanced_and_seeded(tmp_path: Path) -> None:
    _write_fashion(tmp_path)
    one, two, other = fashion(tmp_path, 0, 200), fashion(tmp_path, 0, 200), fashion(tmp_path, 1, 200)
    assert one.labels == two.labels and one.pixels is not None and two.pixels is not None
    assert (one.pixels == two.pixels).all()
    assert one.labels != other.labels
    assert np.bincount(one.labels).tolist() == [20] * 10


def test_cifar_is_balanced_and_its_images_keep_their_labels(packages: Path, tmp_path: Path) -> None:
    """Each class is a colour of its own; a batch is one PNG with an image a row."""
    folder = packages / "cifar10"
    folder.mkdir()
    labels = {
        "test": [place * 7 % 10 for place in range(200)],
        "train": [place * 3 % 10 for place in range(600)],
    }
    batches = {"test_batch": labels["test"], "data_batch_1": labels["train"][:300]}
    for name, some in batches.items():
        pixels = np.zeros((len(some), 1024, 3), np.uint8)
        pixels[:, :, 0] = np.array(some)[:, None] * 25
        Image.fromarray(pixels).save(folder / f"{name}.png")
    for part, some in labels.items():
        (folder / f"{part}_lables.json").write_text(json.dumps(some))
    for part, n, available in (("test", 100, 20), ("train", 250, 30)):
        one = cifar(folder, 0, n, part)
        assert (
            one.pixels is not None and one.pixels.shape == (n, 64, 64, 3) and one.classes == [*CIFAR_CLASSES]
        )
        assert np.bincount(one.labels).tolist() == [n // 10] * 10 and n // 10 <= available
        assert (one.pixels[..., 0] == np.array(one.labels)[:, None, None] * 25).all()
        assert one.labels == cifar(folder, 0, n, part).labels != cifar(folder, 1, n, part).labels
    with pytest.raises(ValueError, match="Sample larger"):
        cifar(folder, 0, 1000)


def test_mistakes_are_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    with pytest.raises(ValueError, match="holds other files"):
        builder.build(tmp_path / "used", work=tmp_path, full=False)
    for name in ("manifest.json", "sets.json"):
        (tmp_path / "used" / name).write_text('{"name": "a page"}')
    with pytest.raises(ValueError, match="holds other files"):
        builder.build_sets(["stamps"], tmp_path / "used", tmp_path)
    with pytest.raises(ValueError, match="no set 'stamp'"):
        builder.build_sets(["stamp"], tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["noto", "openclipart"])
def test_a_missing_client_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"(npm|apt-get), which is not installed"):
        fetching.fetch(source(name), tmp_path / "work")


def test_a_failing_client_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    client = tmp_path / "npm"
    client.write_text("#!/bin/sh\necho 'no such package' >&2\nexit 1\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(ValueError, match=r"npm pack could not fetch @iconify-json/noto .*no such package"):
        fetching.fetch(source("noto"), tmp_path / "work")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("fetching @iconify-json/noto ") and "npm; licence: Apache-2.0" in line
    assert not list((tmp_path / "work" / "archives").iterdir())


@pytest.mark.network
def test_a_real_package_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, archive, version = fetching.fetch(source("maki"), tmp_path)
    assert version == source("maki").version
    assert "icons" in json.loads((folder / "icons.json").read_text())
    monkeypatch.setenv("PATH", "")
    assert fetching.fetch(source("maki"), tmp_path) == (folder, archive, version)
