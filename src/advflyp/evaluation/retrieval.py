"""Zero-shot image–text retrieval in both directions, clean and with images or captions attacked."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from advflyp.__about__ import __version__
from advflyp.attack.base import Attack, Clean
from advflyp.attack.checks import outside_inference_mode
from advflyp.attack.pgd import PGD, pgd
from advflyp.attack.streams import Streams
from advflyp.attack.text import CANDIDATES, TextEdits, edit_texts
from advflyp.attack.threat import Threat
from advflyp.config import fill
from advflyp.data.pairs.tables import Columns
from advflyp.data.sets.captioned import CaptionedImages
from advflyp.dtypes import whole
from advflyp.evaluation.attacks import conditions, find_attack, listed
from advflyp.evaluation.journal import Journal
from advflyp.evaluation.pixels import in_bytes, on_device
from advflyp.evaluation.recall import CUTOFFS, Recall, cross_entropy, margin, ranks, recalls
from advflyp.evaluation.results import Measurement, append_cell, find_known, known_cells, read_store
from advflyp.model.clip import CLIP
from advflyp.model.folder import config_sha256, weights_sha256
from advflyp.model.load import load_model, pick_device
from advflyp.model.precision import Precision, Resolved, choose_precision, for_use

Search = Clean | PGD | TextEdits
LOSSES = {"ce": ("multi-positive cross-entropy", cross_entropy), "margin": ("margin", margin)}


@dataclass(frozen=True, kw_only=True)
class RetrievalCell(Measurement):
    """Retrieval: recall of one model on one collection of pairs under one attack, and all that is needed to repeat it.

    Attributes:
        pairs: The user's name for them.
        captions_sha256: A hash of their names, captions and first images.
        subset: {"of": pairs} or {"of", "limit", "seed"}.
        eps: Radius in pixels of [0, 1]; 0 for clean images. Every image of the gallery is attacked, or every caption.
        image_to_text: A hit is an image with one of its own captions among the k most similar of all captions.
        text_to_image: A hit is a caption with its own image among the k most similar of all images.
        unreadable: {name: reason} of skipped pairs; they are not counted.
    """

    OUTCOME: ClassVar[tuple[str, ...]] = (
        "model", "pairs", "n_images", "n_captions", "image_to_text", "text_to_image", "unreadable", "seconds",
        "precision_reason",
    )  # fmt: skip
    SLUG: ClassVar[tuple[str, ...]] = ("model", "attack")

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
    config_sha256: str = ""


def read_retrieval(path: Path) -> list[RetrievalCell]:
    """Every cell of a JSON-lines file, as `read_store` gives them."""
    return read_store(path, _checked)


def _checked(record: Any) -> RetrievalCell:
    """A cell from an untrusted file; ValueError for values that no measurement gives."""
    cell = fill(RetrievalCell, record)
    if "of" not in cell.subset:
        raise ValueError("subset lacks 'of'")
    for name in ("image_to_text", "text_to_image"):
        found: list[Recall] = getattr(cell, name)
        if tuple(one.k for one in found) != CUTOFFS:
            raise ValueError(f"{name} must hold the recall at 1, 5 and 10")
        shares = [share for one in found for share in (one.recall, *one.ci95)]
        if any(len(one.ci95) != 2 for one in found) or not all(0 <= share <= 1 for share in shares):
            raise ValueError(f"{name} has a recall or an interval that is not from 0 to 1")
    return cell


@outside_inference_mode()
def retrieval(
    model: CLIP | str | Path,
    pairs: str | Path,
    attacks: Attack | str | Sequence[Attack | str] = ("clean", "pgd10"),
    eps: float | Sequence[float] = (1 / 255,),
    *,
    out: str | Path | None = None,
    norm: Literal["linf", "l2"] = "linf",
    edits: Sequence[int] = (),
    limit: int | None = None,
    batch_size: int = 128,
    precision: Precision = "auto",
    device: str | torch.device = "auto",
    seed: int = 0,
    name: str | None = None,
    columns: Columns | None = None,
    watch: Callable[[RetrievalCell, int], None] = lambda cell, done: None,
) -> list[RetrievalCell]:
    """Recall at 1, 5 and 10 in both directions, clean, with every image attacked, and with every caption attacked.

    Args:
        model: A model or the name of one.
        pairs: A folder, shards, a table or hf:NAME, as for `data.train`; each line of a text is a caption.
        attacks: "clean", "pgdN" on −log Σ_own softmax of an image's similarities τ⁻¹·cos to all captions, "cwN" on the
            margin of the best foreign caption over the best own one, or such objects; each image is attacked by itself.
        eps: Radii in pixels of [0, 1]; each attack but "clean" is run at each.
        out: JSON-lines file; cells that it already holds are not computed again, an interrupted one resumes.
        norm: "linf" or "l2".
        edits: For each k, captions with at most k wrong letters chosen by `edit_texts`, and, as a control, with as many
            random ones; images are clean.
        limit: Number of images, drawn by `seed`, with their captions.
        batch_size: Images at a time.
        precision: Precision of the attack: "auto", "fp32", "bf16"; embeddings are always float32.
        device: Where a model given by name is put: "auto", "cpu", "cuda", "cuda:1", "mps".
        seed: Random seed of the attacks, of the wrong letters and of `limit`.
        name: The model's name in results; by default its own.
        columns: The columns of a table of pairs.
        watch: Called after every batch with the current cell and how many of its images are embedded.

    Returns:
        One cell per attack × ε, and two for each of `edits`.

    Raises:
        ValueError: Unknown attacks, edits below 1, radii that are not above 0, fewer than two images, more than 1 % of
            the pairs skipped.
    """
    if (batch_size := whole(batch_size, "batch_size")) < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    wanted: list[tuple[Search, Threat | None]] = [*conditions(map(_attack, listed(attacks)), norm, eps)]
    wanted += [(TextEdits(edits=k, candidates=n), None) for k in edits for n in (CANDIDATES, 1)]
    seed, limit = whole(seed, "seed"), None if limit is None else whole(limit, "limit")
    place, store = pick_device(device), Path(out) if out is not None else None
    known = known_cells(store, read_retrieval)
    images = CaptionedImages(pairs, limit=limit, seed=seed, columns=columns)
    model = model if isinstance(model, CLIP) else load_model(model, device=place)
    gallery = _Gallery(model, images, batch_size)
    return [
        _cell(blank, find_known(known, blank), gallery, attack, threat, store, partial(watch, blank))
        for blank, attack, threat in _blanks(wanted, gallery, name, str(pairs), precision, seed)
    ]


def _blanks(
    wanted: Sequence[tuple[Search, Threat | None]],
    gallery: "_Gallery",
    name: str | None,
    pairs: str,
    precision: Precision,
    seed: int,
) -> list[tuple[RetrievalCell, Search, Threat | None]]:
    """The cells before anything is measured, each with its attack and threat."""
    model, images = gallery.model, gallery.images
    model.check_weights()
    search = choose_precision(precision, model.device)
    part = {} if len(images) == images.usable else {"limit": len(images), "seed": seed}
    same = RetrievalCell(
        model=name or model.name,
        checkpoint_sha256=weights_sha256(model),
        pairs=pairs,
        captions_sha256=images.sha256(),
        subset={"of": images.usable, **part},
        n_images=len(images),
        n_captions=len(images.captions),
        attack="clean",
        attack_args={},
        norm=None,
        eps=0.0,
        precision="fp32",
        seed=0,
        version=__version__,
        config_sha256=config_sha256(model),
    )
    blanks = []
    for attack, threat in wanted:
        blank = same
        if not isinstance(attack, Clean):
            blank = replace(blank, attack=attack.name, attack_args=_arguments(attack, threat), seed=seed)
        if threat is not None:
            of_search = {"precision": search.precision, "precision_reason": search.reason}
            blank = replace(blank, norm=threat.norm, eps=threat.eps, **of_search)
        blanks.append((blank, attack, threat))
    return blanks


def _cell(
    blank: RetrievalCell,
    cell: RetrievalCell | None,
    gallery: "_Gallery",
    attack: Search,
    threat: Threat | None,
    store: Path | None,
    watch: Callable[[int], None],
) -> RetrievalCell:
    """The `cell` that is stored already, or a new one that is measured and stored."""
    journal = Journal.beside(store, blank.slug()) if store else None
    if cell is None:
        started = time.monotonic()
        with for_use(gallery.model):
            # Which images are unreadable is known once all were embedded clean; "clean" uses those embeddings.
            embeddings, captions = gallery.prepare(watch), gallery.captions
            if threat is not None and isinstance(attack, PGD):
                precision: Resolved = "bf16" if blank.precision == "bf16" else "fp32"
                embeddings = gallery.attacked(attack, threat, precision, blank.seed, watch, journal)
            elif isinstance(attack, TextEdits):
                captions = gallery.edited(attack, blank.seed)
            of_images, of_captions = ranks(embeddings, captions, gallery.owner)
        cell = replace(
            blank,
            n_images=len(of_images),
            n_captions=len(of_captions),
            image_to_text=recalls(of_images, len(of_images)),
            text_to_image=recalls(of_captions, len(of_images)),
            unreadable=dict(gallery.images.unreadable),
            seconds=round(time.monotonic() - started, 3),
        )
        if store:
            append_cell(store, cell)
    if journal:
        journal.remove()
    return cell


class _Gallery:
    """A model and the readable pairs: captions and clean images, embedded once in float32, when first needed.

    Attributes:
        clean: (n, d).
        captions: (m, d).
        owner: (m,) int64, the row of the image that a caption belongs to.
    """

    def __init__(self, model: CLIP, images: CaptionedImages, batch_size: int) -> None:
        self.model, self.images, self.batch_size = model, images, batch_size
        self.clean: Tensor | None = None

    def prepare(self, watch: Callable[[int], None]) -> Tensor:
        """Embed everything unless that has been done; returns `clean`."""
        if self.clean is None:
            self.clean = self._embed_images(lambda images, rows: images, watch)
            self.captions = self._embed_texts(self.images.captions)
            self.owner = self.images.owner.to(self.model.device)
            self.places = self.images.places.to(self.model.device)
            self.logit_scale = self.model.logit_scale.detach()
        return self.clean

    def attacked(
        self,
        attack: PGD,
        threat: Threat,
        precision: Resolved,
        seed: int,
        watch: Callable[[int], None],
        journal: Journal | None = None,
    ) -> Tensor:
        """(n, d) embeddings of every image after the attack; `journal` holds those that are known so far."""
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

        gallery = self._embed_images(perturb, watch, journal)
        if len(gallery) < len(self.places):
            raise ValueError(f"{self.images.name}: an image can no longer be read; try again")
        return gallery

    def edited(self, attack: TextEdits, seed: int) -> Tensor:
        """(m, d) embeddings of every caption after the edits; equal captions are edited alike."""
        texts = list(dict.fromkeys(self.images.captions))
        with self.model.computing_in("fp32"):
            found = edit_texts(
                self.model.encode_text, texts, edits=attack.edits, candidates=attack.candidates, seed=seed
            )
        edited = dict(zip(texts, found, strict=True))
        return self._embed_texts([edited[text] for text in self.images.captions])

    def _embed_images(
        self,
        change: Callable[[Tensor, Tensor], Tensor],
        watch: Callable[[int], None],
        journal: Journal | None = None,
    ) -> Tensor:
        """(n, d) float32 embeddings of the readable images, each batch after `change(images, rows)`."""
        places, device = self.images.places, self.model.device
        parts: list[Tensor] = []
        saved = journal.read() if journal else {}
        # Images are taken in order, so that what is saved is the beginning; a journal of other images is dropped.
        begin = 0
        if saved and np.array_equal(saved["places"], places[: len(saved["places"])]):
            begin = len(saved["places"])
            parts = [torch.from_numpy(saved["embeddings"])]
        elif saved and journal:
            journal.remove()
        done = begin
        for rows, images in self.images.batches(in_bytes(self.model.preprocess), self.batch_size, begin):
            changed = change(on_device(images, device), rows.to(device))
            with torch.no_grad(), self.model.computing_in("fp32"):
                parts.append(self.model.encode_image(changed).cpu())
            if journal:
                journal.append(places=places[rows], embeddings=parts[-1])
            done += len(rows)
            watch(done)
        return torch.cat(parts).to(device)

    @torch.no_grad()
    def _embed_texts(self, captions: list[str]) -> Tensor:
        """(m, d) float32; a text that several images have is encoded once."""
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
    if (
        not isinstance(found, PGD)
        or found.loss not in LOSSES
        or found.against is not None
        or found.restarts > 1
        or not found.random_start
    ):
        raise ValueError(
            f"retrieval has no attack '{found.name}'; known: clean, pgdN, cwN (N steps, for example pgd10)"
        )
    return found


def _arguments(attack: PGD | TextEdits, threat: Threat | None) -> dict[str, Any]:
    if isinstance(attack, TextEdits):
        return attack.arguments()
    assert threat is not None
    loss, _ = LOSSES[attack.loss]
    return {"loss": loss, "steps": attack.steps, "step_size": attack.alpha(threat), "random_start": True}
