"""How published numbers were measured: one table of protocols.

A protocol is everything in an evaluation except the model: datasets, class names, prompts, pixels, attacks. `ADVFLYP`
is ours and the default. The others do what the released programs do, even if their papers say something else. `notes`
lists what cannot be reproduced.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from advflyp.attack.base import Attack
from advflyp.attack.names import STANDARD
from advflyp.config import suggest
from advflyp.data.sets.catalogue import PAPER, TABLE
from advflyp.data.sets.classnames import ADVFLYP_CODE, TECOA, Rule, without_slashes
from advflyp.data.sets.labelled import LabelledSet, check_distinct
from advflyp.data.sets.prompts import PHOTO, choose_templates
from advflyp.evaluation.attacks import find_attack
from advflyp.evaluation.pixels import Interpolation, Pixels
from advflyp.evaluation.results import DEFAULT_PROTOCOL
from advflyp.model.precision import Precision

# In a protocol's templates: all other datasets of the table.
OTHERS = "*"
LARGEST_SIDE = 4096


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything in an evaluation except the model.

    Attributes:
        name: What results record; a changed protocol says in brackets what was changed.
        title: What it is, in a few words.
        sets: Its datasets, as `evaluate` takes them.
        absent: Datasets of the paper that this package does not have.
        attacks: Names of its attacks; "autoattack" stands for the members in `autoattack`.
        eps: Radii in pixels of [0, 1].
        norm: "linf" or "l2".
        autoattack: The members of AutoAttack that "autoattack" stands for; "apgd-cex5" is APGD-CE with five restarts.
        limit: N class-balanced images of each dataset; None is all.
        source: "webdataset": CLIP benchmark's copies, with their own class names and prompts.
        rules: Dataset → the rule that turns the authors' class names into the protocol's; without one, ours are used.
        ties: How to treat two classes of the same name, whose logits always tie. "wrong": neither is ever correct;
            "first": the earlier one can be, as if the prediction were an argmax.
        templates: Dataset → prompts; `OTHERS` covers the other datasets of the table; without it, they keep our
            prompts. Datasets that are not in the table keep their own prompts and class names.
        pixels: How images become the tensor that is perturbed.
        small: Dataset → `Pixels`, for datasets of small images that are treated differently. `Pixels(native=True)`
            perturbs them at their own size, and enlarges them (bicubic) inside the model under attack.
        precision: Precision of the attack's search.
        notes: What still differs from the published numbers.
        seed: Random seed of the attacks and of `limit`, on a leaderboard.
        records: The protocol named in its results, if this one only selects datasets, images, attacks and radii from
            it; None for this one.
        evidence: Whether a leaderboard requires the per-image predictions and the checks for masked gradients.
    """

    name: str
    title: str
    sets: tuple[str, ...]
    absent: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ("clean", "pgd10")
    eps: tuple[float, ...] = (1 / 255,)
    norm: Literal["linf", "l2"] = "linf"
    autoattack: tuple[str, ...] = STANDARD
    limit: int | None = None
    source: Literal["any", "webdataset"] = "any"
    rules: Mapping[str, Rule] = field(default_factory=dict)
    ties: Literal["wrong", "first"] = "wrong"
    templates: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pixels: Pixels = field(default_factory=Pixels)
    small: Mapping[str, Pixels] = field(default_factory=dict)
    precision: Precision = "auto"
    notes: tuple[str, ...] = ()
    seed: int = 0
    records: str | None = None
    evidence: bool = False
    own_templates: tuple[str, ...] = ()
    own_names: tuple[str, ...] = ()

    @property
    def recorded(self) -> str:
        """The name of the protocol in results."""
        return self.records or self.name

    def changed(
        self,
        *,
        templates: str | Sequence[str] | None = None,
        classnames: Sequence[str] | None = None,
        resize: int | None = None,
        interpolation: Interpolation | None = None,
    ) -> "Protocol":
        """The protocol with the user's own settings for all datasets; its name says which.

        Args:
            templates: Prompts, each with one "{}", or "openai".
            classnames: Class names of a dataset, in the order of its labels.
            resize: The shorter side before the centre crop, in pixels; nothing is perturbed at its own size then.
            interpolation: How images are resized, also those that are enlarged inside the model.

        Raises:
            ValueError: A prompt without exactly one "{}", no class names, or a `resize` that is too large.
        """
        said, values = [], {}
        pixels: dict[str, Any] = {}
        if resize is not None:
            if resize > LARGEST_SIDE:
                raise ValueError(f"resize must be at most {LARGEST_SIDE:,} pixels, not {resize:,}")
            said.append(f"resize {resize}")
            pixels |= {"resize": resize, "of": None, "native": False}
        if interpolation is not None:
            said.append(interpolation)
            pixels["interpolation"] = interpolation
        values["pixels"] = replace(self.pixels, **pixels)
        values["small"] = {name: replace(own, **pixels) for name, own in self.small.items()}
        if templates is not None:
            said.append("own templates")
            values["own_templates"] = tuple(choose_templates(templates))
        if classnames is not None:
            if not classnames:
                raise ValueError(
                    "no class names are given; give one for each class, in the order of the labels"
                )
            said.append("own class names")
            values["own_names"] = tuple(classnames)
        if not said:
            return self
        return replace(self, name=f"{self.recorded} ({', '.join(said)})", records=None, **values)

    def attack(self, attack: Attack | str | Callable[..., Tensor]) -> Attack:
        """Find an attack by name; "autoattack" becomes the members that the protocol means, under their names."""
        found = find_attack(attack)
        is_named = isinstance(attack, str) and found.name == "autoattack"
        return find_attack("+".join(self.autoattack)) if is_named else found

    def apply(self, labelled: LabelledSet) -> LabelledSet:
        """The dataset with the protocol's class names and prompts.

        Raises:
            ValueError: The user's own class names are more or fewer than the classes, or two are the same.
        """
        base = labelled.name.partition("@")[0]
        changes: dict[str, Any] = {}
        if base in self.rules and labelled.own_names is not None:
            changes["classes"] = [self.rules[base](name) for name in labelled.own_names]
        if templates := self.templates_of(base):
            changes["templates"] = list(templates)
        if self.own_names:
            if len(self.own_names) != len(labelled.classes):
                raise ValueError(
                    f"{labelled.name} has {len(labelled.classes)} classes, and --classnames {len(self.own_names)} "
                    "names; give one name for each class, in the order of the labels, and one dataset at a time"
                )
            check_distinct(self.own_names, labelled.name)
            changes["classes"] = list(self.own_names)
        return replace(labelled, **changes) if changes else labelled

    def templates_of(self, base: str) -> tuple[str, ...]:
        """The prompts of a dataset, without its split; empty if they are its own."""
        if self.own_templates or self.source == "webdataset" or base not in TABLE:
            return self.own_templates
        return self.templates.get(base, self.templates.get(OTHERS, ()))

    @property
    def names_classes(self) -> bool:
        """Whether class names may differ from ours."""
        return bool(self.rules or self.own_names or self.source == "webdataset")

    def repeated(self, classes: Sequence[str]) -> list[int]:
        """The classes never predicted because an earlier one has the same name; none unless `ties` is "first"."""
        if self.ties == "wrong":
            return []
        names = [name.lower() for name in classes]
        return [number for number, name in enumerate(names) if names.index(name) < number]

    def pixels_of(self, name: str) -> Pixels:
        """How the images of a dataset become the tensor that is perturbed."""
        return self.small.get(name.partition("@")[0], self.pixels)


def names_sha256(classes: Sequence[str]) -> str:
    """A hash of class names in their order."""
    return hashlib.sha256(json.dumps(list(classes)).encode()).hexdigest()


GREY = 1 / 255

ADVFLYP = Protocol(
    name=DEFAULT_PROTOCOL,
    title="this package",
    sets=PAPER,
    attacks=("clean", "pgd10", "cw10", "autoattack"),
    eps=(GREY, 2 * GREY, 4 * GREY),
    notes=(
        "Where the paper and its released code differ, this follows the paper: its prompts, and the four attacks of "
        "the standard AutoAttack. Class names are unique; images are resized as in the model's training.",
    ),
)

# What `advflyp eval` measures if no protocol is named.
QUICK = replace(ADVFLYP, sets=("mini",), attacks=("clean", "pgd10"), eps=(GREY,))

# Leaderboards. Any change in what is measured gets a new name.
ADVFLYP_2026 = replace(
    ADVFLYP,
    name="advflyp-2026",
    title="leaderboard: 1,000 images of each dataset of the paper",
    records=DEFAULT_PROTOCOL,
    attacks=("clean", "pgd10", "autoattack"),
    limit=1000,
    evidence=True,
)
ADVFLYP_2026_MINI = replace(
    ADVFLYP_2026,
    name="advflyp-2026-mini",
    title="the same on embedded datasets, without AutoAttack",
    sets=("mini",),
    attacks=("clean", "pgd10", "cw10"),
    limit=60,
    evidence=False,
    notes=(
        "It demonstrates a leaderboard on 64×64 images. PGD-10 and CW-10 are weak attacks: their accuracies are upper "
        "bounds of the robust accuracy.",
    ),
)

# Prompts for single datasets in the released programs of this line of work.
_PROMPTS: Mapping[str, tuple[str, ...]] = {
    "caltech256": ("A photo of a {}.",),
    "oxford_pets": ("A photo of a {}, a type of pet.",),
    "food101": ("A photo of {}, a type of food.",),
    "flowers102": ("A photo of a {}, a type of flower.",),
    "dtd": ("A surface with a {} texture.",),
    "fgvc_aircraft": ("A photo of a {}, a type of aircraft.",),
    "country211": ("A photo I took in {}.",),
    "eurosat": ("A centered satellite photo of {}.",),
    "stanford_cars": ("A photo of a {}.",),
}
_CROP = Pixels(resize=256, of=224, interpolation="bilinear")


def _of_small(pixels: Pixels) -> Mapping[str, Pixels]:
    names: tuple[str, ...] = ("cifar10", "cifar100", "stl10")
    return dict.fromkeys(names, pixels)


_REPEATED = (
    "Both face classes of Caltech101 are called 'person', and seven names of StanfordCars occur twice. The released "
    "code predicts the first of equal logits; here too the later class is never predicted, also not under attack."
)
_COPIES = (
    "StanfordCars, SUN397 and other datasets that are available only as CLIP benchmark's copy have the copy's class "
    "names, since it lacks the authors'. The copy of ImageNet has the protocol's class names."
)

ADVFLYP_CODE_PROTOCOL = Protocol(
    name="advflyp-code",
    title="AdvFLYP (2026), released code",
    sets=PAPER,
    attacks=("clean", "pgd10", "cw10", "autoattack"),
    eps=(GREY, 2 * GREY, 4 * GREY),
    autoattack=("apgd-ce", "apgd-dlr"),
    rules=ADVFLYP_CODE,
    ties="first",
    templates={
        **_PROMPTS,
        "imagenet-r": ("This is an artistic rendering of a {}",),
        "imagenet-a": ("This is a photo of a {}",),
        "imagenet-sketch": ("This is a sketch of a {}",),
        OTHERS: (PHOTO,),
    },
    pixels=_CROP,
    precision="fp32",
    notes=(
        _REPEATED,
        _COPIES,
        "The release ships cleaned class names of ImageNet and TinyImageNet; here a name is the first word of the "
        "WordNet synset, which differs for some classes. --classnames takes others.",
        "In the release ImageNet-Sketch has 999 classes (n03710637 is dropped) and ObjectNet all 313, with its border "
        "(objectnet@all here has none).",
    ),
)

_TECOA_SETS = (
    "cifar10", "cifar100", "stl10", "sun397", "stanford_cars", "food101", "oxford_pets", "flowers102", "dtd",
    "eurosat", "fgvc_aircraft", "pcam", "imagenet", "caltech101", "caltech256",
)  # fmt: skip

TECOA_PROTOCOL = Protocol(
    name="tecoa",
    title="TeCoA (2023), released code",
    sets=_TECOA_SETS,
    absent=("Hateful Memes",),
    attacks=("clean", "pgd100", "autoattack"),
    autoattack=("apgd-ce", "apgd-dlr"),
    rules=TECOA,
    ties="first",
    templates={**_PROMPTS, "pcam": ("{}",), OTHERS: ("This is a photo of a {}",)},
    pixels=_CROP,
    small=_of_small(Pixels(native=True)),
    precision="fp32",
    notes=(
        "PGD: 100 steps of 1/255 are the default of the released code.",
        _REPEATED,
        _COPIES,
        "ImageNet's class names are the first word of the WordNet synset.",
        "PCAM is read from CLIP benchmark's copy, with the two prompts of the released code, misspelling included.",
    ),
)

PMG_AFT = replace(
    TECOA_PROTOCOL,
    name="pmg-aft",
    title="PMG-AFT (2024), released code",
    sets=("tiny-imagenet", *_TECOA_SETS),
    absent=(),
    attacks=("clean", "pgd100", "cw100", "autoattack"),
    rules={**TECOA, "sun397": without_slashes},
)

TGA_ZSR = replace(
    PMG_AFT,
    name="tga-zsr",
    title="TGA-ZSR (2024), released code",
    small=_of_small(Pixels(resize=224, of=224, interpolation="bilinear")),
)

_WEBDATASETS = (
    "cifar10", "cifar100", "stl10", "stanford_cars", "caltech101@vtab", "oxford_pets", "flowers102", "dtd",
    "eurosat@vtab", "fgvc_aircraft", "pcam", "imagenet-r", "imagenet-sketch",
)  # fmt: skip

ROBUSTVLM = Protocol(
    name="robustvlm",
    title="FARE and TeCoA in RobustVLM (2024), released code",
    sets=_WEBDATASETS,
    attacks=("clean", "autoattack"),
    eps=(GREY, 2 * GREY, 4 * GREY),
    autoattack=("apgd-cex5", "apgd-t"),
    limit=1000,
    source="webdataset",
    small=_of_small(Pixels(native=True)),
    precision="fp32",
    notes=(
        "The released program takes 1,000 of a copy's first 10,000 images, in an order that depends on its workers and "
        "is not reproduced: here they are 1,000 class-balanced images, drawn by --seed.",
        "The paper's tables have ε = 2/255 and 4/255.",
        "The paper's ImageNet column uses RobustBench's list of 5,000 images, which is not included: --sets imagenet "
        "--limit 5000 takes five of each class.",
        "With a custom list of attacks, AutoAttack's code restarts APGD-CE five times.",
        "On PCAM, which has two classes, the released program runs APGD-CE alone: --sets pcam --attacks clean "
        "apgd-cex5. The protocol as such also runs APGD-T there, towards the one wrong class.",
    ),
)

CLIP_BENCHMARK = Protocol(
    name="clip-benchmark",
    title="CLIP benchmark: class names, prompts and test parts",
    sets=(
        *_WEBDATASETS, "food101", "sun397", "country211", "imagenet", "imagenet-v2", "imagenet-a", "objectnet",
    ),
    attacks=("clean",),
    source="webdataset",
    precision="fp32",
    notes=(
        "CLIP benchmark has no attacks; requested attacks are ours.",
        "It classifies under autocast by default; here clean images are classified in float32.",
    ),
)  # fmt: skip

PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        ADVFLYP, ADVFLYP_CODE_PROTOCOL, TECOA_PROTOCOL, PMG_AFT, TGA_ZSR, ROBUSTVLM, CLIP_BENCHMARK, ADVFLYP_2026,
        ADVFLYP_2026_MINI,
    )
}  # fmt: skip


def find_protocol(name: str) -> Protocol:
    """Find a protocol by name; ValueError if there is none."""
    if name not in PROTOCOLS:
        raise ValueError(f"there is no protocol '{name}'{suggest(name, PROTOCOLS)}")
    return PROTOCOLS[name]
