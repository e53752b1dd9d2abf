"""An attack on texts: a few wrong letters that move the embedding while the words keep their shape.

    max over t′:  1 − cos(g(t′), g(t)),    t′ at most k character edits from t

Here g is the text encoder. The search is greedy: each edit is the worst of several random candidates. LEAF (Abad
Rocamora et al. 2025) is an attack of this kind.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from string import ascii_lowercase
from typing import Any

import torch
from torch import Tensor

from advflyp.data.sets.prompts import several_texts
from advflyp.seeds import derive_seed

CANDIDATES = 50


@dataclass(frozen=True, kw_only=True)
class TextEdits:
    """The arguments of `edit_texts`, and their name in results."""

    edits: int = 1
    candidates: int = CANDIDATES

    def __post_init__(self) -> None:
        if self.edits < 1:
            raise ValueError(f"edits must be at least 1, not {self.edits}")

    @property
    def name(self) -> str:
        return f"{'random-' if self.candidates == 1 else ''}edits{self.edits}"

    def arguments(self) -> dict[str, Any]:
        """The parameters that results record."""
        return asdict(self)


def edit_texts(
    encode: Callable[[Sequence[str]], Tensor],
    texts: Sequence[str],
    *,
    edits: int = 1,
    candidates: int = CANDIDATES,
    seed: int = 0,
) -> list[str]:
    """Each text with at most `edits` characters replaced, inserted or deleted.

    Spaces, digits, punctuation and the first and last letter of each word stay, and so do word count and word shapes.

    Args:
        encode: Texts → (N, d) unit-norm embeddings; `model.encode_text`, or for class names the mean over prompts.
        texts: N texts; each result depends only on the text and `seed`.
        edits: k.
        candidates: Random candidates per edit, of which the worst is kept; 1 makes random edits, as a control.
        seed: Random seed.

    Returns:
        N texts; those without a word of at least three letters are returned unchanged.
    """
    return [_edited(encode, text, edits, candidates, seed) for text in several_texts(texts, "texts")]


@torch.no_grad()
def _edited(
    encode: Callable[[Sequence[str]], Tensor], text: str, edits: int, candidates: int, seed: int
) -> str:
    found, draw = text, random.Random(derive_seed(seed, text))
    for _ in range(edits):
        drawn = [_edit(found, draw) for _ in range(candidates)]
        if candidates > 1:
            drawn.append(found)  # another edit need not be worse
        drawn = [one for one in dict.fromkeys(drawn) if one != text]
        if not drawn:
            continue
        embeddings = encode([text, *drawn])
        found = drawn[int((embeddings[1:] @ embeddings[0]).argmin())]
    return found


def _edit(text: str, draw: random.Random) -> str:
    """One random edit of an inner letter; the text itself if no word has one."""
    inner = [
        place
        for place in range(1, len(text) - 1)
        if all(letter.isalpha() for letter in text[place - 1 : place + 2])
    ]
    if not inner:
        return text
    place = draw.choice(inner)
    before, old, after = text[:place], text[place], text[place + 1 :]
    letter = draw.choice(ascii_lowercase.replace(old.lower(), ""))
    return draw.choice([before + letter + after, before + letter + old + after, before + after])
