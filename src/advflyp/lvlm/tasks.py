"""Read the tasks' official annotation files, in the layout in which their authors publish them."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from advflyp.config import suggest
from advflyp.documents import parse_json, read_json, read_text

Metric = Literal["cider", "vqa", "yes-no"]
CAPTION = "Provide a short caption for this image."
SHORT = "{}\nAnswer the question using a single word or phrase."
OR_NONE = SHORT.replace(
    "\n", "\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
)


@dataclass(frozen=True)
class Sample:
    """An image, a question and what people answered.

    Attributes:
        key: Its name in results.
        image: The image file.
        prompt: The question.
        references: Captions, annotators' answers, or "yes" or "no".
    """

    key: str
    image: Path
    prompt: str
    references: tuple[str, ...]

    def frequent(self, count: int) -> list[str]:
        """The `count` most frequent references; ties keep their order."""
        return [reference for reference, _ in Counter(self.references).most_common(count)]


@dataclass(frozen=True)
class Task:
    """Samples and how their answers are scored.

    Attributes:
        name: Its name in results.
        metric: "cider", "vqa" or "yes-no", all in per cent.
        samples: All of them, or those drawn.
        of: The number of samples without a limit.
        longest: Maximum length of a generated answer in tokens.
    """

    name: str
    metric: Metric
    samples: tuple[Sample, ...]
    of: int
    longest: int = 20

    def drawn(self, limit: int, seed: int) -> "Task":
        """`limit` random samples in their original order, the same that RobustVLM draws with this seed."""
        if limit >= len(self.samples):
            return self
        places = np.random.RandomState(seed).choice(len(self.samples), limit, replace=False)
        return replace(self, samples=tuple(self.samples[place] for place in sorted(places)))


def load_task(name: str, root: str | Path) -> Task:
    """Read a task from `root`, which has one folder per dataset (layout: docs/lvlm.md).

    Args:
        name: "coco", "flickr30k", "vqav2", "textvqa", "vizwiz", "pope-random", "pope-popular" or "pope-adversarial".
        root: The folder of all datasets.

    Raises:
        ValueError: There is no such task, or a file is missing (the message says where it belongs) or damaged.
    """
    if name not in TASKS:
        raise ValueError(f"there is no task '{name}'{suggest(name, TASKS)}")
    layout, root = TASKS[name], Path(root).expanduser()
    files = [root / file for file in layout.files]
    images = root / layout.images
    for path in (*files, images):
        if not path.exists():
            raise ValueError(f"{name} needs {path}, which is missing: {layout.source}")
    try:
        samples = layout.read(files, images)
    except (ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{files[0]} cannot be used for {name}: {error}; {layout.source}") from None
    if not samples:
        raise ValueError(f"{files[0]} holds no samples of {name}; {layout.source}")
    for sample in samples:
        if not any(text.strip() for text in sample.references):
            raise ValueError(f"{files[-1]} has no references for the sample {sample.key}; {layout.source}")
    return Task(name, layout.metric, tuple(samples), len(samples), layout.longest)


def _karpathy(files: Sequence[Path], images: Path) -> list[Sample]:
    """Karpathy's JSON: images of the split "test", each with its sentences."""
    samples = []
    for record in read_json(files[0])["images"]:
        if record["split"] != "test":
            continue
        path = _inside(images, record.get("filepath", ""), record["filename"])
        captions = tuple(_text(one["raw"]) for one in record["sentences"])
        samples.append(Sample(record["filename"], path, CAPTION, captions))
    return samples


def _vqav2(files: Sequence[Path], images: Path) -> list[Sample]:
    answers = {
        one["question_id"]: tuple(_text(answer["answer"]) for answer in one["answers"])
        for one in read_json(files[1])["annotations"]
    }
    return [
        Sample(
            str(one["question_id"]),
            images / f"COCO_val2014_{int(one['image_id']):012d}.jpg",
            SHORT.format(_text(one["question"])),
            answers[one["question_id"]],
        )
        for one in read_json(files[0])["questions"]
    ]


def _textvqa(files: Sequence[Path], images: Path) -> list[Sample]:
    return [
        Sample(
            str(one["question_id"]),
            _inside(images, f"{one['image_id']}.jpg"),
            SHORT.format(_text(one["question"])),
            tuple(map(_text, one["answers"])),
        )
        for one in read_json(files[0])["data"]
    ]


def _vizwiz(files: Sequence[Path], images: Path) -> list[Sample]:
    return [
        Sample(
            one["image"],
            _inside(images, one["image"]),
            OR_NONE.format(_text(one["question"])),
            tuple(_text(answer["answer"]) for answer in one["answers"]),
        )
        for one in read_json(files[0])
    ]


def _pope(files: Sequence[Path], images: Path) -> list[Sample]:
    """JSON lines."""
    samples = []
    for line in filter(str.strip, read_text(files[0]).split("\n")):
        one = parse_json(line)
        if one["label"] not in ("yes", "no"):
            raise ValueError(f"the label {json.dumps(one['label'])[:40]} is neither yes nor no")
        path = _inside(images, one["image"])
        samples.append(
            Sample(str(one["question_id"]), path, SHORT.format(_text(one["text"])), (one["label"],))
        )
    return samples


def _inside(folder: Path, *names: str) -> Path:
    """The path of a file named in an annotation; ValueError if it could lead out of `folder`."""
    for name in names:
        if not isinstance(name, str) or "/" in name or "\\" in name or "\0" in name or name == "..":
            raise ValueError(f"{str(name)[:60]!r} is not the name of an image")
    return folder.joinpath(*names)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:60]!r} is not a text")
    return value


@dataclass(frozen=True)
class Layout:
    """A task's files below the root, their source, and the function that reads them."""

    metric: Metric
    files: tuple[str, ...]
    images: str
    source: str
    read: Callable[[Sequence[Path], Path], list[Sample]]
    longest: int


_COCO_IMAGES = "the images are val2014.zip of cocodataset.org, unpacked as coco/val2014"
_SPLITS = "caption_datasets.zip of Karpathy's splits"
TASKS: Mapping[str, Layout] = {
    "coco": Layout(
        "cider", ("coco/dataset_coco.json",), "coco", f"it is in {_SPLITS}; {_COCO_IMAGES}", _karpathy, 20
    ),
    "flickr30k": Layout(
        "cider",
        ("flickr30k/dataset_flickr30k.json",),
        "flickr30k/flickr30k-images",
        f"it is in {_SPLITS}; the images are Flickr30k's own folder flickr30k-images",
        _karpathy,
        20,
    ),
    "vqav2": Layout(
        "vqa",
        (
            "vqav2/v2_OpenEnded_mscoco_val2014_questions.json",
            "vqav2/v2_mscoco_val2014_annotations.json",
        ),
        "coco/val2014",
        f"questions and annotations of the validation set are on visualqa.org; {_COCO_IMAGES}",
        _vqav2,
        5,
    ),
    "textvqa": Layout(
        "vqa",
        ("textvqa/TextVQA_0.5.1_val.json",),
        "textvqa/train_images",
        "annotations and train_val_images.zip, which has the folder train_images, are on textvqa.org",
        _textvqa,
        10,
    ),
    "vizwiz": Layout(
        "vqa",
        ("vizwiz/val.json",),
        "vizwiz/val",
        "annotations and val.zip are on vizwiz.org (visual question answering)",
        _vizwiz,
        5,
    ),
    **{
        f"pope-{kind}": Layout(
            "yes-no",
            (f"pope/coco_pope_{kind}.json",),
            "coco/val2014",
            f"it is in output/coco of POPE's repository; {_COCO_IMAGES}",
            _pope,
            10,
        )
        for kind in ("random", "popular", "adversarial")
    },
}
