"""What a cell must record to be a given measurement: for named datasets, known without opening them."""

from dataclasses import dataclass
from functools import cache
from typing import Any

from advflyp.attack.base import Attack
from advflyp.attack.threat import Threat
from advflyp.data.mini import mini_sets
from advflyp.data.sets.catalogue import TABLE, canonical, parts
from advflyp.data.sets.labelled import set_names
from advflyp.data.sets.prompts import describe
from advflyp.evaluation.attacks import conditions, recorded_arguments
from advflyp.evaluation.protocols import Protocol
from advflyp.evaluation.results import Cell
from advflyp.model.clip import CLIP

# Suffix of the split if images were read from CLIP benchmark's copy.
WEBDATASET = " (webdataset)"


@dataclass(frozen=True, kw_only=True)
class Expected:
    """A measurement under a protocol.

    Attributes:
        protocol: The protocol, with the `limit` and `seed` of this measurement.
        set: The dataset, as `set_names` writes it; it must satisfy `is_known`.
        attack: The attack.
        threat: Its ball; None for clean images.
    """

    protocol: Protocol
    set: str
    attack: Attack
    threat: Threat | None

    @property
    def place(self) -> tuple[str, str, str | None, float]:
        """Its place in a table: dataset, attack, norm, ε."""
        norm, eps = (self.threat.norm, self.threat.eps) if self.threat else (None, 0.0)
        return self.set, self.attack.name, norm, eps

    def difference(self, cell: Cell, model: CLIP | None = None) -> str:
        """The first setting in which a cell of this `place` differs, in words; empty if none does.

        What only the dataset's files tell may be anything, and without the model also what depends on its input size.
        """
        if "set_sha256" in cell.settings:
            return f"a set that was passed as an object may only be called {self.set}; pass its name"
        of, limit, seed = cell.subset.get("of", 0), self.protocol.limit, self.protocol.seed
        part = {} if limit is None or limit >= of else {"limit": limit, "seed": seed}
        (split, classes), prompt = split_and_classes(self.set), self._prompt()
        rows = (
            ("protocol", cell.protocol, self.protocol.recorded),
            ("split", cell.split.removesuffix(WEBDATASET), split),
            ("prompt", cell.prompt, cell.prompt if prompt is None else prompt),
            ("attack_args", cell.attack_args, recorded_arguments(self.attack, self.threat, classes)),
            ("subset", cell.subset, {"of": of, **part}),
            ("seed", cell.seed, seed if self.threat else 0),
            *self._settings(cell, model),
        )
        return next((f"{name} is {is_!r}, not {ought!r}" for name, is_, ought in rows if is_ != ought), "")

    def _settings(self, cell: Cell, model: CLIP | None) -> list[tuple[str, Any, Any]]:
        """Each of the cell's `settings`: its name, and what it is and ought to be; None if it is not recorded."""
        is_, ought = cell.settings, self.protocol.pixels_of(self.set).settings(model)
        if "resize" in ought and ought["resize"] is None:
            ought["resize"] = is_.get("resize", "a size")
        if self.protocol.names_classes:
            ought["classnames_sha256"] = is_.get("classnames_sha256", "a hash")
        if self.protocol.ties == "first":
            ought["repeated_classes"] = is_.get("repeated_classes")
        return [(name, is_.get(name), ought.get(name)) for name in sorted({*is_, *ought})]

    def _prompt(self) -> str | None:
        """The expected prompt; None if only the dataset's files tell."""
        base = self.set.partition("@")[0]
        if chosen := self.protocol.templates_of(base):
            return describe(chosen)
        if base not in TABLE:
            return describe(_embedded()[base]["templates"])
        return None if self.protocol.source == "webdataset" else TABLE[base].prompt


def place_of(cell: Cell) -> tuple[str, str, str | None, float]:
    """The place of a cell, as `Expected.place`."""
    return cell.set, cell.attack, cell.norm, cell.eps


@cache
def _embedded() -> dict[str, dict[str, Any]]:
    return {f"mini/{name}": info for name, info in mini_sets().items()}


def is_known(name: str) -> bool:
    """Whether a dataset, as `set_names` writes it, is in the table or embedded; others may stand for anything."""
    return canonical(name) is not None or name in _embedded()


def expected_of(protocol: Protocol) -> list[Expected]:
    """All measurements of a protocol for one model, dataset by dataset."""
    wanted = conditions(map(protocol.attack, protocol.attacks), protocol.norm, protocol.eps)
    return [
        Expected(protocol=protocol, set=name, attack=attack, threat=threat)
        for name in set_names(list(protocol.sets))
        for attack, threat in wanted
    ]


def published_size(name: str) -> int | None:
    """The number of images of a dataset that `is_known`; None if no table says."""
    if canonical(name) is None:
        return _embedded()[name]["n"]
    return None if "@" in name else TABLE[name].n


def split_and_classes(name: str) -> tuple[str, int]:
    """The split and the number of classes of a dataset that `is_known`."""
    if canonical(name) is None:
        info = _embedded()[name]
        return info["split"], len(info["classes"])
    _, entry, split = parts(name)
    return split, entry.k
