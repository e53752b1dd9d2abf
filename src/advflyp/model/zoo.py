"""The zoo: published robust CLIPs by name, as facts about other people's models.

    load_model("fare4-vit-l-14")        and every command that takes a model
    advflyp models, advflyp models NAME

The table is `zoo.toml`. It alone decides what is fetched: the repository, the file, and the model that supplies what
the repository lacks.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from advflyp.config import nearest


@dataclass(frozen=True)
class Published:
    """Accuracies that others published, in %.

    Attributes:
        protocol: The data, the attack, and where the numbers were published.
        clean: Accuracy without an attack.
        robust: Accuracy under attack, by radius.
    """

    protocol: str
    clean: float
    robust: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A published model.

    Attributes:
        name: What `load_model` calls it.
        repository: OWNER/NAME on the Hugging Face hub.
        layout: "open_clip": as open_clip saves a model. "transformers": transformers' weights and config.json; `base`
            supplies preprocessing and tokenizer. "tower": one file with the weights of an image tower; `base` supplies
            the rest.
        file: The weights file, for the layout "tower".
        base: The model that it was finetuned from, as open_clip calls it; None if it was trained from scratch.
        architecture: Its architecture, as open_clip calls it.
        method: What made it robust.
        eps: L∞ radius of the adversarial training, in pixels of [0, 1].
        towers: Which of its towers are robust.
        trained_on: Datasets that it was trained on, as `data.train` names them.
        licence: Licence of the weights, by the hub's identifiers.
        paper: Authors, title, venue and arXiv number.
        published: Published accuracies.
        revision: The commit that is loaded; None for the newest.
        sha256: Expected SHA-256 hashes by file name.
        notes: What else a user should know, above all what could not be verified.
    """

    name: str
    repository: str
    layout: Literal["open_clip", "transformers", "tower"]
    file: str | None = None
    base: str | None = None
    architecture: str
    method: str
    eps: str | None = None
    towers: str = "image"
    trained_on: tuple[str, ...] = ("imagenet@train",)
    licence: str | None = None
    paper: str
    published: tuple[Published, ...] = ()
    revision: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        """What is fetched, without the revision, as a name that `load_model` takes."""
        file = f"/{self.file}" if self.file else ""
        base = f"@{self.base}" if self.layout != "open_clip" else ""
        return f"hf-hub:{self.repository}{file}{base}"

    def card(self) -> dict[str, Any]:
        """The facts as a model card (`card.json`), for models exported or finetuned from this one."""
        return {
            "name": self.name,
            "source": self.address,
            "method": self.method,
            "paper": self.paper,
            "licence": self.licence,
            "trained_on": list(self.trained_on),
        }


def _read_table(path: Path) -> tuple[Entry, ...]:
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    papers, protocols, notes = (table[name] for name in ("papers", "protocols", "notes"))
    entries = []
    for row in table["models"]:
        facts: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in row.items()
        }
        facts["paper"] = papers[row["paper"]]
        facts["notes"] = tuple(notes.get(note, note) for note in row.get("notes", ()))
        if published := row.get("published"):
            facts["published"] = (Published(**{**published, "protocol": protocols[published["protocol"]]}),)
        entries.append(Entry(**facts))
    return tuple(entries)


ENTRIES = _read_table(Path(__file__).with_suffix(".toml"))
ZOO: dict[str, Entry] = {entry.name: entry for entry in ENTRIES}


def find_entry(name: str) -> Entry:
    """The entry called `name`.

    Raises:
        ValueError: If there is none; the message suggests the nearest name.
    """
    if name not in ZOO:
        hint = near_entries(name) or "; `advflyp models` lists them"
        raise ValueError(f"the zoo has no model '{name}'{hint}")
    return ZOO[name]


def near_entries(name: str) -> str:
    """The end of a message: the nearest name, or those that begin with the same word, or nothing."""
    family = [entry for entry in ZOO if entry.partition("-")[0] == name.lower().partition("-")[0]]
    return nearest(name.lower(), ZOO) or (f"; there are {', '.join(family)}" if family else "")
