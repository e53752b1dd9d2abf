"""`advflyp attack`: one picture made adversarial, as a picture file, against one model or each of two."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from advflyp.attack.base import Attack
from advflyp.attack.threat import Threat
from advflyp.attack.victim import predicted
from advflyp.dtypes import in_float64
from advflyp.evaluation.attacks import find_attack
from advflyp.evaluation.classifier import Classifier, for_use
from advflyp.model.clip import CLIP
from advflyp.model.folder import weights_sha256
from advflyp.model.load import load_model, pick_device
from advflyp.report.figures.examples import amplification, perturbation
from advflyp.use.eight_bits import EightBitClassifier, check_reach, eight_bits
from advflyp.use.labels import Labels, choose_labels
from advflyp.use.pictures import Picture, as_png, check_picture, from_bytes, name_of, read_picture
from advflyp.use.predict import Guess, guess

TOP = 5


@dataclass(frozen=True, kw_only=True)
class Made:
    """The adversarial picture made against one model, at that model's input resolution.

    against:       the model's name
    label:         what the attack moves the model away from: what the image shows, where that was said, else the
                   model's own answer for the clean image
    outcome:       "fooled"; "withstood"; "rounding": fooled by float pixels, not by any 8-bit image that was found;
                   "wrong": its answer was not `label` without an attack, so that there was nothing to attack
    clean, adversarial, difference: PNG files; the difference is amplified around middle grey
    amplification: by this factor
    largest:       the largest change of a pixel, in grey levels of 255
    length:        L2 length of the perturbation, in pixels of [0, 1]
    guesses:       what each model makes of the adversarial PNG, model by model; the likeliest first
    """

    against: str
    label: str
    outcome: Literal["fooled", "withstood", "rounding", "wrong"]
    clean: bytes
    adversarial: bytes
    difference: bytes
    amplification: float
    largest: int
    length: float
    guesses: list[list[Guess]]


@dataclass(frozen=True, kw_only=True)
class AttackedPicture:
    """One picture before and after.

    image:          its file;  label: what it shows, None where nobody said so
    models:         one or two names
    labels, templates: what the models choose among, and the prompts
    attack, norm, eps, seed: how it was attacked, as in `advflyp.evaluate`
    clean:          what each model makes of the picture; the likeliest first
    made:           one adversarial picture for each model
    sha256:         of each model's weights; empty where nobody asked
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
    made: list[Made]
    sha256: list[str] = field(default_factory=list)


def attack_image(
    model: CLIP | str | Path,
    image: Picture,
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
) -> AttackedPicture:
    """Make a picture adversarial within `eps`, as an 8-bit picture file, and look at it again with float32 models.

    model, against: a model, or two to compare; each is attacked for itself, and each sees both adversarial pictures
    image:     a file or a PIL image
    labels, templates: see `choose_labels`
    eps:       radius in pixels of [0, 1], at least 1/255
    label:     what the picture shows; by default each model is moved away from its own answer
    attack:    any attack of `advflyp eval`, norm "linf" or "l2"
    seed:      of its random start
    device:    where models given by name are put: "auto", "cpu", "cuda", "cuda:1", "mps"
    ValueError for anything unknown or unreadable, and where every model is wrong without an attack.
    """
    search, place = _attack(attack), pick_device(device)
    threat = Threat(norm=norm, eps=eps)
    check_reach(threat)
    chosen = choose_labels(labels, templates)
    if label is not None:
        chosen.index(label)
    check_picture(image)
    pair = [one for one in (model, against) if one is not None]
    models = [one if isinstance(one, CLIP) else load_model(one, device=place) for one in pair]
    classifiers = [chosen.classifier(one) for one in models]
    found = attack_with(classifiers, chosen, image, label, search, threat, seed)
    if all(made.outcome == "wrong" for made in found.made):
        # Only where a label was given: a model's own answer is never wrong.
        answer = found.clean[0][0].label
        if answer == found.label:
            raise ValueError(
                f"{found.image}: to {found.models[0]} '{answer}' is no likelier than another label, so there is no "
                "answer to attack; give it other labels"
            )
        raise ValueError(
            f"{found.image}: {found.models[0]} says '{answer}' without an attack, so '{found.label}' need not be "
            f"attacked; --label '{answer}' attacks that answer"
        )
    return replace(found, sha256=[weights_sha256(one) for one in models])


def attack_with(
    classifiers: Sequence[Classifier],
    labels: Labels,
    image: Picture,
    label: str | None,
    attack: Attack,
    threat: Threat,
    seed: int = 0,
) -> AttackedPicture:
    """`attack_image` with models that are loaded and labels that are encoded, `labels.classifier(model)` of each."""
    picture = read_picture(image)
    models = [one.model for one in classifiers]
    pixels = [model.preprocess(picture)[None].to(model.device) for model in models]
    clean = [guess(*pair, labels.names, TOP)[0] for pair in zip(classifiers, pixels, strict=True)]
    shows = None if label is None else labels.names[labels.index(label)]
    made = []
    for number, (classifier, origin) in enumerate(zip(classifiers, pixels, strict=True)):
        target = clean[number][0].label if shows is None else shows
        place = labels.index(target)
        adversarial, outcome = _search(classifier, origin, place, attack, threat, seed)
        file = as_png(adversarial)
        again = from_bytes(file, "the adversarial picture")
        change = adversarial - origin[0]
        made.append(
            Made(
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
    return AttackedPicture(
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


def _attack(name: str) -> Attack:
    attack = find_attack(name)
    if not attack.perturbs:
        raise ValueError(f"'{name}' changes nothing; name an attack such as pgd10, cw10 or autoattack")
    return attack


def _search(
    plain: Classifier, origin: Tensor, place: int, attack: Attack, threat: Threat, seed: int
) -> tuple[Tensor, Literal["fooled", "withstood", "rounding", "wrong"]]:
    """The (3, H, W) adversarial image, of whole grey levels, for the (1, 3, H, W) `origin` of class `place`."""
    label = torch.tensor([place], device=origin.device)

    def says(images: Tensor) -> int:
        return int(predicted(plain.logits_fp32(images), label))

    with for_use(plain.model):
        if says(origin) != place:
            return origin[0], "wrong"
        rounded = EightBitClassifier(plain, origin, threat)
        found = rounded.attack(origin, label, attack, threat, seed=seed)
        result = eight_bits(origin, found, threat)
        if says(result) != place:
            return result[0], "fooled"
        if rounded.last_found is not None:
            found = rounded.last_found
        lost = says(found) != place
        return eight_bits(origin, found, threat)[0], "rounding" if lost else "withstood"
