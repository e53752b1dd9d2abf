"""Adversarial images that are kept are those that were judged."""

from pathlib import Path

import numpy as np
import torch

from advflyp.attack.threat import Threat
from advflyp.data.sets.labelled import LabelledSet
from advflyp.evaluation.classifier import Classifier
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
    (place / "cell.json").unlink()
    files[0].unlink()
    _, again = measure()
    assert again.accuracy == cell.accuracy and files[0].is_file() and (place / "cell.json").is_file()
