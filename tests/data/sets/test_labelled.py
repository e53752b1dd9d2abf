"""What every labelled set can do, and the embedded ones."""

import json
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from advflyp.cli.main import main
from advflyp.data.mini import mini_sets
from advflyp.data.sets import folders, imagenet
from advflyp.data.sets.catalogue import TABLE
from advflyp.data.sets.folders import folder_shards
from advflyp.data.sets.images import Encoded, Files, held_out
from advflyp.data.sets.labelled import LabelledSet, load_set, set_names
from advflyp.data.sets.prompts import fill
from advflyp.model.clip import CLIP
from advflyp.model.zeroshot import class_embeddings
from helpers import write_tar
from layouts import colour, picture_number, png, put, put_text, tree, webdataset


def flat(image: Image.Image) -> torch.Tensor:
    return torch.full((3, 2, 2), image.getpixel((0, 0))[0] / 255)


def in_memory(labels: list[int], classes: int = 3) -> LabelledSet:
    return LabelledSet(
        [(Image.new("RGB", (4, 4), colour(i)), label) for i, label in enumerate(labels)],
        [f"class {i}" for i in range(classes)],
        "{}",
        name="x",
        split="test",
    )


def test_the_embedded_test_sets() -> None:
    names = set_names(["mini"])
    assert len(names) >= 10
    assert len({load_set(name).info["domain"] for name in names}) >= 5
    assert "mini/val" not in names
    assert set_names(["mini/food", "mini", "mini/food"])[0] == "mini/food"
    assert sorted(set_names(["mini/food", "mini"])) == sorted(names)


@pytest.mark.parametrize("name", sorted(f"mini/{name}" for name in mini_sets()))
def test_each_embedded_set(name: str) -> None:
    labelled = load_set(name)
    assert len(labelled) == labelled.info["n"] >= 80
    assert len(set(labelled.classes)) == len(labelled.classes)
    assert set(labelled.labels.tolist()) <= set(range(len(labelled.classes)))
    assert all(template.count("{}") == 1 for template in labelled.templates)
    assert all(picture.size == (64, 64) for picture, _ in labelled.dataset)
    assert labelled.labels.tolist() == [label for _, label in labelled.dataset]
    assert len({labelled.key(index) for index in range(len(labelled))}) == len(labelled)
    assert labelled.info["licence"] and labelled.info["source"]


def test_proxy_is_training_data_with_labels() -> None:
    proxy = load_set("mini/proxy")
    assert proxy.split == "train"
    assert len(proxy.classes) > 500
    assert proxy.labels.bincount().min() >= 3


def test_absent_on_demand_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="there is no set 'mini/foot'; did you mean 'mini/food'"):
        set_names(["mini/foot"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="not on this machine; make it in a checkout .* --sets openmoji`"):
        load_set("mini/openmoji")


def test_batches() -> None:
    labelled = in_memory([i % 3 for i in range(10)])
    batches = list(labelled.batches(flat, 4, range(9)))
    assert [len(labels) for _, _, labels in batches] == [4, 4, 1]
    places, images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert (images[:, 0, 0, 0] * 255).round().tolist() == list(range(9))
    assert places.dtype == labels.dtype == torch.int64
    assert places.tolist() == list(range(9)) and labels.tolist() == [i % 3 for i in range(9)]
    (batch,) = labelled.batches(flat, 16, [7, 0, 7])
    assert batch[0].tolist() == [7, 0, 7] and batch[2].tolist() == [1, 0, 1]
    assert [len(places) for places, _, _ in labelled.batches(flat, 5)] == [5, 5]


def test_transparent_parts_are_white() -> None:
    labelled = replace(in_memory([0, 1]), dataset=[(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), 0)])
    ((_, images, _),) = labelled.batches(flat, 1)
    assert float(images.min()) == 1


def test_threads_keep_the_order_and_do_not_run_far_ahead() -> None:
    labelled = in_memory([i % 3 for i in range(64)])
    seen: list[int] = []
    threads: set[int] = set()
    lock = threading.Lock()

    def slow(image: Image.Image) -> torch.Tensor:
        with lock:
            seen.append(picture_number(image))
            threads.add(threading.get_ident())
        time.sleep(0.002 * (picture_number(image) % 3))
        return flat(image)

    batches = labelled.batches(slow, 4, workers=3)
    first, _, _ = next(batches)
    time.sleep(0.1)
    assert first.tolist() == [0, 1, 2, 3]
    # The batch that was asked for, and two more.
    assert 4 <= len(seen) <= 13 and len(threads) == 3 and threading.get_ident() not in threads
    rest = torch.cat([places for places, _, _ in batches])
    assert rest.tolist() == list(range(4, 64))


def test_a_mistake_in_preprocessing_is_not_a_corrupt_picture() -> None:
    def broken(image: Image.Image) -> torch.Tensor:
        raise ValueError("the preprocessing is wrong")

    labelled = in_memory([0, 1, 2])
    with pytest.raises(ValueError, match="the preprocessing is wrong"):
        list(labelled.batches(broken, 2))
    assert not labelled.unreadable


def test_corrupt_pictures_are_left_out_and_recorded(tmp_path: Path) -> None:
    tree(tmp_path, {"cat": "cat", "dog": "dog"}, each=150)
    (tmp_path / "cat" / "7.jpg").write_text("no picture")
    (tmp_path / "dog" / "11.jpg").write_bytes(png(5, size=64)[:60])
    (tmp_path / "dog" / "12.jpg").write_bytes(b"")
    labelled = load_set(str(tmp_path))
    batches = list(labelled.batches(flat, 100))
    assert [len(places) for places, _, _ in batches] == [100, 100, 97]
    assert set(labelled.unreadable) == {"cat/7.jpg", "dog/11.jpg", "dog/12.jpg"}
    assert all(labelled.unreadable.values()) and labelled.unreadable["cat/7.jpg"] == "not an image"
    missing = {labelled.key(i) for i in range(300)} - {labelled.key(int(i)) for b in batches for i in b[0]}
    assert missing == set(labelled.unreadable)
    (tmp_path / "dog" / "13.jpg").unlink()
    with pytest.raises(ValueError, match=r"more than 1% of 300 images cannot be read; .*: cat/7.jpg \(.*…$"):
        list(labelled.batches(flat, 100))
    # Only what is wanted counts.
    good = [i for i in range(300) if labelled.key(i) not in {*labelled.unreadable}]
    assert sum(len(places) for places, _, _ in labelled.batches(flat, 100, good)) == len(good)


def test_subset_is_balanced_seeded_and_nested() -> None:
    labels = [0] * 50 + [1] * 30 + [2] * 4 + [3] * 16
    labelled = in_memory(labels, classes=4)
    counts = Counter(labels[i] for i in labelled.subset(12, 0))
    assert set(counts.values()) == {3}
    counts = Counter(labels[i] for i in labelled.subset(14, 0))
    assert sorted(counts.values()) == [3, 3, 4, 4]
    # The small class runs out; the others share what is left.
    counts = Counter(labels[i] for i in labelled.subset(40, 0))
    assert counts == {0: 12, 1: 12, 2: 4, 3: 12}
    assert labelled.subset(40, 0) == sorted(set(labelled.subset(40, 0))) == labelled.subset(40, 0)
    assert labelled.subset(40, 0) != labelled.subset(40, 1)
    assert set(labelled.subset(14, 3)) < set(labelled.subset(15, 3)) < set(labelled.subset(90, 3))
    assert (
        labelled.subset(None, 0) == labelled.subset(100, 0) == labelled.subset(10**6, 5) == list(range(100))
    )
    # Which classes get one more, and which pictures, is chance: nobody is favoured by position.
    extra = Counter(i for seed in range(400) for i in labelled.subset(1, seed))
    by_class = Counter({c: sum(n for i, n in extra.items() if labels[i] == c) for c in range(4)})
    assert all(60 < by_class[c] < 140 for c in range(4)) and len(extra) > 60
    # Known answer: limited results of today and tomorrow are over the same pictures.
    assert labelled.subset(6, 0) == [10, 17, 56, 79, 81, 95]
    with pytest.raises(ValueError, match="limit must be at least 1, not 0"):
        labelled.subset(0, 0)


def test_a_set_needs_two_classes_pictures_and_names_for_its_labels() -> None:
    with pytest.raises(ValueError, match="x has 1 class; zero-shot classification needs at least two"):
        in_memory([0, 0], classes=1)
    with pytest.raises(ValueError, match="x holds no images"):
        in_memory([])
    with pytest.raises(ValueError, match="x has labels from 0 to 3; labels are indices into"):
        in_memory([0, 3])


def test_folder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tree(tmp_path / "val", {"hot_dog": "hot dog", "apple": "apple"}, each=2, name="deep/{n}.JPG")
    put_text(tmp_path / "val" / "apple" / "notes.txt", "no picture")
    (tmp_path / "val" / ".cache").mkdir()
    for name in (str(tmp_path / "val"), f"folder:{tmp_path / 'val'}"):
        labelled = load_set(name)
        assert (labelled.name, labelled.split, labelled.classes) == (name, "val", ["apple", "hot dog"])
        assert labelled.templates == ["This is a photo of a {}."]
        assert {picture_number(p): labelled.classes[label] for p, label in labelled.dataset} == expected
        assert labelled.key(0) == "apple/deep/1.JPG"
        assert set_names([name]) == [name]
    put_text(tmp_path / "named" / "classnames.txt", "Granny Smith", "sausage in a bun")
    put_text(tmp_path / "named" / folders.TEMPLATES, "itap of a {c}.")
    tree(tmp_path / "named", {"a": "", "b": ""})
    labelled = load_set(f"folder:{tmp_path / 'named'}")
    assert labelled.classes == ["Granny Smith", "sausage in a bun"] and labelled.split == "all"
    assert labelled.templates == ["itap of a {}."]
    monkeypatch.chdir(tmp_path)
    assert load_set("named").name == "named"


def test_folders_that_are_no_sets(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no class folders"):
        load_set(str(tmp_path / "empty"))
    put(tmp_path / "one" / "cat" / "a.png", 1)
    with pytest.raises(ValueError, match="one has 1 class; zero-shot"):
        load_set(str(tmp_path / "one"))
    put(tmp_path / "hollow" / "cat" / "a.png", 1)
    (tmp_path / "hollow" / "dog").mkdir()
    with pytest.raises(ValueError, match="dog holds no images; fill the class or remove its folder"):
        load_set(str(tmp_path / "hollow"))
    tree(tmp_path / "short", {"a": "", "b": ""})
    put_text(tmp_path / "short" / "classnames.txt", "only one")
    with pytest.raises(ValueError, match="short has 2 class folders, and 1 name in classnames.txt"):
        load_set(str(tmp_path / "short"))


def test_webdataset_of_ones_own(tmp_path: Path) -> None:
    classes = ["red", "green", "blue"]
    expected = webdataset(tmp_path / "own", (4, 3), classes)
    pattern = str(tmp_path / "own" / "test" / "{0..1}.tar")
    for name in (str(tmp_path / "own"), f"wds:{tmp_path / 'own'}", pattern, f"wds:{pattern}"):
        labelled = load_set(name)
        assert (labelled.name, labelled.split, labelled.classes) == (name, "test", classes)
        assert labelled.templates == ["a photo of a {}.", "a photo of the {}."]
        assert {picture_number(p): labelled.classes[label] for p, label in labelled.dataset} == expected
        assert labelled.key(4) == "1.tar/s0000004.webp"
    (one,) = load_set(str(tmp_path / "own" / "test" / "1.tar")).batches(flat, 8)
    assert one[2].tolist() == [12 % 3, 15 % 3, 18 % 3]


def test_shards_by_number_and_names_in_json(tmp_path: Path) -> None:
    for shard in range(11):
        write_tar(tmp_path / f"{shard}.tar", [("a.png", png(shard)), ("a.cls", str(shard).encode())])
    put_text(tmp_path / "classnames.json", str([f"c{i}" for i in range(11)]).replace("'", '"'))
    labelled = load_set(f"wds:{tmp_path}")
    assert labelled.labels.tolist() == list(range(11)) and labelled.split == "all"
    put_text(tmp_path / "classnames.json", '{"0": "x"}')
    with pytest.raises(ValueError, match="classnames.json must be a list of class names"):
        folders.read_shards([tmp_path / "0.tar"])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", b"x")], "a has an image but no a.cls"),
        ([("a.cls", b"0")], "a has a label but no image"),
        ([("a.png", b"x"), ("a.cls", b"cat")], "a .cls member is not a whole number"),
        ([("a.png", b"x"), ("a.cls", b"7")], "has labels from 7 to 7; labels are indices into"),
        ([], "holds no images"),
    ],
)
def test_damaged_shards(members: list[tuple[str, bytes]], message: str, tmp_path: Path) -> None:
    put_text(tmp_path / "classnames.txt", "cat", "dog")
    write_tar(tmp_path / "0.tar", members)
    with pytest.raises(ValueError, match=message):
        load_set(str(tmp_path / "0.tar"))


def test_shards_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_text("no tar")
    with pytest.raises(ValueError, match="have no class names: put a classnames.txt beside them"):
        load_set(str(tmp_path / "0.tar"))
    put_text(tmp_path / "classnames.txt", "cat", "dog")
    with pytest.raises(ValueError, match="0.tar is not a readable tar file"):
        load_set(str(tmp_path / "0.tar"))
    write_tar(tmp_path / "1.tar.gz", [("a.png", png(0)), ("a.cls", b"0")])
    with pytest.raises(
        ValueError, match="1.tar.gz is not a readable tar file: .*; unpack it with gunzip first"
    ):
        load_set(str(tmp_path / "1.tar.gz"))


def test_images_are_a_sequence() -> None:
    images = Encoded([png(i) for i in range(4)], list("abcd"), [0, 1, 0, 1])
    assert [label for _, label in images] == [0, 1, 0, 1] and picture_number(images[3][0]) == 3
    with pytest.raises(IndexError):
        images[4]


def test_a_path_to_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"there is no folder and there are no shards at {tmp_path}/gone"):
        set_names([f"{tmp_path}/gone"])


def test_a_set_that_is_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tree(tmp_path / "test", {"hot_dog": "hot dog", "apple": "apple"}, each=3)
    monkeypatch.chdir(tmp_path / "test")
    for name in (".", "./", "../test", "folder:."):
        labelled = load_set(name)
        assert {picture_number(p): labelled.classes[label] for p, label in labelled.dataset} == expected
        assert labelled.key(0) == "apple/1.jpg" and labelled.split == "test"


@pytest.mark.parametrize("splits", [("train", "test"), ("Train", "Val"), ("training",)])
def test_a_folder_of_splits_is_no_set(tmp_path: Path, splits: tuple[str, ...]) -> None:
    for split in splits:
        tree(tmp_path / split, {"cat": "cat", "dog": "dog"}, each=1)
    likely = "test" if "test" in splits else sorted(splits)[0]
    with pytest.raises(ValueError, match=rf"holds the splits .*; name one of them: .*/{likely}$"):
        load_set(str(tmp_path))
    assert len(load_set(str(tmp_path / likely))) == 2


def test_folders_by_number(tmp_path: Path) -> None:
    """Class 10 is the eleventh, and its name is the eleventh line."""
    names = [f"name {number}" for number in range(12)]
    expected = tree(tmp_path / "n", {str(number): name for number, name in enumerate(names)}, each=1)
    put_text(tmp_path / "n" / "classnames.txt", *names)
    labelled = load_set(str(tmp_path / "n"))
    assert labelled.classes == names and labelled.labels.tolist() == list(range(12))
    assert {picture_number(p): labelled.classes[label] for p, label in labelled.dataset} == expected


def test_folders_whose_order_is_not_clear(tmp_path: Path) -> None:
    names = {f"class{number}": f"name {number}" for number in (1, 2, 10)}
    tree(tmp_path, names, each=1)
    assert load_set(str(tmp_path)).classes == ["class1", "class10", "class2"], (
        "without names nothing can be mixed up"
    )
    put_text(tmp_path / "classnames.txt", *names.values())
    with pytest.raises(
        ValueError,
        match=r"as text \('class10' first\) and by number \('class2' first\), .*classnames.json",
    ):
        load_set(f"{tmp_path}/")
    (tmp_path / "classnames.json").write_text(json.dumps(names))
    assert load_set(f"folder:{tmp_path}").classes == ["name 1", "name 10", "name 2"]
    (tmp_path / "classnames.json").write_text(json.dumps({"class1": "x", "class2": "y"}))
    with pytest.raises(ValueError, match="has no name for the folder 'class10'"):
        load_set(f"folder:{tmp_path}//")


def test_class_names_as_windows_writes_them(tmp_path: Path) -> None:
    tree(tmp_path / "bom", {"a": "a", "b": "b"}, each=1)
    (tmp_path / "bom/classnames.txt").write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9\r\ntea\r\n")
    assert load_set(str(tmp_path / "bom")).classes == ["café", "tea"]
    tree(tmp_path / "latin", {"a": "a", "b": "b"}, each=1)
    (tmp_path / "latin/classnames.txt").write_bytes("café\ntea".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin/classnames\.txt is not UTF-8 .*; save it as UTF-8"):
        load_set(str(tmp_path / "latin"))
    tree(tmp_path / "broken", {"a": "a", "b": "b"}, each=1)
    put_text(tmp_path / "broken/classnames.json", "[")
    with pytest.raises(ValueError, match=r"broken/classnames\.json is damaged: Expecting"):
        load_set(str(tmp_path / "broken"))


def test_templates_with_other_braces(tmp_path: Path) -> None:
    tree(tmp_path, {"cat": "cat", "dog": "dog"}, each=1)
    put_text(tmp_path / "zeroshot_classification_templates.txt", '{"a": "b"} photo of {c}')
    with pytest.raises(ValueError, match="must contain {} exactly once and no other braces"):
        load_set(str(tmp_path))


def test_class_names_with_braces(tmp_path: Path, tiny: CLIP) -> None:
    assert fill("a photo of {}.", "{x}") == "a photo of {x}."
    assert class_embeddings(tiny, ["{x}", "{}"], ["a photo of {}."]).shape == (2, 24)


def test_class_folders_with_links_and_clutter(tmp_path: Path) -> None:
    tree(tmp_path / "set", {"cat": "cat", "dog": "dog"}, each=2)
    tree(tmp_path / "far", {"owl": "owl"}, each=2)
    (tmp_path / "set/owl").symlink_to(tmp_path / "far/owl")
    (tmp_path / "far/owl/again").symlink_to(tmp_path / "far/owl")
    for name in ("__MACOSX", ".ipynb_checkpoints", "@eaDir", "cat/__MACOSX"):
        (tmp_path / "set" / name).mkdir()
        (tmp_path / "set" / name / "0.jpg").write_bytes(b"x")
    (tmp_path / "set/cat/._0.jpg").write_bytes(b"x")
    labelled = load_set(str(tmp_path / "set"))
    assert labelled.classes == ["cat", "dog", "owl"] and labelled.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_shards_with_dots_clutter_and_any_order(tmp_path: Path) -> None:
    content = [(f"photo_v1.{n}.png", png(n)) for n in range(3)]
    content += [(f"photo_v1.{n}.cls", b"%d" % (n % 2)) for n in range(3)]
    content += [
        ("photo_v1.0.mask.png", png(7)),
        ("._photo_v1.0.png", b"x"),
        ("README", b"x"),
        ("7.json", b"{}"),
    ]
    write_tar(tmp_path / "0.tar", content)
    put_text(tmp_path / "classnames.txt", "cat", "dog")
    labelled = load_set(str(tmp_path / "0.tar"))
    assert labelled.labels.tolist() == [0, 1, 0]
    assert [picture_number(labelled.image(n)) for n in range(3)] == [0, 1, 2]


def test_two_classes_of_one_name(tmp_path: Path) -> None:
    tree(tmp_path, {"crane_bird": "x", "crane_machine": "y", "dog": "z"}, each=1)
    put_text(tmp_path / "classnames.txt", "crane", "dog", "crane")
    with pytest.raises(
        ValueError, match=r"has two classes called 'crane', numbers 0 and 2, .*; merge them, or"
    ):
        load_set(str(tmp_path))
    # CLIP reads "Crane" and "crane" as the same tokens.
    put_text(tmp_path / "classnames.txt", "crane", "dog", "Crane ")
    with pytest.raises(ValueError, match=r"has two classes called 'Crane' and 'crane', numbers 0 and 2"):
        load_set(str(tmp_path))


def test_class_names_are_text() -> None:
    with pytest.raises(ValueError, match=r"classes must be text, not 1 \(int\)"):
        LabelledSet([(Image.new("RGB", (8, 8)), 0)], [1, 2], "a {}")  # type: ignore[list-item]


@pytest.mark.parametrize("label", [b"9" * 30, b"-" + b"9" * 30, b"9" * 5000])
def test_labels_that_are_no_numbers_of_classes(tmp_path: Path, label: bytes) -> None:
    (tmp_path / "classnames.txt").write_text("a\nb\n")
    write_tar(tmp_path / "0.tar", [("a.png", png(0)), ("a.cls", b"0"), ("b.png", png(1)), ("b.cls", label)])
    with pytest.raises(ValueError, match=r"0\.tar: a \.cls member is"):
        load_set(str(tmp_path / "0.tar"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("classnames.txt", "a\n" + "b" * 1001, "has a line of more than 1,000 characters; shorten it"),
        ("classnames.json", '["a", "' + "b" * 1001 + '"]', "must be a list of class names"),
        ("classnames.json", '["a", 1]', "must be a list of class names"),
        ("classnames.json", '{"a": "x", "b": ["y"]}', "must hold the folders with their class names"),
        ("classnames.json", '{"a": "x", "a": "y", "b": "z"}', "the key 'a' twice"),
        ("classnames.json", "[" * 100_000, "nested more than 64 levels deep"),
        ("zeroshot_classification_templates.txt", "{c}" + "b" * 1001, "has a line of more than 1,000"),
    ],
    ids=range(7),
)
def test_names_without_end(name: str, text: str, message: str, tmp_path: Path) -> None:
    tree(tmp_path / "set", {"a": "a", "b": "b"}, each=1)
    put_text(tmp_path / "set" / name, text)
    with pytest.raises(ValueError, match=message):
        load_set(str(tmp_path / "set"))


@pytest.mark.parametrize("text", ["-1", "1e3", "9" * 5000, "99999999999", "x", "", "²"], ids=range(7))
def test_numbers_of_shards_that_are_none(text: str, tmp_path: Path) -> None:
    put_text(tmp_path / "nshards.txt", text)
    with pytest.raises(ValueError, match=r"nshards\.txt must be a number of shards, not"):
        folder_shards(tmp_path)


def test_images_beside_the_class_folders_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("set/cat/0.png", "set/dog/0.png", "set/dog/1.png"):
        put(tmp_path / name, 1)
    assert load_set("folder:set").remarks == ()
    for name in ("a.png", "b.HEIC", ".c.png", "readme.txt"):
        put(tmp_path / "set" / name, 1)
    line = "set: 2 images beside the class folders, in no class: skipped"
    assert load_set("set").remarks == (line,) and len(load_set("set")) == 3
    main(["eval", str(tiny_folder), "--sets", "set", "--attacks", "clean"])
    assert line in capsys.readouterr().out


def test_paths_that_are_nearly_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "my-pictures/cat/0.png", 1)
    for name, message in (
        ("my-picturs", "there is no set 'my-picturs'; did you mean 'my-pictures'?"),
        (
            "./my-picturs",
            "there is no folder and there are no shards at ./my-picturs; did you mean 'my-pictures'?",
        ),
        (
            "my-pictures/cat/0.png",
            "my-pictures/cat/0.png is a file; name a folder that holds a folder for each class",
        ),
        ("eurosta", "there is no set 'eurosta'; did you mean 'eurosat'?"),
    ):
        with pytest.raises(ValueError) as refused:
            set_names([name])
        assert str(refused.value).startswith(message)
    with pytest.raises(ValueError, match="there is no folder my-picturs; did you mean 'my-pictures'"):
        load_set("folder:my-picturs")


def test_the_table_names_readers_that_there_are() -> None:
    """They are imported late, so that names can be checked without torch."""
    for entry in TABLE.values():
        assert callable(entry.reader()) if entry.splits else entry.wds_splits
    assert TABLE["imagenet-v2"].splits == tuple(imagenet.VARIANTS)


def test_the_share_that_is_held_out_is_rounded() -> None:
    whole = Files(Path(), [f"a/{n}.jpg" for n in range(5)], [0] * 5)
    test, rest = held_out(whole, 0.3), held_out(whole, 0.3, rest=True)
    assert (len(test), len(rest)) == (2, 3) and {*test.keys, *rest.keys} == {*whole.keys}


def test_a_set_that_was_changed_is_not_what_its_name_loads() -> None:
    changed = load_set("mini/food")
    before = list(changed.classes)
    changed.classes[0], changed.templates, changed.info["domain"] = "something else", ["{}"], "mine"
    again = load_set("mini/food")
    assert again.classes == before and again.templates != ["{}"] and again.info["domain"] != "mine"
