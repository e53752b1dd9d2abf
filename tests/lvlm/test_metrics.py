import json
import math
from itertools import chain
from pathlib import Path

import pytest

from advflyp.lvlm.metrics import Cider, normalised, said_yes, says, vqa_accuracy, words_of, yes_no_accuracy

# Written by pycocoevalcap 1.2 with Stanford's tokenizer, which needs Java.
REFERENCE = json.loads((Path(__file__).parent / "cider.json").read_text(encoding="utf-8"))


def test_words_are_those_of_the_treebank() -> None:
    for name in ("references", "captions"):
        texts, words = REFERENCE[name], REFERENCE["words"][name]
        if name == "references":
            texts, words = chain.from_iterable(texts), [*chain.from_iterable(words)]
        assert [" ".join(words_of(text)) for text in texts] == words


def test_cider_is_the_released_evaluations() -> None:
    cider = Cider(REFERENCE["references"])
    found = [cider.score(image, caption) for image, caption in enumerate(REFERENCE["captions"])]
    for one, wanted in zip(found, REFERENCE["scores"], strict=True):
        assert math.isclose(one, wanted, rel_tol=1e-9, abs_tol=1e-9)


def test_ciders_rarity_is_that_of_the_subset() -> None:
    whole, part = Cider(REFERENCE["references"]), Cider(REFERENCE["references"][:3])
    caption = REFERENCE["captions"][0]
    assert whole.score(0, caption) != pytest.approx(part.score(0, caption))


@pytest.mark.parametrize("caption", ["", "?!", "zebra crossing"])
def test_a_caption_without_a_common_word(caption: str) -> None:
    assert Cider(REFERENCE["references"]).score(0, caption) == 0


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("The Cat.", "cat"),
        ("two", "2"),
        ("None", "0"),
        ("dont know", "don't know"),
        ("black/white", "black white"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("yes, please!", "yes please"),
        ("a\nan apple", "apple"),
        ("", ""),
    ],
)
def test_answers_are_normalised(answer: str, wanted: str) -> None:
    assert normalised(answer) == wanted


@pytest.mark.parametrize(("same", "wanted"), [(0, 0), (1, 30), (2, 60), (3, 90), (4, 100), (10, 100)])
def test_vqa_accuracy_leaves_one_annotator_out(same: int, wanted: float) -> None:
    """Of 3 equal answers, the annotators who gave them see 2, the 7 others 3: (3 · 2/3 + 7) / 10."""
    references = ["Red."] * same + ["blue"] * (10 - same)
    assert vqa_accuracy("the red", references) == pytest.approx(wanted, abs=1e-9)


def test_yes_and_no() -> None:
    assert said_yes("Yes, there is a cat.")
    assert not said_yes("There is no cat. Yes.")
    assert not said_yes("No, it is not")
    assert yes_no_accuracy("no", ["no"]) == 100 == yes_no_accuracy("A cat", ["yes"])
    assert yes_no_accuracy("yes", ["no"]) == 0
    assert says("it is MAYBE so", "maybe")
    assert not says("may be", "maybe")
