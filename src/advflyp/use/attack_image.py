"""`advflyp attack`: make an image adversarial, as an image file, against one model or each of two."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from advflyp.attack.base import Attack
from advflyp.attack.checks import outside_inference_mode
from advflyp.attack.threat import Threat
from advflyp.attack.victim import predicted
from advflyp.dtypes import in_float64, whole
from advflyp.evaluation.attacks import find_attack
from advflyp.evaluation.classifier import Classifier
from advflyp.model.clip import CLIP
from advflyp.model.folder import weights_sha256
from advflyp.model.load import load_model, pick_device
from advflyp.model.precision import for_use
from advflyp.report.figures.examples import amplification, perturbation
from advflyp.use.eight_bits import EightBitClassifier, check_reach, eight_bits
from advflyp.use.images import ImageLike, as_png, check_image, from_bytes, load_image, name_of
from advflyp.use.labels import Labels, choose_labels
from advflyp.use.predict import Guess, guess

TOP = 5
Outcome = Literal["fooled", "withstood", "wrong"]


@dataclass(frozen=True, kw_only=True)
class AdversarialImage:
    """The adversarial image made against one model, at that model's input resolution.

    Attributes:
        label: The label that the attack moves away from: what the image shows, if given, else the model's clean
            prediction.
        outcome: "fooled", "withstood", or "wrong" if the model's clean prediction is not `label`.
        clean: PNG file, like `adversarial` and `difference`.
        amplification: Factor by which the difference is amplified, around middle grey.
        largest: The largest change of a pixel, in grey levels (of 255).
        length: L2 norm of the perturbation, in pixels of [0, 1].
        guesses: For each model, its guesses for the adversarial PNG, the most likely first.
    """

    against: str
    label: str
    outcome: Outcome
    clean: bytes
    adversarial: bytes
    difference: bytes
    amplification: float
    largest: int
    length: float
    guesses: list[list[Guess]]


@dataclass(frozen=True, kw_only=True)
class AttackedImage:
    """One image before and after the attack.

    Attributes:
        label: What it shows; None if not given.
        attack: The name of the attack; `norm`, `eps` and `seed` are as in `advflyp.evaluate`.
        clean: For each model, its guesses for the clean image, the most likely first.
        made: One adversarial image for each model.
        sha256: Hashes of the models' weights; empty if not computed.
    """

    image: str
    label: str | None
    models: list[str]
    labels: list[str]
    templates: list[str]
    attack: str
    norm: Literal["linf", "l2"]
    eps: float
    seed: int
    clean: list[list[Guess]]
    made: list[AdversarialImage]
    sha256: list[str] = field(default_factory=list)


@outside_inference_mode()
def attack_image(
    model: CLIP | str | Path,
    image: ImageLike,
    labels: str | Sequence[str],
    *,
    eps: float,
    label: str | None = None,
    attack: str = "pgd10",
    norm: Literal["linf", "l2"] = "linf",
    against: CLIP | str | Path | None = None,
    templates: str | Sequence[str] | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
) -> AttackedImage:
    """Make an image adversarial within `eps`, as an 8-bit PNG that is still adversarial for the float32 model.

    Args:
        model: A model or the name of one.
        image: A file or a PIL image.
        labels: See `choose_labels`.
        eps: Radius in pixels of [0, 1], at least 1/255.
        label: The label the attack moves away from (default: each model's clean prediction).
        attack: Any attack of `advflyp eval`.
        norm: "linf" or "l2".
        against: A second model. Each is attacked separately, and each classifies both adversarial images.
        templates: See `choose_labels`.
        seed: Random seed.
        device: Where models given by name are put: "auto", "cpu", "cuda", "cuda:1", "mps".

    Raises:
        ValueError: If anything is unknown or unreadable, or every model misclassifies the clean image.
    """
    search = find_attack(attack)
    if not search.perturbs:
        raise ValueError(f"'{attack}' changes nothing; name an attack such as pgd10, cw10 or autoattack")
    threat, seed = Threat(norm=norm, eps=eps), whole(seed, "seed")
    check_reach(threat)
    chosen = choose_labels(labels, templates)
    if label is not None:
        chosen.index(label)
    check_image(image)
    pair = [one for one in (model, against) if one is not None]
    place = pick_device(device)
    models = [one if isinstance(one, CLIP) else load_model(one, device=place) for one in pair]
    classifiers = [chosen.classifier(one) for one in models]
    found = attack_with(classifiers, chosen, image, label, search, threat, seed)
    if all(made.outcome == "wrong" for made in found.made):
        # Only if a label was given, or the model's clean prediction is a tie.
        answer = found.clean[0][0].label
        if found.label in (None, answer):
            raise ValueError(
                f"{found.image}: {found.models[0]} finds '{answer}' and another label equally likely, so there is "
                "no single answer to attack; choose other labels"
            )
        raise ValueError(
            f"{found.image}: {found.models[0]} already answers '{answer}', not '{found.label}', for the clean image, "
            f"so there is nothing to attack; --label '{answer}' attacks that answer"
        )
    return replace(found, sha256=[weights_sha256(one) for one in models])


def attack_with(
    classifiers: Sequence[Classifier],
    labels: Labels,
    image: ImageLike,
    label: str | None,
    attack: Attack,
    threat: Threat,
    seed: int = 0,
) -> AttackedImage:
    """`attack_image` for loaded models and encoded labels: `classifiers` are `labels.classifier(model)` for each."""
    decoded = load_image(image)
    models = [one.model for one in classifiers]
    pixels = [model.preprocess(decoded)[None].to(model.device) for model in models]
    clean = [guess(*pair, labels.names, TOP)[0] for pair in zip(classifiers, pixels, strict=True)]
    shows = None if label is None else labels.names[labels.index(label)]
    made = []
    for number, (classifier, origin) in enumerate(zip(classifiers, pixels, strict=True)):
        target = clean[number][0].label if shows is None else shows
        place = labels.index(target)
        adversarial, outcome = _search(classifier, origin, place, attack, threat, seed)
        file = as_png(adversarial)
        again = from_bytes(file, "the adversarial image")
        change = adversarial - origin[0]
        made.append(
            AdversarialImage(
                against=models[number].name,
                label=target,
                outcome=outcome,
                clean=as_png(origin[0]),
                adversarial=file,
                difference=as_png(perturbation(origin[0], adversarial, threat)),
                amplification=amplification(origin[0], adversarial, threat),
                largest=round(255 * change.abs().max().item()),
                length=in_float64(change).norm().item(),
                guesses=[
                    guess(one, one.model.preprocess(again)[None], labels.names, TOP)[0] for one in classifiers
                ],
            )
        )
    return AttackedImage(
        image=name_of(image),
        label=shows,
        models=[model.name for model in models],
        labels=labels.names,
        templates=labels.templates,
        attack=attack.name,
        norm=threat.norm,
        eps=threat.eps,
        seed=seed,
        clean=clean,
        made=made,
    )


def _search(
    plain: Classifier, origin: Tensor, place: int, attack: Attack, threat: Threat, seed: int
) -> tuple[Tensor, Outcome]:
    """The (3, H, W) adversarial image, in whole grey levels, for the (1, 3, H, W) `origin` of class `place`."""
    label = torch.tensor([place], device=origin.device)

    def says(images: Tensor) -> int:
        return int(predicted(plain.logits_fp32(images), label))

    with for_use(plain.model):
        if says(origin) != place:
            return origin[0], "wrong"
        found = EightBitClassifier(plain, origin, threat).attack(origin, label, attack, threat, seed=seed)
        result = eight_bits(origin, found, threat)
        return result[0], "withstood" if says(result) == place else "fooled"
