"""The standard names, keywords and groups of the emoji, and the matching of icon names to them."""

import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_TONE = re.compile(r"-(medium-light|medium-dark|light|medium|dark)-skin-tone(?=-|$)|-tone[1-5](?=-|$)")
_SHORT_TONE = re.compile(r"-(medium-light|medium-dark|light|medium|dark)$")
# Words of glued names that no emoji's name or keyword holds, and short words; other short words do not split a name.
_GLUED_WORDS = frozenset(
    {
        "a", "x", "of", "in", "on", "up", "no", "to", "by", "tv", "cd", "ok", "upwards", "downwards", "pointing",
        "spurting", "screen", "touchtone", "bubble", "mood", "shell", "back", "hand", "rays", "above", "below", "left",
        "right", "britain",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Emoji:
    """One emoji: name ("dog face"), keywords, subgroup ("animal-mammal"), the group's words ("mammals")."""

    name: str
    tags: tuple[str, ...]
    subgroup: str
    group: str
    hexcode: str

    @property
    def is_flag(self) -> bool:
        """Whether it is a country's or a region's flag."""
        return self.subgroup in ("country-flag", "subdivision-flag")


def slug(name: str) -> str:
    """ "Côte d'Ivoire" → "cote-divoire": lower case, no accents, words joined by hyphens."""
    plain = unicodedata.normalize("NFKD", name.lower()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.replace("'", "")).strip("-")


def glue(name: str) -> str:
    """The name without separators, as old vendors wrote it: "alarm clock" → "alarmclock"."""
    return slug(name).replace("-", "")


def without_tone(icon: str, *, short: bool = False) -> tuple[str, bool]:
    """An icon's name without its skin tone, and whether it had one. `short`: whether tones are written "-light"."""
    base = (_SHORT_TONE if short else _TONE).sub("", icon)
    return base, base != icon


def split_glued(word: str, vocabulary: frozenset[str]) -> str | None:
    """ "foxweary" → "fox weary", in as few known words as possible; None if it cannot be split."""
    best: list[list[str] | None] = [[]] + [None] * len(word)
    for end in range(1, len(word) + 1):
        for start in range(end):
            head, part = best[start], word[start:end]
            if head is None or not (part in vocabulary or part.isdigit()):
                continue
            previous = best[end]
            if previous is None or len(head) + 1 < len(previous):
                best[end] = [*head, part]
    found = best[-1]
    return " ".join(found) if found else None


class EmojiTable:
    """Looks emoji up by code point, country, name, or name without separators.

    Attributes:
        vocabulary: The words of all names and keywords.
    """

    def __init__(self, emoji: Iterable[Emoji]) -> None:
        known = tuple(emoji)
        self._by_hexcode = {e.hexcode: e for e in known}
        self._by_slug = {slug(e.name): e for e in known}
        self._by_glued: dict[str, Emoji] = {}
        for e in known:
            for name in (e.name, _unicode_name(e.hexcode)):
                if name:
                    self._by_glued.setdefault(glue(name), e)
        words = {word for e in known for text in (e.name, *e.tags) for word in slug(text).split("-")}
        self.vocabulary = frozenset(word for word in words if len(word) > 2) | _GLUED_WORDS

    @classmethod
    def read(cls, package: Path) -> "EmojiTable":
        """From the unpacked package emojibase-data."""
        data = json.loads((package / "en" / "data.json").read_text("utf-8"))
        subgroups = json.loads((package / "en" / "messages.json").read_text("utf-8"))["subgroups"]
        key = {group["order"]: group["key"] for group in subgroups}
        words = {group["order"]: group["message"] for group in subgroups}
        return cls(
            Emoji(
                name=entry["label"],
                tags=tuple(tag for tag in entry.get("tags", ()) if tag),
                subgroup=key.get(entry.get("subgroup"), ""),
                group=words.get(entry.get("subgroup"), ""),
                hexcode=_normal(entry["hexcode"]),
            )
            for entry in data
        )

    def by_hexcode(self, hexcode: str) -> Emoji | None:
        """ "1f436" or "1F1E9-1F1EA", with or without variation selectors."""
        return self._by_hexcode.get(_normal(hexcode))

    def by_country(self, code: str) -> Emoji | None:
        """The flag of a two-letter country code."""
        if not re.fullmatch("[a-z]{2}", code):
            return None
        return self._by_hexcode.get("-".join(f"{0x1F1E6 + ord(letter) - ord('a'):X}" for letter in code))

    def by_name(self, icon: str) -> Emoji | None:
        """Looks an icon's name up as it is, as that of a flag, without its number, or without separators."""
        unnumbered = re.sub(r"-\d+$", "", icon)
        for name in (icon, f"flag-{icon}", unnumbered):
            if name in self._by_slug:
                return self._by_slug[name]
        return self._by_glued.get(glue(icon)) or self._by_glued.get(glue(unnumbered))


def _normal(hexcode: str) -> str:
    return "-".join(part for part in hexcode.upper().split("-") if part not in ("FE0F", "FE0E"))


def _unicode_name(hexcode: str) -> str:
    """The character's name ("father christmas") for an emoji of one code point, else nothing."""
    return "" if "-" in hexcode else unicodedata.name(chr(int(hexcode, 16)), "").lower()
