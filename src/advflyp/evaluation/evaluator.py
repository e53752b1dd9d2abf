"""Evaluate a model on a dataset: which images it classifies correctly, clean and after an attack."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from advflyp.attack.base import Attack, run_stages
from advflyp.attack.threat import Threat, check_pixels
from advflyp.attack.victim import predicted
from advflyp.data.sets.labelled import LabelledSet
from advflyp.distributed import ALONE, Ranks
from advflyp.evaluation.classifier import Classifier
from advflyp.evaluation.journal import Journal
from advflyp.evaluation.pixels import Pixels, in_bytes, on_device
from advflyp.model.clip import CLIP
from advflyp.model.precision import Precision, for_use

# Survivors of this many batches are merged for an attack's next stage, so that its batches are full again.
BATCHES_TOGETHER = 8
UNKNOWN = -1
UNREADABLE = -2
# What the journal holds for each image.
STATE = ("clean", "attacked", "survived")


@dataclass(frozen=True, kw_only=True)
class SetProgress:
    """Progress of the evaluation of a dataset on this rank; the progress callback gets it after every batch.

    Attributes:
        images: Number of images of this rank.
        finished: Images whose outcome is known.
        left: Unfinished images that are still classified correctly.
        accuracy: Fraction of the finished images that are classified correctly.
        seconds_left: Estimated time left; None before any image is finished.
    """

    images: int
    finished: int
    left: int
    accuracy: float
    seconds_left: float | None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The predictions for each readable image; all (n,) int64.

    Attributes:
        index: Place in the dataset.
        label: True class.
        clean: Predicted class without the attack. If another class ties with the true one, the other
            counts as predicted: a tie is never correct.
        attacked: Predicted class after the attack; `clean` if the image was misclassified already.
    """

    index: Tensor
    label: Tensor
    clean: Tensor
    attacked: Tensor

    @property
    def correct(self) -> Tensor:
        """(n,) bool: classified correctly in float32, after the attack if there is one."""
        return self.attacked == self.label

    @property
    def accuracy(self) -> float:
        """The fraction of images that are `correct`."""
        return self.correct.float().mean().item()


class Evaluator(Classifier):
    """A model on a dataset: the zero-shot classifier of its class names, and its images.

    Args:
        model: The model.
        labelled: The dataset.
        limit: Size of a class-balanced subset of the dataset, drawn by `seed`.
        seed: Random seed of the subset.
        batch_size: Images at a time.
        ranks: The ranks that share the images; each gets the outcome of all images.
        pixels: How images become the tensor that is perturbed.
        repeated: As in `Classifier`.
    """

    def __init__(
        self,
        model: CLIP,
        labelled: LabelledSet,
        *,
        limit: int | None = None,
        seed: int = 0,
        batch_size: int = 128,
        ranks: Ranks = ALONE,
        pixels: Pixels | None = None,
        repeated: Sequence[int] = (),
    ) -> None:
        self.index = torch.tensor(labelled.subset(limit, seed))
        super().__init__(model, labelled.classes, labelled.templates, pixels, repeated)
        self.transform = self.pixels.transform(model)
        self.ranks = ranks
        self.labelled = labelled
        self.batch_size = batch_size
        # All attacks on the dataset share the clean predictions.
        self.clean = torch.full((len(self.index),), UNKNOWN)

    def __len__(self) -> int:
        return len(self.index)

    def run(
        self,
        attack: Attack,
        threat: Threat | None,
        *,
        precision: Precision = "auto",
        seed: int = 0,
        journal: Journal | None = None,
        keep: Callable[[Tensor, Tensor], None] | None = None,
        watch: Callable[[SetProgress], None] = lambda progress: None,
    ) -> Outcome:
        """Classify every image, after the attack if there is one.

        An image that is misclassified when clean counts as wrong under attack, and is not attacked.

        Args:
            attack: The attack.
            threat: The ball around each image; None for clean images.
            precision: Precision of the search.
            seed: Random seed of the attack.
            journal: Holds what is known so far; an interrupted run resumes from its last finished batch.
            keep: Called after every batch with the places (M,) of images in the dataset and their adversarial images,
                (M, 3, H, W); called again for images that a later stage attacks.
            watch: Called after every batch.
        """
        with for_use(self.model):
            run = _Run(self, attack, threat, precision, seed, journal, keep, watch)
            run.all_images()
        readable = run.clean != UNREADABLE
        return Outcome(
            index=self.index[readable],
            label=self.labelled.labels[self.index][readable],
            clean=run.clean[readable],
            attacked=run.attacked[readable],
        )


class _Run:
    """The state of `Evaluator.run`: for each image its predictions and how many stages it has survived."""

    def __init__(
        self,
        evaluator: Evaluator,
        attack: Attack,
        threat: Threat | None,
        precision: Precision,
        seed: int,
        journal: Journal | None,
        keep: Callable[[Tensor, Tensor], None] | None,
        watch: Callable[[SetProgress], None],
    ) -> None:
        self.evaluator, self.threat, self.seed = evaluator, threat, seed
        self.journal, self.keep, self.watch = journal, keep, watch
        self.victim = evaluator.victim(precision)
        self.victim.batch_size = evaluator.batch_size
        self.stages = attack.stages(threat) if threat is not None else []
        self.clean = evaluator.clean
        self.attacked = torch.full_like(self.clean, UNKNOWN)
        self.survived = torch.zeros_like(self.clean)
        self.labels = evaluator.labelled.labels[evaluator.index]
        # This rank's images; those of other ranks are unknown until all have finished.
        self.mine = torch.zeros_like(self.clean, dtype=torch.bool)
        self.mine[evaluator.ranks.rank :: evaluator.ranks.size] = True
        if saved := journal.read() if journal else {}:
            # For an image that occurs several times, NumPy keeps the last record.
            for name in STATE:
                getattr(self, name).numpy()[saved["row"]] = saved[name]
        self._settle(torch.arange(len(self.clean)))
        # Finished, correct, still robust: for each image of this rank, and in total. Updated as images change: a
        # recount after every batch would take longer the larger the dataset is.
        self.counted = torch.zeros(len(self.clean), 3, dtype=torch.int64)
        self.counts = self.counted.sum(0)
        self._count(self.mine.nonzero().squeeze(1))
        self.started, self.known_at_start = time.monotonic(), int(self.counts[0])
        # Rows whose state the journal does not hold yet.
        unsaved = self.mine & (self.clean != UNKNOWN)
        if saved:
            unsaved[torch.from_numpy(saved["row"])] = False
        self.changed = [unsaved.nonzero().squeeze(1)]

    def all_images(self) -> None:
        """Evaluate all images that are not known yet, several batches at a time."""
        evaluator = self.evaluator
        todo = (self.mine & (self.attacked == UNKNOWN)).nonzero().squeeze(1)
        together: list[tuple[Tensor, Tensor]] = []
        read = torch.zeros_like(self.mine)
        batches = evaluator.labelled.batches(
            in_bytes(evaluator.transform),
            evaluator.batch_size,
            evaluator.index[todo].tolist(),
            # At most 1 % may be unreadable: of all images of the run, since a resumed run may have few left.
            of=len(self.clean),
        )
        for positions, images, _ in batches:
            rows = torch.searchsorted(evaluator.index, positions)
            read[rows] = True
            are_bytes = images.dtype == torch.uint8
            images = on_device(images, evaluator.model.device)
            try:
                if not are_bytes:
                    check_pixels(images)
            except ValueError as error:
                raise ValueError(
                    f"{evaluator.labelled.name}, at {evaluator.labelled.key(int(positions[0]))}: {error}"
                ) from None
            unknown = self.clean[rows] == UNKNOWN
            if unknown.any():
                new = rows[unknown]
                logits = evaluator.logits_fp32(images[unknown]).cpu()
                self._check_finite(logits, new)
                self.clean[new] = predicted(logits, self.labels[new])
                self._settle(rows)
            self.changed.append(rows)
            together.append((rows, images))
            if len(together) == BATCHES_TOGETHER:
                self._attack(together)
                together = []
        if together:
            self._attack(together)
        self.clean[todo[~read[todo]]] = UNREADABLE
        for rank, (clean, attacked) in enumerate(
            evaluator.ranks.all_gather_object((self.clean, self.attacked))
        ):
            theirs = slice(rank, None, evaluator.ranks.size)
            self.clean[theirs], self.attacked[theirs] = clean[theirs], attacked[theirs]

    def _attack(self, together: list[tuple[Tensor, Tensor]]) -> None:
        rows = torch.cat([rows for rows, _ in together])
        if self.threat is not None:
            batches = run_stages(
                self.stages,
                self.victim,
                torch.cat([images for _, images in together]),
                self.labels[rows],
                self.threat,
                seed=self.seed,
                index=self.evaluator.index[rows],
                # After an interruption, some images have passed more stages than others.
                survived=torch.where(self.attacked[rows] == UNKNOWN, self.survived[rows], -1),
                batch_size=self.evaluator.batch_size,
            )
            for part, found, answers in batches:
                if self.keep is not None:
                    self.keep(self.evaluator.index[rows[part]], found)
                self._record(rows[part], answers)
        self._note()

    def _record(self, rows: Tensor, answers: Tensor) -> None:
        """Record what images are classified as after one more stage."""
        fooled = answers != self.labels[rows]
        self.attacked[rows[fooled]] = answers[fooled]
        self.survived[rows] += 1
        self.changed.append(rows)
        self._settle(rows)
        self._note()

    def _check_finite(self, logits: Tensor, rows: Tensor) -> None:
        """ValueError if logits are not finite, since the model is broken."""
        broken = (~logits.isfinite().all(1)).nonzero().squeeze(1)
        if len(broken):
            evaluator = self.evaluator
            where = evaluator.labelled.key(int(evaluator.index[rows[broken[0]]]))
            raise ValueError(
                f"{evaluator.model.name} gives logits that are not finite on {evaluator.labelled.name}, first at "
                f"{where}: its weights are damaged or its training diverged; use an earlier checkpoint"
            )

    def _settle(self, rows: Tensor) -> None:
        """Finish images that were misclassified when clean or have survived every stage: they need no more attack."""
        over = (self.clean[rows] != self.labels[rows]) | (self.survived[rows] == len(self.stages))
        over &= (self.clean[rows] != UNKNOWN) & (self.attacked[rows] == UNKNOWN)
        self.attacked[rows[over]] = self.clean[rows[over]]

    def _count(self, rows: Tensor) -> None:
        finished = self.attacked[rows] != UNKNOWN
        right = finished & (self.attacked[rows] == self.labels[rows])
        robust = ~finished & (self.clean[rows] == self.labels[rows])
        now = torch.stack([finished, right, robust], dim=1).long()
        self.counts += (now - self.counted[rows]).sum(0)
        self.counted[rows] = now

    def _note(self) -> None:
        if self.changed:
            rows = torch.cat(self.changed).unique()
            self.changed = []
            self._count(rows)
            if self.journal is not None and self.stages:
                self.journal.append(row=rows, **{name: getattr(self, name)[rows] for name in STATE})
        images = len(self.clean[self.evaluator.ranks.rank :: self.evaluator.ranks.size])
        done, right, left = self.counts.tolist()
        elapsed, fresh = time.monotonic() - self.started, done - self.known_at_start
        self.watch(
            SetProgress(
                images=images,
                finished=done,
                left=left,
                accuracy=right / done if done else 0.0,
                seconds_left=elapsed / fresh * (images - done) if fresh else None,
            )
        )
