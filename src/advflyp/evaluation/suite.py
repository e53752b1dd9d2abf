"""Datasets × attacks × ε: one result cell each, stored as soon as it is known, so that a second call resumes."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from advflyp import distributed
from advflyp.__about__ import __version__
from advflyp.attack.base import Attack
from advflyp.attack.checks import outside_inference_mode
from advflyp.attack.elsewhere import Transfer
from advflyp.attack.threat import Threat
from advflyp.config import at_least
from advflyp.data.lineage import was_trained_on
from advflyp.data.sets.catalogue import canonical
from advflyp.data.sets.labelled import LabelledSet, is_own, load_set, set_names
from advflyp.distributed import Ranks
from advflyp.dtypes import whole
from advflyp.evaluation.attacks import Condition, conditions, listed, recorded_arguments
from advflyp.evaluation.batch_size import largest_batch
from advflyp.evaluation.classifier import compiled, replayed
from advflyp.evaluation.evaluator import Evaluator, SetProgress
from advflyp.evaluation.expected import WEBDATASET, Expected, is_known, place_of
from advflyp.evaluation.journal import Journal
from advflyp.evaluation.protocols import ADVFLYP, Protocol, names_sha256
from advflyp.evaluation.results import Cell, append_cell, find_known, known_cells, read_cells, wilson
from advflyp.evaluation.samples import has_samples, per_class, write_samples
from advflyp.evaluation.sanity import sanity_check
from advflyp.evaluation.saved import SavedImages
from advflyp.model.clip import CLIP
from advflyp.model.folder import card_of, config_sha256, weights_sha256
from advflyp.model.load import load_model, pick_device
from advflyp.model.precision import Precision, choose_precision
from advflyp.model.zeroshot import check_told_apart

Model = CLIP | str | Path
NamedAttack = Attack | str | Callable[..., torch.Tensor]


@outside_inference_mode()
def evaluate(
    model: Model | Sequence[Model],
    sets: LabelledSet | str | Sequence[LabelledSet | str] = ("mini",),
    attacks: NamedAttack | Sequence[NamedAttack] = ("clean", "pgd10"),
    eps: float | Sequence[float] = (1 / 255,),
    *,
    out: str | Path | None = None,
    norm: Literal["linf", "l2"] = "linf",
    limit: int | None = None,
    batch_size: int | Literal["auto"] = "auto",
    precision: Precision = "auto",
    compile: bool = False,
    graphs: bool = False,
    device: str | torch.device = "auto",
    seed: int = 0,
    sanity: bool = False,
    name: str | None = None,
    protocol: Protocol = ADVFLYP,
    save_images: str | Path | None = None,
    progress: Callable[[Cell], None] = lambda cell: None,
    watch: Callable[[Cell, SetProgress], None] = lambda cell, progress: None,
) -> list[Cell]:
    """Zero-shot accuracy, clean and under attack. Under torchrun, the ranks share the images; rank 0 writes.

    Args:
        model: A model, which is not changed, the name of one, or several of these.
        sets: Datasets, their names, or names of groups.
        attacks: Attacks, their names ("clean", "pgd10"; see `find_attack`), or your own functions.
        eps: One radius or several, in pixels of [0, 1]; each attack but "clean" is run at each.
        out: JSON-lines file; what it already holds is not computed again, and an interrupted cell resumes. Per-image
            predictions go to Parquet files beside it; a cell whose Parquet file is missing is measured again.
        norm: "linf" or "l2".
        limit: N class-balanced images of each dataset, drawn by `seed`.
        batch_size: Images at a time; "auto" is as many as fit in a GPU's memory, and 128 on a CPU or MPS.
        precision: Precision of the search: "auto", "fp32", "bf16"; every adversarial image is evaluated in float32.
        compile: Run the image tower through torch.compile.
        graphs: Replay passes and attack steps as CUDA graphs: for small models, where a GPU waits for its host.
        device: Where a model given by name is put: "auto", "cpu", "cuda", "cuda:1", "mps".
        seed: Random seed of the attacks and of `limit`.
        sanity: Check each attacked cell for masked gradients; the verdict is in the cell.
        name: The model's name in results; by default its own.
        protocol: Class names, prompts, pixels, and what "autoattack" means. Its datasets, attacks, radii, limit and
            precision must be passed as arguments: `evaluate(model, p.sets, p.attacks, p.eps, protocol=p)`.
        save_images: Folder for the adversarial images (`saved.py`). A cell whose images are missing is measured again.
        progress: Called with each finished cell.
        watch: Called after every batch with the current cell and its progress.

    Returns:
        One cell per model × dataset × attack × ε.

    Raises:
        ValueError: Unknown names, nothing to measure, or radii that are not above 0.
    """
    suite = _Suite(
        protocol, limit, batch_size, precision, compile, graphs, seed, sanity, out, save_images, progress, watch
    )  # fmt: skip
    wanted = conditions(map(protocol.attack, listed(attacks)), norm, eps)
    models, datasets, place = _models(model, name), _chosen_sets(sets), pick_device(device)
    with distributed.process_group(place) as (ranks, own):
        return suite.run(models, name, datasets, wanted, ranks, own or place)


def _models(model: Model | Sequence[Model], name: str | None) -> list[Model]:
    models: list[Model] = listed(model)
    for one in models:
        if not isinstance(one, CLIP | str | Path):
            raise ValueError(
                f"evaluate takes an advflyp.CLIP or its name, not {type(one).__name__}: wrap a model of open_clip "
                "with CLIP.from_open_clip, and call an attack itself on any other classifier, as in "
                "PGD()(classifier, images, labels, threat)"
            )
    if name is not None and len(models) > 1:
        raise ValueError(f"`name` is for one model, not for {len(models)}; each keeps its own")
    return models


def _chosen_sets(sets: LabelledSet | str | Sequence[LabelledSet | str]) -> list[LabelledSet | str]:
    """The datasets in order, with groups replaced by their members and paths by the sets there, without duplicates."""
    found: list[LabelledSet | str] = []
    for one in listed(sets):
        if not isinstance(one, LabelledSet | str):
            raise ValueError(
                f"evaluate takes an advflyp.LabelledSet or its name, not {type(one).__name__}: make one with "
                "LabelledSet(dataset, classes, templates)"
            )
        found += set_names([one]) if isinstance(one, str) else [one]
    once = [one for place, one in enumerate(found) if one not in found[:place]]
    return [load_set(one) if isinstance(one, str) and is_own(one) else one for one in once]


@dataclass
class _Suite:
    """What all cells of one call of `evaluate` have in common, and how each cell is looked up or measured."""

    protocol: Protocol
    limit: int | None
    batch_size: int | Literal["auto"]
    precision: Precision
    compile: bool
    graphs: bool
    seed: int
    sanity: bool
    out: str | Path | None
    save_images: str | Path | None
    progress: Callable[[Cell], None]
    watch: Callable[[Cell, SetProgress], None]

    def __post_init__(self) -> None:
        if not isinstance(self.protocol, Protocol):
            raise ValueError(
                f"protocol must be a Protocol, such as find_protocol gives, not {self.protocol!r}"
            )
        self.store = None if self.out is None else Path(self.out)
        self.seed = whole(self.seed, "seed")
        self.limit = None if self.limit is None else whole(self.limit, "limit")
        if self.batch_size != "auto":
            self.batch_size = whole(self.batch_size, "batch_size")
        at_least(1, self, "", "limit", "batch_size")

    def run(
        self,
        models: Sequence[Model],
        name: str | None,
        datasets: Sequence[LabelledSet | str],
        wanted: Sequence[Condition],
        ranks: Ranks,
        device: torch.device,
    ) -> list[Cell]:
        """Every cell, including the known ones."""
        if not (models and datasets and wanted):
            raise ValueError("there is nothing to measure; give a model, a set and an attack")
        known, result = ranks.broadcast_from_rank0(lambda: known_cells(self.store, read_cells)), []
        for one in models:
            model = one if isinstance(one, CLIP) else load_model(one, device=device)
            model.check_weights()
            if any(attack.needs_patches for attack, _ in wanted):
                _ = model.patch_grid  # ValueError, before the other attacks run, if it has none
            same = {
                "model": name or model.name,
                "checkpoint_sha256": weights_sha256(model),
                "config_sha256": config_sha256(model),
            }
            images_at_a_time: int | None = None
            stored = partial(self._stored, model, same, wanted, known)
            # One that is missing, damaged or unfit for the given class names fails before any is measured.
            for dataset in datasets:
                if not isinstance(dataset, str) or stored(dataset) is None:
                    opened = self._opened(dataset)
                    check_told_apart(model, opened.classes, opened.templates)
            # Batches shrink as images leave an attack.
            graphs = replayed(model) if self.graphs else nullcontext()
            with compiled(model) if self.compile else nullcontext(), graphs:
                for dataset in datasets:
                    if (cells := ranks.broadcast_from_rank0(partial(stored, dataset))) is not None:
                        result += cells
                        for cell in cells if ranks.rank == 0 else ():
                            self.progress(cell)
                        continue
                    if images_at_a_time is None:
                        images_at_a_time = self._batch_size(model, wanted, ranks)
                    evaluator = self._evaluator(model, dataset, ranks, images_at_a_time)
                    # The name of an object may stand for anything.
                    is_named = isinstance(dataset, str)
                    for attack, threat in wanted:
                        blank = self._blank(evaluator, attack, threat, same, is_named)
                        cell = self._cell(blank, find_known(known, blank), evaluator, attack, threat)
                        result.append(cell)
                        if ranks.rank == 0:
                            self.progress(cell)
        return result

    def _stored(
        self,
        model: CLIP,
        same: dict[str, str],
        wanted: Sequence[Condition],
        known: dict[tuple[str, ...], Cell],
        dataset: LabelledSet | str,
    ) -> list[Cell] | None:
        """Every cell of a dataset, if they are all stored and the dataset need not be opened; otherwise None."""
        # Whether the images are saved is known only once the dataset is open.
        opens = self.store is None or self.save_images or self.protocol.own_names
        if opens or not isinstance(dataset, str) or not is_known(dataset):
            return None
        search = choose_precision(self.precision, model.device)
        asked, found = replace(self.protocol, limit=self.limit, seed=self.seed), []
        for attack, threat in wanted:
            expected = Expected(protocol=asked, set=dataset, attack=attack, threat=threat)
            precision = search.precision if threat else "fp32"
            ours = (same["checkpoint_sha256"], __version__, precision, *expected.place)
            cells = [
                cell
                for cell in known.values()
                if (cell.checkpoint_sha256, cell.version, cell.precision, *place_of(cell)) == ours
                and cell.config_sha256 in ("", same["config_sha256"])
                and not expected.difference(cell, model)
                and self._has_samples(cell, None)
                and not (self.sanity and threat and cell.sanity is None)
            ]
            if len(cells) != 1:
                return None
            found += cells
        return found

    def _batch_size(self, model: CLIP, wanted: Sequence[Condition], ranks: Ranks) -> int:
        if self.batch_size != "auto":
            return self.batch_size
        attacked = {id(m): m for m in (model, *(a.model for a, _ in wanted if isinstance(a, Transfer)))}
        with model.replaying(None):
            fits = min(ranks.all_gather_object(min(map(largest_batch, attacked.values()))))
        return max(1, fits // 2) if self.graphs else fits  # recordings have memory of their own

    def _opened(self, dataset: LabelledSet | str) -> LabelledSet:
        """A dataset with the class names and prompts of the protocol."""
        return self.protocol.apply(_load(dataset, self.protocol) if isinstance(dataset, str) else dataset)

    def _evaluator(self, model: CLIP, dataset: LabelledSet | str, ranks: Ranks, batch_size: int) -> Evaluator:
        """The evaluator of the model on a dataset, under the protocol."""
        protocol, labelled = self.protocol, self._opened(dataset)
        return Evaluator(
            model,
            labelled,
            limit=self.limit,
            seed=self.seed,
            batch_size=batch_size,
            ranks=ranks,
            pixels=protocol.pixels_of(labelled.name),
            repeated=protocol.repeated(labelled.classes),
        )

    def _cell(
        self, blank: Cell, known: Cell | None, evaluator: Evaluator, attack: Attack, threat: Threat | None
    ) -> Cell:
        """The cell that is stored already, or a new one that is measured and stored."""
        cell, ranks = known, evaluator.ranks
        own = blank.slug() + (f".{ranks.rank}" if ranks.size > 1 else "")
        saved = SavedImages(Path(self.save_images), blank) if self.save_images and threat else None
        journal = Journal.beside(self.store, own) if self.store else None
        if cell is None or not ranks.broadcast_from_rank0(partial(self._has_samples, cell, saved)):
            # The new line replaces the known one, but keeps its model name and its verdict.
            kept = {"model": cell.model, "sanity": cell.sanity} if cell else {}
            # No journal with saved images: an interrupted measurement may not have kept all of them.
            resumed = None if saved else journal
            cell = self._measure(replace(blank, **kept), evaluator, attack, threat, resumed, saved)
            self._save(cell, ranks)
        if journal:
            journal.remove()
        if self.sanity and threat and cell.sanity is None:
            cell = replace(cell, sanity=sanity_check(evaluator, attack, threat, seed=self.seed))
            self._save(cell, ranks)
        return cell

    def _has_samples(self, cell: Cell, saved: SavedImages | None) -> bool:
        """Whether the cell's predictions and images are stored, too."""
        return (self.store is None or has_samples(self.store, cell)) and (saved is None or saved.is_complete)

    def _save(self, cell: Cell, ranks: Ranks) -> None:
        if self.store and ranks.rank == 0:
            append_cell(self.store, cell)

    def _blank(
        self,
        evaluator: Evaluator,
        attack: Attack,
        threat: Threat | None,
        same: dict[str, Any],
        is_named: bool,
    ) -> Cell:
        """The cell before anything is measured, with all that identifies the measurement."""
        labelled, model = evaluator.labelled, evaluator.model
        card, search = card_of(model), choose_precision(self.precision, model.device)
        part = {} if len(evaluator) == len(labelled) else {"limit": len(evaluator), "seed": self.seed}
        return Cell(
            **same,
            set=labelled.name,
            split=labelled.split + (WEBDATASET if labelled.info.get("read_from") == "webdataset" else ""),
            n=0,
            prompt=labelled.prompt,
            attack=attack.name,
            attack_args=recorded_arguments(attack, threat, len(labelled.classes)),
            norm=threat.norm if threat else None,
            eps=threat.eps if threat else 0.0,
            precision=search.precision if threat else "fp32",
            precision_reason=search.reason if threat else "",
            seed=self.seed if threat else 0,
            version=__version__,
            correct=0,
            accuracy=0.0,
            ci95=(0.0, 1.0),
            seconds=0.0,
            subset={"of": len(labelled), **part},
            seen=was_trained_on(card, labelled.name),
            pflops=card.get("pflops"),
            protocol=self.protocol.recorded,
            settings=self._settings(evaluator, is_named),
        )

    def _settings(self, evaluator: Evaluator, is_named: bool) -> dict[str, Any]:
        """What the protocol changes about images and class names, and the contents of the user's own sets."""
        found = evaluator.pixels.settings(evaluator.model)
        if self.protocol.names_classes:
            found["classnames_sha256"] = names_sha256(evaluator.labelled.classes)
        if not is_named:
            found["set_sha256"] = evaluator.labelled.sha256
        if evaluator.repeated:
            found["repeated_classes"] = evaluator.repeated
        return found

    def _measure(
        self,
        cell: Cell,
        evaluator: Evaluator,
        attack: Attack,
        threat: Threat | None,
        journal: Journal | None,
        saved: SavedImages | None,
    ) -> Cell:
        started = time.monotonic()
        outcome = evaluator.run(
            attack,
            threat,
            precision="bf16" if cell.precision == "bf16" else "fp32",
            seed=cell.seed,
            journal=journal,
            keep=saved.keep if saved else None,
            watch=lambda progress: self.watch(cell, progress),
        )
        correct, n = int(outcome.correct.sum()), len(outcome.label)
        keys = [evaluator.labelled.key(index) for index in outcome.index.tolist()]
        cell = replace(
            cell,
            n=n,
            correct=correct,
            accuracy=correct / n,
            ci95=wilson(correct, n),
            seconds=round(time.monotonic() - started, 3),
            per_class=per_class(outcome.label, outcome.correct),
            unreadable=sorted(
                {evaluator.labelled.key(index) for index in evaluator.index.tolist()} - set(keys)
            ),
        )
        if self.store and evaluator.ranks.rank == 0:
            write_samples(self.store, cell, **vars(outcome), keys=keys)
        if saved and evaluator.ranks.rank == 0:
            saved.finish(cell, images=int((outcome.clean == outcome.label).sum()))
        return cell


def _load(name: str, protocol: Protocol) -> LabelledSet:
    """Load a dataset from the protocol's source; those that are not in the table have only one."""
    if protocol.source == "any" or canonical(name) is None:
        return load_set(name)
    return load_set(name, source=protocol.source)
