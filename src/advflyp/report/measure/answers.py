"""Tables and examples of the results of `advflyp lvlm eval`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from advflyp.escape import for_terminal
from advflyp.evaluation.results import labels
from advflyp.lvlm.results import AnswerCell, read_answers
from advflyp.report.measure.estimates import Condition, Estimate
from advflyp.report.measure.repeated import once
from advflyp.report.measure.tables import Table, Value
from advflyp.wording import counted

METRICS = {"cider": "CIDEr-D", "vqa": "VQA accuracy", "yes-no": "accuracy"}
EXAMPLES = 4


@dataclass(frozen=True, kw_only=True)
class Answered:
    """An image, a question, and what a model answers before and after the attack.

    Attributes:
        before: (3, H, W) pixels in [0, 1].
        after: (3, H, W), the image that gave the worst answer.
    """

    title: str
    prompt: str
    before: Tensor
    after: Tensor
    clean: str
    attacked: str


def answers_table(cells: Sequence[AnswerCell]) -> Table:
    """One model: a row for each task and condition; every score is a mean in per cent."""
    first = cells[0]
    rows: list[list[Value]] = [
        [
            cell.task,
            METRICS.get(cell.metric, cell.metric),
            Condition.of(cell).words,
            Estimate(cell.score / 100, cell.ci95[0] / 100, cell.ci95[1] / 100),
            f"{cell.n}",
        ]
        for cell in cells
    ]
    return Table(
        title=f"Captions and answers\nmodel: {first.model}\nimage tower: {first.vision}",
        columns=["task", "metric", "attack", "score", "n"],
        rows=rows,
        note="\n".join(_notes(cells)),
    )


def answers_tables(cells: Sequence[AnswerCell]) -> list[Table]:
    """An `answers_table` for each model with each image tower.

    Raises:
        ValueError: Two rows would differ only in a setting.
    """
    names = labels(cells, [f"{cell.model}\n{cell.vision}" for cell in cells])
    told = [
        replace(cell, vision=name.removeprefix(f"{cell.model}\n"))
        for cell, name in zip(cells, names, strict=True)
    ]
    groups: dict[tuple[str, str], list[AnswerCell]] = {}
    for cell in once(told, lambda cell: (cell.model, cell.vision, cell.task, cell.n, Condition.of(cell))):
        groups.setdefault((cell.model, cell.vision), []).append(cell)
    return [answers_table(group) for group in groups.values()]


def answer_examples(cells: Mapping[Path, Sequence[AnswerCell]]) -> list[Answered]:
    """The first samples of every attacked cell whose answers were stored; `cells` is by result file."""
    found = []
    for store, some in cells.items():
        for cell in some:
            kept = None if cell.norm is None else read_answers(store, cell)
            if kept is None:
                continue
            condition = Condition.of(cell).title
            for row in range(min(EXAMPLES, len(kept["before"]), len(kept["after"]))):
                prompt, clean, attacked = (
                    for_terminal(" ".join(str(kept[name][row]).split()))
                    for name in ("prompts", "clean", "answers")
                )
                before, after = (torch.from_numpy(kept[name][row]) / 255 for name in ("before", "after"))
                title = f"{cell.task}, {for_terminal(str(kept['keys'][row]))}: {condition}, {cell.vision}"
                found.append(
                    Answered(
                        title=title, prompt=prompt, before=before, after=after, clean=clean, attacked=attacked
                    )
                )
    return found


def _notes(cells: Sequence[AnswerCell]) -> list[str]:
    notes = ["each score is the mean of the samples' worst ones, followed by its 95 % interval"]
    notes += [
        f"{task}: CIDEr's rarity of words is that among the references of {counted(images, 'image')}"
        for task, images in dict.fromkeys((cell.task, cell.idf_images) for cell in cells)
        if images
    ]
    for cell in cells:
        notes += [
            f"{cell.task}, {Condition.of(cell).words}: {count} of {cell.n} worst answers hold “{word}”"
            for word, count in cell.reached.items()
        ]
    if skipped := list(dict.fromkeys(key for cell in cells for key in cell.unreadable)):
        notes.append(f"skipped {counted(len(skipped), 'sample')}: {', '.join(skipped[:3])}")
    return notes
