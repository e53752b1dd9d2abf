"""Our AdvFLYP step beside a plain transcription of Algorithm 1, alternating in one process.

    python benchmarks/train_step.py                         # mini and ViT-B/32 at batch 16, CPU, float32
    python benchmarks/train_step.py --models ViT-B-32/random --batch-size 256 --device cuda --precision bf16

Prints the median seconds of each and the ratio of the medians; both do PGD-2 from the same start, the same losses,
SGD with momentum, the same precision, and are checked to reach the same loss first. The transcription follows the
pseudocode line by line: it encodes the texts wherever a loss needs them, perturbs through `loss.backward()`, and
runs the adversarial, clean and original branches one after another.
"""

import shutil
import statistics
import tempfile
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Literal

import torch
import tyro
from torch.nn import functional as F

from advflyp.model.clip import CLIP
from advflyp.training.recipe import Recipe, read_recipe
from advflyp.training.step import derive_seed
from advflyp.training.trainer import Trainer

RECIPE = """
[model]
name = "{model}"
[data]
train = "mini"
batch_size = {batch_size}
[method]
name = "advflyp"
feature_weight = {weight}
logit_weight = {weight}
[optim]
name = "sgd"
warmup_steps = 0
schedule = "constant"
[train]
precision = "{precision}"
device = "{device}"
"""


@dataclass
class Arguments:
    """What to time."""

    models: tuple[str, ...] = ("mini/random", "ViT-B-32/random")
    batch_size: int = 16
    steps: int = 5
    """Timed steps of each kind, after one that is not counted."""
    precision: Literal["fp32", "bf16"] = "fp32"
    device: Literal["cpu", "cuda"] = "cpu"


class Transcription:
    """Algorithm 1, PyTorch-style, as printed."""

    def __init__(self, model: CLIP, recipe: Recipe, regularised: bool) -> None:
        self.f = model
        self.F = deepcopy(model)
        self.recipe = recipe
        self.regularised = regularised
        self.optimizer = torch.optim.SGD(
            model.visual.parameters(), lr=recipe.optim.lr, momentum=recipe.optim.momentum
        )

    def l_clip(self, images: torch.Tensor, captions: list[str]) -> torch.Tensor:
        logits = self.f.logit_scale * self.f.encode_image(images) @ self.f.encode_text(captions).T
        target = torch.arange(len(images), device=images.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def step(self, images: torch.Tensor, captions: list[str], start: torch.Tensor) -> float:
        attack = self.recipe.attack
        delta = start - images
        for _ in range(attack.steps):
            delta.requires_grad_(True)
            self.l_clip(images + delta, captions).backward()
            assert delta.grad is not None
            delta = (delta.detach() + attack.step_size * delta.grad.sign()).clamp(-attack.eps, attack.eps)
            delta = (images + delta).clamp(0, 1) - images
        loss = self.l_clip(images + delta, captions)
        if self.regularised:
            x = self.f.encode_image(images + delta)
            x_c = self.f.encode_image(images)
            x_ori = self.F.encode_image(images + delta).detach()
            t = self.f.encode_text(captions)
            l_feat = (x - x_c).norm(dim=-1) + (x - x_ori).norm(dim=-1)
            s = self.f.logit_scale
            p, p_c, p_ori = ((s * z @ t.T).log_softmax(-1) for z in (x, x_c, x_ori))
            l_logit = (p.exp() * (p - p_c)).sum(-1) + (p.exp() * (p - p_ori)).sum(-1)
            loss = loss + l_logit.mean() + l_feat.mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def compare(name: str, regularised: bool, arguments: Arguments, folder: Path) -> None:
    path = folder / "recipe.toml"
    path.write_text(
        RECIPE.format(
            model=name,
            batch_size=arguments.batch_size,
            weight=float(regularised),
            precision=arguments.precision,
            device=arguments.device,
        )
    )
    recipe = read_recipe(path)
    trainer = Trainer(recipe, folder / "run")
    batches = iter(trainer.pairs.epoch(0))
    plain = Transcription(deepcopy(trainer.model), recipe, regularised)
    plain.f.requires_grad_(False).visual.requires_grad_(True)
    size = trainer.model.image_size
    sync = torch.cuda.synchronize if arguments.device == "cuda" else lambda: None

    times: dict[str, list[float]] = {"ours": [], "transcription": []}
    for index in range(arguments.steps + 1):
        batch = next(batches)
        images = batch["images"] = F.interpolate(batch["images"], size, mode="bilinear")
        captions = batch["captions"]
        random = torch.Generator(images.device).manual_seed(derive_seed(recipe.train.seed, index))
        start = recipe.attack.threat.random_start(images, random)
        sync()
        begin = perf_counter()
        ours = trainer.step(batch)["loss"].item()
        sync()
        middle = perf_counter()
        theirs = plain.step(images, captions, start)
        sync()
        end = perf_counter()
        trainer.progress.step += 1
        if index:
            times["ours"].append(middle - begin)
            times["transcription"].append(end - middle)
    medians = {key: statistics.median(values) for key, values in times.items()}
    print(
        f"{name:16} {'AdvFLYP_full' if regularised else 'AdvFLYP':13} batch {arguments.batch_size} "
        f"{arguments.precision} {arguments.device}: ours {medians['ours']:.3f} s, transcription "
        f"{medians['transcription']:.3f} s, ratio {medians['transcription'] / medians['ours']:.2f}; "
        f"last losses {ours:.4f} and {theirs:.4f}",
        flush=True,
    )


def main() -> None:
    arguments = tyro.cli(Arguments)
    for name in arguments.models:
        for regularised in (False, True):
            folder = Path(tempfile.mkdtemp())
            try:
                compare(name, regularised, arguments, folder)
            finally:
                shutil.rmtree(folder)


if __name__ == "__main__":
    main()
