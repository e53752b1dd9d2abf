"""The labels that a model chooses among, from a list, a file or a known dataset, and their prompt templates."""

import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from advflyp.data.sets.labelled import load_set, set_names
from advflyp.data.sets.prompts import PHOTO, choose_templates, texts_of
from advflyp.documents import read_text
from advflyp.evaluation.classifier import Classifier
from advflyp.limits import MAX_NAME
from advflyp.model.clip import CLIP

HOW = "separate them by commas (cat,dog), or name a file with one a line, or a set of `advflyp sets`"


@dataclass(frozen=True, kw_only=True)
class Labels:
    """K label names and their prompt templates; made by `choose_labels`."""

    names: list[str]
    templates: list[str]

    def classifier(self, model: CLIP) -> Classifier:
        """A zero-shot classifier; when first used, ValueError if two labels are the same text to the model."""
        return Classifier(model, self.names, self.templates)

    def index(self, label: str) -> int:
        """The index of a label; ValueError if it is not among them."""
        wanted = _clean(*texts_of(label, "a label"))
        if wanted not in self.names:
            shown = ", ".join(self.names[:10]) + (", …" if len(self.names) > 10 else "")
            raise ValueError(f"the label '{wanted}' is not among the labels: {shown}")
        return self.names.index(wanted)


def choose_labels(labels: str | Sequence[str], templates: str | Sequence[str] | None = None) -> Labels:
    """Labels from a list, or from text: "cat,dog", a file with one per line, or a known dataset such as "mini/food".

    Args:
        templates: Prompts with one "{}" each, or ["openai"]; by default the dataset's own, else "This is a photo
            of a {}.".

    ValueError for fewer than two labels, duplicates, an unreadable file or an unknown dataset.
    """
    prompts = None if templates is None else choose_templates(templates)
    names = _from_text(labels) if isinstance(labels, str) else _clean_all(texts_of(labels, "labels"))
    if names is None:
        labelled = load_set(str(labels))
        return Labels(names=labelled.classes, templates=prompts or labelled.templates)
    if len(names) < 2:
        found = f"'{names[0]}' is one label" if names else "there are no labels"
        raise ValueError(f"{found}; a model needs at least two to choose among: {HOW}")
    twice = [name for name, count in Counter(map(str.casefold, names)).items() if count > 1]
    if twice:
        raise ValueError(f"the label '{twice[0]}' is given twice; keep one (case is ignored)")
    return Labels(names=names, templates=prompts or [PHOTO])


def _from_text(text: str) -> list[str] | None:
    """The labels in a file or a list; None if the text names a dataset."""
    if os.path.isfile(text):  # not `Path.is_file`, which fails for a long text
        return _clean_all(read_text(Path(text)).splitlines())
    if "," in text:
        return _clean_all(text.split(","))
    try:
        set_names([text])
    except (OSError, ValueError) as error:
        if text.endswith(".txt"):
            raise ValueError(f"there is no file {text} with labels") from None
        if "/" in text:
            raise ValueError(f"there is no file {text} with labels, and {error}") from None
        return _clean_all([text])
    return None


def _clean_all(names: Sequence[str]) -> list[str]:
    return [name for name in map(_clean, names) if name]


def _clean(name: str) -> str:
    if len(name) > MAX_NAME:
        raise ValueError(f"the label '{name[:40]} …' has more than {MAX_NAME:,} characters; shorten it")
    # JSON can hold lone surrogates, which no tokenizer takes.
    name = name.encode("utf-8", "replace").decode()
    return unicodedata.normalize("NFC", " ".join(name.split()))
