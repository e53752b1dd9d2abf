"""In float64: a labelled batch, and an original that differs from the model as it does after some steps."""

from pathlib import Path

import pytest
import torch

from advflyp.data.batch import Batch
from advflyp.model.clip import CLIP
from advflyp.model.load import load_model
from advflyp.model.zeroshot import class_embeddings
from helpers import make_tiny

CLASSES = ["cat", "dog", "house"]
LABELS = [0, 2, 1, 0, 2]


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny("vit", tmp_path_factory.mktemp("models") / "other", seed=5)


@pytest.fixture
def original(other_folder: Path) -> CLIP:
    return load_model(other_folder).double().requires_grad_(False)


@pytest.fixture
def vision(tiny: CLIP) -> CLIP:
    """The tiny CLIP as a run has it: only its image tower learns."""
    tiny.double().requires_grad_(False)
    tiny.visual.requires_grad_(True)
    return tiny


@pytest.fixture
def labelled(vision: CLIP) -> Batch:
    labels = torch.tensor(LABELS)
    classes = class_embeddings(vision, CLASSES, ["a {}", "the {}"])
    captions = [f"a {CLASSES[label]}" for label in LABELS]
    return Batch(
        images=torch.rand(
            len(LABELS), 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        ),
        labels=labels,
        captions=captions,
        class_embeddings=classes,
        text_embeddings=vision.encode_text(captions),
    )


@pytest.fixture
def images_adv(labelled: Batch) -> torch.Tensor:
    noise = torch.rand(labelled.images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (labelled.images + 0.2 * (noise - 0.5)).clamp(0, 1)
