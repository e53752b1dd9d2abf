"""Names of attacks, parsed without importing torch, so that a misspelled one is refused at once."""

import re
from typing import Any

from advflyp.config import nearest, suggest
from advflyp.plugins import is_import_path

# AutoAttack's members; the published ensembles are `STANDARD` and, for randomised models, `RAND`.
MEMBERS = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square", "apgd-ce-eot20", "apgd-dlr-eot20")
STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
RAND = ("apgd-ce-eot20", "apgd-dlr-eot20")
KNOWN = (
    "clean, noise, fgsm, pgdN, cwN (N steps; pgd10x5: five restarts), encoderN, encoder-patchesN, encoder-bothN, "
    "pgd-lse-N, pgdN@openai, pgdN@MODEL, typographic, autoattack, autoattack-rand, members of AutoAttack joined by '+' "
    "(apgd-ce, apgd-dlr, apgd-t, fab-t, square; apgd-cex5: five restarts), or your own as module:object; "
    "`advflyp attacks` says what each is"
)
COUNTS = r"(?P<steps>\d{1,12})(?:x(?P<restarts>\d{1,12}))?"
MOST_STEPS = 10**9

# Kinds of attack that may search on another classifier than the evaluated one ("pgd10@openai").
ELSEWHERE = ("fgsm", "pgd", "cw", "encoder", "adaptive")


def read_attack_name(name: str) -> dict[str, Any]:
    """Parse the name of an attack into its kind and parameters; names as printed in tables ("PGD-10×5") work too.

    Returns:
        "kind": "clean", "noise", "fgsm", "pgd", "cw", "encoder", "adaptive", "typographic", "elsewhere", "autoattack"
        or "own". Also "steps" and "restarts" for pgd, cw, encoder and adaptive; "tokens" for encoder; "terms" for
        adaptive; "members", pairs (name, restarts), for autoattack; "attack" and "where" for elsewhere
        ("pgd10@openai", "pgd10@MODEL").

    Raises:
        ValueError: There is no such attack. Of a user's own, "module:object", only the form of the name is checked.
    """
    if is_import_path(name):
        return {"kind": "own"}
    if "@" in name:
        searched, _, where = name.partition("@")
        read = read_attack_name(searched)
        if read["kind"] not in ELSEWHERE or not where:
            raise ValueError(
                f"'{name}': write pgdN, cwN, pgd-lse-N, fgsm or encoderN before the @, and openai or a model after it"
            )
        if read["kind"] == "encoder" and where.strip() == "openai":
            raise ValueError(
                f"'{name}': {searched} uses no prompts, so other prompts change nothing; leave out @openai"
            )
        return {"kind": "elsewhere", "attack": searched, "where": where.strip()}
    plain = re.sub(r"\s", "", name.lower()).replace("×", "x").replace("(rand)", "-rand")
    plain = re.sub(r"^(pgd|cw|encoder(?:-patches|-both)?)-(?=\d)", r"\1", plain)
    if plain in ("clean", "noise", "fgsm", "typographic"):
        return {"kind": plain}
    if plain in ("autoattack", "autoattack-rand"):
        members = STANDARD if plain == "autoattack" else RAND
        return {"kind": "autoattack", "members": [(member, 1) for member in members]}
    if match := re.fullmatch(rf"(pgd|cw){COUNTS}", plain):
        return {"kind": match[1], **_counts(name, match)}
    if match := re.fullmatch(rf"encoder(?:-(patches|both))?{COUNTS}", plain):
        return {"kind": "encoder", "tokens": match[1] or "image", **_counts(name, match)}
    if match := re.fullmatch(rf"pgd-lse((?:-(?:feature|attention))*)-?{COUNTS}", plain):
        return {"kind": "adaptive", "terms": tuple(match[1].split("-")[1:]), **_counts(name, match)}
    found = [re.fullmatch(r"(.+?)(?:x([1-9]\d{0,2}))?", part) for part in plain.split("+")]
    members = [(match[1], int(match[2] or 1)) if match else ("", 1) for match in found]
    if all(member in MEMBERS for member, _ in members):
        return {"kind": "autoattack", "members": members}
    if len(members) > 1:
        wrong = next(member for member, _ in members if member not in MEMBERS)
        raise ValueError(f"'{name}': AutoAttack has no member '{wrong}'{suggest(wrong, MEMBERS)}")
    simple = "clean noise fgsm pgd10 cw10 encoder10 typographic autoattack autoattack-rand"
    known = [*simple.split(), *MEMBERS]
    raise ValueError(f"there is no attack '{name}'{nearest(plain, known) or f'; known: {KNOWN}'}")


def _counts(name: str, match: re.Match[str]) -> dict[str, int]:
    counts = {"steps": int(match["steps"]), "restarts": int(match["restarts"] or 1)}
    for what, count in counts.items():
        if not 1 <= count <= MOST_STEPS:
            raise ValueError(f"'{name}': the number of {what} lies between 1 and {MOST_STEPS:,}")
    return counts
