"""The folder that `advflyp data caption` writes to: its settings, and which shards of each part are finished.

The images, in a fixed order, are dealt to the parts in turn, and each part is cut into shards of `per_shard` images.
`OUT/.caption` holds the settings, a record of each finished shard with its skipped images, locks, and drafts.
"""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from advflyp.config import convert
from advflyp.data.pairs.manifest import FILE, Manifest, describe_shards, read_manifest, write_manifest
from advflyp.data.pairs.samples import Skipped
from advflyp.data.tools.pack import check_new
from advflyp.documents import read_json_object
from advflyp.files import holder, lock, publish, try_lock, write_text
from advflyp.wording import counted

WORK = ".caption"
ADVICE = "; remove it, and the shard is captioned again"


class CaptionFolder:
    """The state of a run of captioning.

    Args:
        out: The folder.
        name: The labelled set, for messages and the manifest.
        settings: "parts", "per_shard" (images), and whatever else changes the result.
        order: Positions in the set of all images to caption.
    """

    def __init__(self, out: Path, name: str, settings: dict[str, Any], order: Sequence[int]) -> None:
        self.out, self.of, self.settings, self.order = out, name, settings, order
        self.work = out / WORK
        self.begun = self.work / "settings.json"

    def check(self) -> None:
        """ValueError unless `out` is new or was begun with the same settings. Writes nothing."""
        if not self.work.is_dir():
            return check_new(self.out)
        if not self.begun.is_file():
            return
        try:
            begun = convert(read_json_object(self.begun).get("settings"), dict[str, Any], "settings")
        except ValueError:
            raise ValueError(f"{self.begun} is damaged; name another folder, or remove {self.out}") from None
        begun.setdefault("images", begun.get("pictures"))  # the former name
        changed = next((key for key, value in self.settings.items() if begun.get(key) != value), None)
        if changed is None:
            return
        if changed == "images":
            raise ValueError(
                f"{self.out} was begun with images other than those now in {self.of}; name another folder"
            )
        before, now = begun.get(changed), self.settings[changed]
        if changed == "parts":
            what = f"in {counted(before or 0, 'part')}, not {counted(now, 'part')}"
        else:
            what = f"with --{changed.replace('_', '-')} {before!r}, not {now!r}"
        raise ValueError(f"{self.out} was begun {what}; use the same, or name another folder")

    def begin(self, versions: dict[str, str]) -> None:
        """Record the settings and versions; if another process already has, check that its settings are the same."""
        with lock(self.work / "lock", wait=math.inf):
            self.check()
            if not self.begun.is_file():
                begun = {"set": self.of, "versions": versions, "settings": self.settings}
                write_text(self.begun, json.dumps(begun, indent=1) + "\n")
            # There is a manifest if a shard was removed after all had been finished.
            (self.out / FILE).unlink(missing_ok=True)

    def own(self, part: int) -> IO[bytes]:
        """Lock a part until the returned file is closed; ValueError if another process has locked it."""
        path = self.work / f"part{part}.lock"
        held = try_lock(path)
        if held is None:
            raise ValueError(
                f"{holder(path)} is captioning part {part}/{self.settings['parts']} to {self.out}; wait for it, or "
                "give this one another --part"
            )
        return held

    def shards(self, part: int) -> range:
        """The numbers of a part's shards."""
        mine = len(range(part, len(self.order), self.settings["parts"]))
        return range(math.ceil(mine / self.settings["per_shard"]))

    def unfinished(self, part: int) -> list[int]:
        return [shard for shard in self.shards(part) if self.record(part, shard) is None]

    def places(self, part: int, shard: int) -> Sequence[int]:
        """Positions of the images that a shard covers."""
        parts = self.settings["parts"]
        step = parts * self.settings["per_shard"]
        start = part + shard * step
        return self.order[start : start + step : parts]

    def name(self, part: int, shard: int) -> str:
        return f"part{part}-{shard:05d}.tar"

    def record(self, part: int, shard: int) -> dict[str, Any] | None:
        """{"pairs", "left_out": {key: reason}} of a finished shard, else None; a shard without pairs has no tar."""
        name = self.name(part, shard)
        path = self.work / f"{name}.json"
        if not path.is_file():
            return None
        found = read_json_object(path, ADVICE)
        try:
            pairs = convert(found.get("pairs"), int, "pairs")
            left_out = convert(found.get("left_out"), dict[str, str], "left_out")
        except ValueError:
            raise ValueError(f"{path} is damaged{ADVICE}") from None
        return {"pairs": pairs, "left_out": left_out} if not pairs or (self.out / name).is_file() else None

    def finish_shard(
        self, draft: IO[bytes], part: int, shard: int, pairs: int, left_out: dict[str, str]
    ) -> None:
        """Record a finished shard, and move its draft from `work` to `out` if it holds any pair."""
        # The record first: it does not count until its tar is there.
        name = self.name(part, shard)
        record = json.dumps({"pairs": pairs, "left_out": left_out}, indent=1)
        write_text(self.work / f"{name}.json", f"{record}\n")
        if pairs:
            # A tar without a record is there if the user has removed a damaged one.
            publish(draft, self.out / name)

    def summary(self, parts: Sequence[int]) -> tuple[int, Skipped]:
        """The number of pairs in some parts, and their skipped images."""
        records = [self.record(part, shard) for part in parts for shard in self.shards(part)]
        skipped, pairs = Skipped(), 0
        for record in filter(None, records):
            pairs += record["pairs"]
            for key, reason in record["left_out"].items():
                skipped.add(reason, key)
        return pairs, skipped

    def finish(self) -> Manifest | None:
        """The manifest, written now if all parts are done and it does not exist yet; None if a part is unfinished.

        Raises:
            ValueError: All images were skipped; `OUT/.caption` is removed, and `OUT` too if it is then empty.
        """
        parts = range(self.settings["parts"])
        with lock(self.work / "lock", wait=math.inf):
            if any(self.unfinished(part) for part in parts):
                return None
            manifest = read_manifest(self.out)
            if manifest is not None:
                return manifest
            pairs, skipped = self.summary(parts)
            if not pairs:
                shutil.rmtree(self.work)
                if not any(self.out.iterdir()):
                    self.out.rmdir()
                raise ValueError(f"no image of {self.of} could be captioned: {skipped.describe()}")
            every = [self.out / self.name(part, shard) for part in parts for shard in self.shards(part)]
            shards = [path for path in every if path.is_file()]
            versions = read_json_object(self.begun).get("versions")
            source = {"captioned_from": self.of, **self.settings, "left_out": skipped.examples}
            manifest = describe_shards(shards, failures=skipped.counts, source=source, versions=versions)
            write_manifest(self.out, manifest)
            return manifest
