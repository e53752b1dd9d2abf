"""Image–text metadata as public sets publish it: names of columns, what they hold, which rows a filter takes."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute

from advflyp.config import suggest
from advflyp.data.pairs.cells import MISSING

# Its functions are made at import; a type checker sees none of them.
pc: Any = pyarrow.compute

# What the columns are called in LAION-400M, LAION-2B and 5B, Re-LAION, COYO, CC12M, DataComp; case does not matter.
KNOWN = {
    "url": ("url", "image_url", "img_url", "link"),
    "caption": ("caption", "text", "top_caption", "alt_text", "title"),
    "similarity": (
        "similarity",
        "clip_similarity_vitb32",
        "clip_b32_similarity_score",
        "clip_l14_similarity_score",
    ),
    "width": ("width", "original_width"),
    "height": ("height", "original_height"),
    "licence": ("license", "licence"),
    "nsfw": ("nsfw", "punsafe", "nsfw_score_opennsfw2"),
    "language": ("language", "lang"),
}
NEEDED = ("url", "caption")
NUMBERS = ("similarity", "width", "height")
NSFW_WORDS = ("UNLIKELY", "UNSURE", "NSFW")
SPACE = r"\t-\r\x1c- \x{85}\pZ"  # what str.split() takes for white space


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which rows may be drawn; None asks nothing.

    min_similarity:        of picture and caption, as the metadata has it
    min_side:              pixels of the shorter side
    max_aspect:            longer side over shorter side
    licences, languages:   one of these, compared without regard to case
    max_nsfw:              for a score; for LAION's words UNLIKELY, UNSURE, NSFW the number of the word from 0
    min_caption_words, max_caption_words
    A row that lacks the value a filter asks for is not drawn. ValueError for an impossible value.
    """

    min_similarity: float | None = None
    min_side: int | None = None
    max_aspect: float | None = None
    licences: tuple[str, ...] | None = None
    languages: tuple[str, ...] | None = None
    max_nsfw: float | None = None
    min_caption_words: int | None = None
    max_caption_words: int | None = None

    def __post_init__(self) -> None:
        for name in ("min_similarity", "max_aspect", "max_nsfw"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, not {value}")
        for name in ("licences", "languages"):
            if getattr(self, name) == ():
                raise ValueError(
                    f"{name} is empty, so no row could be drawn; name at least one or leave it out"
                )
        if (self.max_nsfw or 0) < 0:
            raise ValueError(f"max_nsfw must be at least 0, not {self.max_nsfw}")
        for name in ("min_side", "min_caption_words", "max_caption_words"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.max_aspect is not None and self.max_aspect < 1:
            raise ValueError(
                f"max_aspect is the longer side over the shorter, at least 1, not {self.max_aspect}"
            )
        if (self.min_caption_words or 1) > (self.max_caption_words or math.inf):
            raise ValueError("min_caption_words is above max_caption_words; no caption can be both")

    def needs(self) -> dict[str, tuple[str, ...]]:
        """The filters that are set, each with the columns it reads."""
        columns = {
            "min_similarity": ("similarity",),
            "min_side": ("width", "height"),
            "max_aspect": ("width", "height"),
            "licences": ("licence",),
            "languages": ("language",),
            "max_nsfw": ("nsfw",),
        }
        return {name: used for name, used in columns.items() if getattr(self, name) is not None}


def find_columns(
    names: Sequence[str], file: str, filters: Filters, given: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Our names → the file's columns; ValueError where one that is needed is not found."""
    lower = {name.lower(): name for name in reversed(list(names))}
    found: dict[str, str] = {}
    for ours, theirs in (given or {}).items():
        if ours not in KNOWN:
            raise ValueError(f"there is no column '{ours}' to be named{suggest(ours, KNOWN)}")
        if theirs not in names:
            raise ValueError(f"{file} has no column '{theirs}'{suggest(theirs, names)}")
        found[ours] = theirs
    for ours, known in KNOWN.items():
        theirs = next((lower[name] for name in known if name in lower), None)
        if theirs is not None:
            found.setdefault(ours, theirs)
    wanted = dict.fromkeys(NEEDED, "a sample")
    wanted |= {column: name for name, used in filters.needs().items() for column in used}
    for column, needer in wanted.items():
        if column not in found:
            raise ValueError(
                f"{file} has no column of {column}s by a known name, which {needer} needs; it has "
                f"{', '.join(names)}: name one with --columns {column} NAME"
            )
    return found


class Layout(NamedTuple):
    """Of a file: our name → its column, and our name → that column's type (of values, if they are in a dictionary)."""

    names: dict[str, str]
    types: dict[str, pa.DataType]


def read_layout(schema: pa.Schema, file: str, filters: Filters, given: Mapping[str, str] | None) -> Layout:
    """ValueError where a column that is needed is not found among those of text and numbers."""
    types: dict[str, pa.DataType] = {}
    others: dict[str, pa.DataType] = {}
    for name, kind in zip(schema.names, schema.types, strict=True):
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        is_plain = not pa.types.is_nested(kind) and not pa.types.is_temporal(kind)
        (types if is_plain else others)[name] = kind
    for ours in {*NEEDED, *(given or {})} & KNOWN.keys():
        called = [given[ours]] if given and ours in given else KNOWN[ours]
        strange = next((name for name in others if name in called or name.lower() in called), None)
        if strange is not None and not any(name.lower() in called or name in called for name in types):
            raise ValueError(
                f"{file}: the column '{strange}' holds {others[strange]}, neither text nor numbers; name another one "
                f"with --columns {ours} NAME"
            )
    names = find_columns(list(types), file, filters, given)
    return Layout(names, {ours: types[theirs] for ours, theirs in names.items()})


def common_schema(layouts: Sequence[Layout]) -> pa.Schema:
    """Of the sample: what any file has. Large strings, because a sample's text may be more than 2 GiB."""
    columns = []
    for ours in KNOWN:
        types = [layout.types[ours] for layout in layouts if ours in layout.types]
        if not types:
            continue
        if ours in NUMBERS or (ours == "nsfw" and all(_is_number(kind) for kind in types)):
            whole = all(pa.types.is_integer(kind) for kind in types)
            columns.append((ours, pa.int64() if whole else pa.float64()))
        else:
            columns.append((ours, pa.large_string()))
    return pa.schema(columns)


def conditions(rows: Mapping[str, Any], f: Filters) -> Iterator[tuple[str, Any]]:
    """Why rows would be left out, and which rows (n,) are not."""
    yield "no web address", pc.match_substring_regex(rows["url"], f"^(?i:https?)://[^{SPACE}/]")
    missing = "|".join(sorted(map(re.escape, MISSING)))
    yield (
        "no caption",
        pc.invert(pc.match_substring_regex(rows["caption"], f"^[{SPACE}]*({missing})[{SPACE}]*$")),
    )
    if f.min_similarity is not None:
        yield "similarity", pc.greater_equal(rows["similarity"], f.min_similarity)
    if f.min_side is not None or f.max_aspect is not None:
        sides = rows["width"], rows["height"]
        shorter, longer = (of(*sides, skip_nulls=False) for of in (pc.min_element_wise, pc.max_element_wise))
        yield "size", pc.greater_equal(shorter, float(f.min_side or 1))
        if f.max_aspect is not None:
            yield "aspect", pc.less_equal(longer, pc.multiply(shorter, f.max_aspect))
    if f.licences is not None:
        yield "licence", _one_of(rows["licence"], f.licences)
    if f.languages is not None:
        yield "language", _one_of(rows["language"], f.languages)
    if f.max_nsfw is not None:
        yield "nsfw", pc.less_equal(_nsfw(rows["nsfw"]), f.max_nsfw)
    if f.min_caption_words is not None or f.max_caption_words is not None:
        words = pc.count_substring_regex(rows["caption"], f"[^{SPACE}]+")
        yield "short caption", pc.greater_equal(words, f.min_caption_words or 1)
        if f.max_caption_words is not None:
            yield "long caption", pc.less_equal(words, f.max_caption_words)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)


def _plain(column: Any) -> Any:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def text_of(column: Any) -> Any:
    """As large strings; what is not UTF-8 is missing."""
    column = _plain(column)
    try:
        column = column.cast(pa.large_string())
        column.validate(full=True)
        return column
    except pa.ArrowInvalid:
        return pa.array(map(_decoded, column.cast(pa.large_binary()).to_pylist()), pa.large_string())


def _decoded(text: bytes | None) -> str | None:
    try:
        return None if text is None else text.decode()
    except UnicodeDecodeError:
        return None


def numbers_of(column: Any) -> Any:
    """As float64; text that is no number, and NaN, are missing."""
    column = _plain(column)
    if not _is_number(column.type):
        column = text_of(column)
        is_number = pc.match_substring_regex(column, r"^[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?$")
        column = pc.if_else(is_number, column, None)
    column = column.cast(pa.float64(), safe=False)
    return pc.if_else(pc.is_nan(column), None, column)


def _one_of(column: Any, allowed: Sequence[str]) -> Any:
    wanted = pa.array([value.lower() for value in allowed], pa.large_string())
    return pc.is_in(pc.utf8_lower(text_of(column)), wanted)


def _nsfw(column: Any) -> Any:
    if _is_number(_plain(column).type):
        return numbers_of(column)
    words = pc.index_in(pc.utf8_upper(text_of(column)), pa.array(NSFW_WORDS, pa.large_string()))
    return pc.coalesce(words.cast(pa.float64()), numbers_of(column))
