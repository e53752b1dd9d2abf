"""The image tower as ONNX, with normalisation inside."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from advflyp.model.clip import CLIP

FILE = "image_tower.onnx"
OPSET = 18


class _Tower(nn.Module):
    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)


def write_onnx(model: CLIP, folder: Path) -> Path:
    """(N, 3, H, W) float32 "pixels" in [0, 1] → (N, d) float32 unit-norm "embedding", for any N."""
    path = folder / FILE
    example = torch.rand(2, 3, *model.image_size)
    with warnings.catch_warnings(), _quiet(logging.getLogger("torch.onnx")):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Tower(model).eval(),
            (example,),
            path,
            dynamo=True,
            opset_version=OPSET,
            input_names=["pixels"],
            output_names=["embedding"],
            dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
            verbose=False,
            external_data=False,
        )
    return path


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def run_onnx(path: Path, pixels: Tensor) -> Tensor:
    """(N, d) embeddings, by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"pixels": pixels.numpy()})
    return torch.from_numpy(found)
