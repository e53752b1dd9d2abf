"""Web-style captions: names, keywords, a few templates, group words; noise included."""

import random
from collections.abc import Mapping
from typing import Any

_TEMPLATES = (
    "a picture of {a}", "an image of {a}", "this is {a}", "a drawing of {a}", "{a} on a plain background",
    "{name} image", "the {name}", "a small picture of {a}", "{name} picture",
)  # fmt: skip


def caption(meta: Mapping[str, Any], rng: random.Random) -> str:
    """One caption for an image, never empty; the same state of `rng` gives the same one.

    Args:
        meta: The image's KEY.json. The name is required; tags, group and style are used if present.
    """
    name = str(meta["name"]).strip() or "picture"
    style = meta.get("style") or "picture"
    group = meta.get("group")
    tags = [tag for tag in meta.get("tags") or () if tag.strip() and tag.lower() != name.lower()]
    some = rng.sample(tags, min(len(tags), rng.randint(1, 3)))
    draw = rng.random()
    if draw < 0.15:
        return name
    if draw < 0.37:
        return rng.choice(_TEMPLATES).format(name=name, a=_with_article(name))
    if draw < 0.45:
        return rng.choice((f"{name} {style}", f"{_with_article(name)} {style}"))
    if draw < 0.51:
        return f"{style} of {_with_article(name)}"
    if some and draw < 0.69:
        return f"{name}, {', '.join(some)}"
    if some and draw < 0.77:
        return f"{', '.join(some)}, {name}"
    if some and draw < 0.81:
        return " ".join(some)
    if group and draw < 0.93:
        return rng.choice(
            (f"{name}, {group}", f"{group}: {name}", f"{style}, {group}, {name}", f"a picture of {group}")
        )
    return f"this is {_with_article(name)}"


def _with_article(name: str) -> str:
    first = name.split(" ", 1)[0].lower()
    if first in ("a", "an", "the", "no") or first[:1].isdigit():
        return name
    return f"an {name}" if first[:1] in "aeiou" else f"a {name}"
