"""Adversarial images that are kept are those that were judged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from advflyp.attack.threat import Threat
from advflyp.data.sets.labelled import LabelledSet
from advflyp.evaluation.classifier import Classifier
from advflyp.evaluation.evaluator import SetProgress
from advflyp.evaluation.results import Cell
from advflyp.evaluation.samples import read_samples
from advflyp.evaluation.suite import evaluate
from advflyp.model.clip import CLIP

EPS = 2 / 255


def test_every_attacked_image_is_kept_to_the_last_bit(
    tiny: CLIP, noise_set: LabelledSet, tmp_path: Path
) -> None:
    """Also those that a later stage has fooled."""
    out, folder = tmp_path / "results.jsonl", tmp_path / "images"

    def measure():
        attacks = ("clean", "apgd-ce+apgd-dlr")
        return evaluate(
            tiny, noise_set, attacks, [EPS], out=out, batch_size=7, precision="fp32", save_images=folder
        )

    _, cell = measure()
    (place,) = folder.iterdir()
    assert place.name == cell.slug() and (place / "cell.json").is_file()
    samples = read_samples(out, cell)
    files = sorted(place.glob("*.npz"))
    assert [int(file.stem) for file in files] == sorted(samples.index[samples.clean == samples.label])
    images = torch.stack([torch.from_numpy(np.load(file)["image"]) for file in files])
    ((_, originals, _),) = noise_set.batches(tiny.preprocess, 50)
    assert images.dtype == torch.float32 and Threat(eps=EPS).contains(originals, images).all()
    answers = Classifier(tiny, noise_set.classes, noise_set.templates).logits_fp32(images).argmax(1)
    assert answers.tolist() == samples.attacked.tolist() and not samples.correct.all()

    times = [file.stat().st_mtime_ns for file in files]
    measure()
    assert [file.stat().st_mtime_ns for file in files] == times, "what is complete is not measured again"
    for lost in ([place / "cell.json", files[0]], files[1:2], files):
        for file in lost:
            file.unlink()
        _, again = measure()
        assert again.accuracy == cell.accuracy and all(file.is_file() for file in lost)
    (place / "cell.json").write_text("{}")
    measure()
    assert json.loads((place / "cell.json").read_text())["images"] == len(files)


def test_no_journal_stays_of_a_measurement_that_was_interrupted_without_saved_images(
    tiny: CLIP, noise_set: LabelledSet, tmp_path: Path
) -> None:
    out, folder = tmp_path / "results.jsonl", tmp_path / "images"

    def measure(**options: Any) -> list[Cell]:
        return evaluate(tiny, noise_set, "pgd2", EPS, out=out, batch_size=7, precision="fp32", **options)

    def stop(cell: Cell, progress: SetProgress) -> None:
        if progress.finished >= 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(watch=stop)
    assert len(list((tmp_path / "results.unfinished").iterdir())) == 1
    (cell,) = measure(save_images=folder)
    samples = read_samples(out, cell)
    kept = sorted(int(file.stem) for file in folder.rglob("*.npz"))
    assert kept == sorted(samples.index[samples.clean == samples.label]), "of all batches"
    assert not (tmp_path / "results.unfinished").exists()
