"""Read the Debian packages of drawings and photographs: Open Clip Art, the Tux Paint stamps, pySioGame's flashcards."""

import html
import re
from collections.abc import Iterator
from pathlib import Path

from tools.mini_corpus.emoji import slug
from tools.mini_corpus.read import Item, draw, words
from tools.mini_corpus.sources import BRANDS, Source

HELD_OUT_PERCENT = 50  # of the families of drawings in the categories below: the test set "clipart"
CLIPART_CLASSES = {
    "animals/mammals": "mammal", "animals/birds": "bird", "animals/bugs": "insect", "animals/fish": "fish",
    "animals/dinosaurs": "dinosaur", "food/fruit": "fruit", "food/desserts": "dessert", "food/beverages": "drink",
    "food/vegetables": "vegetable", "transportation/boating": "boat", "transportation/vehicles": "car",
    "transportation/roadsigns": "road sign", "recreation/music": "musical instrument", "recreation/sports": "sport",
    "plants/flowers": "flower", "plants/trees": "tree", "buildings/homes": "house", "people/clothing": "clothing",
    "computer/hardware": "computer hardware", "tools": "tool", "tools/weapons": "weapon",
    "people/smilies": "smiley face", "food/breads_and_carbs": "bread", "signs_and_symbols/weather": "weather",
    "signs_and_symbols/clocks": "clock", "geography/astronomy": "planet", "office/telephone": "telephone",
    "buildings/furniture": "furniture", "people/bodypart": "body part",
}  # fmt: skip
STAMP_CLASSES = {
    "animals/mammals": "mammal", "animals/marsupials": "mammal", "animals/birds": "bird", "animals/insects": "insect",
    "animals/fish": "fish", "food/fruit": "fruit", "food/vegetables": "vegetable", "food/nuts": "nut",
    "food/dessert": "dessert", "town/houses": "house", "town/roadsigns": "road sign", "town/monuments": "monument",
    "plants/flowers": "flower", "plants/trees": "tree", "plants/mushrooms": "mushroom",
    "symbols/money": "coin or banknote", "symbols/chess": "chess piece", "space/planets": "planet",
    "clothes": "clothing", "clothes/hats": "hat", "household/tools": "tool", "household/dishes": "dishes",
    "hobbies/music": "musical instrument", "vehicles/locomotive": "train", "vehicles/ship": "ship",
    "vehicles/flight": "aircraft", "vehicles/auto": "car", "vehicles/construction": "construction vehicle",
    "vehicles/emergency": "emergency vehicle", "seasonal/christmas": "christmas decoration",
    "seasonal/halloween": "halloween decoration", "sports": "sport",
}  # fmt: skip
# Folders of flashcards that show a thing, each named after it; the others show actions, family members and parts of
# the body, which an arrow points at.
FLASHCARD_FOLDERS = (
    "animals", "clothes_n_accessories", "construction", "food", "fruit_n_veg", "jobs", "nature", "transport",
)  # fmt: skip

_FLAG_WEIGHT = 4.0
_MAX_BYTES = 600_000  # a few drawings are huge and slow
_SKIPPED = (
    "special/", "unsorted/duplicates", "logos/", "shapes/jigsaw", "shapes/flowchart", "recreation/games/cards/b",
    "signs_and_symbols/led",
)  # fmt: skip
_STARS, _STARS_PERCENT = "shapes/stars", 5  # 1,378 stars that differ in a number
_PUBLIC_DOMAIN = re.compile(r"license[^>]*resource=\"[^\"]*public ?domain", re.I)
_TITLE = re.compile(r"<(?:dc:title|title)[^>]*>([^<]+)<")
_KEYWORD = re.compile(r"<rdf:li>([^<]+)</rdf:li>")
_DESCRIPTION = re.compile(r"<dc:description[^>]*>([^<]+)<")
_BY_AUTHOR = re.compile(r"^.*\bclip ?art by [^-]*-\s*", re.I)
# Titles that name a collection or its author rather than what is drawn: the file's name is used instead.
_COLLECTION = re.compile(
    r"open ?clip ?art|clip ?art|part of the|collection|svg|theme|icon ?set|etiquette|@|roadsigns$|^icons?$|"
    r"^template|flat icons|aiga symbol|^map symbols$|gramastar|^untitled|^drawing$|submission|sibmission|^image\b",
    re.I,
)
_NO_KEYWORD = re.compile(r"^upload|(?i:hash)|0x|http|@|svg|theme|clip ?art|^unsorted$|part of the")


def read_clipart(source: Source, folder: Path) -> Iterator[Item]:
    """The drawings of Open Clip Art that their own metadata dedicates to the public domain.

    Half of the families in the test set's categories are held out; the variants "…_01", "…_02" of a drawing are
    one family and stay together.
    """
    root = folder / "usr/share/openclipart/svg"
    for path in sorted(root.rglob("*.svg")):
        place = path.relative_to(root).as_posix()
        if (
            place.startswith(_SKIPPED)
            or path.stat().st_size > _MAX_BYTES
            or (place.startswith(_STARS) and draw(place) >= _STARS_PERCENT)
        ):
            continue
        text = path.read_text("utf-8", errors="ignore")
        name, tags = _title_and_tags(text, path.stem)
        if not _PUBLIC_DOMAIN.search(text) or BRANDS.search(f"{name} {words(path.stem)}".lower()):
            continue
        parts = place.split("/")
        category = "/".join(parts[:2]) if len(parts) > 2 else parts[0]
        label = CLIPART_CLASSES.get(category)
        family = "/".join(parts[:-1]) + re.sub(r"[\d_.]+", "", path.stem)
        held_out = label is not None and draw(family) < HELD_OUT_PERCENT
        flag = category == "signs_and_symbols/flags"
        yield Item(
            f"{source.name}_{slug(place.removesuffix('.svg'))}", source.name, name, text, tags=tags,
            group=label or words(parts[-2] if len(parts) > 1 else parts[0]),
            style="flag" if flag else source.style, mirror=not flag, weight=_FLAG_WEIGHT if flag else 0.0,
            role="test" if held_out else "train", label=label,
        )  # fmt: skip


def read_stamps(source: Source, folder: Path) -> Iterator[Item]:
    """The photographs and drawings of Tux Paint in the categories of the test set "stamps"."""
    root = folder / "usr/share/tuxpaint/stamps"
    for path in sorted([*root.rglob("*.png"), *root.rglob("*.svg")]):
        place = path.relative_to(root).as_posix()
        parts = place.split("/")
        label = STAMP_CLASSES.get("/".join(parts[:2]) if len(parts) > 2 else parts[0])
        if label is None or path.stem.endswith(("_mirror", "_flip", "_mirror_flip")):
            continue
        svg = path.read_text("utf-8", errors="ignore") if path.suffix == ".svg" else ""
        yield Item(
            f"{source.name}_{slug(place)}",
            source.name,
            words(path.stem),
            svg,
            "" if svg else str(path),
            label=label,
        )


def read_flashcards(source: Source, folder: Path) -> Iterator[Item]:
    """pySioGame's vocabulary cards; a card's class is the word that it teaches."""
    root = folder / "usr/share/games/pysiogame/res/images/art4apps"
    for category in FLASHCARD_FOLDERS:
        for path in sorted((root / category).glob("*.jpg")):
            name = words(path.stem)
            key = f"{source.name}_{category}-{slug(path.stem)}"
            yield Item(key, source.name, name, path=str(path), label=name)


def _title_and_tags(text: str, stem: str) -> tuple[str, list[str]]:
    """Title (or the file's name without its author) and keywords of a drawing."""
    found = _TITLE.search(text)
    title = _BY_AUTHOR.sub("", html.unescape(found.group(1)).strip() if found else "")
    if _COLLECTION.search(words(title)) or len(title) < 3:
        title = re.sub(r"[\d_.]+$", "", stem.removeprefix("aiga_")) or stem
    name = words(re.sub(r"_0?\d+$", "", html.unescape(title).strip()).lower())[:80]
    keywords = (words(html.unescape(keyword).lower()) for keyword in _KEYWORD.findall(text))
    tags = [k for k in dict.fromkeys(keywords) if 1 < len(k) < 30 and not _NO_KEYWORD.search(k)][:8]
    found = _DESCRIPTION.search(text)
    about = " ".join(html.unescape(found.group(1)).split())[:100] if found else ""
    if len(about) > 3 and not _COLLECTION.search(about) and not _NO_KEYWORD.search(about):
        tags.append(about)
    return name or "clip art", tags
