"""The attack on texts: few edits, of inner letters, that hurt more than random ones."""

import itertools
import re
from dataclasses import replace

import pytest
import torch

from advflyp.attack.text import edit_texts
from advflyp.model.zeroshot import class_embeddings
from attack.mini import correct_on


def levenshtein(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]


def encode(texts: list[str]) -> torch.Tensor:
    """Counts of letters: any edit turns it."""
    counts = torch.tensor([[1.0 + text.count(chr(97 + n)) for n in range(26)] for text in texts])
    return torch.nn.functional.normalize(counts, dim=1)


@pytest.mark.parametrize("edits", [1, 2, 3])
def test_at_most_k_edits_of_inner_letters(edits: int) -> None:
    texts = ["a photo of a Labrador retriever.", "two hot-dogs, 12 buns", "a b c", ""]
    found = edit_texts(encode, texts, edits=edits, candidates=20)  # type: ignore[arg-type]
    assert found == edit_texts(encode, texts, edits=edits, candidates=20)  # type: ignore[arg-type]
    assert found[1:2] == edit_texts(encode, texts[1:2], edits=edits, candidates=20), "each for itself"  # type: ignore[arg-type]
    assert found[:2] != texts[:2] and found[2:] == texts[2:]
    for before, after in zip(texts, found, strict=True):
        assert levenshtein(before, after) <= edits
        assert re.sub("[A-Za-z]+", "w", before) == re.sub("[A-Za-z]+", "w", after)
        for old, new in zip(re.findall("[A-Za-z]+", before), re.findall("[A-Za-z]+", after), strict=True):
            assert (old[0], old[-1]) == (new[0], new[-1])


def test_random_edits_are_made() -> None:
    """Each makes one, though two of few may meet in one place."""
    texts = [f"a photo of the {word} number {n}" for n in range(100) for word in ("house", "llama", "street")]
    for edits in (1, 2, 3):
        found = edit_texts(encode, texts, edits=edits, candidates=1)  # type: ignore[arg-type]
        distances = [levenshtein(one, other) for one, other in zip(texts, found, strict=True)]
        assert min(distances) == 1 and max(distances) == edits
        assert distances.count(edits) > 0.8 * len(texts)


def test_more_edits_are_never_weaker() -> None:
    texts = [f"a photo of the {word} number {n}" for n in range(10) for word in ("house", "llama", "street")]
    before = encode(texts)
    cosines = [
        (before * encode(edit_texts(encode, texts, edits=edits, candidates=3))).sum(1)  # type: ignore[arg-type]
        for edits in (1, 2, 3, 4)
    ]
    for fewer, more in itertools.pairwise(cosines):
        assert (more <= fewer).all()


@pytest.mark.long
def test_edited_class_names_cost_more_accuracy_than_random_edits() -> None:
    clip, food, images, labels = correct_on("mini", 40)

    def names_to_embeddings(names):
        return class_embeddings(clip, names, food.templates)

    right, cosines = {}, {}
    for candidates in (1, 30):
        names = edit_texts(names_to_embeddings, food.classes, edits=2, candidates=candidates)
        edited = replace(food, classes=names)
        with torch.no_grad():
            answers = clip.classifier(edited.classes, edited.templates)(images).argmax(1)
        right[candidates] = int((answers == labels).sum())
        cosines[candidates] = (
            (names_to_embeddings(food.classes) * names_to_embeddings(names)).sum(1).mean().item()
        )
    assert cosines[30] < cosines[1] - 0.1
    assert right[30] < right[1]
