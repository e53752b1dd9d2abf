"""Zero-shot search of pictures by captions and captions by pictures, clean and with the pictures attacked."""

import copy
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from advflyp.__about__ import __version__
from advflyp.attack.base import Attack, Clean
from advflyp.attack.pgd import PGD, pgd
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.attack.victim import for_use
from advflyp.config import fill
from advflyp.data.pairs.tables import Columns
from advflyp.data.sets.captioned import CaptionedImages
from advflyp.evaluation.attacks import find_attack
from advflyp.evaluation.journal import Journal
from advflyp.evaluation.jsonl import append_line, check_store, read_lines
from advflyp.evaluation.recall import Recall, cross_entropy, margin, ranks, recalls
from advflyp.evaluation.results import slug
from advflyp.model.clip import CLIP
from advflyp.model.folder import weights_sha256
from advflyp.model.load import load_model, pick_device
from advflyp.model.precision import Precision, Resolved, choose_precision

LOSSES = {"ce": ("multi-positive cross-entropy", cross_entropy), "margin": ("margin", margin)}
OUTCOME = (
    "model",
    "pairs",
    "n_images",
    "n_captions",
    "image_to_text",
    "text_to_image",
    "unreadable",
    "seconds",
    "precision_reason",
)


@dataclass(frozen=True, kw_only=True)
class RetrievalCell:
    """Recall of one model on one collection of pairs under one attack, and everything to measure it again.

    pairs:            what the user called them;  captions_sha256: which they are
    subset:           {"of": pairs} or {"of", "limit", "seed"}
    eps:              radius in pixels of [0, 1]; 0 for clean pictures. Every picture of the gallery is attacked
    image_to_text:    a hit is a picture with one of its own captions among the k most similar of all captions
    text_to_image:    a hit is a caption with its own picture among the k most similar of all pictures
    unreadable:       {name: reason} of pairs that could not be used; they are not counted
    """

    model: str
    checkpoint_sha256: str
    pairs: str
    captions_sha256: str
    subset: dict[str, int]
    n_images: int
    n_captions: int
    attack: str
    attack_args: dict[str, Any]
    norm: str | None
    eps: float
    precision: str
    seed: int
    version: str
    image_to_text: list[Recall] = field(default_factory=list)
    text_to_image: list[Recall] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    precision_reason: str = ""

    def key(self) -> tuple[str, ...]:
        """What makes two cells the same measurement."""
        values = [getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in OUTCOME]
        return tuple(json.dumps(value, sort_keys=True) for value in values)

    def slug(self) -> str:
        """A file name for what belongs to this measurement: readable, and unique by a hash."""
        return slug(self.model, self.attack, eps=self.eps, key=self.key())


def read_retrieval(path: Path) -> list[RetrievalCell]:
    """Every cell of a JSON-lines file; ValueError naming the line that is not one."""
    return read_lines(path, _checked)


def _checked(record: Any) -> RetrievalCell:
    """A cell of a file that need not be ours; ValueError for what no measurement gives."""
    cell = fill(RetrievalCell, record)
    for name in ("image_to_text", "text_to_image"):
        found: list[Recall] = getattr(cell, name)
        if not found or any(one.k < 1 for one in found):
            raise ValueError(f"{name} must hold the recall at one k or more")
        shares = [share for one in found for share in (one.recall, *one.ci95)]
        if any(len(one.ci95) != 2 for one in found) or not all(0 <= share <= 1 for share in shares):
            raise ValueError(f"{name} has a recall or an interval that is not from 0 to 1")
    return cell


def retrieval(
    model: CLIP | str | Path,
    pairs: str | Path,
    attacks: Sequence[str] = ("clean", "pgd10"),
    eps: Sequence[float] = (1 / 255,),
    *,
    out: str | Path | None = None,
    norm: Literal["linf", "l2"] = "linf",
    limit: int | None = None,
    batch_size: int = 128,
    precision: Precision = "auto",
    device: str | torch.device = "auto",
    seed: int = 0,
    name: str | None = None,
    columns: Columns | None = None,
    watch: Callable[[RetrievalCell, int], None] = lambda cell, done: None,
) -> list[RetrievalCell]:
    """Recall at 1, 5 and 10 in both directions, clean and with every picture attacked.

    model:     a model or the name of one
    pairs:     whatever `data.train` takes: a folder, shards, a table, hf:NAME; a text's lines are captions of their own
    attacks:   "clean", "pgdN" on −log Σ_own softmax of a picture's similarities τ⁻¹·cos to all captions, or "cwN" on
               the margin of the best foreign caption over the best own one; each picture for itself
    eps:       radii in pixels of [0, 1]; each attack but "clean" is run at each
    out:       JSON-lines file; cells that it already holds are not computed again, an interrupted one goes on from
               its last finished batch
    limit:     so many pictures, drawn by `seed`, with their captions
    precision: of the search for adversarial pictures: "auto", "fp32", "bf16"; embeddings are float32 all the same
    device:    where a model given by name is put: "auto", "cpu", "cuda", "cuda:1", "mps"
    name:      what results call the model; its own name by default
    columns:   of a table of pairs
    watch:     called after every batch with the cell in work and how many of its pictures are embedded
    Returns one cell per attack × ε. ValueError for unknown attacks, radii that are not above 0, fewer than two
    pictures, and when more than 1 % of the pairs cannot be used.
    """
    threats = [Threat(norm=norm, eps=value) for value in eps]
    wanted = [(a, t) for a in map(_attack, attacks) for t in (threats if a.perturbs else [None])]
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    place = pick_device(device)
    store = Path(out) if out is not None else None
    if store:
        check_store(store)
    known = {cell.key(): cell for cell in read_retrieval(store)} if store else {}
    pictures = CaptionedImages(pairs, limit=limit, seed=seed, columns=columns)
    if not isinstance(model, CLIP):
        model = load_model(model, device=place)
    chosen = choose_precision(precision, model.device)
    part = {} if len(pictures) == pictures.usable else {"limit": len(pictures), "seed": seed}
    same = {
        "model": name or model.name,
        "checkpoint_sha256": weights_sha256(model),
        "pairs": str(pairs),
        "captions_sha256": pictures.sha256(),
        "subset": {"of": pictures.usable, **part},
        "n_images": len(pictures),
        "n_captions": len(pictures.captions),
        "version": __version__,
    }
    search: _Search | None = None
    result: list[RetrievalCell] = []
    for attack, threat in wanted:
        blank = RetrievalCell(
            **same,
            attack=attack.name,
            attack_args=_arguments(attack, threat),
            norm=threat.norm if threat else None,
            eps=threat.eps if threat else 0.0,
            precision=chosen.precision if threat else "fp32",
            precision_reason=chosen.reason if threat else "",
            seed=seed if threat else 0,
        )
        cell = known.get(blank.key())
        journal = Journal.beside(store, blank.slug()) if store else None
        if cell is None:
            started = time.monotonic()
            with for_use(model):
                # Which pictures cannot be read is known once all were embedded clean; that gallery serves "clean".
                search = search or _Search(
                    model, pictures, batch_size, lambda done, at=blank: watch(at, done)
                )
                gallery = search.clean
                if threat is not None and isinstance(attack, PGD):
                    gallery = search.attacked(
                        attack,
                        threat,
                        chosen.precision,
                        seed,
                        lambda done, at=blank: watch(at, done),
                        journal,
                    )
                of_images, of_captions = ranks(gallery, search.captions, search.owner)
            cell = dataclasses.replace(
                blank,
                n_images=len(of_images),
                n_captions=len(of_captions),
                image_to_text=recalls(of_images, len(of_images)),
                text_to_image=recalls(of_captions, len(of_images)),
                unreadable=dict(pictures.unreadable),
                seconds=round(time.monotonic() - started, 3),
            )
            if store:
                append_line(store, dataclasses.asdict(cell))
        if journal:
            journal.remove()
        result.append(cell)
    return result


class _Search:
    """A model and the readable pairs: captions and clean pictures, embedded once in float32.

    clean: (n, d);  captions: (m, d);  owner: (m,) int64, the row of the picture that a caption belongs to
    """

    def __init__(
        self, model: CLIP, pictures: CaptionedImages, batch_size: int, watch: Callable[[int], None]
    ) -> None:
        self.model, self.pictures, self.batch_size = model, pictures, batch_size
        self.clean = self._gallery(lambda images, rows: images, watch)
        pictures.drop_unreadable()
        self.captions = self._embed(pictures.captions)
        self.owner = pictures.owner.to(model.device)
        self.places = pictures.places.to(model.device)
        self.logit_scale = model.logit_scale.detach()

    def attacked(
        self,
        attack: PGD,
        threat: Threat,
        precision: Resolved,
        seed: int,
        watch: Callable[[int], None],
        journal: Journal | None = None,
    ) -> Tensor:
        """(n, d): every picture after the attack; `journal` holds those that are known so far."""
        _, objective = LOSSES[attack.loss]

        def perturb(images: Tensor, rows: Tensor) -> Tensor:
            own = self.owner == rows[:, None]

            def loss(candidates: Tensor) -> Tensor:
                return objective(
                    self.logit_scale * self.model.encode_image(candidates) @ self.captions.T, own
                )

            with self.model.computing_in(precision):
                found = pgd(
                    images,
                    loss,
                    threat,
                    steps=attack.steps,
                    step_size=attack.alpha(threat),
                    start=threat.random_start(images, Streams(seed, self.places[rows])),
                )
            assert bool(threat.contains(images, found).all())
            return found

        gallery = self._gallery(perturb, watch, journal)
        if len(gallery) < len(self.clean):
            raise ValueError(
                f"{self.pictures.name}: a picture that could be read cannot be read any more; try again"
            )
        return gallery

    def _gallery(
        self,
        change: Callable[[Tensor, Tensor], Tensor],
        watch: Callable[[int], None],
        journal: Journal | None = None,
    ) -> Tensor:
        """(n, d) float32 embeddings of the readable pictures, each batch after `change(images, rows)`."""
        places, device = self.pictures.places, self.model.device
        parts: list[Tensor] = []
        saved = journal.read() if journal else {}
        # Pictures are taken in order, so that what is known is a beginning; other pictures are another gallery.
        begin = 0
        if saved and np.array_equal(saved["places"], places[: len(saved["places"])]):
            begin = len(saved["places"])
            parts = [torch.from_numpy(saved["embeddings"])]
        elif saved and journal:
            journal.remove()
        rest, done = copy.copy(self.pictures), begin
        rest.entries = rest.entries[begin:]
        for rows, images in rest.batches(self.model.preprocess, self.batch_size):
            rows = rows + begin
            changed = change(images.to(device), rows.to(device))
            with torch.no_grad(), self.model.computing_in("fp32"):
                parts.append(self.model.encode_image(changed).cpu())
            if journal:
                journal.append(places=places[rows], embeddings=parts[-1])
            done += len(rows)
            watch(done)
        return torch.cat(parts).to(device)

    @torch.no_grad()
    def _embed(self, captions: list[str]) -> Tensor:
        """(m, d) float32; a text that several pictures have is encoded once."""
        number = {text: i for i, text in enumerate(dict.fromkeys(captions))}
        texts = list(number)
        with self.model.computing_in("fp32"):
            size = max(self.batch_size, 512)
            parts = [self.model.encode_text(texts[i : i + size]) for i in range(0, len(texts), size)]
        return torch.cat(parts)[torch.tensor([number[text] for text in captions], device=self.model.device)]


def _attack(attack: Attack | str) -> Clean | PGD:
    found = find_attack(attack)
    if isinstance(found, Clean):
        return found
    if not isinstance(found, PGD) or found.loss not in LOSSES or found.restarts > 1 or not found.random_start:
        raise ValueError(
            f"retrieval has no attack '{found.name}'; known: clean, pgdN, cwN (N steps, for example pgd10)"
        )
    return found


def _arguments(attack: Clean | PGD, threat: Threat | None) -> dict[str, Any]:
    if threat is None or isinstance(attack, Clean):
        return {}
    loss, _ = LOSSES[attack.loss]
    return {"loss": loss, "steps": attack.steps, "step_size": attack.alpha(threat), "random_start": True}
