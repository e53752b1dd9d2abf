"""Our evaluation attacks beside the obvious implementation and beside AutoAttack by its authors, in one run.

    python benchmarks/evaluate.py                                    # mini, CPU
    python benchmarks/evaluate.py --model ViT-B-32/random --classes 1000 --images 16 --attacks pgd10 cw10
    python benchmarks/evaluate.py --model ViT-B-32/openai --classes 1000 --images 256 --device cuda --precision bf16

(a) the obvious implementation: every step encodes the class prompts again and attacks every image of the batch to the
end. (b) `pyautoattack`, the official AutoAttack, with the class weights encoded once, at the same budget. Each row is
the median of `repeats` alternating runs on the same images, and the ratio of the medians; robust accuracy is judged in
float32 for all.

Images are those of mini/emoji-groups (for another resolution enlarged). For random weights the labels are the model's
own answers, so that there is something to attack.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Literal

import torch
import tyro
from pyautoattack import AutoAttack
from torch import Tensor

from advflyp.attack.losses import cross_entropy, margin
from advflyp.attack.threat import Threat
from advflyp.config import number
from advflyp.data.labelled import LabelledSet, load_set
from advflyp.evaluation.attacks import Attack
from advflyp.evaluation.judge import Judge
from advflyp.model.clip import CLIP
from advflyp.model.hub import load_model
from advflyp.model.precision import Precision
from advflyp.model.zeroshot import class_embeddings, class_logits


@dataclass
class Arguments:
    """What to time."""

    model: str = "mini"
    attacks: tuple[Literal["pgd10", "cw10", "autoattack"], ...] = ("pgd10", "cw10", "autoattack")
    set: str = "mini/emoji-groups"
    classes: int | None = None
    """Class prompts, made-up names after the set's own ones; by default the set's."""
    images: int = 64
    batch_size: int = 64
    eps: str = "1/255"
    precision: Precision = "auto"
    """Of our search; the others run in float32."""
    device: Literal["cpu", "cuda"] = "cpu"
    repeats: int = 3


def main() -> None:
    arguments = tyro.cli(Arguments)
    # Frozen for all: a graph through the text tower would only cost (a) memory, 40 GB for 1,000 prompts.
    model = load_model(arguments.model, device=arguments.device).requires_grad_(False)
    labelled = load_set(arguments.set)
    if arguments.classes is not None:
        extra = [f"thing number {i}" for i in range(arguments.classes - len(labelled.classes))]
        labelled.classes[:] = [*labelled.classes, *extra][: arguments.classes]
        labelled.templates[:] = ["This is a photo of a {}."]
    if arguments.model.endswith("/random"):
        labelled = relabel(model, labelled, arguments)
    threat = Threat(eps=number(arguments.eps, "--eps"))
    print(
        f"{arguments.model}, {len(labelled.classes)} class prompts, {arguments.images} images, "
        f"ε = {arguments.eps} L∞, batch {arguments.batch_size}, {arguments.device}, "
        f"our search in {arguments.precision}; medians of {arguments.repeats} runs"
    )
    print(f"{'':12} {'ours':>16}   {'(a) obvious':>22}   {'(b) pyautoattack':>22}")
    for name in arguments.attacks:
        runs: dict[str, Callable[[], float]] = {
            "ours": lambda name=name: ours(model, labelled, name, threat, arguments)
        }
        if name == "autoattack":
            runs["b"] = lambda: official(model, labelled, threat, arguments)
        else:
            runs["a"] = lambda name=name: obvious(model, labelled, name, threat, arguments)
        seconds: dict[str, list[float]] = {key: [] for key in runs}
        accuracy: dict[str, float] = {}
        for _ in range(arguments.repeats):
            for key, run in runs.items():
                start = perf_counter()
                accuracy[key] = run()
                seconds[key].append(perf_counter() - start)
        median = {key: statistics.median(values) for key, values in seconds.items()}
        cells = [f"{median['ours']:8.2f} s {100 * accuracy['ours']:5.1f} %"]
        for key in "ab":
            cells.append(
                f"{median[key]:8.2f} s {100 * accuracy[key]:5.1f} % ×{median[key] / median['ours']:.2f}"
                if key in runs
                else " " * 22
            )
        print(f"{name:12} " + "   ".join(cells), flush=True)


def relabel(model: CLIP, labelled: LabelledSet, arguments: Arguments) -> LabelledSet:
    """The pictures that are used, each with the class the model sees in it."""
    judge = Judge(model, labelled)
    index = labelled.subset(arguments.images, 0)
    batches = labelled.batches(model.preprocess, arguments.batch_size, index)
    answers = [judge.exact(images.to(model.device)).argmax(1) for _, images, _ in batches]
    pictures = [labelled.pictures[place][0] for place in index]
    return replace(labelled, pictures=list(zip(pictures, torch.cat(answers).tolist(), strict=True)))


def ours(model, labelled, name: str, threat: Threat, arguments: Arguments) -> float:
    judge = Judge(model, labelled, limit=arguments.images, batch_size=arguments.batch_size)
    return judge.correct(Attack.parse(name), threat, precision=arguments.precision).float().mean().item()


def batches(model, labelled, arguments: Arguments):
    index = labelled.subset(arguments.images, 0)
    for _, images, labels in labelled.batches(model.preprocess, arguments.batch_size, index):
        yield images.to(model.device), labels.to(model.device)


def obvious(model, labelled, name: str, threat: Threat, arguments: Arguments) -> float:
    """Prompts encoded in every forward pass, every image attacked to the last step, judged at the end."""
    loss = cross_entropy if name.startswith("pgd") else margin
    steps, right = Attack.parse(name).steps, 0
    prompts = [labelled.templates[0].format(c) for c in labelled.classes]

    def logits(images: Tensor) -> Tensor:
        chunks = [model.encode_text(prompts[i : i + 512]) for i in range(0, len(prompts), 512)]
        return model.logit_scale * model.encode_image(images) @ torch.cat(chunks).T

    for images, labels in batches(model, labelled, arguments):
        delta = torch.empty_like(images).uniform_(-threat.eps, threat.eps)
        for _ in range(steps):
            adversarial = (images + delta).clamp(0, 1).detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(logits(adversarial), labels).sum(), adversarial)
            delta = (adversarial.detach() - images + gradient.sign() / 255).clamp(-threat.eps, threat.eps)
        with torch.no_grad():
            right += int((logits((images + delta).clamp(0, 1)).argmax(1) == labels).sum())
    return right / arguments.images


def official(model, labelled, threat: Threat, arguments: Arguments) -> float:
    weights = class_embeddings(model, labelled.classes, labelled.templates)
    scale = model.logit_scale.detach()

    class Classifier(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return class_logits(model.encode_image(images), weights, scale)

    judge = Classifier().eval()
    columns = zip(*batches(model, labelled, arguments), strict=True)
    images, labels = (torch.cat(column) for column in columns)
    attack = AutoAttack(judge, norm="Linf", eps=threat.eps, version="standard", device=arguments.device)
    adversarial, _ = attack.run_standard_evaluation(images, labels, batch_size=arguments.batch_size)
    right = 0
    with torch.no_grad():
        for part in torch.arange(len(images)).split(arguments.batch_size):
            right += int((judge(adversarial[part]).argmax(1) == labels[part]).sum())
    return right / arguments.images


if __name__ == "__main__":
    main()
