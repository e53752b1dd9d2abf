"""The training loop: data → attack → losses → step; nothing here knows a method by name."""

import hashlib
import math
import os
from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from advflyp.__about__ import __version__
from advflyp.attack.pgd import pgd
from advflyp.data.classes import Classes, open_training, readings
from advflyp.data.dirt import Dirt
from advflyp.data.images import PictureReader
from advflyp.data.labelled import load_set
from advflyp.data.stream import Position
from advflyp.evaluation.attacks import Attack
from advflyp.evaluation.judge import Judge
from advflyp.method import METHODS
from advflyp.method.base import Batch, Method
from advflyp.model.clip import CLIP, TextCache
from advflyp.model.hub import BEST, save_model, start_from
from advflyp.model.text_store import TextStore
from advflyp.model.zeroshot import ClassTexts
from advflyp.runlog import METRICS_FILE, RunLog
from advflyp.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from advflyp.training.optim import learning_rate, make_optimizer, set_learning_rate
from advflyp.training.recipe import Recipe, read_recipe

LOG_EVERY = 10
RECIPE_FILE = "recipe.toml"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What `train` returns.

    out:   the run folder; `load_model(out)` gives the best weights
    steps: updates made, resumed ones included
    best:  the best validation accuracy (0–1), None without validation
    """

    out: Path
    steps: int
    best: float | None


@dataclass
class Progress:
    """Where a run stands; stored in every checkpoint."""

    step: int = 0
    epoch: int = 0
    position: Position | None = None  # of the data in this epoch, as its source counts
    pairs_seen: int = 0
    best: float | None = None
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

    recipe:    a TOML file
    overrides: {"optim.lr": 1e-4, …}
    resume:    continue the run in `out` from its last checkpoint
    console:   where progress is shown; none is silent
    ValueError for a recipe, data, model or folder that cannot be used.
    """
    return Trainer(read_recipe(recipe, overrides), Path(out), resume=resume, console=console).fit()


class Trainer:
    """One run: `fit()` does all of it, `step(batch)` one update."""

    def __init__(
        self, recipe: Recipe, out: Path, *, resume: bool = False, console: Console | None = None
    ) -> None:
        self.recipe = recipe
        self.out = out
        self.console = console
        self._check_folder(resume)
        method, _ = METHODS[recipe.method_name]
        self._check_data(method)
        self.accelerator = _accelerator(recipe.train.device)
        device = self.accelerator.device
        torch.manual_seed(recipe.train.seed)  # fresh weights of a model/random

        self.model = start_from(recipe.model, device=device)
        self.model.precision = recipe.train.precision
        self.method = method(recipe.method, self.model)
        self.pairs = open_training(
            recipe.data,
            method.trains_on,
            PictureReader(self.model.config["preprocess_cfg"], recipe.data.resize),
            seed=recipe.train.seed,
            device=device,
        )
        if self.method.needs_original:
            self.method.original = deepcopy(self.model).requires_grad_(False)
        self.parameters = _unfreeze(self.model, recipe.train.unfreeze)
        # A cached embedding's last bits depend on which texts shared its batch, so on where a run resumed.
        frozen = recipe.train.unfreeze == "vision"
        cached = frozen and not recipe.train.deterministic
        self.embed_text = self.model.encode_text
        if cached and recipe.data.text_cache is not None:
            self.embed_text = TextStore(self.model, recipe.data.text_cache)
        elif cached:
            self.embed_text = TextCache(self.model)
        self.embed_classes = None
        if isinstance(self.pairs, Classes):
            self.embed_classes = ClassTexts(
                self.model, self.pairs.classes, self.pairs.templates, frozen=frozen
            )
        self.optimizer = make_optimizer(self.parameters, recipe.optim)
        self.total_steps = recipe.train.epochs * len(self.pairs)
        if recipe.train.max_steps is not None:
            self.total_steps = min(self.total_steps, recipe.train.max_steps)
        self.judge = None
        if recipe.validate.set is not None:
            labelled = load_set(recipe.validate.set)
            self.judge = lambda: Judge(
                self.model, labelled, limit=recipe.validate.limit, seed=recipe.train.seed
            )
        self.progress = Progress()
        if resume:
            self._restore()

    def fit(self) -> RunResult:
        """Train to the end, or to the point where validation stops improving."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / RECIPE_FILE).write_text(self.recipe.toml())
        except OSError as error:
            raise ValueError(f"cannot write to {self.out}: {error.strerror}") from None
        progress = self.progress
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(self.recipe.train.deterministic)
        try:
            with RunLog(self.out, self.total_steps, resume_step=progress.step, console=self.console) as log:
                while not progress.finished:
                    self._run_epoch(log)
        finally:
            torch.use_deterministic_algorithms(before)
        return RunResult(out=self.out, steps=progress.step, best=progress.best)

    def _run_epoch(self, log: RunLog) -> None:
        progress, validate, checkpoint = self.progress, self.recipe.validate, self.recipe.checkpoint
        window = Window()
        named = set(self.pairs.dirt.examples)
        for batch in self.pairs.epoch(progress.epoch, progress.position):
            window.add(self.step(batch), len(batch["captions"]))
            progress.step += 1
            progress.position = batch["position"]
            progress.pairs_seen += len(batch["captions"])
            for reason in self.pairs.dirt.examples.keys() - named:
                named.add(reason)
                log.say(f"left out: {reason}, such as {self.pairs.dirt.examples[reason]}")
            if progress.step % LOG_EVERY == 0 or progress.step == self.total_steps:
                metrics = window.means()
                rate = self.optimizer.param_groups[0]["lr"]
                about = {"epoch": progress.epoch, "seen": progress.pairs_seen, "lr": rate}
                log.write("train", progress.step, **about, **metrics)
                speed = f"{metrics['pairs_per_second']:.0f} pairs/s"
                log.advance(progress.step, f"loss {metrics['loss']:.3f}  {speed}")
                window = Window()
            if progress.step == self.total_steps:
                break
            if validate.every is not None and progress.step % validate.every == 0:
                self._validate(log)
                if progress.finished:
                    break
            if progress.step % checkpoint.every == 0:
                self._save()
        else:
            if progress.position is None:
                raise ValueError(
                    f"no batch of {self.recipe.data.batch_size} usable samples in {self.recipe.data.train}: "
                    f"{self.pairs.dirt.describe()}"
                )
        dirt = self.pairs.dirt
        if dirt.counts:
            log.write(
                "data", progress.step, epoch=progress.epoch, skipped=dict(dirt.counts), examples=dirt.examples
            )
            log.say(f"unusable samples so far: {dirt.describe()}")
        progress.epoch += 1
        progress.position = None
        last = progress.step == self.total_steps or progress.epoch == self.recipe.train.epochs
        if not progress.finished:
            self._validate(log)
        progress.finished = progress.finished or last
        self._save()

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One update; the losses as device scalars, still unsynchronised."""
        recipe, model = self.recipe, self.model
        update_statistics = recipe.train.batch_norm == "update"
        images = batch["images"] = self._fitted(batch["images"].to(model.device, non_blocking=True))
        model.train(update_statistics)
        self.embed_texts(batch)
        images_adv = images
        metrics: dict[str, Tensor] = {}
        if recipe.attack.steps > 0:
            model.eval()
            images_adv = self.attack(images, batch)
            model.train(update_statistics)
        losses = self.method.losses(images, images_adv, batch)
        loss = torch.stack(list(losses.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        if recipe.optim.max_grad_norm is not None:
            metrics["grad_norm"] = torch.nn.utils.clip_grad_norm_(self.parameters, recipe.optim.max_grad_norm)
        set_learning_rate(self.optimizer, learning_rate(recipe.optim, self.progress.step, self.total_steps))
        self.optimizer.step()
        if recipe.train.unfreeze == "all" and model.logit_bias is None:
            with torch.no_grad():
                # τ⁻¹ ≤ 100, as CLIP was pretrained. Not so SigLIP, which comes with 117.
                self.model.net.logit_scale.clamp_(0, math.log(100))  # type: ignore[operator, union-attr]
        model.eval()
        return {
            "loss": loss.detach(),
            **{f"loss/{name}": value.detach() for name, value in losses.items()},
            **metrics,
        }

    def embed_texts(self, batch: Batch) -> None:
        """Add to the batch the embeddings that the method is promised (`Batch`)."""
        if self.method.trains_on == "pairs":
            batch["text_embeddings"] = self.embed_text(batch["captions"])
        elif self.method.trains_on == "labelled":
            assert self.embed_classes is not None
            labels = batch["labels"] = batch["labels"].to(self.model.device, non_blocking=True)
            batch.update(self.embed_classes(labels))

    def _fitted(self, images: Tensor) -> Tensor:
        """At the model's resolution: decoded pictures are, those of a mini corpus are 64×64 for any model."""
        if tuple(images.shape[-2:]) == self.model.image_size:
            return images
        return F.interpolate(images, self.model.image_size, mode="bicubic", antialias=True).clamp(0, 1)

    def attack(self, images: Tensor, batch: Batch) -> Tensor:
        """Eq. 6: perturb the batch jointly; the random start depends on (seed, step) alone."""
        attack = self.recipe.attack
        generator = torch.Generator(images.device)
        generator.manual_seed(derive_seed(self.recipe.train.seed, self.progress.step))
        return pgd(
            images,
            lambda candidates: self.method.attack_loss(candidates, batch),
            attack.threat,
            steps=attack.steps,
            step_size=attack.step_size,
            generator=generator,
        )

    def _validate(self, log: RunLog) -> None:
        """Measure, keep the weights if they are the best so far, and count towards patience."""
        progress, recipe = self.progress, self.recipe
        if progress.validated_at == progress.step:
            return  # `validate.every` fell on the end of the epoch
        progress.validated_at = progress.step
        if self.judge is None:
            self._keep_best({"step": progress.step})
            return
        judge = self.judge()
        attack = Attack.parse(recipe.validate.attack)
        seed = recipe.train.seed
        outcome = {"clean": judge.correct(Attack.parse("clean"), None).float().mean().item()}
        if attack.perturbs:
            robust = judge.correct(attack, recipe.attack.threat, precision=recipe.train.precision, seed=seed)
            outcome["robust"] = robust.float().mean().item()
        score = outcome.get("robust", outcome["clean"])
        better = progress.best is None or score > progress.best
        if better:
            progress.best = score
            progress.validations_without_gain = 0
            self._keep_best({"step": progress.step, "validation": outcome})
        else:
            progress.validations_without_gain += 1
        log.write("validate", progress.step, epoch=progress.epoch, best=better, **outcome)
        shown = ", ".join(f"{name} {100 * value:.1f} %" for name, value in outcome.items())
        log.say(f"step {progress.step}: {recipe.validate.set} {shown}{' (best)' if better else ''}")
        patience = recipe.train.patience
        if patience is not None and progress.validations_without_gain >= patience:
            log.say(f"no gain in {patience} validations: stopped")
            progress.finished = True

    def _keep_best(self, about: dict[str, Any]) -> None:
        card = {
            **about,
            "pairs_seen": self.progress.pairs_seen,
            "version": __version__,
            "recipe": self.recipe.tree(),
        }
        save_model(self.model, self.out / BEST, card)

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": vars(self.progress).copy(),
            "dirt": {"counts": dict(self.pairs.dirt.counts), "examples": dict(self.pairs.dirt.examples)},
            "rng": torch.get_rng_state(),
            "recipe": self.recipe.toml(),
        }
        if self.method.original is not None:
            state["original"] = self.method.original.state_dict()
        save_checkpoint(self.out / CHECKPOINTS, self.progress.step, state, keep=self.recipe.checkpoint.keep)

    def _restore(self) -> None:
        state = load_checkpoint(checkpoints(self.out / CHECKPOINTS)[-1])
        if state["recipe"] != self.recipe.toml():
            raise ValueError(
                f"the recipe differs from the one {self.out} was started with: "
                f"{_difference(state['recipe'], self.recipe.toml())}"
            )
        self.model.load_state_dict(state["model"])
        if self.method.original is not None:
            self.method.original.load_state_dict(state["original"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
        self.pairs.dirt = Dirt(Counter(state["dirt"]["counts"]), dict(state["dirt"]["examples"]))
        torch.set_rng_state(state["rng"])

    def _check_folder(self, resume: bool) -> None:
        """ValueError before anything is loaded or written, if `out` cannot take this run."""
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"{self.out} is a file; name a folder for the run")
        saved = checkpoints(self.out / CHECKPOINTS)
        if resume and not saved:
            raise ValueError(f"{self.out} has no checkpoint to resume from; start it without --resume")
        if not resume and (saved or (self.out / BEST).exists()):
            raise ValueError(
                f"{self.out} holds another run; continue it with --resume or name another folder"
            )
        # What a run leaves that died before its first checkpoint may be overwritten.
        ours = {RECIPE_FILE, METRICS_FILE, CHECKPOINTS}
        if not resume and self.out.is_dir() and {path.name for path in self.out.iterdir()} - ours:
            raise ValueError(f"{self.out} is not empty; name a new folder for the run")
        parent = next(folder for folder in (self.out, *self.out.absolute().parents) if folder.exists())
        if not os.access(parent, os.W_OK | os.X_OK):
            raise ValueError(f"no permission to write to {parent}; name another folder for the run")

    def _check_data(self, method: type[Method]) -> None:
        """ValueError, before anything is loaded or written, for data of the kind that the method cannot use."""
        train, wanted = self.recipe.data.train, method.trains_on
        found = readings(train)
        if wanted == "images" or not found or wanted in found:
            return
        others = [name for name, (other, _) in METHODS.items() if other.trains_on in (*found, "images")]
        has, lacks = (
            ("labelled pictures", "image–text pairs") if wanted == "pairs" else ("pairs", "labelled ones")
        )
        instead = "mini" if wanted == "pairs" else "mini/proxy"
        raise ValueError(
            f"method.name = '{self.recipe.method_name}' trains on {lacks}, and data.train = '{train}' holds {has}; "
            f"name other data, such as {instead}, or one of the methods {', '.join(sorted(others))}"
        )


@dataclass
class Window:
    """Losses of the steps since the last log line, read from the device only when the line is written."""

    rows: list[dict[str, Tensor]] = field(default_factory=list)
    pairs: int = 0
    started: float = field(default_factory=perf_counter)

    def add(self, metrics: dict[str, Tensor], pairs: int) -> None:
        self.rows.append(metrics)
        self.pairs += pairs

    def means(self) -> dict[str, float]:
        means = {key: torch.stack([row[key] for row in self.rows]).mean().item() for key in self.rows[0]}
        return {**means, "pairs_per_second": round(self.pairs / (perf_counter() - self.started), 1)}


def derive_seed(*parts: Any) -> int:
    """A 63-bit seed from any values, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _unfreeze(model: CLIP, what: str) -> list[torch.nn.Parameter]:
    """Let gradients reach the named part only; the parameters to be trained."""
    chosen = []
    for name, parameter in model.net.named_parameters():
        is_vision, is_scale = name.startswith("visual."), name in ("logit_scale", "logit_bias")
        wanted = is_vision or (what == "all") or (what == "vision+text" and not is_scale)
        # A parameter the architecture itself keeps constant (fixed position tables) stays so.
        parameter.requires_grad_(wanted and parameter.requires_grad)
        if parameter.requires_grad:
            chosen.append(parameter)
    return chosen


def _accelerator(device: str) -> Accelerator:
    # Accelerate keeps one state for the process; a second run may ask for another device.
    AcceleratorState._reset_state(reset_partial_state=True)
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("train.device is 'cuda', but torch finds no CUDA device here; use 'auto' or 'cpu'")
    return Accelerator(cpu=device == "cpu")


def _difference(old: str, new: str) -> str:
    removed, added = (
        set(old.splitlines()) - set(new.splitlines()),
        set(new.splitlines()) - set(old.splitlines()),
    )
    return "; ".join([f"was {line}" for line in sorted(removed)] + [f"is {line}" for line in sorted(added)])
