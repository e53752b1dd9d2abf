"""Sets × attacks × ε: one result cell each, stored as soon as it is known, so that a second call goes on."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from advflyp import distributed
from advflyp.__about__ import __version__
from advflyp.attack.threat import Threat
from advflyp.data.lineage import was_trained_on
from advflyp.data.sets.catalogue import canonical
from advflyp.data.sets.labelled import LabelledSet, load_set, set_names
from advflyp.distributed import Ranks
from advflyp.evaluation.attacks import Attack
from advflyp.evaluation.classifier import compiled
from advflyp.evaluation.evaluator import Evaluator, Outcome, SetProgress
from advflyp.evaluation.journal import Journal
from advflyp.evaluation.jsonl import check_store
from advflyp.evaluation.protocols import ADVFLYP, Protocol, names_sha256
from advflyp.evaluation.results import Cell, append_cell, read_cells, wilson
from advflyp.evaluation.samples import has_samples, write_samples
from advflyp.evaluation.sanity import sanity_check
from advflyp.model.clip import CLIP
from advflyp.model.folder import read_card, weights_sha256
from advflyp.model.load import load_model, pick_device
from advflyp.model.precision import Precision, PrecisionChoice, choose_precision


def evaluate(
    model: CLIP | str | Path,
    sets: Sequence[str] = ("mini",),
    attacks: Sequence[str] = ("clean", "pgd10"),
    eps: Sequence[float] = (1 / 255,),
    *,
    out: str | Path | None = None,
    norm: Literal["linf", "l2"] = "linf",
    limit: int | None = None,
    batch_size: int = 128,
    precision: Precision = "auto",
    compile: bool = False,
    device: str | torch.device = "auto",
    seed: int = 0,
    sanity: bool = False,
    name: str | None = None,
    protocol: Protocol = ADVFLYP,
    progress: Callable[[Cell], None] = lambda cell: None,
    watch: Callable[[Cell, SetProgress], None] = lambda cell, progress: None,
) -> list[Cell]:
    """Zero-shot accuracy, clean and under attack.

    model:     a model, which is left as it was, or the name of one
    sets:      names of sets or groups
    attacks:   "clean", "pgd10", "cw10", "autoattack", …: `Attack` says which there are
    eps:       radii in pixels of [0, 1]; each attack but "clean" is run at each
    out:       JSON-lines file; cells that it already holds are not computed again, an interrupted one goes on from
               its last finished batch. What every image was classified as goes to Parquet files beside it; a cell
               whose Parquet file is gone is measured again
    limit:     so many images of each set, its classes evenly represented, drawn by `seed`
    precision: of the attack's search: "auto", "fp32", "bf16"; every adversarial image is judged in float32 all the same
    compile:   torch.compile the image tower
    device:    where a model given by name is put: "auto", "cpu", "cuda", "cuda:1", "mps"
    seed:      of the attacks and of `limit`
    sanity:    check each attacked cell for masked gradients; the verdict is in the cell
    name:      what results call the model; its own name by default
    protocol:  class names, prompts, pixels, and what "autoattack" means. Its datasets, attacks, radii, limit and
               precision are for the arguments above: `evaluate(model, p.sets, p.attacks, p.eps, protocol=p)`
    progress:  called with each cell as it is known
    watch:     called after every batch with the cell in work and how it stands
    Started by torchrun or another launcher, its processes share the images of every set; the first one writes.
    Returns one cell per set × attack × ε. ValueError for unknown names or radii that are not above 0.
    """
    threats = [Threat(norm=norm, eps=value) for value in eps]
    parsed = [protocol.attack(attack) for attack in attacks]
    chosen = set_names(list(sets))
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    place = pick_device(device)
    store = Path(out) if out is not None else None
    result: list[Cell] = []
    with distributed.process_group(place) as (ranks, own), ExitStack() as stack:
        known = ranks.broadcast_from_rank0(partial(_known, store))
        if not isinstance(model, CLIP):
            model = load_model(model, device=own or place)
        sha256 = weights_sha256(model)
        search = choose_precision(precision, model.device)
        # Batches shrink as points leave an attack.
        if compile:
            stack.enter_context(compiled(model))
        for set_name in chosen:
            labelled = protocol.apply(_load(set_name, protocol))
            evaluator = Evaluator(
                model,
                labelled,
                limit=limit,
                seed=seed,
                batch_size=batch_size,
                ranks=ranks,
                pixels=protocol.pixels_of(labelled),
                repeated=protocol.repeated(labelled.classes),
            )
            for attack in parsed:
                for threat in threats if attack.perturbs else [None]:
                    blank = _blank(evaluator, attack, threat, search, seed, name, sha256, protocol)
                    cell = _cell(blank, known.get(blank.key()), evaluator, attack, threat, store, watch)
                    if sanity and threat and cell.sanity is None:
                        cell = dataclasses.replace(
                            cell, sanity=sanity_check(evaluator, attack, threat, seed=seed)
                        )
                        _save(cell, store, ranks)
                    result.append(cell)
                    if ranks.rank == 0:
                        progress(cell)
    return result


def _known(store: Path | None) -> dict[tuple[str, ...], Cell]:
    """What is stored already; ValueError where nothing can be stored."""
    if store is None:
        return {}
    check_store(store)
    return {cell.key(): cell for cell in read_cells(store)}


def _cell(
    blank: Cell,
    known: Cell | None,
    evaluator: Evaluator,
    attack: Attack,
    threat: Threat | None,
    store: Path | None,
    watch: Callable[[Cell, SetProgress], None],
) -> Cell:
    """The cell that is stored already, or the one that is measured now and stored."""
    ranks = evaluator.ranks
    own = blank.slug() + (f".{ranks.rank}" if ranks.size > 1 else "")
    journal = Journal.beside(store, own) if store else None
    cell = known
    if cell is None or not ranks.broadcast_from_rank0(partial(_has_samples, store, cell)):
        # The new line takes the place of the known one: its name for the weights and its verdict stay.
        kept = {"model": cell.model, "sanity": cell.sanity} if cell else {}
        cell = _measure(dataclasses.replace(blank, **kept), evaluator, attack, threat, store, journal, watch)
        _save(cell, store, ranks)
    if journal:
        journal.remove()
    return cell


def _has_samples(store: Path | None, cell: Cell) -> bool:
    return store is None or has_samples(store, cell)


def _save(cell: Cell, store: Path | None, ranks: Ranks) -> None:
    if store and ranks.rank == 0:
        append_cell(store, cell)


def _blank(
    evaluator: Evaluator,
    attack: Attack,
    threat: Threat | None,
    search: PrecisionChoice,
    seed: int,
    name: str | None,
    sha256: str,
    protocol: Protocol,
) -> Cell:
    """The cell before anything is measured: all that makes it this measurement and no other."""
    labelled = evaluator.labelled
    card = read_card(evaluator.model.name)
    part = {} if len(evaluator) == len(labelled) else {"limit": len(evaluator), "seed": seed}
    return Cell(
        model=name or evaluator.model.name,
        checkpoint_sha256=sha256,
        set=labelled.name,
        split=labelled.split + (" (webdataset)" if labelled.info.get("read_from") == "webdataset" else ""),
        n=0,
        prompt=labelled.prompt,
        attack=attack.name,
        attack_args=attack.arguments(threat, len(labelled.classes)),
        norm=threat.norm if threat else None,
        eps=threat.eps if threat else 0.0,
        precision=search.precision if threat else "fp32",
        precision_reason=search.reason if threat else "",
        seed=seed if threat else 0,
        version=__version__,
        correct=0,
        accuracy=0.0,
        ci95=(0.0, 1.0),
        seconds=0.0,
        subset={"of": len(labelled), **part},
        seen=was_trained_on(card, labelled.name),
        pflops=card.get("pflops"),
        protocol=protocol.name,
        settings=_settings(evaluator, protocol),
    )


def _settings(evaluator: Evaluator, protocol: Protocol) -> dict[str, Any]:
    """What the protocol changes of images and class names; nothing of the default."""
    found = evaluator.pixels.settings(evaluator.model)
    if protocol.names_classes:
        found["classnames_sha256"] = names_sha256(evaluator.labelled.classes)
    if evaluator.repeated:
        found["repeated_classes"] = evaluator.repeated
    return found


def _load(name: str, protocol: Protocol) -> LabelledSet:
    """A set from where the protocol takes it; those that are not in the table have one place."""
    if protocol.source == "any" or canonical(name) is None:
        return load_set(name)
    return load_set(name, source=protocol.source)


def _measure(
    cell: Cell,
    evaluator: Evaluator,
    attack: Attack,
    threat: Threat | None,
    store: Path | None,
    journal: Journal | None,
    watch: Callable[[Cell, SetProgress], None],
) -> Cell:
    started = time.monotonic()
    precision: Precision = "bf16" if cell.precision == "bf16" else "fp32"
    outcome = evaluator.run(
        attack,
        threat,
        precision=precision,
        seed=cell.seed,
        journal=journal,
        watch=lambda progress: watch(cell, progress),
    )
    correct, n = int(outcome.correct.sum()), len(outcome.label)
    keys = [evaluator.labelled.key(index) for index in outcome.index.tolist()]
    cell = dataclasses.replace(
        cell,
        n=n,
        correct=correct,
        accuracy=correct / n,
        ci95=wilson(correct, n),
        seconds=round(time.monotonic() - started, 3),
        per_class=_per_class(outcome),
        unreadable=sorted({evaluator.labelled.key(index) for index in evaluator.index.tolist()} - set(keys)),
    )
    if store and evaluator.ranks.rank == 0:
        write_samples(store, cell, **vars(outcome), keys=keys)
    return cell


def _per_class(outcome: Outcome) -> dict[str, list[int]]:
    total = torch.bincount(outcome.label)
    right = torch.bincount(outcome.label[outcome.correct], minlength=len(total))
    counts = zip(right.tolist(), total.tolist(), strict=True)
    return {str(label): [correct, n] for label, (correct, n) in enumerate(counts) if n}
