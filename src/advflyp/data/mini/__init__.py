"""The mini corpus: where it is, and what its labelled sets are called. Nothing here imports torch."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from advflyp.files import cache_folder

EMBEDDED = Path(__file__).parent / "corpus"
# The training images whose concept is known, as labelled data for methods that need labels.
PROXY = "proxy"
PROXY_RENDERINGS = 3  # a concept is a class of the proxy set when the corpus shows it this often
# Sets built on the user's machine because of their licence or size: {set: its source}.
ON_DEMAND = {
    "openmoji": "openmoji",
    "stamps": "tuxpaint",
    "flashcards": "pysiogame",
    "photos": "cifar10",
    "fashion-train": "fashion-mnist",
    "photos-train": "cifar10",
}
# The builder is not in the wheel.
BUILD = "python -m tools.mini_corpus.build"


def full_corpus_folder() -> Path:
    """Where the builder puts the full corpus, and the sets made on demand, unless told otherwise."""
    return cache_folder() / "mini"


def mini_sets(folder: Path = EMBEDDED) -> dict[str, dict[str, Any]]:
    """The descriptions of the labelled sets of a mini corpus, by name."""
    table = folder / "sets.json"
    return json.loads(table.read_text(encoding="utf-8")) if table.is_file() else {}


def proxy_concepts(concepts: Iterable[str | None]) -> set[str]:
    """The classes of the labelled proxy set: concepts that the corpus shows often enough."""
    return {c for c, n in Counter(concepts).items() if c is not None and n >= PROXY_RENDERINGS}
