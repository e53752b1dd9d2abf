"""Which results a leaderboard admits: those that cover its whole protocol, with consistent counts."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from advflyp.evaluation.expected import (
    WEBDATASET,
    Expected,
    expected_of,
    place_of,
    published_size,
    split_and_classes,
)
from advflyp.evaluation.protocols import Protocol
from advflyp.evaluation.results import Cell, configs_of, read_cells, wilson
from advflyp.evaluation.samples import has_samples, per_class, read_samples
from advflyp.model.zoo import ZOO
from advflyp.wording import counted

# Largest fraction of a dataset's images that may be unreadable.
TOLERATED = 0.01
# Largest fraction of the published images that CLIP benchmark's copy of a dataset may lack.
LACKING = 0.03


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
    prove = partial(_unproven, protocol=protocol, store=store, is_ours=is_ours)
    result = []
    for (model, sha256, config), cells in found.items():
        chosen, refused = _judged(cells, protocol, prove)
        source = None if is_ours else store
        result.append(
            Entrant(model=model, sha256=sha256, config=config, cells=chosen, source=source, refused=refused)
        )
    return result


def told_apart(everybody: Iterable[Entrant]) -> list[Entrant]:
    """Refuse what cannot stand beside the others, preferring what was measured here.

    These are duplicate weights, zoo names for weights other than the zoo's, and datasets of one name that differ.
    """
    ordered = sorted(everybody, key=lambda one: (bool(one.refused), one.source is not None))
    seen: list[Entrant] = []
    datasets: dict[tuple[str, ...], tuple[Any, Entrant]] = {}
    result = []
    for one in ordered:
        refused, zoo = one.refused, zoo_weights(seen)
        first = next((other for other in seen if _are_same(one, other)), None)
        if not refused and first is not None:
            refused = f"the same weights are {_where(first)} as {first.model}"
        elif not refused and one.sha256 != zoo.get(one.model, one.sha256):
            refused = f"these weights differ from those measured here as the zoo's {one.model} ({zoo[one.model][:12]})"
        elif not refused:
            refused = _other_dataset(one, datasets)
        if not refused:
            seen.append(one)
            for cell in one.cells:
                for what, value in _contents(cell).items():
                    datasets.setdefault(what, (value, one))
        result.append(replace(one, refused=refused))
    return result


def zoo_weights(everybody: Iterable[Entrant]) -> dict[str, str]:
    """The hash of each zoo model's weights, as far as they were measured here and admitted; the first one counts."""
    found: dict[str, str] = {}
    for one in everybody:
        if one.source is None and not one.refused and one.model in ZOO:
            found.setdefault(one.model, one.sha256)
    return found


def _other_dataset(one: Entrant, datasets: Mapping[tuple[str, ...], tuple[Any, Entrant]]) -> str:
    """Whether a dataset differs from that of the entrants before, in words; empty if none does."""
    for cell in one.cells:
        for what, value in _contents(cell).items():
            known, first = datasets.get(what, (value, one))
            if value != known:
                return f"{cell.set} differs in its {what[0]} from the set of {first.model} ({_where(first)})"
    return ""


def _contents(cell: Cell) -> dict[tuple[str, ...], Any]:
    """What only a dataset's files tell, by what it is; it must be the same for all models."""
    names = [cell.settings.get(name) for name in ("classnames_sha256", "repeated_classes")]
    return {
        ("class names", cell.set): names,
        ("prompts", cell.set): cell.prompt,
        # Of the same source: a copy may lack images that the authors' files have.
        ("number of images", cell.set, cell.split): cell.subset["of"],
    }


def _where(one: Entrant) -> str:
    return "measured here" if one.source is None else f"in {one.source.name}"


def _are_same(one: Entrant, other: Entrant) -> bool:
    """Whether two entrants are the same model; a configuration that was not recorded may be any."""
    return one.sha256 == other.sha256 and (not one.config or not other.config or one.config == other.config)


def _judged(
    cells: Sequence[Cell], protocol: Protocol, prove: Callable[[Cell], str]
) -> tuple[list[Cell], str]:
    """The cells that count, and why they are not admitted (empty if they are).

    The search has one precision: the last one measured in which everything is there.
    """
    precisions = list(dict.fromkeys(cell.precision for cell in reversed(cells) if cell.norm))
    for precision in precisions:
        alike = [cell for cell in cells if not cell.norm or cell.precision == precision]
        chosen, refused = _chosen(alike, protocol, prove)
        if not refused:
            return chosen, ""
    chosen, refused = _chosen(cells, protocol, prove)
    if not refused and len(precisions) > 1:
        refused = (
            f"the attacks searched in {' and '.join(sorted(precisions))}; measure all with one --precision"
        )
    return chosen, refused


def _chosen(
    cells: Sequence[Cell], protocol: Protocol, prove: Callable[[Cell], str]
) -> tuple[list[Cell], str]:
    """The cells that the protocol requires, and why they are not enough (empty if they are)."""
    expected = expected_of(protocol)
    chosen, missing, different, unproven = [], [], "", ""
    for one in expected:
        here = [cell for cell in cells if place_of(cell) == one.place]
        fitting = [cell for cell in here if not _difference(one, cell)]
        if fitting:
            cell, reason = _last_proven(fitting, prove)
            chosen.append(cell)
            unproven = unproven or reason
        else:
            missing.append(one)
            different = different or (f"{_at(*one.place)}: {_difference(one, here[-1])}" if here else "")
    if different:
        return chosen, f"another measurement than the protocol's, {different}"
    if missing:
        return (
            chosen,
            f"{len(missing)} of {counted(len(expected), 'result')} missing, first {_at(*missing[0].place)}",
        )
    return chosen, _implausible(chosen) or unproven


def _last_proven(fitting: Sequence[Cell], prove: Callable[[Cell], str]) -> tuple[Cell, str]:
    """The last cell with all evidence, or else the last, and what it lacks.

    A later measurement without evidence hides no complete one, but a failed check is never passed over.
    """
    for cell in reversed(fitting):
        reason = prove(cell)
        if not reason or _is_masked(cell):
            return cell, reason
    return fitting[-1], prove(fitting[-1])


def _is_masked(cell: Cell) -> bool:
    return cell.sanity is not None and not cell.sanity["passed"]


def _difference(expected: Expected, cell: Cell) -> str:
    asked = expected.protocol.precision
    if cell.norm and asked not in ("auto", cell.precision):
        return f"precision is {cell.precision!r}, not {asked!r}"
    return expected.difference(cell)


def _implausible(cells: Sequence[Cell]) -> str:
    clean = {cell.set: cell.correct for cell in cells if cell.norm is None}
    for cell in cells:
        of = cell.subset["of"]
        n, published, (_, classes) = (
            cell.subset.get("limit", of),
            published_size(cell.set),
            split_and_classes(cell.set),
        )
        least = 1 - LACKING if cell.split.endswith(WEBDATASET) else 1
        counts = [sum(pair[place] for pair in cell.per_class.values()) for place in (0, 1)]
        known = {str(label) for label in range(classes)}
        checks: Mapping[str, bool] = {
            "checkpoint_sha256 is not a SHA-256": not re.fullmatch("[0-9a-f]{64}", cell.checkpoint_sha256),
            f"the dataset has {of:,} images, not {published or 0:,}": published is not None
            and not published * least <= of <= published,
            f"n is {cell.n:,} of {n:,} images": not n * (1 - TOLERATED) <= cell.n <= n,
            "accuracy and ci95 are not those of its counts": abs(cell.accuracy - cell.correct / cell.n) > 1e-6
            or max(abs(a - b) for a, b in zip(cell.ci95, wilson(cell.correct, cell.n), strict=True)) > 1e-6,
            "per_class does not add up to its counts": counts != [cell.correct, cell.n],
            f"per_class has others than the {counted(classes, 'class')} of the dataset": not known
            >= cell.per_class.keys(),
            "more images are correct under attack than without": cell.correct
            > clean.get(cell.set, cell.correct),
        }
        if wrong := next((text for text, is_wrong in checks.items() if is_wrong), ""):
            return f"{_at(*place_of(cell))}: {wrong}"
    return ""


def _unproven(cell: Cell, protocol: Protocol, store: Path, is_ours: bool) -> str:
    """What a cell lacks as evidence, or what contradicts it; empty if nothing does."""
    where = _at(*place_of(cell))
    if cell.sanity is not None and _is_masked(cell):
        return f"{where}: gradients look masked ({', '.join(cell.sanity['failed'])})"
    if protocol.evidence and cell.norm and cell.sanity is None:
        return f"{where}: no check for masked gradients; measure with --sanity"
    if not has_samples(store, cell):
        missing = f"{where}: the predictions for every image are missing; send the .samples folder too"
        return missing if protocol.evidence else ""
    if is_ours:
        return ""
    try:
        samples = read_samples(store, cell)
    except ValueError as error:
        # A page for others shows no folder of this machine.
        return f"{where}: {str(error).replace(f'{store.parent}/', '')}"
    if (len(samples.correct), int(samples.correct.sum())) != (cell.n, cell.correct):
        return f"{where}: the predictions for every image give other counts"
    counted_again = per_class(samples.label, samples.correct)
    if counted_again != {label: pair for label, pair in cell.per_class.items() if pair[1]}:
        return f"{where}: the predictions for every image give other counts in per_class"
    return ""


def _at(name: str, attack: str, norm: str | None, eps: float) -> str:
    if norm is None:
        return f"{name}, {attack}"
    return f"{name}, {attack} at {f'{eps * 255:g}/255' if norm == 'linf' else f'{eps:g} (L2)'}"
