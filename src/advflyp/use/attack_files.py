"""The folder of `advflyp attack`: images and attack.json, never overwriting other files."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from advflyp.__about__ import __version__
from advflyp.documents import read_json_object
from advflyp.files import draft_folder, names_in, publish_folder, recover_folder, write_atomically, write_text
from advflyp.use.attack_image import AttackedImage

RECORD = "attack.json"
IMAGES = ("clean", "adversarial", "difference")
OURS = {RECORD, *(f"{name}{end}.png" for name in IMAGES for end in ("", "-2"))}


@contextmanager
def draft_of(out: Path, asked: dict[str, Any]) -> Iterator[Path]:
    """A folder to write into that replaces `out` when the block ends, and is deleted if the block fails.

    Args:
        asked: The request; a folder with the result of the same request is replaced.

    ValueError if `out` holds anything else.
    """
    recover_folder(out)
    _check(out, asked)
    with draft_folder(out) as draft:
        yield draft
        # Another process may have written there meanwhile.
        _check(out, asked)
        publish_folder(draft, out, replace=(out / RECORD).exists())


def write_files(found: AttackedImage, folder: Path, asked: dict[str, Any]) -> None:
    """Write each model's images as PNG files (NAME.png for the first, NAME-2.png for the second) and attack.json."""
    record: dict[str, Any] = {"version": __version__, "asked": asked, **asdict(found)}
    for number, (made, entry) in enumerate(zip(found.made, record["made"], strict=True), 1):
        for name in IMAGES:
            entry[name] = f"{name}{'' if number == 1 else f'-{number}'}.png"
            with write_atomically(folder / entry[name]) as file:
                file.write(getattr(made, name))
    write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")


def _check(out: Path, asked: dict[str, Any]) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder with --out")
    there = names_in(out)
    if strange := sorted(there - OURS):
        raise ValueError(f"{out} holds other files ({strange[0]}); name a new folder with --out")
    if not there:
        return
    try:
        before = read_json_object(out / RECORD)["asked"]
    except (OSError, ValueError, KeyError):
        raise ValueError(f"{out} holds images without a {RECORD}; name a new folder with --out") from None
    if before != asked:
        raise ValueError(f"{out} holds the results of another attack; name a new folder with --out")
