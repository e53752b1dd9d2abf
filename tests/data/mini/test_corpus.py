"""The corpus that comes with the package."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from advflyp.data.mini import EMBEDDED, proxy_concepts
from advflyp.data.mini.shards import read_shards, read_tar
from advflyp.files import file_sha256
from tools.mini_corpus.neardup import COLOUR_LIMIT, EDGE_LIMIT, find
from tools.mini_corpus.sources import SOURCES, source

MANIFEST = json.loads((EMBEDDED / "manifest.json").read_text("utf-8"))
SETS: dict[str, dict[str, Any]] = json.loads((EMBEDDED / "sets.json").read_text("utf-8"))
LEAST = {
    "val": 500, "animals": 100, "food": 80, "travel": 120, "objects-3d": 300, "animals-3d": 150, "flags": 230,
    "fashion": 1000, "clipart": 500, "icons": 900, "emoji-groups": 500,
}  # fmt: skip
LEAST_CLASSES = {
    "val": 400, "animals": 100, "food": 80, "travel": 120, "objects-3d": 300, "animals-3d": 150, "flags": 230,
    "fashion": 10, "clipart": 20, "icons": 90, "emoji-groups": 40,
}  # fmt: skip
WEBP_NOISE = 0.85  # the check was made before the pictures were compressed, which blurs fine edges


def set_path(name: str) -> Path:
    return EMBEDDED / ("val.tar.gz" if name == "val" else f"sets/{name}.tar.gz")


def members(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        return [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]


def pictures_and_labels(name: str) -> tuple[np.ndarray, list[int]]:
    pictures, labels = [], []
    for member, data in members(set_path(name)):
        if member.endswith(".cls"):
            labels.append(int(data))
        else:
            image = Image.open(io.BytesIO(data))
            assert (image.mode, image.size) == ("RGB", (64, 64)), member
            pictures.append(np.asarray(image))
    return np.stack(pictures), labels


@pytest.fixture(scope="module")
def training() -> tuple[np.ndarray, list[dict[str, Any]]]:
    images, metas = read_shards(EMBEDDED)
    return images[:], metas


def test_every_file_is_in_the_manifest_with_its_checksum_and_nothing_else_is_there() -> None:
    files = {path.relative_to(EMBEDDED).as_posix(): path for path in EMBEDDED.rglob("*") if path.is_file()}
    assert files.keys() == MANIFEST["files"].keys() | {"manifest.json", "sets.json"}
    for name, entry in MANIFEST["files"].items():
        assert file_sha256(files[name]) == entry["sha256"], name
    assert sum(path.stat().st_size for path in files.values()) <= 30_000_000


def test_shards_hold_picture_metadata_and_caption_of_each_key() -> None:
    shards = sorted(EMBEDDED.glob("train-*.tar.gz"))
    keys = []
    for path in shards:
        found = members(path)
        assert list(read_tar(path)) == found
        assert len(found) == 3 * MANIFEST["files"][path.name]["count"] <= 6000
        for start in range(0, len(found), 3):
            (webp, _), (meta, _), (txt, caption) = found[start : start + 3]
            key = webp.removesuffix(".webp")
            assert "." not in key and (meta, txt) == (f"{key}.json", f"{key}.txt")
            assert caption.decode().strip()
            keys.append(key)
    assert len(keys) == len(set(keys)) == MANIFEST["pairs"]


def test_pictures_are_64_pixels_with_a_margin_and_metadata_is_whole(training) -> None:
    pictures, metas = training
    assert pictures.shape == (MANIFEST["pairs"], 64, 64, 4)
    assert 22_000 <= len(pictures) <= 26_000
    alpha = pictures[..., 3]
    assert (alpha.reshape(len(alpha), -1).max(1) > 200).mean() > 0.99  # something is drawn
    assert alpha[:, 0].max() < 16 and alpha[:, :, 0].max() < 16
    for meta in metas:
        assert meta["name"].strip() and meta["style"] and meta["weight"] > 0
        assert isinstance(meta["tags"], list) and isinstance(meta["mono"], bool)
        assert isinstance(meta["mirror"], bool) and (meta["concept"] is None or meta["concept"])
        assert not (meta["style"] == "flag" and (meta["mirror"] or meta["concept"]))
    assert sum(bool(meta["tags"]) for meta in metas) > 8000
    styles = Counter(meta["style"] for meta in metas)
    assert sum(styles[style] for style in styles if "emoji" in style) > 7000
    assert styles["flag"] > 1000 and styles["clip art"] > 3000


def test_training_sources_are_not_those_of_the_sets_and_all_are_permissive(training) -> None:
    _, metas = training
    counts = Counter(meta["source"] for meta in metas)
    rows = {row["name"]: row for row in MANIFEST["sources"]}
    assert counts == {name: row["count"] for name, row in rows.items() if row["count"]}
    assert all(source(name).role == "train" for name in counts)
    for name, row in rows.items():
        known = source(name)
        assert known.role != "demand"
        assert (row["version"], row["licence"], row["attribution"]) == (
            known.version,
            known.licence,
            known.attribution,
        )
        assert len(row["sha256"]) == 64
    held_out = {name for name, row in rows.items() if row["held_out"]}
    assert held_out & counts.keys() == {"openclipart"}  # split by item; all others are held out by vendor


@pytest.mark.parametrize("name", list(LEAST))
def test_a_set_is_large_enough_and_its_labels_are_valid(name: str) -> None:
    about = SETS[name]
    pictures, labels = pictures_and_labels(name)
    assert (
        len(pictures)
        == len(labels)
        == about["n"]
        == MANIFEST["files"][set_path(name).relative_to(EMBEDDED).as_posix()]["count"]
    )
    assert LEAST[name] <= len(labels) <= 1000
    assert len(about["classes"]) == len(set(about["classes"])) >= LEAST_CLASSES[name]
    assert set(labels) == set(range(len(about["classes"])))
    assert 3 <= len(about["templates"]) <= 7
    assert all(template.count("{}") == 1 for template in about["templates"])
    assert about["split"] == ("val" if name == "val" else "test")
    # Shuffled: the first pictures are a sample, not the first class.
    assert len(set(labels[:50])) > min(9, len(about["classes"]) // 4)
    assert pictures.std((1, 2, 3)).min() > 0


def test_ten_test_sets_of_five_domains_on_both_sides_of_the_proxy_set() -> None:
    tests = {name: about for name, about in SETS.items() if about["split"] == "test"}
    assert tests.keys() == LEAST.keys() - {"val"}
    assert len({about["domain"] for about in tests.values()}) >= 5
    assert {name for name, about in tests.items() if not about["in_proxy"]} == {"flags", "fashion", "clipart"}
    assert all(0 <= about["proxy_share"] <= 1 for about in tests.values())


def test_the_proxy_set_has_its_concepts(training) -> None:
    _, metas = training
    assert len(proxy_concepts(meta["concept"] for meta in metas)) >= 1400


@pytest.mark.long
def test_no_picture_of_a_set_is_in_the_corpus_even_mirrored_or_recoloured(training) -> None:
    """A sample; the slow test looks at every picture."""
    queries = np.concatenate([pictures_and_labels(name)[0][:20] for name in SETS])
    assert _near(queries, training[0][::3]) == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LEAST))
def test_no_near_duplicates(name: str, training) -> None:
    assert _near(pictures_and_labels(name)[0], training[0]) == set()


def _near(queries: np.ndarray, references: np.ndarray) -> set[tuple[int, int]]:
    return find(
        queries, references, colour_limit=WEBP_NOISE * COLOUR_LIMIT, edge_limit=WEBP_NOISE * EDGE_LIMIT
    )


def test_the_check_would_find_a_planted_copy(training) -> None:
    queries = pictures_and_labels("food")[0][:10]
    planted = np.concatenate([training[0][:500, ..., :3], queries[3:4, :, ::-1]])
    assert _near(queries, planted) == {(3, 500)}


def test_the_notices_name_every_source_with_its_licence() -> None:
    text = (Path(__file__).parents[3] / "THIRD_PARTY_NOTICES.md").read_text("utf-8")
    for row in SOURCES:
        line = next((line for line in text.splitlines() if line.startswith(f"| {row.name} |")), None)
        assert line is not None, row.name
        assert row.package in line and row.version in line and row.licence in line and row.attribution in line
