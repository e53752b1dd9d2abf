"""Which results a leaderboard admits: those that cover its whole protocol, with consistent counts."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from advflyp.evaluation.expected import WEBDATASET, Expected, expected_of, place_of, published_size
from advflyp.evaluation.protocols import Protocol
from advflyp.evaluation.results import Cell, configs_of, read_cells, wilson
from advflyp.evaluation.samples import has_samples, read_samples
from advflyp.model.zoo import ZOO
from advflyp.wording import counted

# Largest fraction of a dataset's images that may be unreadable.
TOLERATED = 0.01


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A model to be listed in a leaderboard.

    Attributes:
        model: Its name in the results.
        sha256: The hash of its weights.
        cells: The cells that the protocol requires, as far as they exist.
        source: The results file; None if measured here.
        refused: Why it is not admitted; empty if it is.
        config: The hash of its configuration; empty if no result records it.
    """

    model: str
    sha256: str
    cells: Sequence[Cell]
    source: Path | None = None
    refused: str = ""
    config: str = ""


def entrants(store: Path, protocol: Protocol, *, is_ours: bool) -> list[Entrant]:
    """All models in a results file, admitted or not.

    Args:
        store: The results file.
        protocol: The protocol of the leaderboard.
        is_ours: Whether the results were measured here.

    Raises:
        ValueError: It is not a results file, or one from elsewhere that is empty.
    """
    found: dict[tuple[str, str, str], list[Cell]] = {}
    every = read_cells(store)
    configs = configs_of(every, [cell.model for cell in every])
    for cell in every:
        known = configs[cell.model, cell.checkpoint_sha256]
        # Older results do not record the configuration.
        config = cell.config_sha256 or (min(known) if len(known) == 1 else "")
        found.setdefault((cell.model, cell.checkpoint_sha256, config), []).append(cell)
    if not found and not is_ours:
        raise ValueError(f"there are no results in {store}")
    result = []
    for (model, sha256, config), cells in found.items():
        chosen, refused = _chosen(cells, protocol)
        if not refused:
            refused = _implausible(chosen) or _unproven(chosen, protocol, store, is_ours)
        source = None if is_ours else store
        result.append(
            Entrant(model=model, sha256=sha256, config=config, cells=chosen, source=source, refused=refused)
        )
    return result


def told_apart(everybody: Iterable[Entrant]) -> list[Entrant]:
    """Refuse duplicate weights, preferring what was measured here, and zoo names for weights other than the zoo's."""
    ordered = sorted(everybody, key=lambda one: (bool(one.refused), one.source is not None))
    seen: list[Entrant] = []
    zoo = {one.model: one.sha256 for one in ordered if one.source is None and one.model in ZOO}
    result = []
    for one in ordered:
        refused = one.refused
        first = next((other for other in seen if _are_same(one, other)), None)
        if not refused and first is not None:
            where = "measured here" if first.source is None else f"in {first.source.name}"
            refused = f"the same weights are {where} as {first.model}"
        elif not refused and one.sha256 != zoo.get(one.model, one.sha256):
            refused = f"these weights differ from those measured here as the zoo's {one.model} ({zoo[one.model][:12]})"
        if not refused:
            seen.append(one)
        result.append(replace(one, refused=refused))
    return result


def _are_same(one: Entrant, other: Entrant) -> bool:
    """Whether two entrants are the same model; a configuration that was not recorded may be any."""
    return one.sha256 == other.sha256 and (not one.config or not other.config or one.config == other.config)


def _chosen(cells: Sequence[Cell], protocol: Protocol) -> tuple[list[Cell], str]:
    """The cells that the protocol requires, and why they are not enough (empty if they are)."""
    expected = expected_of(protocol)
    chosen, missing, different = [], [], ""
    for one in expected:
        here = [cell for cell in cells if place_of(cell) == one.place]
        fitting = [cell for cell in here if not _difference(one, cell)]
        chosen += fitting[-1:]
        if not fitting:
            missing.append(one)
            different = different or (f"{_at(*one.place)}: {_difference(one, here[-1])}" if here else "")
    if different:
        return chosen, f"another measurement than the protocol's, {different}"
    if missing:
        return (
            chosen,
            f"{len(missing)} of {counted(len(expected), 'result')} missing, first {_at(*missing[0].place)}",
        )
    return chosen, ""


def _difference(expected: Expected, cell: Cell) -> str:
    asked = expected.protocol.precision
    if cell.norm and asked not in ("auto", cell.precision):
        return f"precision is {cell.precision!r}, not {asked!r}"
    return expected.difference(cell)


def _implausible(cells: Sequence[Cell]) -> str:
    clean = {cell.set: cell.correct for cell in cells if cell.norm is None}
    for cell in cells:
        of = cell.subset["of"]
        n, published = cell.subset.get("limit", of), published_size(cell.set)
        counts = [sum(pair[place] for pair in cell.per_class.values()) for place in (0, 1)]
        checks: Mapping[str, bool] = {
            "checkpoint_sha256 is not a SHA-256": not re.fullmatch("[0-9a-f]{64}", cell.checkpoint_sha256),
            f"the dataset has {of:,} images, not {published or 0:,}": published not in (None, of)
            and not cell.split.endswith(WEBDATASET),
            f"n is {cell.n:,} of {n:,} images": not n * (1 - TOLERATED) <= cell.n <= n,
            "accuracy and ci95 are not those of its counts": abs(cell.accuracy - cell.correct / cell.n) > 1e-6
            or max(abs(a - b) for a, b in zip(cell.ci95, wilson(cell.correct, cell.n), strict=True)) > 1e-6,
            "per_class does not add up to its counts": counts != [cell.correct, cell.n],
            "more images are correct under attack than without": cell.correct
            > clean.get(cell.set, cell.correct),
        }
        if wrong := next((text for text, is_wrong in checks.items() if is_wrong), ""):
            return f"{_at(*place_of(cell))}: {wrong}"
    return ""


def _unproven(cells: Sequence[Cell], protocol: Protocol, store: Path, is_ours: bool) -> str:
    for cell in cells:
        where = _at(*place_of(cell))
        if cell.sanity is not None and not cell.sanity["passed"]:
            return f"{where}: gradients look masked ({', '.join(cell.sanity['failed'])})"
        if protocol.evidence and cell.norm and cell.sanity is None:
            return f"{where}: no check for masked gradients; measure with --sanity"
        if not has_samples(store, cell):
            if protocol.evidence:
                return f"{where}: the predictions for every image are missing; send the .samples folder too"
        elif not is_ours:
            try:
                correct = read_samples(store, cell).correct
            except ValueError as error:
                return f"{where}: {error}"
            if (len(correct), int(correct.sum())) != (cell.n, cell.correct):
                return f"{where}: the predictions for every image give other counts"
    return ""


def _at(name: str, attack: str, norm: str | None, eps: float) -> str:
    if norm is None:
        return f"{name}, {attack}"
    return f"{name}, {attack} at {f'{eps * 255:g}/255' if norm == 'linf' else f'{eps:g} (L2)'}"
