"""The table of protocols for reading: a list, everything of one, and what differs between them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from advflyp.attack.threat import Threat
from advflyp.data.sets.catalogue import TABLE
from advflyp.data.sets.classnames import OURS
from advflyp.data.sets.prompts import fill
from advflyp.evaluation.protocols import ADVFLYP, OTHERS, PROTOCOLS, Protocol
from advflyp.report.measure.estimates import attack_title, radius
from advflyp.report.measure.tables import Table, Value

# A class of each dataset, as the authors write it, by which protocols differ where they do.
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
}
COPY = "the copy's own"


def protocols_table() -> Table:
    """A row for each protocol."""
    return Table(
        title="Protocols for --protocol",
        words=True,
        columns=["name", "whose", "datasets", "attacks", "ε"],
        rows=[[p.name, p.title, str(len(p.sets)), _attacks(p), _radii(p)] for p in PROTOCOLS.values()],
        note="`advflyp protocols NAME` shows everything of one.",
    )


def describe(protocol: Protocol) -> list[str]:
    """Everything of a protocol, a line each."""
    lines = [f"{protocol.name}: {protocol.title}"]
    lines += [f"{name + ':':14} {text}" for name, text in facts(protocol).items()]
    lines += [f"  {attack_title(name) + ':':12} {text}" for name, text in _arguments(protocol).items()]
    lines.append("prompts, each with a class of the dataset in it:")
    for name in dict.fromkeys(name.partition("@")[0] for name in protocol.sets):
        lines.append(f"  {name:14} {example(protocol, name)}")
    return lines + [f"note: {note}" for note in protocol.notes]


def facts(protocol: Protocol) -> dict[str, str]:
    """What a protocol says of all datasets, by name."""
    files = "CLIP benchmark's webdataset copies" if protocol.source == "webdataset" else "the authors' files"
    found = {
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
    return found


def example(protocol: Protocol, name: str) -> str:
    """A prompt of a dataset, with the class in it that `EXAMPLES` has."""
    if protocol.source == "webdataset":
        return COPY
    rule = protocol.rules.get(name, OURS[name])
    templates = protocol.templates.get(name, protocol.templates.get(OTHERS, (TABLE[name].prompt,)))
    return fill(templates[0], rule(EXAMPLES[name]))


def differences() -> Table:
    """A row for each thing in which protocols differ; those with the same prompts and pixels share a column."""
    rows: dict[str, Callable[[Protocol], str]] = {
        "datasets": lambda p: str(len(p.sets)),
        **{name: lambda p, name=name: facts(p)[name] for name in facts(ADVFLYP) if name != "datasets"},
        **{f"prompt: {name}": lambda p, name=name: _quoted(example(p, name)) for name in TABLE},
    }
    columns: dict[tuple[str, ...], list[Protocol]] = {}
    for protocol in PROTOCOLS.values():
        looks = (_resizing(protocol), _perturbation(protocol), *(example(protocol, name) for name in TABLE))
        columns.setdefault((protocol.source, *looks), []).append(protocol)
    found: list[list[Value]] = [
        [row, *(_of_all(some, get) for some in columns.values())] for row, get in rows.items()
    ]
    return Table(
        title="What differs",
        columns=["", *(", ".join(p.name for p in some) for some in columns.values())],
        rows=[row for row in found if len(set(row[1:])) > 1],
    )


def notes() -> list[str]:
    """What still differs from published numbers, each with the protocols it is about."""
    about: dict[str, list[str]] = {}
    for protocol in PROTOCOLS.values():
        for note in protocol.notes:
            about.setdefault(note, []).append(protocol.name)
    return [f"{', '.join(f'`{name}`' for name in names)}: {note}" for note, names in about.items()]


def _of_all(some: Sequence[Protocol], get: Callable[[Protocol], str]) -> str:
    """What is the same for all of them once, else with their names."""
    found: dict[str, list[str]] = {}
    for protocol in some:
        found.setdefault(get(protocol), []).append(protocol.name)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in found.items())


def _quoted(text: str) -> str:
    return text if text == COPY else f'"{text}"'


def _arguments(protocol: Protocol) -> dict[str, str]:
    """Every parameter of each attack, on a thousand classes."""
    threat = Threat(norm=protocol.norm, eps=protocol.eps[0])
    attacks = [protocol.attack(name) for name in protocol.attacks]
    return {
        attack.name: ", ".join(map(_setting, attack.arguments(threat, classes=1000).items()))
        for attack in attacks
        if attack.perturbs
    }


def _setting(pair: tuple[str, Any]) -> str:
    name, value = pair
    if isinstance(value, Mapping):
        return f"{name} ({', '.join(map(_setting, value.items()))})"
    return f"{name} {radius(value, 'linf') if name == 'step_size' else value}"


def _attacks(protocol: Protocol) -> str:
    names = dict.fromkeys(protocol.attack(name).name for name in protocol.attacks)
    return ", ".join(attack_title(name) for name in names)


def _radii(protocol: Protocol) -> str:
    return ", ".join(radius(eps, protocol.norm) for eps in protocol.eps)


def _resizing(protocol: Protocol) -> str:
    pixels = protocol.pixels
    if pixels.resize is None:
        return "the model's own (CLIP: shorter side to the input size, bicubic, centre crop)"
    size = f"shorter side to {pixels.resize}" + (f" for an input of {pixels.of}" if pixels.of else "")
    return f"{size}, {pixels.interpolation or 'bicubic'}, centre crop"


def _perturbation(protocol: Protocol) -> str:
    if not protocol.native:
        return "the model's input"
    return f"the model's input; of {', '.join(protocol.native)} the native pixels, upsampled (bicubic) in the model"
