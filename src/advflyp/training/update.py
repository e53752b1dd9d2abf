"""One update: text embeddings, attack (inner maximisation), losses (outer minimisation), optimiser."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advflyp.attack.pgd import AttackConfig, ascend
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat, widest
from advflyp.data.batch import Batch
from advflyp.devices import to_device
from advflyp.method.base import FromEmbeddings, Method
from advflyp.seeds import derive_seed
from advflyp.training import sharding
from advflyp.training.optim import learning_rate

if TYPE_CHECKING:
    from advflyp.training.build import TrainingRun

# Pixels drawn at a time, through int64 temporaries: few enough for a CPU's cache, many for few kernels on a GPU.
DRAWN_ON_CPU, DRAWN_ON_ACCELERATOR = 2**20, 2**24
# Radius of N-FGSM's start, in ε.
NOISE = 2


class Objective(nn.Module):
    """A method's losses as a module, which DDP can wrap to exchange gradients."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.model = method.model
        self.method = method

    def forward(self, images: Tensor, images_adv: Tensor, batch: Batch) -> dict[str, Tensor]:
        losses = self.method.losses(images, images_adv, batch)
        if not isinstance(losses, dict) or any(loss.dim() for loss in losses.values()):
            raise ValueError(
                f"{type(self.method).__name__}.losses must return a dict of scalars, such as "
                '{"contrastive": losses.mean()}'
            )
        return losses


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """The result of an attack; without one, the clean images.

    Attributes:
        images: (n, 3, H, W) adversarial images.
        loss_at_start: The batch's loss where the attack began, a scalar.
        clean_embeddings: f_θ(x) with its graph, if the attack's forward pass is shared.
    """

    images: Tensor
    loss_at_start: Tensor | None = None
    clean_embeddings: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Updated:
    """The result of one update.

    Attributes:
        batch: The batch as the method saw it: images at the size of the step, with the text embeddings.
        images_adv: (n, 3, H, W) adversarial images; the clean ones without an attack.
        metrics: Losses, the gradient norm and the attack's gain, as device scalars that have not been waited for.
    """

    batch: Batch
    images_adv: Tensor
    metrics: dict[str, Tensor]


def update(run: "TrainingRun", batch: Batch) -> Updated:
    """Attack a batch, and take an optimiser step on the method's losses."""
    recipe, model = run.recipe, run.model
    updates_statistics = recipe.train.batch_norm == "update"
    attack = attack_config(run)
    images = resized(run, to_device(batch.images, model.device).to(model.dtype))
    found = Adversarial(images=images)
    batch = replace(batch, images=images)
    # Those of a frozen tower are cached, and so no cost of every step; and without dropout.
    if not recipe.train.trains_texts:
        batch = run.add_texts(batch)
    model.train(updates_statistics)
    run.optimizer.zero_grad(set_to_none=True)
    counting = run.meter.counting(recipe.train.compile or run.is_sharded, (images.shape, attack))
    with counting, run.replaying(run.method.original):
        if recipe.train.trains_texts:
            batch = run.add_texts(batch)
        if attack.steps > 0:
            model.eval()
            found = find_adversarial(run, batch)
            model.train(updates_statistics)
        losses = run.objective(images, found.images, replace(batch, clean_embeddings=found.clean_embeddings))
        loss = torch.stack(list(losses.values())).sum()
        # DDP and FSDP average gradients over the ranks; the whole batch's gradient is the sum of the ranks' parts.
        (loss * run.ranks.size).backward()
    metrics = {"loss": loss.detach(), **{f"loss/{name}": value.detach() for name, value in losses.items()}}
    if found.loss_at_start is not None:
        metrics["attack_gain"] = next(iter(losses.values())).detach() / found.loss_at_start
    metrics["grad_norm"] = _move_weights(run)
    if updates_statistics:
        _share_statistics(run)
    model.eval()
    return Updated(batch=batch, images_adv=found.images, metrics=metrics)


def _share_statistics(run: "TrainingRun") -> None:
    """Average what batch normalisation has estimated on each rank: all validate and resume the model that is saved."""
    if run.ranks.size > 1:
        for name, buffer in run.model.named_buffers():
            # Other buffers are constants, which a mean of several ranks may round.
            if name.endswith((".running_mean", ".running_var")):
                buffer.copy_(run.ranks.all_reduce_sum(buffer) / run.ranks.size)


def _move_weights(run: "TrainingRun") -> Tensor:
    """Clip the gradient and take the optimiser's step; returns the gradient norm before clipping."""
    config = run.recipe.optim
    gradients = [p.grad for p in run.parameters if p.grad is not None]
    norm = sharding.unsharded(torch.nn.utils.get_total_norm(gradients))
    if config.max_grad_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(run.parameters, config.max_grad_norm, norm)
    rate = learning_rate(config, run.state.step, run.total_steps)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    run.optimizer.step()
    # τ⁻¹ is at most 100, as in CLIP's pretraining; SigLIP's, pretrained to 117, stays uncapped.
    if run.recipe.train.unfreeze == "all" and run.model.logit_bias is None:
        with torch.no_grad():
            run.model.net.logit_scale.clamp_(0, math.log(100))
    return norm


def attack_config(run: "TrainingRun") -> AttackConfig:
    """The recipe's attack, or its replacement with more steps once one was not enough."""
    attack, steps = run.recipe.attack, run.state.attack_steps
    if steps is None:
        return attack
    return replace(attack, steps=steps, start="random", share_clean_forward=False)


def find_adversarial(run: "TrainingRun", batch: Batch) -> Adversarial:
    """Eq. 6: attack the batch jointly; the random start depends on (seed, step) alone."""
    attack = attack_config(run)
    if attack.share_clean_forward:
        assert isinstance(run.method, FromEmbeddings)  # check_attack
        return perturbed_sharing(run.method, batch, attack)
    # A sharded tower computes with other parameters than these; autograd skips their gradients anyway.
    frozen = constant([] if run.is_sharded else run.parameters)
    with frozen, run.casts.in_place(), run.replaying(run.model):
        return perturbed(run.method, batch, attack, run.recipe.train.seed, run.state.step)


def resized(run: "TrainingRun", images: Tensor) -> Tensor:
    """Resize images to this step's size: decoded ones have the model's size, a mini corpus's are always 64×64."""
    side = run.recipe.data.size_at(run.state.step, run.total_steps)
    size = run.model.image_size if side is None else (side, side)
    if tuple(images.shape[-2:]) == size:
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)


def random_start(images: Tensor, threat: Threat, seed: int, step: int, first_row: int = 0) -> Tensor:
    """Draw this rank's rows of a random start for the whole batch.

    A row's draw depends only on the seed, the step and the row's place in the whole batch, so δ₀ does not depend on
    the number of ranks or on the device: bit-identical in L∞, equal up to rounding in L2.

    Args:
        images: The rank's own n rows, (n, 3, H, W) pixels in [0, 1].
        threat: The ball to draw from.
        seed: The run's seed.
        step: Updates made so far.
        first_row: Where in the whole batch these rows begin.

    Returns:
        (n, 3, H, W) images inside `threat`.
    """
    drawn = DRAWN_ON_CPU if images.device.type == "cpu" else DRAWN_ON_ACCELERATOR
    size = max(1, drawn // images[0].numel())
    places = torch.arange(first_row, first_row + len(images), device=images.device)
    parts = zip(images.split(size), places.split(size), strict=True)
    key = derive_seed(seed, step)
    return torch.cat([threat.random_start(part, Streams(key, at)) for part, at in parts])


def perturbed(method: Method, batch: Batch, attack: AttackConfig, seed: int, step: int) -> Adversarial:
    """Eq. 6: attack this rank's rows of the batch, jointly with the other ranks', from the recipe's start."""
    images, threat = batch.images, attack.threat
    at_start: list[Tensor] = []

    def loss(candidates: Tensor) -> Tensor:
        value = method.attack_loss(candidates, batch)
        if not at_start:
            at_start.append(_of_batch(method, value))
        return value

    if attack.start == "zero":
        start = images
    elif attack.start == "random":
        start = random_start(images, threat, seed, step, method.ranks.first_row)
    else:
        noise = Threat(norm=attack.norm, eps=min(NOISE * attack.eps, widest(attack.norm)))
        start = random_start(images, noise, seed, step, method.ranks.first_row)
        # What the step can reach, so that it is never projected.
        threat = Threat(norm=attack.norm, eps=min(noise.eps + attack.step_size, widest(attack.norm)))
    found = ascend(images, start, loss, threat, steps=attack.steps, step_size=attack.step_size)
    return Adversarial(images=found, loss_at_start=at_start[0])


def perturbed_sharing(method: FromEmbeddings, batch: Batch, attack: AttackConfig) -> Adversarial:
    """A single step from the clean images; the losses reuse its forward pass and graph."""
    leaf = batch.images.detach().requires_grad_()
    clean = method.model.encode_image(leaf)
    value = method.attack_loss_of(clean, batch)
    (gradient,) = torch.autograd.grad(value.sum(), leaf, retain_graph=True)
    found = attack.threat.project(batch.images, attack.threat.step(batch.images, gradient, attack.step_size))
    return Adversarial(images=found, loss_at_start=_of_batch(method, value), clean_embeddings=clean)


def _of_batch(method: Method, loss: Tensor) -> Tensor:
    found = loss.detach()
    return method.ranks.mean(found) if found.ndim else found


@contextmanager
def constant(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within the block the parameters require no gradient, so autograd keeps nothing for it."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
