"""Metrics of answers: CIDEr-D without Java, VQA accuracy, yes-or-no accuracy.

CIDEr-D (Vedantam et al. 2015) is implemented here, because aac-metrics depends on four audio models and, through one of
them, on an older transformers than ours, and pycocoevalcap is 101 MB and needs Java to split words. The tests compare
with the values of pycocoevalcap, Java included.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

# CIDEr-D: length of the longest n-grams, and width of the penalty on differing lengths.
MAX_N, SIGMA = 4, 6.0
PERCENT = 100.0
# What few-shot models write at the start of the next example; RobustVLM cuts every answer there.
_NEXT_EXAMPLE = re.compile("Question|Answer|Short|, ")
# Words as in the Penn Treebank: numbers with their separators, abbreviations, words with inner hyphens and apostrophes.
_WORD = re.compile(
    r"\d+(?:[.,:]\d+)+|\b(?:mr|mrs|ms|dr|st|jr|sr)\.|(?:[^\W\d_]\.){2,}|[^\W_]+(?:['’\-/][^\W_]+)*|[/&$%#@*+=()\[\]{}]"
)
_CLITIC = re.compile(r"(?:n['’]t|['’](?:s|m|d|re|ve|ll))$")
_BRACKETS = zip("()[]{}", ("-lrb-", "-rrb-", "-lsb-", "-rsb-", "-lcb-", "-rcb-"), strict=True)
_SPLIT = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    # In the released evaluation, brackets are lower-cased first, so the list of punctuation to drop misses them.
    **{bracket: (name,) for bracket, name in _BRACKETS},
}


def words_of(caption: str) -> list[str]:
    """A caption's words in lower case as the Penn Treebank splits them, without punctuation."""
    found: list[str] = []
    for word in _WORD.findall(caption.lower()):
        clitic = _CLITIC.search(word)
        if word in _SPLIT:
            found += _SPLIT[word]
        elif clitic and clitic.start():
            found += [word[: clitic.start()], clitic[0].replace("’", "'")]
        else:
            found.append(word)
    return found


class Cider:
    """CIDEr-D in per cent: the similarity of a caption to its references, in n-grams weighted by rarity.

        100 · 10 · mean_r [ exp(−(l − l_r)² / 2σ²) · 1/4 Σ_n min(g_n, g_rn) · g_rn / (‖g_n‖ ‖g_rn‖) ]

    with g_n the tf·idf of its n-grams and l its length; r runs over the references. A score of 100 is what
    papers print as "CIDEr 100".

    Args:
        references: The references of every evaluated image. N-gram rarity is computed over these images, so scores are
            comparable only on the same subset.
    """

    def __init__(self, references: Sequence[Sequence[str]]) -> None:
        counted = [[_counts(words_of(one)) for one in several] for several in references]
        images = Counter(gram for several in counted for gram in set().union(*several))
        self._log_images = math.log(len(references)) if references else 0.0
        self._log_df = {gram: math.log(count) for gram, count in images.items()}
        self._references = [[self._vector(one) for one in several] for several in counted]

    def score(self, image: int, caption: str) -> float:
        """The score, at least 0, of a caption for image number `image`."""
        found = self._vector(_counts(words_of(caption)))
        similar = [_similarity(found, reference) for reference in self._references[image]]
        return PERCENT * 10 * sum(similar) / len(similar)

    def _vector(self, counts: Counter[tuple[str, ...]]) -> "_Vector":
        parts: list[dict[tuple[str, ...], float]] = [{} for _ in range(MAX_N)]
        for gram, count in counts.items():
            parts[len(gram) - 1][gram] = count * (self._log_images - self._log_df.get(gram, 0.0))
        norms = [math.sqrt(sum(value * value for value in part.values())) for part in parts]
        # As length, the released evaluation uses the number of bigrams.
        return parts, norms, sum(count for gram, count in counts.items() if len(gram) == 2)


_Vector = tuple[list[dict[tuple[str, ...], float]], list[float], int]


def _counts(words: Sequence[str]) -> Counter[tuple[str, ...]]:
    return Counter(
        tuple(words[begin : begin + n]) for n in range(1, MAX_N + 1) for begin in range(len(words) - n + 1)
    )


def _similarity(found: _Vector, reference: _Vector) -> float:
    """The mean over n = 1 … 4 of the clipped cosine, times the penalty on differing lengths."""
    total = 0.0
    for ours, theirs, norm, other in zip(found[0], reference[0], found[1], reference[1], strict=True):
        common = sum(
            min(value, theirs[gram]) * theirs[gram] for gram, value in ours.items() if gram in theirs
        )
        total += common / (norm * other) if norm and other else 0.0
    return total / MAX_N * math.exp(-((found[2] - reference[2]) ** 2) / (2 * SIGMA**2))


def caption_in(answer: str) -> str:
    """The part of a generated caption that RobustVLM scores."""
    return answer.split("Output")[0].replace('"', "").strip()


def answer_in(answer: str) -> str:
    """The part of a generated answer that RobustVLM scores."""
    return _NEXT_EXAMPLE.split(answer, maxsplit=1)[0].strip()


# Normalisation of answers, as in the VQA evaluation.
_ARTICLES = {"a", "an", "the"}
_COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_COUNTED)} | {"none": "0"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_WITH_APOSTROPHE = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's
i'd i'm i've isn't it'd it'll let's ma'am might've mightn't must've mustn't needn't o'clock oughtn't she's
should've shouldn't somebody's someone's something's that's there'd there're there's they'd they'll they're
they've wasn't we'd we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
_CONTRACTIONS = {word.replace("'", ""): word for word in _WITH_APOSTROPHE.split()}


def normalised(answer: str) -> str:
    """An answer as VQA's evaluation compares it: lower case, no punctuation or articles, numbers as digits."""
    text = " ".join(answer.split())
    has_thousands = re.search(r"\d,\d", text) is not None
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if beside_space or has_thousands else " ")
    text = re.sub(r"\.(?!\d)", "", text).lower()
    words = [_NUMBERS.get(word, word) for word in text.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """VQA accuracy in per cent: the mean over the annotators of min(1, n/3), n the others who gave this answer."""
    found, given = normalised(answer), [normalised(one) for one in references]
    same = [one == found for one in given]
    if len(given) == 1:
        return PERCENT * same[0]
    shares = [min(1.0, (sum(same) - own) / 3) for own in same]
    return PERCENT * sum(shares) / len(shares)


def said_yes(answer: str) -> bool:
    """POPE's reading of an answer: no if its first sentence contains the word "no" or "not", else yes."""
    words = answer.split(".")[0].replace(",", "").lower().split()
    return not {"no", "not"} & set(words)


def yes_no_accuracy(answer: str, references: Sequence[str]) -> float:
    """100 if the answer, read as yes or no, agrees with the reference, else 0."""
    return PERCENT * (said_yes(answer) == (references[0].strip().lower() == "yes"))


def says(answer: str, target: str) -> bool:
    """Whether the answer contains the target string of an attack, ignoring case."""
    return target.lower() in answer.lower()
