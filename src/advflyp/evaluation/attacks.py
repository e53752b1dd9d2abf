"""Attacks by name: what the command line, recipes and results call them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import Tensor

from advflyp.attack.adaptive import DefenceTerms
from advflyp.attack.autoattack import MEMBERS, AutoAttack
from advflyp.attack.base import Attack, Clean, Custom, Noise
from advflyp.attack.elsewhere import CrossPrompt, Transfer
from advflyp.attack.encoder import EncoderPGD
from advflyp.attack.names import read_attack_name
from advflyp.attack.pgd import CW, FGSM, PGD
from advflyp.attack.threat import Threat
from advflyp.attack.typographic import Typographic
from advflyp.data.sets.labelled import LabelledSet
from advflyp.data.sets.prompts import openai_templates
from advflyp.identity import foreign, recordable, source_sha256
from advflyp.model.load import load_model
from advflyp.plugins import load_object

A = TypeVar("A", bound=Attack)
Condition = tuple[Attack, Threat | None]
# Attacks built directly from the parameters in their names.
KINDS: dict[str, type[Attack]] = {
    "clean": Clean,
    "noise": Noise,
    "fgsm": FGSM,
    "pgd": PGD,
    "cw": CW,
    "encoder": EncoderPGD,
    "typographic": Typographic,
}


def find_attack(attack: "Attack | str | Callable[..., Tensor]") -> Attack:
    """Find an attack by name, also in the form that tables print ("PGD-10"); an `Attack` is returned as it is.

    | name | attack |
    |---|---|
    | clean | none: the images as they are |
    | noise | one uniform draw from the ball: a baseline that any attack has to beat |
    | fgsm | one step of length ε on the cross-entropy, from the image itself |
    | pgd10, cw10 | N steps on the cross-entropy, or on the margin of Carlini & Wagner, from a random start |
    | pgd10x5 | PGD-10 with five restarts |
    | encoder100 | N steps on the cosine distance of the image's embedding to the clean one, without labels |
    | encoder-patches100, encoder-both100 | the same for the embeddings of the patches, or for both |
    | pgd-lse-10 | PGD on the margin over a smooth maximum |
    | pgd-lse-attention-10, pgd-lse-feature-10 | the same, plus a term that a defence keeps small: `DefenceTerms` |
    | pgd10@openai | searched under OpenAI's 80 templates, evaluated under the set's own prompts |
    | pgd10@MODEL | searched on another model |
    | typographic | a control: the name of a wrong class, written on the image as strongly as the ball allows |
    | autoattack | APGD-CE, targeted APGD-DLR, targeted FAB, Square (Croce & Hein 2020) |
    | autoattack-rand | AutoAttack for randomised models: APGD-CE and APGD-DLR on the mean of 20 gradients |
    | apgd-ce+square | the named members of AutoAttack, in this order |
    | apgd-cex5+apgd-t | the same, the first member with five restarts |
    | my_module:my_attack | a function or an `Attack` of your own |

    Raises:
        ValueError: There is no such attack.
    """
    if isinstance(attack, Attack):
        return attack
    if not isinstance(attack, str):
        return Custom(function=attack)
    read = read_attack_name(attack)
    kind = read.pop("kind")
    if kind in KINDS:
        return KINDS[kind](**read)
    match kind:
        case "elsewhere":
            searched, where = find_attack(read["attack"]), read["where"]
            assert isinstance(searched, PGD | EncoderPGD)
            if where == "openai":
                return CrossPrompt(attack=searched, templates=tuple(openai_templates()), called=where)
            return Transfer(attack=searched, model=load_model(where), called=where)
        case "adaptive":
            against = DefenceTerms(terms=read["terms"]) if read["terms"] else None
            return PGD(loss="lse", against=against, steps=read["steps"], restarts=read["restarts"])
        case "autoattack":
            members = tuple(replace(MEMBERS[name], restarts=restarts) for name, restarts in read["members"])
            return members[0] if len(members) == 1 else AutoAttack(members=members)
        case _:
            found = load_object(attack)
            return found if isinstance(found, Attack) else Custom(function=found, called=attack)


def recorded_arguments(attack: Attack, threat: Threat | None, classes: int) -> dict[str, Any]:
    """`attack.arguments`, with hashes of the source of classes that are not this package's, under "source_sha256".

    So a changed or overridden `perturb` is another measurement. ValueError if a source is not available.
    """
    found = recordable(attack.arguments(threat, classes))
    parts = attack.attacks if isinstance(attack, AutoAttack) else [getattr(attack, "attack", attack)]
    own = foreign(type(one) for one in (attack, *parts))
    if own and "source_sha256" not in found:
        found["source_sha256"] = {one.__qualname__: source_sha256(one) for one in own}
    return found


def listed(given: Any) -> list[Any]:
    """One object, or several, as a list."""
    is_one = isinstance(given, str | Path | Attack | LabelledSet) or callable(given)
    is_one |= getattr(given, "ndim", None) == 0  # a number of NumPy or torch
    return [given] if is_one or not isinstance(given, Iterable) else list(given)


def conditions(
    attacks: Iterable[A], norm: Literal["linf", "l2"], eps: float | Sequence[float]
) -> list[tuple[A, Threat | None]]:
    """Each attack at each radius, without duplicates; attacks that perturb nothing have no radius.

    ValueError if an attack perturbs and there is no radius.
    """
    threats = [Threat(norm=norm, eps=value) for value in listed(eps)]
    found: dict[Any, tuple[A, Threat | None]] = {}
    for attack in attacks:
        if attack.perturbs and not threats:
            raise ValueError(f"{attack.name} needs a radius, and eps is empty; give one, for example 1/255")
        for threat in threats if attack.perturbs else [None]:
            what = (attack.name, repr(recorded_arguments(attack, threat, 2)))
            found.setdefault((what, threat), (attack, threat))
    return list(found.values())
