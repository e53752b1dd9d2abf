"""Read the unpacked packages into items: pictures still to be rendered, with their names and their role."""

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.mini_corpus.emoji import Emoji, EmojiTable, slug, split_glued, without_tone
from tools.mini_corpus.render import icon_svg
from tools.mini_corpus.sources import BRANDS, ICON_CLASSES, Source

MAX_TAGS = 12
TONED_PERCENT = 12  # of the skin-tone variants are kept: they are many and differ in nothing else


@dataclass
class Item:
    """One picture.

    Attributes:
        svg, path: SVG text, or a raster file.
        subgroup: The emoji's subgroup, by which the test sets are chosen.
        concept: The emoji's standard name, None for flags and everything else.
        label: Its class in the test set it may belong to.
        weight, role: If 0 and empty, the source's.
    """

    key: str
    source: str
    name: str
    svg: str = ""
    path: str = ""
    tags: list[str] = field(default_factory=list)
    group: str | None = None
    subgroup: str = ""
    style: str = "icon"
    mono: bool = False
    mirror: bool = True
    concept: str | None = None
    weight: float = 0.0
    role: str = ""
    label: str | None = None

    def meta(self) -> dict[str, Any]:
        """What KEY.json holds."""
        names = ("name", "tags", "group", "style", "source", "mono", "mirror", "concept", "weight")
        return {name: getattr(self, name) for name in names}


# Names of things that mean something else when mirrored, or hold writing.
_SIDED = re.compile(
    r"\b(left|right|arrows?|clock|o.?clock|thirty|letters?|numbers?|digits?|keycap|sign|text|abc|alphabet|japanese|"
    r"button|east|west|forward|back|rewind|next|previous|calendar|question|input|symbols?|flag|map|[a-z]|[0-9]+|"
    r"latin|squared|ideograph|undo|redo|login|logout|align|music|note|keyboard|atm|wc|id|ok|sos|zodiac|currency|"
    r"dollar|euro|yen|pound|rupee|percent|math|script|hiragana|katakana|roman)\b"
)
_LINE_STYLE = re.compile(
    r"-(outline|bold|line|fill|solid|duotone|light|thin|sharp|broken|linear|bold-duotone|line-duotone|16-solid|"
    r"20-solid|regular|filled)$"
)
# Suffixes that mdi and tabler add to a noun for user interfaces: one image of the noun is enough.
_INTERFACE = re.compile(
    r"-(outline|off|circle|box|variant|plus|minus|remove|check|alert|cog|lock|multiple|filled|x|cancel|edit|search|"
    r"clock|sync|arrow-.*|outline-.*|off-.*|pause|share|pin|bolt|code|dollar|down|up|exclamation|question|heart|star)$"
)
_BRAND_CATEGORIES = {"Brand", "Brand / Logo", "Logos", "Social Media", "Developer / Languages"}
_INTERFACE_CATEGORIES = {
    "Alpha / Numeric", "Arrange", "Arrows", "Edit", "Files / Folders", "Form", "Graphs", "InterfaceEssential",
    "Shapes", "Symbols", "Text / Content / Format", "Typography", "Vector",
}  # fmt: skip


def read_icons(source: Source, folder: Path, emoji: EmojiTable) -> Iterator[Item]:
    """The pictures of an iconify package, or of Fluent Emoji 3D, in a fixed order."""
    if source.name == "fluent-emoji-3d":
        return _fluent_3d(source, folder, emoji)
    if source.reader == "emoji":
        return _emoji(source, folder, emoji)
    if source.reader == "flag":
        return _flags(source, folder, emoji)
    return _line_icons(source, folder) if source.role == "test" else _icons(source, folder)


def finish(source: Source, items: Iterator[Item]) -> list[Item]:
    """Items with unique keys, and the source's role and weight if they have none of their own."""
    seen: dict[str, int] = {}
    out = []
    for item in items:
        item.key = item.key[:70].rstrip("-")
        seen[item.key] = seen.get(item.key, 0) + 1
        if seen[item.key] > 1:
            item.key += f"_{seen[item.key]}"
        item.role = item.role or source.role
        item.weight = item.weight or source.weight
        item.mirror = item.mirror and not _SIDED.search(item.name.lower())
        out.append(item)
    return out


def words(key: str) -> str:
    """ "alarm-clock_2" → "alarm clock 2"."""
    return re.sub(r"[-_\s]+", " ", key).strip()


def draw(key: str, out_of: int = 100) -> int:
    """A number below `out_of` that depends only on the key, so that adding a source moves no other image."""
    return zlib.crc32(key.encode()) % out_of


def _iconify(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(name, SVG, category) of each visible icon of an iconify package."""
    data = json.loads((folder / "icons.json").read_text("utf-8"))
    about = folder / "metadata.json"
    categories = json.loads(about.read_text("utf-8")).get("categories", {}) if about.exists() else {}
    category = {icon: name for name, icons in categories.items() for icon in icons}
    for name, icon in sorted(data["icons"].items()):
        if not icon.get("hidden"):
            width, height = (icon.get(side, data.get(side, 16)) for side in ("width", "height"))
            svg = icon_svg(icon["body"], icon.get("left", 0), icon.get("top", 0), width, height)
            yield name, svg, category.get(name, "")


def _emoji(source: Source, folder: Path, table: EmojiTable) -> Iterator[Item]:
    chars = folder / "chars.json"
    codes: dict[str, str] = {}
    if chars.exists():
        for code, icon in json.loads(chars.read_text("utf-8")).items():
            codes.setdefault(icon, code)
    for icon, svg, _ in _iconify(folder):
        base, toned = without_tone(icon.removesuffix("-default"), short=source.name == "fluent-emoji-flat")
        if toned and table.by_name(icon) is not None:  # "police-car-light" has a light, not a light skin
            base, toned = icon, False
        if toned and (source.role != "train" or draw(source.name + icon) >= TONED_PERCENT):
            continue
        found = (table.by_hexcode(codes[icon]) if icon in codes and not toned else None) or table.by_name(
            base
        )
        key = f"{source.name}_{slug(icon)}"
        if found is not None:
            item = _item_of(found, key, source)
            item.svg = svg
            if toned:
                item.tags = ["skin tone", *item.tags][:MAX_TAGS]
            yield item
        elif source.role == "train":
            split = split_glued(icon, table.vocabulary) if source.name == "fxemoji" else None
            yield Item(key, source.name, split or words(base), svg, style=source.style)


def _item_of(emoji: Emoji, key: str, source: Source) -> Item:
    if emoji.is_flag:
        country = emoji.name.removeprefix("flag: ")
        name = f"flag of {country}"
        return Item(
            key, source.name, name, tags=[country, "country flag"], group="country flag",
            subgroup=emoji.subgroup, style="flag", mirror=False, label=name,
        )  # fmt: skip
    return Item(
        key, source.name, emoji.name, tags=list(emoji.tags[:MAX_TAGS]), group=emoji.group or None,
        subgroup=emoji.subgroup, style=source.style, concept=emoji.name, label=emoji.name,
    )  # fmt: skip


def _flags(source: Source, folder: Path, table: EmojiTable) -> Iterator[Item]:
    for icon, svg, _ in _iconify(folder):
        found = table.by_country(icon)
        key = f"{source.name}_{slug(icon)}"
        if found is not None:
            item = _item_of(found, key, source)
            item.svg = svg
            item.tags.append(icon.upper())
            yield item
        elif source.role == "train" and not BRANDS.search(words(icon)):
            yield Item(key, source.name, f"{words(icon)} flag", svg, group="flag", style="flag", mirror=False)


def _fluent_3d(source: Source, folder: Path, table: EmojiTable) -> Iterator[Item]:
    for path in sorted((folder / "assets").glob("*.webp")):
        found = table.by_hexcode(path.stem)
        if found is not None:
            item = _item_of(found, f"{source.name}_{path.stem}", source)
            item.path = str(path)
            yield item


def _icons(source: Source, folder: Path) -> Iterator[Item]:
    for icon, svg, category in _iconify(folder):
        name = words(_noun(source.name, icon))
        if not name or category in _BRAND_CATEGORIES or icon.startswith("brand-") or BRANDS.search(name):
            continue
        yield Item(
            f"{source.name}_{slug(icon)}", source.name, name, svg,
            group=words(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", category)).lower() or None,
            style=source.style, mono=source.reader == "mono",
            weight=source.weight * (0.5 if category in _INTERFACE_CATEGORIES else 1.0),
        )  # fmt: skip


def _noun(source: str, icon: str) -> str:
    """The icon's name without the marks of its size and style; empty if another icon stands for it."""
    if (
        (source in ("mdi", "tabler") and _INTERFACE.search(icon))
        or (source == "healthicons" and icon.endswith(("-outline", "-24px")))
        or (source == "fluent-color" and not icon.endswith(("-20", "-24", "-48")))
        or (source == "maki" and icon.endswith("-11"))
    ):
        return ""
    if source.startswith("streamline"):
        icon = icon.removesuffix("-flat").removesuffix("-duo")
    if source == "meteocons":
        icon = icon.removesuffix("-fill")
    return re.sub(r"(-alt)?-(\d+|negative)$|-alt$", "", icon)


def _line_icons(source: Source, folder: Path) -> Iterator[Item]:
    for icon, svg, _ in _iconify(folder):
        label = ICON_CLASSES.get(_LINE_STYLE.sub("", _LINE_STYLE.sub("", icon)))
        if label:
            yield Item(f"{source.name}_{slug(icon)}", source.name, label, svg, mono=True, label=label)
