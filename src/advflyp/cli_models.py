"""`advflyp export` and `advflyp publish`: models that leave."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass
class Export:
    """Write a model in a format that others load, and verify that it computes the same."""

    model: Positional[str]
    """As in `advflyp eval`: mini, a run folder, ViT-B-32/openai, …"""
    format: str = "open_clip"
    """open_clip, hf (transformers, with the image tower alone in vision/), onnx (the image tower)."""
    out: Path = Path("exported")
    """A new folder."""

    def run(self) -> None:
        from advflyp.model.export import export_model

        found = export_model(self.model, self.format, self.out)
        print(f"largest difference between embeddings of pictures: {found.images:.1e}")
        if found.texts is not None:
            print(f"largest difference between embeddings of texts: {found.texts:.1e}")
        if found.pixels is not None:
            print(f"largest difference between preprocessed pixels: {found.pixels:.2f}/255")
        print(f"the model is {found.folder}" + "".join(f", its image tower {path}" for path in found.also))
