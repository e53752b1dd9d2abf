"""Sets × attacks × ε: one result cell each, stored as soon as it is known, so that a second call goes on."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from advflyp.__about__ import __version__
from advflyp.attack.pgd import pgd
from advflyp.attack.threat import Threat
from advflyp.data.labelled import LabelledSet, load_set, set_names
from advflyp.evaluation.results import Cell, append_cell, read_cells, wilson
from advflyp.model.clip import CLIP, Precision
from advflyp.model.hub import load_model, weights_sha256
from advflyp.model.zeroshot import class_embeddings, class_logits


@dataclass(frozen=True, kw_only=True)
class Attack:
    """An evaluation attack by name: "clean", or "pgd10" for PGD with 10 steps of 1/255 on the cross-entropy."""

    name: str
    steps: int
    step_size: float = 1 / 255

    @classmethod
    def parse(cls, name: str) -> "Attack":
        """ValueError for a name that is no attack."""
        if name == "clean":
            return cls(name=name, steps=0)
        match = re.fullmatch(r"pgd([1-9]\d*)", name)
        if not match:
            raise ValueError(f"there is no attack '{name}'; known: clean, pgdN (N steps, for example pgd10)")
        return cls(name=name, steps=int(match[1]))

    @property
    def arguments(self) -> dict[str, Any]:
        if not self.steps:
            return {}
        return {"steps": self.steps, "step_size": self.step_size, "restarts": 1, "random_start": True}


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
    precision: Precision = "fp32",
    device: str | torch.device = "cpu",
    seed: int = 0,
    name: str | None = None,
    progress: Callable[[Cell], None] = lambda cell: None,
) -> list[Cell]:
    """Zero-shot accuracy, clean and under attack.

    model:     a model or the name of one
    sets:      names of sets or groups
    attacks:   "clean", "pgd10", …
    eps:       radii in pixels of [0, 1]; each attack but "clean" is run at each
    out:       JSON-lines file; cells that it already holds are not computed again
    limit:     the first so many images of each set
    precision: of the attack's search; every adversarial image is judged in float32 all the same
    name:      what results call the model; its own name by default
    progress:  called with each cell as it is known
    Returns one cell per set × attack × ε. ValueError for unknown names or radii that are not above 0.
    """
    threats = [Threat(norm=norm, eps=value) for value in eps]
    parsed = [Attack.parse(attack) for attack in attacks]
    chosen = set_names(list(sets))
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")
    store = Path(out) if out is not None else None
    known = {cell.key(): cell for cell in read_cells(store)} if store else {}
    if not isinstance(model, CLIP):
        model = load_model(model, device=device)
    sha256 = weights_sha256(model)
    result = []
    for set_name in chosen:
        labelled = load_set(set_name)
        judge = Judge(model, labelled, limit=limit, batch_size=batch_size)
        for attack in parsed:
            for threat in threats if attack.steps else [None]:
                cell = Cell(
                    model=name or model.name,
                    checkpoint_sha256=sha256,
                    set=set_name,
                    split=labelled.split,
                    n=len(judge),
                    prompt=labelled.prompt,
                    attack=attack.name,
                    attack_args=attack.arguments,
                    norm=threat.norm if threat else None,
                    eps=threat.eps if threat else 0.0,
                    precision=precision if threat else "fp32",
                    seed=seed if threat else 0,
                    version=__version__,
                    correct=0,
                    accuracy=0.0,
                    ci95=(0.0, 1.0),
                    seconds=0.0,
                )
                if cell.key() in known:
                    cell = known[cell.key()]
                else:
                    cell = _measure(cell, judge, attack, threat, precision, seed)
                    if store:
                        append_cell(store, cell)
                result.append(cell)
                progress(cell)
    return result


def _measure(
    cell: Cell, judge: "Judge", attack: Attack, threat: Threat | None, precision: Precision, seed: int
) -> Cell:
    started = time.monotonic()
    correct = int(judge.correct(attack, threat, precision=precision, seed=seed).sum())
    values = {
        "correct": correct,
        "accuracy": correct / cell.n,
        "ci95": wilson(correct, cell.n),
        "seconds": round(time.monotonic() - started, 3),
    }
    return Cell(**{**cell.__dict__, **values})


class Judge:
    """One model on one set: its class weights, encoded once, and which images it still gets right."""

    def __init__(
        self, model: CLIP, labelled: LabelledSet, *, limit: int | None = None, batch_size: int = 128
    ) -> None:
        self.model = model
        self.labelled = labelled
        self.limit = min(limit or len(labelled), len(labelled))
        self.batch_size = batch_size
        self.weights = class_embeddings(model, labelled.classes, labelled.templates)
        self.logit_scale = model.logit_scale.detach()

    def __len__(self) -> int:
        return self.limit

    def logits(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) → (N, K)."""
        return class_logits(self.model.encode_image(images), self.weights, self.logit_scale)

    def correct(
        self, attack: Attack, threat: Threat | None, *, precision: Precision = "fp32", seed: int = 0
    ) -> Tensor:
        """(n,) bool: classified correctly in float32, after the attack if there is one."""
        outcome = []
        start = 0
        device = self.model.device
        for images, labels in self.labelled.batches(self.model.preprocess, self.batch_size, self.limit):
            images, labels = images.to(device), labels.to(device)
            with torch.no_grad():
                still = self.logits(images).argmax(1) == labels
            if threat is not None and still.any():
                # An image that is wrong when clean counts as wrong under attack; there is nothing to search.
                index = torch.arange(start, start + len(images), device=device)[still]
                adversarial = self.attack(
                    images[still], labels[still], attack, threat, precision, seed, index
                )
                assert bool(threat.contains(images[still], adversarial).all())
                with torch.no_grad():
                    survived = self.logits(adversarial).argmax(1) == labels[still]
                still[still.clone()] = survived
            outcome.append(still.cpu())
            start += len(images)
        return torch.cat(outcome)

    def attack(
        self,
        images: Tensor,
        labels: Tensor,
        attack: Attack,
        threat: Threat,
        precision: Precision = "fp32",
        seed: int = 0,
        index: Tensor | None = None,
    ) -> Tensor:
        """Adversarial images for (N, 3, H, W) `images`; `index` are their places in the set."""

        def loss(candidates: Tensor) -> Tensor:
            return F.cross_entropy(self.logits(candidates), labels, reduction="none")

        # A start of its own for each image, so that batch size and order change nothing.
        places = index.tolist() if index is not None else range(len(images))
        starts = torch.cat(
            [
                threat.random_start(
                    image[None].cpu(), torch.Generator().manual_seed(seed * 1_000_003 + place)
                )
                for image, place in zip(images, places, strict=True)
            ]
        ).to(images.device)
        with self.model.computing_in(precision):
            return pgd(images, loss, threat, steps=attack.steps, step_size=attack.step_size, start=starts)
