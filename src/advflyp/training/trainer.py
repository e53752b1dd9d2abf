"""The training loop: data → attack → losses → step; nothing here knows a method by name."""

import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from advflyp import distributed
from advflyp.__about__ import __version__
from advflyp.attack.pgd import AttackConfig
from advflyp.data.lineage import trained_on
from advflyp.data.pairs.dirt import Dirt
from advflyp.data.pairs.images import PictureReader
from advflyp.data.pairs.stream import Position, Share
from advflyp.data.sets.labelled import load_set
from advflyp.data.training import Classes, DecodedClasses, open_training
from advflyp.devices import to_device
from advflyp.distributed import Ranks
from advflyp.errors import LostRank, RunError
from advflyp.evaluation.attacks import Attack
from advflyp.evaluation.evaluator import Evaluator
from advflyp.files import recover_folder, write_text
from advflyp.method import find_method
from advflyp.method.base import Batch, FromEmbeddings
from advflyp.model.clip import CLIP, TextCache
from advflyp.model.deviation import cosine_deviation
from advflyp.model.load import BEST, read_card, save_model, start_from
from advflyp.model.text_store import TextStore
from advflyp.model.zeroshot import ClassTexts
from advflyp.training import sharding
from advflyp.training.checkpoint import (
    checkpoints,
    load_last,
    random_state,
    save_checkpoint,
    set_random_state,
    step_of,
)
from advflyp.training.ending import Interrupted, Signals, broken, explained, hold, writing
from advflyp.training.meter import Meter, not_finite
from advflyp.training.optim import learning_rate, make_optimizer, peak_rate, set_learning_rate
from advflyp.training.outcome import changes, shown
from advflyp.training.recipe import Recipe, difference, leaves, read_recipe
from advflyp.training.runlog import RunLog, SilentLog
from advflyp.training.setup import (
    CHECKPOINTS,
    RECIPE_FILE,
    check_attack,
    check_data,
    check_folder,
    check_sizes,
    check_split,
    copied,
    economise,
    settle_precision,
    unfreeze,
)
from advflyp.training.step import Objective, cap_logit_scale, constant, perturbed, perturbed_sharing
from advflyp.wording import counted

# Pairs of a batch by which φ is measured.
PHI_PAIRS = 32


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What `train` returns.

    out:      the run folder; `load_model(out)` gives the best weights
    steps:    updates made, resumed ones included
    best:     the best validation accuracy (0–1), None without validation
    before:   accuracies (0–1) of the model that the run began with: "clean" and, under attack, "robust"
    after:    those of the best weights
    finished: False where a signal ended the run early; `resume` goes on from there
    """

    out: Path
    steps: int
    best: float | None
    before: dict[str, float] | None = None
    after: dict[str, float] | None = None
    finished: bool = True


@dataclass
class Progress:
    """Where a run stands; stored in every checkpoint."""

    step: int = 0
    epoch: int = 0
    position: Position | None = None  # of this process's data in this epoch, as its source counts
    pairs_seen: int = 0
    best: float | None = None
    before: dict[str, float] | None = None  # accuracies of the model that the run began with
    after: dict[str, float] | None = None  # accuracies of the best weights
    attack_steps: int | None = None  # in place of the recipe's, once one step is not enough
    flops: float = 0.0  # of the updates, in all processes
    validations_without_gain: int = 0
    validated_at: int | None = None  # step of the last validation
    finished: bool = False


def train(
    recipe: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    out: str | Path,
    resume: bool = False,
    console: Console | None = None,
) -> RunResult:
    """Run a recipe; `out` receives the resolved recipe, metrics, checkpoints and the best weights.

    recipe:    a TOML file, or the name of a recipe that comes with the package: "mini/advflyp_full"
    overrides: {"optim.lr": 1e-4, …}
    resume:    continue the run in `out` from its last whole checkpoint; begin it where it has none yet
    console:   where progress is shown; none is silent
    Started by torchrun or another launcher, all its processes call this alike and share every batch.
    SIGTERM, SIGUSR1 and SIGINT (Ctrl-C) end the run after the step it is at, with a checkpoint; the last one raises its
    KeyboardInterrupt then, and at once when it comes a second time.
    ValueError for a recipe, data, model or folder that cannot be used; `RunError` for a run that cannot go on.
    """
    trainer = Trainer(read_recipe(recipe, overrides), Path(out), resume=resume, console=console)
    try:
        return trainer.fit()
    finally:
        trainer.close()


class Trainer:
    """One run: `fit()` does all of it, `step(batch)` one update."""

    def __init__(
        self, recipe: Recipe, out: Path, *, resume: bool = False, console: Console | None = None
    ) -> None:
        self.out = out
        self.lock: IO[bytes] | None = None
        self.accelerator = distributed.start(recipe.train.device, recipe.log.trackers, out)
        device = self.accelerator.device
        self.ranks: Ranks = distributed.join(recipe.data.batch_size, device)
        data = recipe.data
        self.share = Share(data.batch_size, self.ranks.rank, self.ranks.size, data.drop_last)
        self.console = console if self.ranks.rank == 0 else None
        self.ranks.first(lambda: self._claim(resume))
        self.precision = self.ranks.first(lambda: settle_precision(recipe, out, device, resume))
        # The run folder and its checkpoints hold what was chosen, not "auto".
        recipe = replace(recipe, train=replace(recipe.train, precision=self.precision.precision))
        self.recipe = recipe
        check_data(recipe)
        # A mistake in it shows before a model is loaded.
        labelled = None if recipe.validate.set is None else load_set(recipe.validate.set)
        torch.manual_seed(recipe.train.seed)  # fresh weights of a model/random

        method, _ = find_method(recipe.method_name)
        self.model = start_from(recipe.model, device=device)
        self.model.precision = self.precision.precision
        economise(self.model, recipe.train)
        self.method = method(recipe.method, self.model)
        self.method.ranks = self.ranks
        check_attack(recipe, self.method)
        check_sizes(recipe, self.method, self.model)
        self.pairs = open_training(
            recipe.data,
            method.trains_on,
            PictureReader(self.model.config["preprocess_cfg"], data.resize, data.interpolation),
            seed=recipe.train.seed,
            device=device,
            share=self.share,
        )
        if self.method.needs_original:
            self.method.original = copied(self.model, recipe.train).requires_grad_(False)
        self.parameters = unfreeze(self.model, recipe.train.unfreeze)
        # The model that is measured and saved: of one that is split, a whole copy.
        self.complete = self.model
        self.split = recipe.train.parallel == "fsdp"
        if self.split:
            check_split(recipe, self.ranks)
            self.complete = copied(self.model, recipe.train)
            self.ranks.wait_for_all()
            sharding.shard(self.model.visual, device, self.ranks.size)
            self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        # A cached embedding's last bits depend on which texts shared its batch, so on where a run resumed.
        frozen = recipe.train.unfreeze == "vision"
        cached = frozen and not recipe.train.deterministic
        self.embed_text = self.model.encode_text
        if cached and recipe.data.text_cache is not None:
            self.embed_text = TextStore(self.model, recipe.data.text_cache)
        elif cached:
            self.embed_text = TextCache(self.model)
        self.embed_classes = None
        self.draws_captions = isinstance(self.pairs, Classes) and self.pairs.draws_captions
        if isinstance(self.pairs, Classes):
            self.embed_classes = ClassTexts(
                self.model, self.pairs.classes, self.pairs.templates, frozen=frozen
            )
        objective = Objective(self.method)
        self.objective: nn.Module | None = (
            objective if self.split else distributed.replicated(objective, self.ranks, device)
        )
        self.optimizer = make_optimizer(self.parameters, recipe.optim)
        self.total_steps = recipe.train.epochs * len(self.pairs)
        if recipe.train.max_steps is not None:
            self.total_steps = min(self.total_steps, recipe.train.max_steps)
        self.evaluator = None
        if labelled is not None:
            self.evaluator = lambda: Evaluator(
                self._whole_model(),
                labelled,
                limit=recipe.validate.limit,
                seed=recipe.train.seed,
                ranks=self.ranks,
            )
        self.progress = Progress()
        self.logged = 0  # bytes of metrics.jsonl when the checkpoint was written
        self.dirt = self.pairs.dirt
        self.meter = Meter()
        self.signals = Signals(tell=self.console is not None)
        self.says = [str(self.precision)]
        trained = self.pairs.labelled if isinstance(self.pairs, DecodedClasses) else None
        used = [one for one in (labelled, trained) if one is not None]
        self.says += dict.fromkeys(remark for one in used for remark in one.remarks)
        peak = peak_rate(recipe.optim, self.total_steps)
        if recipe.optim.lr_steps is not None and peak < recipe.optim.lr:
            self.says.append(
                f"learning rate {peak:.3g}: {recipe.optim.lr:g} is for {counted(recipe.optim.lr_steps, 'step')}, and "
                f"this run has {self.total_steps}; --optim.lr sets another"
            )
        if resume:
            self._restore()

    def fit(self) -> RunResult:
        """Train to the end, to the point where validation stops improving, or to a signal."""
        self.ranks.first(self._begin)
        progress = self.progress
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(self.recipe.train.deterministic)
        interrupted = False
        try:
            with self.signals.heard(), self._explaining(), self._log() as log:
                for line in self.says:
                    log.say(line)
                if progress.step == 0:
                    # So that there is something to resume from, and a full disk is noticed at once.
                    self._save(log)
                try:
                    if progress.step == 0 and self.evaluator is not None:
                        self._validate_original(log)
                    while not progress.finished:
                        self._run_epoch(log)
                    for line in changes(progress.before, progress.after, self.recipe):
                        log.say(line)
                except Interrupted:
                    interrupted = True
                    self._save(log)
                    log.say(
                        f"{self.signals.name or 'another process'} ended the run after step {progress.step}; "
                        "continue it with --resume"
                    )
        finally:
            torch.use_deterministic_algorithms(before)
        if interrupted and self.signals.name == "SIGINT":
            raise KeyboardInterrupt
        return RunResult(
            out=self.out,
            steps=progress.step,
            best=progress.best,
            before=progress.before,
            after=progress.after,
            finished=not interrupted,
        )

    def close(self) -> None:
        """Let go of the folder and of the other processes."""
        if self.lock is not None:
            self.lock.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.objective = None
        self.ranks.close()

    def _run_epoch(self, log: RunLog | SilentLog) -> None:
        progress, recipe = self.progress, self.recipe
        named = set(self.dirt.examples)
        # A signal may have come between a step and its validation.
        self._validate_on_the_way(log)
        batches = self.pairs.epoch(progress.epoch, progress.position)
        while progress.step < self.total_steps and not progress.finished:
            with self.meter.waiting():
                batch = next(batches, None)
            full = batch is not None and len(batch["images"]) == self.share.size
            more, stop = self.ranks.go_on(full, bool(self.signals))
            if stop:
                raise Interrupted
            if not (more or self._split_last(batch)):
                break
            assert batch is not None
            self._count(batch)
            if not more:
                self.ranks.split()
            log.advance(progress.step)
            for reason in self.dirt.examples.keys() - named:
                named.add(reason)
                log.say(f"left out: {reason}, such as {self.dirt.examples[reason]}")
            if progress.step % recipe.log.every == 0 or progress.step == self.total_steps:
                self._write_line(batch, log)
            if progress.step < self.total_steps:
                self._validate_on_the_way(log)
                if progress.step % recipe.checkpoint.every == 0 and not progress.finished:
                    self._save(log)
        if progress.position is None and not progress.finished:
            raise ValueError(
                f"no batch of {recipe.data.batch_size} usable samples in {recipe.data.train}: "
                f"{self.pairs.dirt.describe()}"
            )
        self.dirt = self.pairs.dirt
        if self.dirt.counts:
            log.write(
                "data",
                progress.step,
                epoch=progress.epoch,
                skipped=dict(self.dirt.counts),
                examples=self.dirt.examples,
            )
            log.say(f"unusable samples so far: {self.dirt.describe()}")
        if not progress.finished:
            self._validate(log)
        progress.epoch += 1
        progress.position = None
        last = progress.step == self.total_steps or progress.epoch == recipe.train.epochs
        progress.finished = progress.finished or last
        self._save(log)

    def _split_last(self, batch: Batch | None) -> bool:
        """Whether what is left of an epoch makes a batch with rows of every process; the ranks then know how many."""
        if self.recipe.data.drop_last:
            return False
        sizes = self.ranks.objects(0 if batch is None else len(batch["images"]))
        if min(sizes) == 0:
            return False
        self.ranks.split(sizes)
        return True

    def _count(self, batch: Batch) -> None:
        """A step, and what is known after it."""
        progress = self.progress
        position, pairs = batch["position"], self.ranks.rows(len(batch["images"]))
        self.meter.add(self.step(batch), pairs)
        progress.flops += (self.meter.flops_of_last or 0) * self.ranks.size
        progress.step += 1
        progress.position = position
        progress.pairs_seen += pairs
        self.dirt = self.pairs.dirt

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One update; the losses as device scalars, still unsynchronised."""
        recipe, model = self.recipe, self.model
        update_statistics = recipe.train.batch_norm == "update"
        images = to_device(batch["images"], model.device).to(model.dtype)
        images = batch["images"] = self._fitted(images)
        model.train(update_statistics)
        self.embed_texts(batch)
        images_adv = images
        metrics: dict[str, Tensor] = {}
        self.optimizer.zero_grad(set_to_none=True)
        with self.meter.counting(recipe.train.compile or self.split, self._kind(images)):
            if recipe.attack.steps > 0:
                model.eval()
                images_adv = self.attack(images, batch)
                model.train(update_statistics)
            assert self.objective is not None
            losses = self.objective(images, images_adv, batch)
            batch.pop("clean_embeddings", None)
            loss = torch.stack(list(losses.values())).sum()
            # Gradients are averaged over the processes, and their parts add up to the whole.
            (loss * self.ranks.size).backward()
        if recipe.attack.steps > 0:
            metrics["attack_gain"] = next(iter(losses.values())).detach() / batch["loss_at_start"]
            batch["images_adv"] = images_adv
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        metrics["grad_norm"] = sharding.unsharded(torch.nn.utils.get_total_norm(gradients))
        if recipe.optim.max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(
                self.parameters, recipe.optim.max_grad_norm, metrics["grad_norm"]
            )
        set_learning_rate(self.optimizer, learning_rate(recipe.optim, self.progress.step, self.total_steps))
        self.optimizer.step()
        # Not SigLIP's, which comes with 117.
        if recipe.train.unfreeze == "all" and model.logit_bias is None:
            cap_logit_scale(model.net)
        model.eval()
        return {
            "loss": loss.detach(),
            **{f"loss/{name}": value.detach() for name, value in losses.items()},
            **metrics,
        }

    def embed_texts(self, batch: Batch) -> None:
        """Add to the batch the embeddings that the method is promised (`Batch`)."""
        if self.method.trains_on == "pairs":
            batch["text_embeddings"] = self.ranks.gather(self.embed_text(batch["captions"]))
        elif self.method.trains_on == "labelled":
            assert self.embed_classes is not None
            labels = batch["labels"] = to_device(batch["labels"], self.model.device)
            if self.method.needs_classes or not self.draws_captions:
                batch.update(self.embed_classes(labels))
            if self.draws_captions:
                batch["text_embeddings"] = self.embed_text(batch["captions"])
            batch["text_embeddings"] = self.ranks.gather(batch["text_embeddings"])

    def _size(self) -> tuple[int, int]:
        """Height and width of the images in this step."""
        side = self.recipe.data.size_at(self.progress.step, self.total_steps)
        return self.model.image_size if side is None else (side, side)

    def _kind(self, images: Tensor) -> tuple[Any, ...]:
        """What the arithmetic of a step depends on."""
        return images.shape, self._attack_config()

    def _fitted(self, images: Tensor) -> Tensor:
        """At the size of this step: decoded images have the model's, those of a mini corpus 64×64 for any model."""
        size = self._size()
        if tuple(images.shape[-2:]) == size:
            return images
        return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)

    def _attack_config(self) -> AttackConfig:
        """The recipe's attack, or what follows it where one step was not enough."""
        attack, steps = self.recipe.attack, self.progress.attack_steps
        if steps is None:
            return attack
        return replace(attack, steps=steps, start="random", share_clean_forward=False)

    def attack(self, images: Tensor, batch: Batch) -> Tensor:
        """Eq. 6: perturb the batch jointly; the random start depends on (seed, step) alone."""
        attack = self._attack_config()
        if attack.share_clean_forward:
            assert isinstance(self.method, FromEmbeddings)  # check_attack
            return perturbed_sharing(self.method, images, batch, attack)
        # Of a split tower the parameters in use are not these; autograd leaves their gradients out as well.
        with constant([] if self.split else self.parameters):
            return perturbed(self.method, images, batch, attack, self.recipe.train.seed, self.progress.step)

    def _write_line(self, batch: Batch, log: RunLog | SilentLog) -> None:
        """What the steps since the last line were like; `RunError` where a loss or gradient is not finite."""
        progress, recipe = self.progress, self.recipe
        means = self._finite_means()
        metrics = self.meter.line(means, self.accelerator.device, self.precision.precision)
        if recipe.attack.steps > 0:
            metrics["phi"] = self._phi(batch)
        about: dict[str, float] = {
            "of": self.total_steps,
            "epoch": progress.epoch,
            "seen": progress.pairs_seen,
        }
        if progress.flops:
            about["pflops"] = progress.flops / 1e15
        # A gain is none where the loss began at 0.
        metrics = {key: value for key, value in metrics.items() if math.isfinite(value)}
        log.write("train", progress.step, **about, lr=self.optimizer.param_groups[0]["lr"], **metrics)
        speed = f"{metrics['pairs_per_second']:.0f} images/s"
        log.advance(progress.step, f"loss {metrics['loss']:.3f}  {speed}")

    def _finite_means(self) -> dict[str, float]:
        means = self.meter.means()
        if wrong := not_finite(means):
            raise self._diverged(", ".join(f"{name} = {means[name]}" for name in wrong))
        return means

    def _check_finite(self) -> None:
        """`RunError` where losses, gradients, weights or embeddings are not: what is saved is good to go on from."""
        self._finite_means()
        what = broken(self._whole_model(), min(PHI_PAIRS, self.recipe.data.batch_size))
        if what is not None:
            raise self._diverged(what)

    def _diverged(self, what: str) -> RunError:
        return RunError(
            f"{what} by step {self.progress.step}: the run diverged. {self._last_good()} Start again with a lower "
            "optim.lr, longer optim.warmup_steps or an optim.max_grad_norm"
        )

    @torch.no_grad()
    def _phi(self, batch: Batch) -> float:
        """φ (Eq. 14) on some pictures of the batch, in radians."""
        some = (batch["images"][:PHI_PAIRS], batch["images_adv"][:PHI_PAIRS])
        clean, adversarial = (self.model.encode_image(images) for images in some)
        return round(cosine_deviation(clean, adversarial).mean().item(), 5)

    def _validate_on_the_way(self, log: RunLog | SilentLog) -> None:
        every = self.recipe.validate.every
        if every is not None and self.progress.step and self.progress.step % every == 0:
            self._validate(log)

    def _validate_original(self, log: RunLog | SilentLog) -> None:
        """What the run begins with; never the best, which is one of the trained."""
        self.progress.before = self._accuracies()
        log.write("validate", 0, epoch=0, best=False, **self.progress.before)
        log.say(f"step 0: {self.recipe.validate.set} {shown(self.progress.before)}")

    def _accuracies(self) -> dict[str, float]:
        """Clean and robust accuracy (0–1) of the model as it is now on the validation set."""
        assert self.evaluator is not None
        recipe, evaluator = self.recipe, self.evaluator()
        attack = Attack.parse(recipe.validate.attack)
        # Of several processes one cannot leave the others in the middle.
        watch = self.signals.raise_if_any if self.ranks.size == 1 else (lambda *_: None)
        found = {"clean": evaluator.correct(Attack.parse("clean"), None, watch=watch)}
        if attack.perturbs:
            found["robust"] = evaluator.correct(
                attack,
                recipe.attack.threat,
                precision=self.precision.precision,
                seed=recipe.train.seed,
                watch=watch,
            )
            if self._attack_config().steps == 1:
                found["fgsm"] = evaluator.correct(
                    Attack.parse("fgsm"),
                    recipe.attack.threat,
                    precision=self.precision.precision,
                    seed=recipe.train.seed,
                    watch=watch,
                )
        return {name: correct.float().mean().item() for name, correct in found.items()}

    def _validate(self, log: RunLog | SilentLog) -> None:
        """Measure, keep the weights if they are the best so far, and count towards patience."""
        progress, recipe = self.progress, self.recipe
        if progress.validated_at == progress.step:
            return  # `validate.every` fell on the end of the epoch
        self._check_finite()
        if self.evaluator is None:
            self._keep_best({"step": progress.step})
            progress.validated_at = progress.step
            return
        outcome = self._accuracies()
        progress.validated_at = progress.step
        score = outcome.get("robust", outcome["clean"])
        better = progress.best is None or score > progress.best
        if better:
            progress.best, progress.after = score, outcome
            progress.validations_without_gain = 0
            self._keep_best({"step": progress.step, "validation": outcome, "original": progress.before})
        else:
            progress.validations_without_gain += 1
        log.write("validate", progress.step, epoch=progress.epoch, best=better, **outcome)
        log.say(f"step {progress.step}: {recipe.validate.set} {shown(outcome)}{' (best)' if better else ''}")
        self._watch_overfitting(outcome, log)
        patience = recipe.train.patience
        if patience is not None and progress.validations_without_gain >= patience:
            log.say(f"no gain in {counted(patience, 'validation')}: stopped")
            progress.finished = True

    def _watch_overfitting(self, outcome: dict[str, float], log: RunLog | SilentLog) -> None:
        """Go on with two steps where the model resists one step only (catastrophic overfitting; Wong et al. 2020)."""
        gap = outcome.get("fgsm", 0) - outcome.get("robust", 0)
        if gap > self.recipe.attack.overfitting_gap:
            self.progress.attack_steps = 2
            log.say(
                f"step {self.progress.step}: accuracy under one step is {100 * gap:.1f} points above that under "
                f"{self.recipe.validate.attack}: the model overfits to one step, training goes on with two"
            )

    def _keep_best(self, about: dict[str, Any]) -> None:
        card = {
            **about,
            "pairs_seen": self.progress.pairs_seen,
            **({"pflops": self.progress.flops / 1e15} if self.progress.flops else {}),
            "version": __version__,
            "precision": vars(self.precision),
            "recipe": self.recipe.tree(),
            "trained_on": trained_on(
                read_card(self.recipe.model.name), self.recipe.data.train, self.recipe.data.also
            ),
        }
        model = self._whole_model()
        if self.ranks.rank == 0:
            with writing(self.out / BEST, self._last_good):
                save_model(model, self.out / BEST, card)

    def _whole_model(self) -> CLIP:
        if self.split:
            self.complete.load_state_dict(sharding.whole(self.model.state_dict()))
        return self.complete

    def _save(self, log: RunLog | SilentLog) -> None:
        self._check_finite()
        progress = vars(self.progress).copy()
        # What differs between the processes.
        mine = {
            "position": progress.pop("position"),
            "dirt": {"counts": dict(self.dirt.counts), "examples": dict(self.dirt.examples)},
            **random_state(self.accelerator.device),
        }
        processes = self.ranks.objects(mine)
        model, optimizer = self._whole_model().state_dict(), sharding.whole(self.optimizer.state_dict())
        if self.ranks.rank != 0:
            return
        state = {
            "model": model,
            "optimizer": optimizer,
            "progress": progress,
            "processes": processes,
            "recipe": self.recipe.toml(),
            "logged": log.sync(),
        }
        if self.method.original is not None:
            state["original"] = self.method.original.state_dict()
        with writing(self.out / CHECKPOINTS, self._last_good):
            save_checkpoint(
                self.out / CHECKPOINTS, self.progress.step, state, keep=self.recipe.checkpoint.keep
            )

    def _restore(self) -> None:
        folder = self.out / CHECKPOINTS
        if not self.ranks.first(lambda: bool(checkpoints(folder))):
            self.says.append(f"{self.out} has no checkpoint yet: the run starts from the beginning")
            return
        state, wrong = load_last(folder)
        self.ranks.wait_for_all()
        self.says += [f"passed over: {reason}" for reason in wrong]
        changed = difference(state["recipe"], self.recipe.toml())
        if changed:
            raise ValueError(f"the recipe differs from the one {self.out} was started with: {changed}")
        processes = state["processes"]
        if len(processes) != self.ranks.size:
            raise ValueError(
                f"{self.out} was started with {len(processes)} process(es) and can only be resumed with as many, not "
                f"{self.ranks.size}: each has its own place in the data"
            )
        sharding.load_weights(self.model, state["model"])
        if self.method.original is not None:
            self.method.original.load_state_dict(state["original"])
        sharding.load_optimizer(self.optimizer, state["optimizer"], self.parameters)
        mine = processes[self.ranks.rank]
        self.progress = Progress(**state["progress"], position=mine["position"])
        # A checkpoint of an older version does not say it: every line stays.
        self.logged = state.get("logged", sys.maxsize)
        self.dirt = self.pairs.dirt = Dirt(Counter(mine["dirt"]["counts"]), dict(mine["dirt"]["examples"]))
        set_random_state(mine, self.accelerator.device)
        if self.progress.step:
            self.says.append(f"resumed after step {self.progress.step}")

    def _claim(self, resume: bool) -> None:
        """The folder for this run alone, if it is there already; ValueError where it cannot take the run."""
        check_folder(self.out, resume)
        if self.out.is_dir():
            self.lock = hold(self.out)

    def _begin(self) -> None:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self.lock = self.lock or hold(self.out)
            recover_folder(self.out / BEST)
            write_text(self.out / RECIPE_FILE, f"# {self.precision}\n{self.recipe.toml()}")
        except OSError as error:
            raise ValueError(f"cannot write to {self.out}: {error.strerror}") from None

    def _log(self) -> RunLog | SilentLog:
        if self.ranks.rank != 0:
            return SilentLog()
        tracked = bool(self.recipe.log.trackers)
        if tracked:
            values = {
                key: value if isinstance(value, int | float) else str(value)
                for key, value in leaves(self.recipe.tree()).items()
            }
            # A folder of one name, whatever the project is called: a run that begins anew there knows it as its own.
            self.accelerator.project_configuration.logging_dir = str(self.out / "tensorboard")
            # As in metrics.jsonl, what an interrupted run wrote after its checkpoint does not count.
            purged = {"tensorboard": {"purge_step": self.progress.step + 1}}
            self.accelerator.init_trackers(self.recipe.log.project, values, purged)
        return RunLog(
            self.out,
            self.total_steps,
            resume_step=self.progress.step,
            kept=self.logged,
            console=self.console,
            tracker=self.accelerator if tracked else None,
        )

    def _last_good(self) -> str:
        """The end of a message about a failure."""
        try:
            saved = checkpoints(self.out / CHECKPOINTS)
        except ValueError as error:
            return f"Which checkpoint is the last good one is unknown: {error}."
        if not saved:
            return "There is no checkpoint yet."
        return f"The last good checkpoint is that of step {step_of(saved[-1])}."

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Failures of a step that have a known meaning become a `RunError`."""
        try:
            yield
        except LostRank as error:
            raise RunError(f"step {self.progress.step + 1}: {error}. {self._last_good()}") from error
        except (RunError, Interrupted):
            raise
        except ValueError as error:
            if self.ranks.size == 1:
                raise
            # Of the data of this process alone, for all we know.
            raise RunError(str(error)) from error
        except (RuntimeError, MemoryError, OSError) as error:
            meaning = explained(error, ranks=self.ranks.size)
            if meaning is None:
                raise
            raise RunError(f"step {self.progress.step + 1}: {meaning}. {self._last_good()}") from error
