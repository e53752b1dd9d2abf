"""Numbers with their nouns, for messages and reports."""

# Endings of nouns whose plural ends in -es.
HISSING = ("s", "x", "ch", "sh")


def counted(number: int, noun: str) -> str:
    """A number and what it counts: "1 step", "1,234 steps", "2 class folders".

    Args:
        number: How many.
        noun: In the singular; of several words, the last one changes.
    """
    return f"{number:,} {noun if number == 1 else plural(noun)}"


def are(number: int, noun: str) -> str:
    """A number and what it counts, as the subject of a sentence: "1 step is", "2 steps are"."""
    return f"{counted(number, noun)} {'is' if number == 1 else 'are'}"


def plural(noun: str) -> str:
    """ "step" → "steps", "class" → "classes", "entry" → "entries"."""
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(HISSING) else f"{noun}s"
