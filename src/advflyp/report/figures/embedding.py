"""Clean and adversarial images in a model's embedding space: the angle φ between them (Eq. 14), and t-SNE.

Weights are needed only once: embedding.json holds all that is needed to redraw the figures.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from advflyp.attack.losses import LOSSES
from advflyp.attack.pgd import PGD, pgd
from advflyp.attack.streams import Streams
from advflyp.attack.threat import Threat
from advflyp.config import convert
from advflyp.data.sets.labelled import load_set
from advflyp.documents import read_json
from advflyp.evaluation.attacks import find_attack
from advflyp.evaluation.evaluator import Evaluator
from advflyp.files import write_text
from advflyp.model.clip import CLIP
from advflyp.model.deviation import cosine_deviation
from advflyp.model.folder import weights_sha256
from advflyp.model.load import load_model
from advflyp.model.precision import for_use
from advflyp.report.figures.plots import INK, MODELS, MUTED, Look, figure_with_axes, styled
from advflyp.report.measure.estimates import attack_title, radius
from advflyp.report.measure.tables import Table, Value
from advflyp.wording import counted

FILE = "embedding.json"
IMAGES, SEED = 256, 0
ABOUT_MAPS = (
    "t-SNE of the same embeddings, a map for each model: the larger an attacked image's mark, the larger its φ, on one "
    "scale for all maps. t-SNE keeps neighbours and no distances, so that the maps look much alike."
)


@dataclass(frozen=True, kw_only=True)
class TSNEResult:
    """The same N images, clean and attacked, as one model embeds them.

    Attributes:
        sets: N names, the set of each image.
        index: N indices, of each image in its set.
        attack: The attack, made against this model; `norm`, `eps` and `seed` belong to it.
        phi: N angles in radians (Eq. 14).
        clean: N points (x, y), without unit, of one t-SNE computed jointly with `adversarial`.
    """

    label: str
    checkpoint_sha256: str
    sets: list[str]
    index: list[int]
    attack: str
    norm: Literal["linf", "l2"]
    eps: float
    seed: int
    phi: list[float]
    clean: list[list[float]]
    adversarial: list[list[float]]
    perplexity: float

    @property
    def mean_phi(self) -> float:
        """φ of Eq. 14, averaged over the images, in radians."""
        return math.fsum(self.phi) / len(self.phi)


def embed(
    models: Mapping[str, CLIP | str | Path], sets: Sequence[str], *, eps: float, n: int = IMAGES
) -> list[TSNEResult]:
    """Embed the same images with each model, clean and after PGD-10 (L∞) on that model.

    Args:
        models: Models or their names, by label.
        sets: Sets to take the images from, equally many from each, class-balanced.
        eps: Radius in pixels of [0, 1].
        n: Total number of images; fewer if the sets have fewer.
    """
    attack, threat = find_attack("pgd10"), Threat(norm="linf", eps=eps)
    assert isinstance(attack, PGD)
    # An equal share from each set; the remainder comes from the first sets.
    shares = {name: n // len(sets) + (place < n % len(sets)) for place, name in enumerate(sets)}
    result = []
    for label, source in models.items():
        model = source if isinstance(source, CLIP) else load_model(source)
        names: list[str] = []
        index: list[int] = []
        parts: list[tuple[Tensor, Tensor]] = []
        for name, share in shares.items():
            if share:
                evaluator = Evaluator(model, load_set(name), limit=share, seed=SEED, batch_size=64)
                for places, plain, attacked in _embed(evaluator, attack, threat):
                    names += [name] * len(places)
                    index += places.tolist()
                    parts.append((plain, attacked))
        clean, adversarial = (torch.cat(column) for column in zip(*parts, strict=True))
        perplexity = min(30.0, (len(names) - 1) / 3)
        points = tsne(torch.cat([clean, adversarial]), perplexity=perplexity, seed=SEED)
        result.append(
            TSNEResult(
                label=label,
                checkpoint_sha256=weights_sha256(model),
                sets=names,
                index=index,
                attack=attack.name,
                norm="linf",
                eps=eps,
                seed=SEED,
                phi=cosine_deviation(clean, adversarial).tolist(),
                clean=points[: len(names)].round(3).tolist(),
                adversarial=points[len(names) :].round(3).tolist(),
                perplexity=perplexity,
            )
        )
    return result


def _embed(evaluator: Evaluator, attack: PGD, threat: Threat) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Indices of the readable images, and their (N, d) clean and attacked embeddings, float32 on the CPU."""
    model, loss = evaluator.model, LOSSES[attack.loss]
    batches = evaluator.labelled.batches(model.preprocess, evaluator.batch_size, evaluator.index.tolist())
    for index, images, labels in batches:
        images, labels = images.to(model.device), labels.to(model.device)
        # All steps for every image: the attack of an evaluation would stop at the first wrong answer.
        with for_use(model), model.computing_in("fp32"):
            adversarial = pgd(
                images,
                lambda x, labels=labels: loss(evaluator.logits(x), labels),
                threat,
                steps=attack.steps,
                step_size=attack.alpha(threat),
                start=threat.random_start(images, Streams(SEED, index.to(images.device))),
            )
            with torch.no_grad():
                clean, attacked = model.encode_image(images).cpu(), model.encode_image(adversarial).cpu()
        yield index, clean, attacked


def tsne(embeddings: Tensor, *, perplexity: float, seed: int) -> np.ndarray:
    """(N, d) → (N, 2) float64: t-SNE from the first two principal components, the same for the same seed."""
    from sklearn.manifold import TSNE

    search = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed, n_jobs=1)
    return search.fit_transform(embeddings.numpy()).astype(np.float64)


def write_tsne(path: Path, found: Sequence[TSNEResult]) -> None:
    """Store the results as JSON; the file appears complete or not at all."""
    write_text(path, json.dumps([dataclasses.asdict(one) for one in found]) + "\n")


def read_tsne(path: Path) -> list[TSNEResult]:
    """What `write_tsne` stored; empty if there is no file. ValueError if it holds something else."""
    if not path.is_file():
        return []
    try:
        return convert(read_json(path), list[TSNEResult], "the file")
    except ValueError as error:
        raise ValueError(
            f"{path} does not hold embeddings ({error}); delete it, and it will be recreated"
        ) from None


@styled()
def phi_plot(found: Sequence[TSNEResult], look: Look, *, width: int) -> Figure:
    """The angle of every image, a row of dots for each model on one axis; the mean as a line."""
    left, right, top, bottom, row = 14 + 7.4 * max(len(one.label) for one in found), 74, 12, 46, 54
    height = top + bottom + row * len(found)
    figure, axes = figure_with_axes(width, height, left=left, bottom=bottom, right=right, top=top)
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlim(0, 1.04 * max(max(one.phi) for one in found))
    axes.set_yticks(range(len(found)), [one.label for one in found])
    axes.set_xlabel("φ, angle between clean and attacked embedding (rad)")
    axes.grid(axis="x")
    # Vertical jitter separates dots of nearly the same angle; it has no meaning.
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, max(len(one.phi) for one in found))
    for place, one in enumerate(found):
        colour = look.colours.get(one.label, INK)
        axes.plot(
            one.phi, place + jitter[: len(one.phi)], "o", color=colour, alpha=0.45, markersize=3.4, mew=0
        )
        axes.plot([one.mean_phi] * 2, [place - 0.4, place + 0.4], color=colour, linewidth=2.6)
        axes.annotate(
            f"{one.mean_phi:.4f}",
            (1, place),
            (8, 0),
            ("axes fraction", "data"),
            "offset points",
            va="center",
            color=colour,
            fontweight="bold",
        )
    return figure


@styled()
def tsne_plot(one: TSNEResult, *, width: int, height: int, largest: float) -> Figure:
    """Both point clouds, φ in the title; the attacked images' marks grow with their angles.

    Args:
        largest: The angle of the largest mark, the same for all maps shown together.
    """
    title = f"{one.label}\nφ = {one.mean_phi:.4f} rad"
    figure, axes = figure_with_axes(width, height, left=10, bottom=34, right=10, top=50, title=title)
    a, b = np.array(one.clean), np.array(one.adversarial)
    lines = np.stack([a, b, np.full_like(a, np.nan)], axis=1).reshape(-1, 2)
    axes.plot(lines[:, 0], lines[:, 1], color=MUTED, alpha=0.35, linewidth=0.7, zorder=1)
    # The angle sets the mark's width, not its area: twice the angle should look twice as large.
    size = (2 + 12 * np.minimum(np.array(one.phi) / largest, 1)) ** 2
    axes.scatter(b[:, 0], b[:, 1], s=size, marker="^", color=MODELS[0], alpha=0.5, linewidths=0, zorder=2)
    axes.plot(a[:, 0], a[:, 1], "o", color=MODELS[1], markersize=2.6, alpha=0.9, mew=0, zorder=3)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    for spine in axes.spines.values():
        spine.set_visible(True)
    axes.annotate(
        "● clean", (0, 0), (0, -18), "axes fraction", "offset points", color=MODELS[1], fontweight="bold"
    )
    axes.annotate(
        "▲ attacked", (0, 0), (64, -18), "axes fraction", "offset points", color=MODELS[0], fontweight="bold"
    )
    return figure


def phi_table(found: Sequence[TSNEResult], *, title: str) -> Table:
    """φ of each model: the mean over images and its standard error, in radians."""
    rows: list[list[Value]] = []
    for one in found:
        error = float(np.std(one.phi, ddof=1)) / math.sqrt(len(one.phi)) if len(one.phi) > 1 else None
        spread = None if error is None else f"{error:.4f}"
        rows.append([one.label, f"{one.mean_phi:.4f}", spread, str(len(one.phi))])
    columns = ["model", "mean φ (rad)", "standard error (rad)", "images"]
    return Table(title=title, columns=columns, rows=rows, note=about(found[0]))


def about(one: TSNEResult) -> str:
    """A sentence: what φ is, and for which images and attack."""
    sets = ", ".join(dict.fromkeys(name.removeprefix("mini/") for name in one.sets))
    attack = f"{attack_title(one.attack)} at ε = {radius(one.eps, one.norm)}"
    return (
        f"φ is Eq. 14: the angle between the embeddings of a clean image and of the attacked one, in radians (0: the "
        f"attack moves nothing), of {counted(len(one.phi), 'image')} ({sets}) after {attack} against that very "
        "model."
    )
