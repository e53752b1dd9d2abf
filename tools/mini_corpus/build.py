"""Build a mini corpus folder from the packages: fetch, read, render, drop near-duplicates, write.

    python -m tools.mini_corpus.build                           # the full corpus, about 37,600 pairs
    python -m tools.mini_corpus.build --embedded --out DIR      # the part that the package carries
    python -m tools.mini_corpus.build --sets openmoji stamps flashcards # only the test sets under copyleft licences
    python -m tools.mini_corpus.build --sets fashion-train      # a labelled training set from another domain
    python -m tools.mini_corpus.build --sets photos photos-train # CIFAR-10: a test set and a labelled training set

The same packages, seed and library versions give the same bytes.
"""

import argparse
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from advflyp.data.mini import EMBEDDED, ON_DEMAND, full_corpus_folder, proxy_concepts
from advflyp.data.mini.captions import caption
from advflyp.data.mini.compose import MANIFEST
from advflyp.data.mini.shards import read_shards
from advflyp.files import draft_folder, file_sha256, names_in, publish_folder
from advflyp.terminal import say
from advflyp.wording import counted
from tools.mini_corpus import neardup
from tools.mini_corpus.clipart import read_clipart, read_flashcards, read_stamps
from tools.mini_corpus.emoji import EmojiTable
from tools.mini_corpus.fetch import fetch
from tools.mini_corpus.read import Item, draw, finish, read_icons
from tools.mini_corpus.render import SIZE, encode_webp, fit, on_white, render_svg, require_renderer
from tools.mini_corpus.sets import SetPlan, embedded_sets, on_demand_set, without
from tools.mini_corpus.shards import write_json, write_tar
from tools.mini_corpus.sources import SOURCES, TWINS, Source, source

PAIRS_PER_SHARD = 2000
# Of the choice of the sets' images, the order of the pairs and their captions.
SEED = 0
# Of packages that hold neither icons nor arrays of pixels, by source.
READERS = {"openclipart": read_clipart, "tuxpaint": read_stamps, "pysiogame": read_flashcards}


def build(out: Path, *, work: Path, full: bool) -> dict[str, Any]:
    """Build training pairs and labelled sets into `out`.

    Args:
        out: A new folder, or one that holds sets of `build_sets`, which are kept.
        work: Folder that keeps the downloaded packages.
        full: Whether to build every pair, or only the part that the package carries.

    Returns:
        The manifest.

    Raises:
        ValueError: If the folder holds other files or already has pairs, or if a client or package is missing.
    """
    if "pairs" in _present(out):
        raise ValueError(f"{out} holds a corpus already; remove it or give another folder")
    material = collect([s for s in SOURCES if s.role != "demand"], work)
    items, images = material.items, material.images
    plans = embedded_sets(items, material.folders["fashion-mnist"], SEED)
    say(f"looking for near-duplicates among {counted(len(images), 'image')}")
    dropped, plans, report = separate(items, images, plans)
    train = [n for n, item in enumerate(items) if item.role == "train" and n not in dropped]
    proxy = proxy_concepts(items[n].concept for n in train)
    if not full:
        train = [n for n in train if draw(items[n].key, 1000) < 1000 * source(items[n].source).embedded]
    random.Random(f"{SEED} train").shuffle(train)

    with _staging(out) as staging:
        files = {}
        for number, start in enumerate(range(0, len(train), PAIRS_PER_SHARD)):
            part = train[start : start + PAIRS_PER_SHARD]
            path = staging / f"train-{number:04d}.tar.gz"
            write_tar(path, (member for n in part for member in _pair(items[n], images[n])))
            files[path.name] = {"sha256": file_sha256(path), "count": len(part)}
        files |= _write_sets(staging, plans, items, images, proxy)
        manifest = {
            "seed": SEED,
            "full": full,
            "pairs": len(train),
            "sources": material.rows(Counter(items[n].source for n in train), plans),
            "files": files,
            "near_duplicates": report,
        }
        return _install(staging, out, manifest)


def build_sets(names: Sequence[str], out: Path, work: Path, corpus: Path = EMBEDDED) -> dict[str, Any]:
    """Build the sets `names` of `ON_DEMAND` into `out`, beside a corpus that it may hold.

    Images that resemble one in `corpus` are left out. The other arguments are as for `build`.
    """
    for name in names:
        if name not in ON_DEMAND:
            raise ValueError(f"there is no set '{name}' to build; there are {' and '.join(ON_DEMAND)}")
    _present(out)
    demanded = {ON_DEMAND[name] for name in names}
    material = collect([s for s in SOURCES if s.role == "names" or s.name in demanded], work)
    say("looking for images that the training pairs hold, too")
    training, metas = read_shards(corpus)
    proxy = proxy_concepts(meta["concept"] for meta in metas)
    named = {meta[key] for meta in metas for key in ("name", "concept")}
    plans = []
    for name in dict.fromkeys(names):
        plan = on_demand_set(name, material.items, SEED, material.folders, named)
        matches = neardup.find(_on_white(plan, material.images), training[:])
        plans.append(without(plan, {query for query, _ in matches}))
    with _staging(out) as staging:
        files = _write_sets(staging, plans, material.items, material.images, proxy)
        manifest = {"seed": SEED, "sources": material.rows(Counter(), plans), "files": files}
        return _install(staging, out, manifest)


@dataclass
class Material:
    """Rendered items: images are (N, 64, 64, 4) uint8; folders and packages are those of each source."""

    items: list[Item]
    images: np.ndarray
    folders: dict[str, Path]
    packages: list[tuple[Source, str, str]]

    def rows(self, pairs: Counter[str], plans: Sequence[SetPlan]) -> list[dict[str, Any]]:
        """The manifest's table of sources; held_out counts images in labelled sets."""
        held_out = Counter(self.items[n].source for n in {n for plan in plans for n in plan.members})
        for plan in plans:
            if plan.pixels is not None:
                held_out.update({plan.sources[0]: len(plan)})
        return [
            {
                "name": s.name, "package": s.package, "version": version, "licence": s.licence,
                "attribution": s.attribution, "url": s.url, "count": pairs[s.name], "held_out": held_out[s.name],
                "sha256": digest,
            }
            for s, version, digest in self.packages
        ]  # fmt: skip


def collect(wanted: Sequence[Source], work: Path) -> Material:
    """Fetch, read and render sources; images that cannot be drawn are skipped."""
    require_renderer()
    folders, packages = {}, []
    for s in wanted:
        folders[s.name], archive, version = fetch(s, work)
        packages.append((s, version, file_sha256(archive)))
    table = EmojiTable.read(folders["emojibase"])
    items: list[Item] = []
    for s in wanted:
        if s.name in READERS:
            items += finish(s, READERS[s.name](s, folders[s.name]))
        elif s.name not in ("emojibase", "fashion-mnist", "cifar10"):
            items += finish(s, read_icons(s, folders[s.name], table))
    say(f"drawing {counted(len(items), 'image')}")
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        rendered = list(pool.map(_render, ((item.svg, item.path) for item in items), chunksize=64))
    drawn = [(item, image) for item, image in zip(items, rendered, strict=True) if image is not None]
    images = np.stack([image for _, image in drawn]) if drawn else np.zeros((0, SIZE, SIZE, 4), np.uint8)
    return Material([item for item, _ in drawn], images, folders, packages)


def separate(
    items: Sequence[Item], images: np.ndarray, plans: Sequence[SetPlan]
) -> tuple[set[int], list[SetPlan], dict[str, Any]]:
    """Remove near-duplicates between training and labelled sets.

    Returns the training items to drop, the sets without the images that give way, and a report of both.
    """
    train = np.array([n for n, item in enumerate(items) if item.role == "train"])
    matches = neardup.find(np.concatenate([_on_white(plan, images) for plan in plans]), images[train])
    dropped: set[int] = set()
    kept, per_set = [], {}
    start = 0
    for plan in plans:
        own = [pair for pair in matches if start <= pair[0] < start + len(plan)]
        rows = {query - start for query, _ in own}
        hits = {int(train[reference]) for _, reference in own}
        start += len(plan)
        if plan.gives_way:
            per_set[plan.name] = {"left out of the set": len(rows)}
            kept.append(without(plan, rows))
        else:
            per_set[plan.name] = {"pictures": len(rows), "left out of training": len(hits)}
            kept.append(plan)
            dropped |= hits
    held = {(TWINS.get(items[n].source), items[n].concept) for plan in plans for n in plan.members}
    twins = {int(n) for n in train if (items[n].source, items[n].concept) in held} - dropped
    report = {
        "colour_limit": neardup.COLOUR_LIMIT,
        "edge_limit": neardup.EDGE_LIMIT,
        "dropped": dict(sorted(Counter(items[n].source for n in dropped).items())),
        "twins": len(twins),
        "sets": per_set,
    }
    return dropped | twins, kept, report


def _render(drawing: tuple[str, str]) -> np.ndarray | None:
    svg, path = drawing
    try:
        return fit(render_svg(svg) if svg else Image.open(path))
    except (ValueError, OSError):
        return None  # it draws nothing, or nothing that 64 pixels can show


def _pair(item: Item, image: np.ndarray) -> Iterator[tuple[str, bytes]]:
    meta = item.meta()
    yield f"{item.key}.webp", encode_webp(image)
    yield f"{item.key}.json", json.dumps(meta, ensure_ascii=False).encode()
    yield f"{item.key}.txt", caption(meta, random.Random(f"{SEED} {item.key}")).encode()


def _on_white(plan: SetPlan, images: np.ndarray) -> np.ndarray:
    """(N, 64, 64, 3) uint8."""
    return plan.pixels if plan.pixels is not None else on_white(images[plan.members])


def _write_sets(
    folder: Path, plans: Sequence[SetPlan], items: Sequence[Item], images: np.ndarray, proxy: set[str]
) -> dict[str, Any]:
    """The sets' files and sets.json; returns the manifest's entries."""
    (folder / "sets").mkdir(exist_ok=True)
    files, table = {}, {}
    for plan in plans:
        members = []
        for row, (image, label) in enumerate(zip(_on_white(plan, images), plan.labels, strict=True)):
            key = f"{plan.name}_{row:04d}"
            members += [(f"{key}.webp", encode_webp(image, 80)), (f"{key}.cls", b"%d" % label)]
        name = "val.tar.gz" if plan.split == "val" else f"sets/{plan.name}.tar.gz"
        write_tar(folder / name, members)
        files[name] = {"sha256": file_sha256(folder / name), "count": len(plan)}
        # An image is covered when its own concept or its class's name is a class of the proxy set.
        concepts = [items[n].concept for n in plan.members] or [None] * len(plan)
        covered = [
            concept in proxy or plan.classes[label] in proxy
            for concept, label in zip(concepts, plan.labels, strict=True)
        ]
        table[plan.name] = {
            "classes": plan.classes,
            "templates": list(plan.templates),
            "domain": plan.domain,
            "split": plan.split,
            "n": len(plan),
            "source": ", ".join(plan.sources),
            "licence": ", ".join(sorted({source(name).licence for name in plan.sources})),
            "in_proxy": 2 * sum(covered) >= len(plan),
            "proxy_share": round(sum(covered) / len(plan), 3),
        }
    write_json(folder / "sets.json", table)
    return files


def _present(out: Path) -> dict[str, Any]:
    """The manifest of a folder that holds a corpus or sets; empty for a new or empty one, ValueError for others."""
    if (out / MANIFEST).is_file() and (out / "sets.json").is_file():
        found = json.loads((out / MANIFEST).read_text("utf-8"))
        if isinstance(found, dict) and {"files", "sources"} <= found.keys():
            return found
    if (out.exists() and not out.is_dir()) or names_in(out):
        raise ValueError(f"{out} holds other files; give a new folder")
    return {}


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A draft of `out`, with everything that it holds."""
    with draft_folder(out) as staging:
        if out.exists():
            shutil.copytree(out, staging, symlinks=True, dirs_exist_ok=True)
        yield staging


def _install(staging: Path, out: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Publish the finished folder as `out`; its manifest also covers what was there before."""
    if present := _present(out):
        table = json.loads((out / "sets.json").read_text("utf-8"))
        write_json(staging / "sets.json", table | json.loads((staging / "sets.json").read_text("utf-8")))
        known = {row["name"] for row in manifest["sources"]}
        manifest = present | manifest
        manifest["sources"] += [row for row in present["sources"] if row["name"] not in known]
        manifest["files"] = present["files"] | manifest["files"]
    write_json(staging / MANIFEST, manifest)
    publish_folder(staging, out, replace=bool(present))
    return manifest


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.mini_corpus.build", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--embedded", action="store_true", help="only the part that the package carries")
    parser.add_argument(
        "--sets", nargs="+", metavar="SET", help=f"only these test sets: {', '.join(ON_DEMAND)}"
    )
    parser.add_argument(
        "--out", type=Path, default=full_corpus_folder(), help="where the library looks by default"
    )
    parser.add_argument("--work", type=Path, help="keeps the downloaded packages")
    given = parser.parse_args()
    work = given.work or full_corpus_folder().with_name("mini-packages")
    try:
        if given.sets:
            build_sets(given.sets, given.out, work)
        else:
            build(given.out, work=work, full=not given.embedded)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    say(f"done: {given.out}")


if __name__ == "__main__":
    main()
