"""Build a mini corpus folder from the packages: fetch, read, render, drop near-duplicates, write.

The same packages, seed and library versions give the same bytes.
"""

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from advflyp.data.mini import EMBEDDED, ON_DEMAND, neardup
from advflyp.data.mini.captions import caption
from advflyp.data.mini.clipart import read_clipart, read_stamps
from advflyp.data.mini.compose import MANIFEST, read_shards
from advflyp.data.mini.emoji import EmojiTable
from advflyp.data.mini.fetch import fetch, silent
from advflyp.data.mini.read import Item, draw, finish, read_icons
from advflyp.data.mini.render import encode_webp, fit, on_white, render_svg, require_renderer
from advflyp.data.mini.sets import SetPlan, embedded_sets, on_demand_sets, without
from advflyp.data.mini.shards import sha256, write_json, write_tar
from advflyp.data.mini.sources import SOURCES, TWINS, Source, source
from advflyp.files import draft_folder, names_in, publish_folder
from advflyp.wording import counted

PAIRS_PER_SHARD = 2000
PROXY_RENDERINGS = 3  # a concept is a class of the labelled proxy set when training shows it this often


def build(
    out: Path,
    *,
    work: Path,
    full: bool,
    seed: int = 0,
    sets: list[str] | None = None,
    say: Callable[[str], None] = silent,
) -> dict[str, Any]:
    """Build training pairs and labelled sets into `out`; returns the manifest.

    work:  keeps the downloaded packages
    full:  every pair; otherwise the part that the package carries
    sets:  copyleft test sets to build beside them ("openmoji", "stamps")
    say:   called with a line for every step that takes long
    ValueError for a folder that holds other things or pairs already, an unknown set, a missing client or package.
    """
    names = _known(sets or [])
    if "pairs" in _present(out):
        raise ValueError(f"{out} holds a corpus already; remove it or give another folder")
    wanted = [s for s in SOURCES if s.role != "demand" or s.name in {ON_DEMAND[name] for name in names}]
    material = collect(wanted, work, say)
    items, pictures = material.items, material.pictures
    plans = embedded_sets(items, material.folders["fashion-mnist"], seed) + on_demand_sets(names, items, seed)
    say(f"looking for near-duplicates among {counted(len(pictures), 'image')}")
    dropped, plans, report = separate(items, pictures, plans)
    train = [n for n, item in enumerate(items) if item.role == "train" and n not in dropped]
    proxy = proxy_concepts(items[n].concept for n in train)
    if not full:
        train = [n for n in train if draw(items[n].key, 1000) < 1000 * source(items[n].source).embedded]
    random.Random(f"{seed} train").shuffle(train)

    with _staging(out) as staging:
        files = {}
        for number, start in enumerate(range(0, len(train), PAIRS_PER_SHARD)):
            part = train[start : start + PAIRS_PER_SHARD]
            path = staging / f"train-{number:04d}.tar.gz"
            write_tar(path, (member for n in part for member in _pair(items[n], pictures[n], seed)))
            files[path.name] = {"sha256": sha256(path), "count": len(part)}
        files |= _write_sets(staging, plans, items, pictures, proxy)
        manifest = {
            "seed": seed,
            "full": full,
            "pairs": len(train),
            "sources": material.rows(Counter(items[n].source for n in train), plans),
            "files": files,
            "near_duplicates": report,
        }
        return _install(staging, out, manifest)


def build_sets(
    names: Sequence[str],
    out: Path,
    work: Path,
    seed: int = 0,
    corpus: Path = EMBEDDED,
    say: Callable[[str], None] = silent,
) -> dict[str, Any]:
    """Build the copyleft test sets `names` ("openmoji", "stamps") into `out`; returns the manifest.

    Pictures that resemble one in `corpus` are left out. An `out` that holds a corpus keeps it. Errors as in `build`.
    """
    names = _known(names)
    _present(out)
    wanted = [s for s in SOURCES if s.role == "names" or s.name in {ON_DEMAND[name] for name in names}]
    material = collect(wanted, work, say)
    say("looking for images that the training pairs hold, too")
    training, metas = read_shards(corpus)
    proxy = proxy_concepts(meta["concept"] for meta in metas)
    plans = [
        without(
            plan, {match.query for match in neardup.find(_pictures(plan, material.pictures), training[:])}
        )
        for plan in on_demand_sets(names, material.items, seed)
    ]
    with _staging(out) as staging:
        files = _write_sets(staging, plans, material.items, material.pictures, proxy)
        manifest = {"seed": seed, "sources": material.rows(Counter(), plans), "files": files}
        return _install(staging, out, manifest)


@dataclass
class Material:
    """Rendered items: pictures are (N, 64, 64, 4) uint8; folders and archives are those of each source."""

    items: list[Item]
    pictures: np.ndarray
    folders: dict[str, Path]
    packages: list[tuple[Source, str, str]]

    def rows(self, pairs: Counter[str], plans: Sequence[SetPlan]) -> list[dict[str, Any]]:
        """The manifest's table of sources; held_out counts pictures in labelled sets."""
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


def collect(wanted: Sequence[Source], work: Path, say: Callable[[str], None] = silent) -> Material:
    """Fetch, read and render sources; pictures that cannot be drawn are left out."""
    require_renderer()
    folders, packages = {}, []
    for s in wanted:
        folders[s.name], archive, version = fetch(s, work, say)
        packages.append((s, version, sha256(archive)))
    table = EmojiTable.read(folders["emojibase"])
    items: list[Item] = []
    for s in wanted:
        if s.name == "openclipart":
            items += finish(s, read_clipart(s, folders[s.name]))
        elif s.name == "tuxpaint":
            items += finish(s, read_stamps(s, folders[s.name]))
        elif s.name not in ("emojibase", "fashion-mnist"):
            items += finish(s, read_icons(s, folders[s.name], table))
    say(f"drawing {counted(len(items), 'image')}")
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        rendered = list(pool.map(_render, ((item.svg, item.path) for item in items), chunksize=64))
    drawn = [(item, picture) for item, picture in zip(items, rendered, strict=True) if picture is not None]
    return Material(
        [item for item, _ in drawn], np.stack([picture for _, picture in drawn]), folders, packages
    )


def separate(
    items: Sequence[Item], pictures: np.ndarray, plans: Sequence[SetPlan]
) -> tuple[set[int], list[SetPlan], dict[str, Any]]:
    """Part training and labelled sets where they resemble each other.

    Returns the training items to drop, the sets without the pictures that give way, and a report of both.
    """
    train = np.array([n for n, item in enumerate(items) if item.role == "train"])
    matches = neardup.find(np.concatenate([_pictures(plan, pictures) for plan in plans]), pictures[train])
    dropped: set[int] = set()
    kept, per_set = [], {}
    start = 0
    for plan in plans:
        own = [match for match in matches if start <= match.query < start + len(plan)]
        rows = {match.query - start for match in own}
        hits = {int(train[match.reference]) for match in own}
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


def proxy_concepts(concepts: Iterable[str | None]) -> set[str]:
    """The classes of the labelled proxy set: concepts that training shows often enough."""
    return {c for c, n in Counter(concepts).items() if c is not None and n >= PROXY_RENDERINGS}


def statistics(folder: Path = EMBEDDED) -> dict[str, Any]:
    """The figures that the documentation quotes: pairs per kind, captions, sets, bytes."""
    _, metas = read_shards(folder)
    sets = json.loads((folder / "sets.json").read_text("utf-8"))
    return {
        "pairs": len(metas),
        "pairs per style": dict(Counter(meta["style"] for meta in metas).most_common()),
        "pairs per source": dict(Counter(meta["source"] for meta in metas).most_common()),
        "different names": len({meta["name"] for meta in metas}),
        "pairs with keywords": sum(bool(meta["tags"]) for meta in metas),
        "proxy classes": len(proxy_concepts(meta["concept"] for meta in metas)),
        "sets": {name: {"pictures": s["n"], "classes": len(s["classes"])} for name, s in sets.items()},
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    }


def _render(picture: tuple[str, str]) -> np.ndarray | None:
    svg, path = picture
    try:
        return fit(render_svg(svg) if svg else Image.open(path))
    except (ValueError, OSError):
        return None  # it draws nothing, or nothing that 64 pixels can show


def _pair(item: Item, picture: np.ndarray, seed: int) -> Iterator[tuple[str, bytes]]:
    meta = item.meta()
    yield f"{item.key}.webp", encode_webp(picture)
    yield f"{item.key}.json", json.dumps(meta, ensure_ascii=False).encode()
    yield f"{item.key}.txt", caption(meta, random.Random(f"{seed} {item.key}")).encode()


def _pictures(plan: SetPlan, pictures: np.ndarray) -> np.ndarray:
    """(N, 64, 64, 3) uint8 on white."""
    return plan.pixels if plan.pixels is not None else on_white(pictures[plan.members])


def _write_sets(
    folder: Path, plans: Sequence[SetPlan], items: Sequence[Item], pictures: np.ndarray, proxy: set[str]
) -> dict[str, Any]:
    """The sets' files and sets.json; returns the manifest's entries."""
    (folder / "sets").mkdir(exist_ok=True)
    files, table = {}, {}
    for plan in plans:
        members = []
        for row, (picture, label) in enumerate(zip(_pictures(plan, pictures), plan.labels, strict=True)):
            key = f"{plan.name}_{row:04d}"
            members += [(f"{key}.webp", encode_webp(picture, 80)), (f"{key}.cls", b"%d" % label)]
        name = "val.tar.gz" if plan.split == "val" else f"sets/{plan.name}.tar.gz"
        write_tar(folder / name, members)
        files[name] = {"sha256": sha256(folder / name), "count": len(plan)}
        # A picture is covered when its own concept or its class's name is a class of the proxy set.
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


def _known(names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in ON_DEMAND:
            raise ValueError(f"there is no set '{name}' to build; there are {' and '.join(ON_DEMAND)}")
    return list(dict.fromkeys(names))


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
    """A folder that is to become `out`, with all that is there already."""
    with draft_folder(out) as staging:
        if out.exists():
            shutil.copytree(out, staging, symlinks=True, dirs_exist_ok=True)
        yield staging


def _install(staging: Path, out: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Let the finished folder become `out`; its manifest is that of what was there, too."""
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
