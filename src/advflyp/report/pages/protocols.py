"""The protocols for reading: a table of all, and everything about one."""

from collections.abc import Mapping

from advflyp.attack.threat import Threat
from advflyp.data.sets.catalogue import TABLE, set_names
from advflyp.data.sets.classnames import OURS
from advflyp.data.sets.prompts import fill
from advflyp.evaluation.pixels import Pixels
from advflyp.evaluation.protocols import PROTOCOLS, Protocol
from advflyp.report.measure.estimates import attack_title, radius
from advflyp.report.measure.tables import Table
from advflyp.report.pages.prose import setting

# A class of each dataset, as its authors spell it, that shows where the class names of protocols differ.
EXAMPLES: Mapping[str, str] = {
    "cifar10": "airplane",
    "cifar100": "aquarium_fish",
    "stl10": "airplane",
    "caltech101": "Faces_easy",
    "caltech256": "006.basketball-hoop",
    "oxford_pets": "american_bulldog",
    "flowers102": "pink-yellow dahlia?",
    "food101": "apple_pie",
    "stanford_cars": "Audi S4 Sedan 2012",
    "sun397": "apartment_building/outdoor",
    "country211": "BO",
    "fgvc_aircraft": "707-320",
    "eurosat": "River",
    "dtd": "polka-dotted",
    "imagenet": "n02106662",
    "imagenet-v2": "n02106662",
    "imagenet-r": "n02106662",
    "imagenet-a": "n01498041",
    "imagenet-sketch": "n02106662",
    "objectnet": "Air freshener",
    "tiny-imagenet": "spider web, spider's web",
    "pcam": "lymph node",
}
COPY = "the copy's own"


def protocols_table() -> Table:
    """A row for each protocol."""
    return Table(
        title="Protocols for --protocol",
        words=True,
        columns=["name", "whose", "datasets", "attacks", "ε"],
        rows=[
            [p.name, p.title, str(len(set_names(list(p.sets)))), _attacks(p), _radii(p)]
            for p in PROTOCOLS.values()
        ],
        note="`advflyp protocols NAME` shows everything of one.",
    )


def describe(protocol: Protocol) -> list[str]:
    """Everything about a protocol, one fact per line."""
    lines = [f"{protocol.name}: {protocol.title}"]
    lines += [f"{name + ':':14} {text}" for name, text in facts(protocol).items()]
    lines += [f"  {attack_title(name) + ':':12} {text}" for name, text in _arguments(protocol).items()]
    lines.append("prompts, each with a class of the dataset in it:")
    for name in dict.fromkeys(name.partition("@")[0] for name in protocol.sets):
        lines.append(f"  {name:14} {example(protocol, name)}")
    return lines + [f"note: {note}" for note in protocol.notes]


def facts(protocol: Protocol) -> dict[str, str]:
    """What a protocol specifies for all datasets, by name."""
    files = "CLIP benchmark's webdataset copies" if protocol.source == "webdataset" else "the authors' files"
    return {
        "datasets": ", ".join(protocol.sets),
        "not here": ", ".join(protocol.absent) or "none",
        "files": files,
        "images": "all"
        if protocol.limit is None
        else f"{protocol.limit:,} of each, classes evenly represented",
        "resizing": _resizing(protocol),
        "perturbation": _perturbation(protocol),
        "attacks": _attacks(protocol),
        "ε": f"{_radii(protocol)} ({protocol.norm})",
        "AutoAttack": attack_title("+".join(protocol.autoattack)),
        "equal names": "never right" if protocol.ties == "wrong" else "the first of them can be right",
        "precision": f"search in {protocol.precision}, evaluated in fp32",
    }


def example(protocol: Protocol, name: str) -> str:
    """The first prompt of a dataset, filled with its class from `EXAMPLES`."""
    if protocol.source == "webdataset":
        return COPY
    if name not in TABLE:
        return "the dataset's own"
    rule = protocol.rules.get(name, OURS[name])
    template, *_ = protocol.templates_of(name) or (TABLE[name].prompt,)
    return fill(template, rule(EXAMPLES[name]))


def _arguments(protocol: Protocol) -> dict[str, str]:
    """Every parameter of each attack, on a thousand classes."""
    threat = Threat(norm=protocol.norm, eps=protocol.eps[0])
    attacks = [protocol.attack(name) for name in protocol.attacks]
    return {
        attack.name: ", ".join(map(setting, attack.arguments(threat, classes=1000).items()))
        for attack in attacks
        if attack.perturbs
    }


def _attacks(protocol: Protocol) -> str:
    names = dict.fromkeys(protocol.attack(name).name for name in protocol.attacks)
    return ", ".join(attack_title(name) for name in names)


def _radii(protocol: Protocol) -> str:
    return ", ".join(radius(eps, protocol.norm) for eps in protocol.eps)


def _resizing(protocol: Protocol) -> str:
    small = [f"of {names}: {_resized(pixels)}" for names, pixels in _small(protocol) if not pixels.native]
    return "; ".join([_resized(protocol.pixels), *small])


def _resized(pixels: Pixels) -> str:
    if pixels.resize is None:
        return "the model's own (CLIP: shorter side to the input size, bicubic, centre crop)"
    size = f"shorter side to {pixels.resize}" + (f" for an input of {pixels.of}" if pixels.of else "")
    return f"{size}, {pixels.interpolation or 'bicubic'}, centre crop"


def _small(protocol: Protocol) -> list[tuple[str, Pixels]]:
    """Datasets with pixel settings of their own, grouped by these settings."""
    together: dict[Pixels, list[str]] = {}
    for name, pixels in protocol.small.items():
        together.setdefault(pixels, []).append(name)
    return [(", ".join(names), pixels) for pixels, names in together.items()]


def _perturbation(protocol: Protocol) -> str:
    native = [names for names, pixels in _small(protocol) if pixels.native]
    upsampled = [f"of {names} the native pixels, upsampled (bicubic) in the model" for names in native]
    return "; ".join(["the model's input", *upsampled])
