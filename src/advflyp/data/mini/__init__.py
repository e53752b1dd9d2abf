"""The mini corpus: where it is, and what its labelled sets are called. Nothing here imports torch."""

import json
import os
from pathlib import Path
from typing import Any

EMBEDDED = Path(__file__).parent / "corpus"
# The training pictures whose concept is known, as labelled data for methods that need labels.
PROXY = "proxy"
# Sets that are made on the user's machine because of their licences, and their sources.
ON_DEMAND = {"openmoji": "openmoji", "stamps": "tuxpaint"}


def full_corpus_folder() -> Path:
    """Where `advflyp data mini --build` puts the full corpus unless told otherwise."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "advflyp" / "mini"


def mini_sets(folder: Path = EMBEDDED) -> dict[str, dict[str, Any]]:
    """The descriptions of the labelled sets of a mini corpus, by name."""
    return (
        json.loads((folder / "sets.json").read_text(encoding="utf-8"))
        if (folder / "sets.json").is_file()
        else {}
    )
