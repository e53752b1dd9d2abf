"""Evaluate large vision-language models on tasks, clean and under attack: one cell for each task and radius."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from advflyp.__about__ import __version__
from advflyp.attack.threat import Threat
from advflyp.data.pairs.images import read_image
from advflyp.data.sets.labelled import check_tolerated
from advflyp.errors import SkippedSample
from advflyp.evaluation.journal import Journal
from advflyp.evaluation.results import append_cell, find_known, known_cells
from advflyp.identity import state_sha256
from advflyp.limits import read_image_file
from advflyp.lvlm.metrics import Cider, says, vqa_accuracy, yes_no_accuracy
from advflyp.lvlm.model import LVLM
from advflyp.lvlm.protocol import LVLMProtocol, Runner
from advflyp.lvlm.results import SHOWN, AnswerCell, interval, read_answer_cells, save_answers
from advflyp.lvlm.tasks import Task
from advflyp.model.folder import weights_sha256


def evaluate_lvlm(
    model: LVLM,
    tasks: Sequence[Task],
    protocol: LVLMProtocol,
    eps: Sequence[float],
    *,
    out: str | Path | None = None,
    norm: Literal["linf", "l2"] = "linf",
    limit: int | None = None,
    batch_size: int = 8,
    seed: int = 0,
    watch: Callable[[AnswerCell, int, int], None] = lambda cell, done, of: None,
) -> list[AnswerCell]:
    """Evaluate a model on tasks, clean and at each radius.

    Args:
        model: The model.
        tasks: Tasks from `load_task`.
        protocol: The attacks on each sample; tasks whose metric has no rounds are evaluated clean only.
        eps: Radii in pixels of [0, 1].
        out: JSON-lines file. Cells that it already holds are not computed again; an interrupted cell resumes at its
            first sample without an outcome. Answers and the first images are stored beside it.
        norm: "linf" or "l2".
        limit: Number of samples per task, drawn with the protocol's seed; by default the protocol's limit.
        batch_size: Samples at a time; it does not affect the results.
        seed: Random seed of the attacks.
        watch: Called after every batch with the current cell, the number of samples done, and the total.

    Returns:
        For each task, the clean cell, then one for each radius.

    Raises:
        ValueError: A radius or a number is not usable, the protocol needs a CLIP that is not known, more than 1 % of
            the images are unreadable, or existing files are in the way.
    """
    for name, number in (("batch_size", batch_size), ("limit", limit)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
    threats = [Threat(norm=norm, eps=radius) for radius in eps]
    store = None if out is None else Path(out)
    known = known_cells(store, read_answer_cells)
    weights = state_sha256(model.net.state_dict())
    most = protocol.limit if limit is None else limit
    cells, drawn = [], [task.drawn(most, protocol.seed) for task in tasks]
    if threats:
        protocol.check(model, drawn)
    for task in drawn:
        _check_texts(model, task)
    for task in drawn:
        score = scorer(task)
        for threat in (None, *(threats if protocol.rounds.get(task.metric) else ())):
            blank = _blank(model, task, protocol, threat, weights, seed)
            found = find_known(known, blank)
            if found is None:
                runner = Runner(model, task, protocol, threat, score, seed)
                found = _Measurement(runner, blank, store, batch_size, partial(watch, blank)).measure()
            elif store is not None:  # killed after the result was written and before its journal was removed
                Journal.beside(store, blank.slug()).remove()
            cells.append(found)
    return cells


def scorer(task: Task) -> Callable[[int, str], float]:
    """(a sample's place, answer) → its score in per cent; CIDEr's n-gram rarity is over all samples of `task`."""
    references = [sample.references for sample in task.samples]
    if task.metric == "cider":
        return Cider(references).score
    rule = vqa_accuracy if task.metric == "vqa" else yes_no_accuracy
    return lambda place, answer: rule(answer, references[place])


def _check_texts(model: LVLM, task: Task) -> None:
    """ValueError if a question or an answer holds the model's image token, which would stand for a second image."""
    texts = [(sample.key, text) for sample in task.samples for text in (sample.prompt, *sample.references)]
    for (key, _), count in zip(texts, model.image_tokens_in([text for _, text in texts]), strict=True):
        if count:
            raise ValueError(
                f"{task.name}: the question or an answer of sample {key} holds the image token of {model.name}; "
                "remove it from the annotations"
            )


def _blank(
    model: LVLM, task: Task, protocol: LVLMProtocol, threat: Threat | None, weights: str, seed: int
) -> AnswerCell:
    """The cell before anything is measured."""
    content = [[one.key, one.prompt, *one.references] for one in task.samples]
    part = {} if len(task.samples) == task.of else {"limit": len(task.samples), "seed": protocol.seed}
    clean = AnswerCell(
        model=model.name,
        vision=model.vision_name,
        checkpoint_sha256=weights,
        config_sha256=model.config_sha256(),
        task=task.name,
        metric=task.metric,
        samples_sha256=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        subset={"of": task.of, **part},
        attack="clean",
        attack_args={},
        norm=None,
        eps=0.0,
        precision="fp32",
        seed=0,
        version=__version__,
        idf_images=len(task.samples) if task.metric == "cider" else 0,
    )
    if threat is None:
        return clean
    rounds = protocol.rounds[task.metric]
    arguments = {
        "attack": protocol.attack.name,
        **protocol.attack.arguments(threat, 2),
        **({"captions_in": weights_sha256(model.known_clip())} if protocol.of_tower else {}),
        "rounds": [asdict(one) for one in rounds],
        "leaves_below": protocol.leaves.get(task.name),
        **({} if protocol.random_start else {"random_start": False}),
    }
    return replace(
        clean,
        attack=protocol.name,
        attack_args=arguments,
        norm=threat.norm,
        eps=threat.eps,
        precision="+".join(sorted({one.precision for one in rounds})),
        seed=seed,
    )


@dataclass
class _Measurement:
    """The measurement of one cell: batch by batch, with each finished batch in the journal."""

    runner: Runner
    blank: AnswerCell
    store: Path | None
    batch_size: int
    watch: Callable[[int, int], None]

    def measure(self) -> AnswerCell:
        started = time.monotonic()
        task = self.runner.task
        journal = Journal.beside(self.store, self.blank.slug()) if self.store else None
        records = [saved] if journal and (saved := journal.read()) else []
        done = {int(place) for record in records for place in record["places"]}
        skipped: dict[str, str] = {}
        rest = [place for place in range(len(task.samples)) if place not in done]
        for places, images in self._batches(rest, skipped):
            records.append(self._batch(places, images))
            if journal:
                journal.append(**records[-1])
            done |= set(places)
            self.watch(len(done), len(task.samples))
        if not records:
            raise ValueError(f"{task.name}: none of its images can be read")
        every = _in_order(records)
        cell = self._finished(every, skipped, time.monotonic() - started)
        if self.store and journal:
            self._keep(cell, every)
            append_cell(self.store, cell)
            journal.remove()
        return cell

    def _batches(self, rest: Sequence[int], skipped: dict[str, str]) -> Iterator[tuple[list[int], Tensor]]:
        """Places and images (N, 3, H, W) on the model's device; unreadable images are recorded in `skipped`."""
        task, model = self.runner.task, self.runner.model
        places: list[int] = []
        images: list[Tensor] = []
        for place in rest:
            sample = task.samples[place]
            try:
                images.append(model.preprocess(read_image(read_image_file(sample.image))))
            except (OSError, SkippedSample) as error:
                reason = (error.strerror or "cannot be read") if isinstance(error, OSError) else str(error)
                skipped[sample.key] = reason
                check_tolerated(task.name, "of its images cannot be read", skipped, len(task.samples))
                continue
            places.append(place)
            if len(places) == self.batch_size:
                yield places, torch.stack(images).to(model.device)
                places, images = [], []
        if places:
            yield places, torch.stack(images).to(model.device)

    def _batch(self, places: list[int], images: Tensor) -> dict[str, np.ndarray]:
        found = self.runner.run(places, images)
        shown = [row for row, place in enumerate(places) if place < SHOWN]
        return {
            "places": np.array(places),
            "clean": np.array(found.clean, dtype=str),
            "clean_scores": found.clean_scores.numpy(),
            "answers": np.array(found.answers, dtype=str),
            "scores": found.scores.numpy(),
            "rounds": found.rounds.numpy(),
            "before": _eight_bits(images[shown]),
            "after": _eight_bits(found.images[shown]),
        }

    def _finished(self, every: dict[str, np.ndarray], skipped: dict[str, str], seconds: float) -> AnswerCell:
        scores = every["scores"]
        targets = [one["target"] for one in self.blank.attack_args.get("rounds", []) if one["target"]]
        answers = [str(answer) for answer in every["answers"]]
        return replace(
            self.blank,
            n=len(scores),
            score=float(scores.mean()),
            ci95=interval(scores.tolist(), self.blank.metric),
            clean=float(every["clean_scores"].mean()),
            reached={word: sum(says(answer, word) for answer in answers) for word in targets},
            unreadable=skipped,
            seconds=round(seconds, 3),
        )

    def _keep(self, cell: AnswerCell, every: dict[str, np.ndarray]) -> None:
        assert self.store is not None
        arrays = dict(every)
        samples = [self.runner.task.samples[place] for place in arrays.pop("places")]
        keys = np.array([sample.key for sample in samples], dtype=str)
        prompts = np.array([sample.prompt for sample in samples], dtype=str)
        save_answers(self.store, cell, {"keys": keys, "prompts": prompts, **arrays})


def _in_order(records: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of all batches in sample order, so that sums of a resumed measurement are equal to the last bit."""
    every = {name: np.concatenate([record[name] for record in records]) for name in records[0]}
    places = every["places"]
    order, first = np.argsort(places), np.argsort(places[places < SHOWN])  # only these have images
    return {name: array[first if name in ("before", "after") else order] for name, array in every.items()}


def _eight_bits(images: Tensor) -> np.ndarray:
    """Pixels rounded for display; the measurement used the full precision."""
    return (images.detach() * 255).round().to(torch.uint8).cpu().numpy()
