"""Names that files, classes, keys and labels may have, wherever the program prints, writes or looks them up."""

import os
import random
from collections.abc import Callable
from pathlib import Path

from advflyp import escape
from advflyp.data.filenames import parse_member
from advflyp.data.sets.labelled import set_names
from advflyp.evaluation.results import append_cell
from advflyp.use.labels import choose_labels
from fuzz.mutate import PATHS, text
from fuzz.tars import PICTURE, pictures_of
from fuzz.watch import command
from hostile import NAMES, assert_printable
from report.cells import cell


def make(rng: random.Random, folder: Path) -> Callable[[], object]:
    """Names, and the part of the program that meets them."""
    inside, out = folder / "in", folder / "out"
    return rng.choice((pairs, pairs, classes, classes, arguments, arguments, labels, results, escaped))(
        rng, inside, out
    )


def entry(rng: random.Random, suffix: str = "") -> bytes:
    """The name of a file or folder, as Linux allows it."""
    drawn = rng.choice((rng.choice(NAMES), rng.choice(PATHS), text(rng)))
    name = drawn.encode("utf-8", "surrogatepass") if rng.random() < 0.8 else rng.randbytes(rng.randint(1, 12))
    name = name.replace(b"/", rng.choice((b"", b"_"))).replace(b"\0", b"")[: 255 - len(suffix)]
    return (b"x" if name in (b"", b".", b"..") else name) + suffix.encode()


def pairs(rng: random.Random, inside: Path, out: Path) -> Callable[[], object]:
    """A folder of images with their captions."""
    for _ in range(rng.randint(1, 4)):
        name = entry(rng)
        name = name[:240]
        place = os.path.join(os.fsencode(inside), entry(rng)) if rng.random() < 0.3 else os.fsencode(inside)
        os.makedirs(place, exist_ok=True)
        for suffix, data in ((b".png", PICTURE), (b".txt", b"a red circle")):
            if rng.random() < 0.9 and not os.path.isdir(os.path.join(place, name + suffix)):
                Path(os.fsdecode(os.path.join(place, name + suffix))).write_bytes(data)
    if rng.random() < 0.3:
        return lambda: command("data", "pack", inside, "--out", out / "packed")
    return lambda: command("data", "check", inside, "--out", out / "page")


def classes(rng: random.Random, inside: Path, out: Path) -> Callable[[], object]:
    """A folder for each class, in a folder that is called oddly, too."""
    folder = os.path.join(os.fsencode(inside), entry(rng))
    for _ in range(rng.randint(1, 3)):
        place = os.path.join(folder, entry(rng))
        os.makedirs(place, exist_ok=True)
        path = os.path.join(place, entry(rng)[:240] + b".png")
        Path(os.fsdecode(path)).write_bytes(PICTURE)
    prefix = rng.choice(("", "folder:"))
    return lambda: pictures_of(f"{prefix}{os.fsdecode(folder)}")


def arguments(rng: random.Random, inside: Path, out: Path) -> Callable[[], object]:
    """Words on a command line that name nothing."""
    # What the system can hand over: no zero byte, and what is not UTF-8 comes as halves of characters. No addresses:
    # what a user names is fetched.
    word, other = (
        os.fsdecode(text(rng).encode("utf-8", "surrogatepass").replace(b"\0", b"").replace(b"://", b":/"))
        for _ in range(2)
    )
    words = rng.choice((
        ["data", "check", word], ["data", "pack", word, "--out", str(out / "p")], ["compare", word, other],
        ["report", word, "--out", str(out / "r")], ["watch", word, "--once"], ["recipes", word], [word], ["data", word],
        ["eval", word, "--sets", other], ["predict", word, other, "--labels", "cat,dog"], ["train", word],
        ["train", "advflyp_full", f"--{word}.{other}", "x"], ["export", word, "--out", str(out / "e")],
        ["data", "sample", word, "--out", str(out / "u.parquet")], ["data", "check", str(inside), f"--{word}", other],
        ["leaderboard", "--models", word, "--out", str(out / "l")], ["validate", word], ["models", word],
        ["attacks", word], ["methods", word], ["sets", word], ["eval", "mini", "--sets", other, "--batch-size", word],
        ["eval", f"{word}@{other}", "--sets", "mini/food", "--save-images", str(out / "i")],
    ))  # fmt: skip
    return lambda: command(*words)


def labels(rng: random.Random, inside: Path, out: Path) -> Callable[[], object]:
    """What a user lets a model choose among: words, or a file of them."""
    if rng.random() < 0.5:
        (inside / "labels.txt").write_bytes(
            b"\n".join(text(rng).encode("utf-8", "surrogatepass") for _ in range(3))
        )
        return lambda: choose_labels(str(inside / "labels.txt"))
    given, template = [text(rng), text(rng)], rng.choice((None, [text(rng)], ["{} {}"], ["a {}"]))
    return lambda: (choose_labels(given, template), set_names([given[0]]))


def results(rng: random.Random, inside: Path, out: Path) -> Callable[[], object]:
    """Names of models, sets and attacks in results, which a report shows."""
    store = inside / "results.jsonl"
    for model in (text(rng), "mini"):
        for grey in (0, 1):
            attack = rng.choice(("pgd10", text(rng))) if grey else "clean"
            append_cell(store, cell(model, rng.choice(NAMES), grey, 3 + grey, attack=attack))
    if rng.random() < 0.1:
        return lambda: command("report", store, "--out", out / "report")
    return lambda: command("compare", f"{store}::mini", str(store))


def escaped(rng: random.Random, inside: Path, out: Path) -> Callable[[], object]:
    """Foreign text where it is printed."""
    given = text(rng)

    def use() -> None:
        for make_safe in (
            escape.for_terminal, escape.for_csv, escape.for_markdown, escape.for_latex, escape.for_html,
        ):  # fmt: skip
            assert_printable(make_safe(given))
        parse_member(given)

    return use
