"""Our evaluation attacks compared with the obvious implementation and with the official AutoAttack, in one run.

    python benchmarks/evaluate.py                                    # mini
    python benchmarks/evaluate.py --model ViT-B-32/random --classes 1000 --images 16 --attacks pgd10 cw10
    python benchmarks/evaluate.py --model mini-vit --set mini/flags --attacks autoattack --ours-only
    python benchmarks/evaluate.py --attacks apgd-ce apgd-t fab-t square autoattack      # members alone, and all four
    python benchmarks/evaluate.py --model mini-vit --attacks apgd-t fab-t --passes      # how full the batches are
    python benchmarks/evaluate.py --set mini/fashion --classes 3 --attacks apgd-ce fab-t square apgd-ce+fab-t+square

(a) the obvious implementation: every step encodes the class prompts again, padding included, and attacks every image
of the batch to the end. (b) `pyautoattack`, the official AutoAttack, with the class weights encoded once, at the same
budget; left out if it is not installed. Encoding the prompts is timed alone, too. Images are decoded anew in every run
of all three. A warm-up run of PGD-10 loads kernels and files; then the candidates are interleaved. Each row has the
medians, the ratio of the medians, and the robust accuracy, which is evaluated in float32 for all. With fewer than ten
classes both have as many targets as there are wrong classes; with fewer than four there is no official APGD-T, so (b)
is left out for it and for ensembles that contain it.

Images are those of a mini set (resized for other resolutions). For random weights the labels are the model's own
answers, so that there is something to attack.
"""

import importlib.util
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from timing import Record, describe_machine, interleaved, medians
from torch import Tensor
from torch.nn import functional as F

from advflyp.attack import attempts, square
from advflyp.attack.losses import count_targets, cross_entropy, margin
from advflyp.attack.threat import Threat
from advflyp.config import number
from advflyp.data.sets.labelled import LabelledSet, load_set
from advflyp.evaluation.attacks import find_attack
from advflyp.evaluation.classifier import replayed
from advflyp.evaluation.evaluator import Evaluator
from advflyp.model.clip import CLIP
from advflyp.model.graphs import check_device
from advflyp.model.load import load_model, pick_device
from advflyp.model.precision import Precision
from advflyp.model.zeroshot import class_embeddings

WARMUP = "pgd10"
CANDIDATES = {"ours": "ours", "obvious": "(a) obvious", "official": "(b) pyautoattack"}


@dataclass
class Arguments:
    """What to time."""

    model: str = "mini"
    attacks: tuple[str, ...] = ("pgd10", "cw10", "autoattack")
    """Names as `advflyp eval` takes them; members of AutoAttack may be joined by "+"."""
    set: str = "mini/emoji-groups"
    classes: int | None = None
    """Number of class prompts: the set's first classes with their images, or all of them and made-up names."""
    images: int = 64
    batch_size: int = 64
    eps: str = "1/255"
    precision: Precision = "fp32"
    """Precision of our search. The others run in float32, so anything else compares precisions as well."""
    graphs: bool = False
    """Replay our passes and steps as CUDA graphs, recorded anew in every run."""
    ours_only: bool = False
    """Time only our implementation."""
    passes: bool = False
    """Do not time, but count our forward passes and how full they are, with as many attempts in one as on a GPU."""
    repeats: int = 3
    """Timed runs of each candidate."""
    device: str = "auto"
    json: Path | None = None
    """File for the results."""


def main() -> None:
    arguments = tyro.cli(Arguments)
    device = str(pick_device(arguments.device))
    # Frozen for all: a graph through the text tower would only cost (a) memory, 40 GB for 1,000 prompts.
    model = load_model(arguments.model, device=device).requires_grad_(False)
    if arguments.graphs:
        check_device(model.device, "--graphs")
    labelled = load_set(arguments.set)
    if arguments.classes is not None:
        labelled = with_classes(labelled, arguments.classes)
    if arguments.model.endswith("/random"):
        labelled = relabel(model, labelled, arguments)
    record = Record("evaluate", arguments.json, arguments, describe_machine(device))
    count = len(labelled.subset(arguments.images, 0))
    print(
        f"{arguments.model}, {len(labelled.classes)} class prompts, {count} images, "
        f"ε = {arguments.eps} L∞, batch {arguments.batch_size}, {record.machine['device']}, "
        f"our search in {arguments.precision}; medians of {arguments.repeats} runs"
    )
    if arguments.passes:
        count_passes(model, labelled, record, arguments)
        return
    time_prompts(model, labelled, record, arguments)
    print(f"{'':12}" + "".join(f"{title:>25}" for title in CANDIDATES.values()))
    for run in candidates(model, labelled, WARMUP, arguments).values():
        run()
    for name in arguments.attacks:
        row = measure(candidates(model, labelled, name, arguments), arguments.repeats)
        record.add(attack=name, classes=len(labelled.classes), **row)
        print(f"{name:12}" + "".join(f"{cell(row, key):>25}" for key in CANDIDATES), flush=True)


def with_classes(labelled: LabelledSet, count: int) -> LabelledSet:
    """The set with `count` class prompts: its first classes and their images, or further classes without images."""
    extra = [f"thing number {i}" for i in range(count - len(labelled.classes))]
    classes = [*labelled.classes, *extra][:count]
    index = [place for place, label in enumerate(labelled.labels.tolist()) if label < count]
    dataset = [(labelled.image(place), int(labelled.labels[place])) for place in index]
    return LabelledSet(dataset, classes, "This is a photo of a {}.", name=labelled.name)


def candidates(
    model: CLIP, labelled: LabelledSet, attack: str, arguments: Arguments
) -> dict[str, Callable[[], float]]:
    """The implementations to compare on an attack; each returns a robust accuracy, and so waits for the device."""
    threat = Threat(eps=number(arguments.eps, "--eps"))
    runs = {"ours": lambda: ours(model, labelled, attack, threat, arguments)}
    if arguments.ours_only:
        return runs
    if attack in ("pgd10", "cw10"):
        runs["obvious"] = lambda: obvious(model, labelled, attack, threat, arguments)
    elif importlib.util.find_spec("pyautoattack") is not None and not needs_more(attack, labelled):
        runs["official"] = lambda: official(model, labelled, attack, threat, arguments)
    return runs


def needs_more(attack: str, labelled: LabelledSet) -> bool:
    """Whether there are too few classes for the official targeted DLR loss, which takes the four highest logits."""
    return len(labelled.classes) < 4 and bool({"autoattack", "apgd-t"} & {*attack.split("+")})


def measure(runs: dict[str, Callable[[], float]], repeats: int) -> dict[str, dict[str, float]]:
    """{candidate: {"seconds", "accuracy", "ratio"}}, where "ratio" is the median divided by ours."""
    accuracy: dict[str, float] = {}

    def noted(name: str) -> Callable[[], None]:
        return lambda: accuracy.update({name: runs[name]()})

    median = medians(interleaved({name: noted(name) for name in runs}, repeats, warmup=0))
    return {
        name: {"seconds": median[name], "accuracy": accuracy[name], "ratio": median[name] / median["ours"]}
        for name in runs
    }


def cell(row: dict[str, dict[str, float]], candidate: str) -> str:
    if candidate not in row:
        return ""
    found = row[candidate]
    text = f"{found['seconds']:.2f} s {100 * found['accuracy']:5.1f} %"
    return text if candidate == "ours" else f"{text} ×{found['ratio']:.2f}"


def relabel(model: CLIP, labelled: LabelledSet, arguments: Arguments) -> LabelledSet:
    """The images that are used, each labelled with the model's own answer."""
    evaluator = Evaluator(model, labelled)
    index = labelled.subset(arguments.images, 0)
    answers = [evaluator.logits_fp32(images).argmax(1) for images, _ in batches(model, labelled, arguments)]
    pictures = [labelled.dataset[place][0] for place in index]
    return replace(labelled, dataset=list(zip(pictures, torch.cat(answers).tolist(), strict=True)))


def ours(model, labelled, name: str, threat: Threat, arguments: Arguments) -> float:
    evaluator = Evaluator(model, labelled, limit=arguments.images, batch_size=arguments.batch_size)
    with replayed(model) if arguments.graphs else nullcontext():
        return evaluator.run(find_attack(name), threat, precision=arguments.precision).accuracy


def count_passes(model, labelled, record: Record, arguments: Arguments) -> None:
    """How many passes an attack would save if images that wait took the places of those that have left."""
    attempts.AT_ONCE_ON_CPU = arguments.batch_size
    square.AT_ONCE_ON_CPU = square.AT_ONCE_ON_ACCELERATOR
    sizes: list[int] = []
    encode = model.encode_image
    model.encode_image = lambda images: (sizes.append(len(images)), encode(images))[1]
    for name in arguments.attacks:
        sizes.clear()
        accuracy = ours(model, labelled, name, Threat(eps=number(arguments.eps, "--eps")), arguments)
        full = -(-sum(sizes) // arguments.batch_size)
        record.add(attack=name, passes=len(sizes), images=sum(sizes), full=full, accuracy=accuracy)
        print(
            f"{name:12}{len(sizes):>8,} passes of {sum(sizes) / len(sizes):.1f} images; full ones would be {full:,} "
            f"(×{len(sizes) / full:.2f}); {100 * accuracy:.1f} % robust",
            flush=True,
        )


def batches(model, labelled, arguments: Arguments):
    index = labelled.subset(arguments.images, 0)
    for _, images, labels in labelled.batches(model.preprocess, arguments.batch_size, index):
        yield images.to(model.device), labels.to(model.device)


def obvious(model, labelled, name: str, threat: Threat, arguments: Arguments) -> float:
    """Prompts encoded in every forward pass, every image attacked to the last step and evaluated at the end."""
    loss = cross_entropy if name.startswith("pgd") else margin
    steps, right = int(name.removeprefix("pgd").removeprefix("cw")), 0

    def logits(images: Tensor) -> Tensor:
        return model.logit_scale * model.encode_image(images) @ obvious_prompts(model, labelled).T

    for images, labels in batches(model, labelled, arguments):
        delta = torch.empty_like(images).uniform_(-threat.eps, threat.eps)
        for _ in range(steps):
            adversarial = (images + delta).clamp(0, 1).detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(logits(adversarial), labels).sum(), adversarial)
            delta = (adversarial.detach() - images + gradient.sign() / 255).clamp(-threat.eps, threat.eps)
        with torch.no_grad():
            right += int((logits((images + delta).clamp(0, 1)).argmax(1) == labels).sum())
    return right / len(labelled.subset(arguments.images, 0))


def obvious_prompts(model, labelled) -> Tensor:
    """(K, d) embeddings of the class prompts as open_clip computes them, padding included."""
    tokens = model.tokenizer([labelled.templates[0].format(c) for c in labelled.classes]).to(model.device)
    return torch.cat([F.normalize(model.net.encode_text(part), dim=-1) for part in tokens.split(512)])


def time_prompts(model, labelled, record: Record, arguments: Arguments) -> None:
    if arguments.ours_only:
        return
    templates = labelled.templates[:1]
    runs = {
        "ours": lambda: class_embeddings(model, labelled.classes, templates).cpu(),
        "obvious": lambda: obvious_prompts(model, labelled).cpu(),
    }
    seconds = medians(interleaved(runs, arguments.repeats))
    ratio = seconds["obvious"] / seconds["ours"]
    record.add(prompts=len(labelled.classes), **seconds, ratio=ratio)
    print(
        f"encoding the prompts: {seconds['ours']:.3g} s; with their padding {seconds['obvious']:.3g} s ×{ratio:.2f}"
    )


def official(model, labelled, name: str, threat: Threat, arguments: Arguments) -> float:
    from pyautoattack import AutoAttack

    classifier = model.classifier(labelled.classes, labelled.templates)
    columns = zip(*batches(model, labelled, arguments), strict=True)
    images, labels = (torch.cat(column) for column in columns)
    attack = AutoAttack(
        classifier, norm="Linf", eps=threat.eps, version="standard", device=str(images.device)
    )
    if name != "autoattack":
        attack.attacks_to_run = name.split("+")
    targets = count_targets(len(labelled.classes))
    attack.apgd_targeted.n_target_classes = attack.fab.n_target_classes = targets
    adversarial, _ = attack.run_standard_evaluation(images, labels, batch_size=arguments.batch_size)
    right = 0
    with torch.no_grad():
        for part in torch.arange(len(images)).split(arguments.batch_size):
            right += int((classifier(adversarial[part]).argmax(1) == labels[part]).sum())
    return right / len(labelled.subset(arguments.images, 0))


if __name__ == "__main__":
    main()
