"""The memory of a training step that autograd and the optimiser hold, by model, batch size and setting.

    python benchmarks/memory.py                      # ViT-B/32, ViT-B/16, ViT-L/14
    python benchmarks/memory.py --models mini-vit

Counted on a CPU, without training: the bytes of weights, gradients, momentum and frozen original; of the tensors that
autograd saves for one pair in the outer step, where adversarial and clean images go through the tower together; and of
the images themselves. The table, in GB, follows from these. It excludes the 10–20 % that a device's allocator adds.
"""

from dataclasses import dataclass

import torch
import tyro

from advflyp.model.clip import CLIP
from advflyp.model.load import load_model
from advflyp.training.build import unfreeze

BATCHES = (256, 1024, 4096, 32768)
MICRO = 64


@dataclass
class Arguments:
    """What to count."""

    models: tuple[str, ...] = ("ViT-B-32/random", "ViT-B-16/random", "ViT-L-14/random")


def kept(model: CLIP, images: int) -> int:
    """Bytes that autograd saves in a forward pass over `images` images, without the weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        embeddings = model.encode_image(torch.rand(images, 3, *model.image_size))
    del embeddings
    return sum(found.values())


def per_image(model: CLIP) -> float:
    # Four images minus two: what does not grow with the batch, such as cast weights, cancels.
    return (kept(model, 4) - kept(model, 2)) / 2


def main() -> None:
    arguments = tyro.cli(Arguments)
    print(f"{'model':17} {'setting':42} {'fixed':>7}" + "".join(f"{batch:>9,}" for batch in BATCHES))
    for name in arguments.models:
        model = load_model(name)
        parameters = unfreeze(model, "vision")
        trained = sum(p.nbytes for p in parameters)
        everything = sum(p.nbytes for p in model.parameters())
        # Weights, a frozen original, gradients, momentum.
        fixed = 2 * everything + 2 * trained
        height, width = model.image_size
        image = 4 * 3 * height * width
        settings = []
        for precision in ("fp32", "bf16"):
            model.precision = precision
            settings.append((precision, per_image(model), None))
            settings.append((f"{precision}, micro_batch = {MICRO}", per_image(model), MICRO))
            visual = model.net.visual
            visual.set_grad_checkpointing(True)
            settings.append((f"{precision}, activation_checkpointing", per_image(model), None))
            visual.set_grad_checkpointing(False)
        for setting, size, micro in settings:
            row = f"{name:17} {setting:42} {fixed / 1e9:7.1f}"
            for batch in BATCHES:
                # Clean and adversarial images, and the gradient of the latter. The outer step holds both branches, or,
                # with micro-batches, one after the other.
                images = 3 * image * batch
                activations = size * (2 * batch if micro is None else min(micro, batch))
                row += f"{(fixed + images + activations) / 1e9:9.1f}"
            print(row, flush=True)


if __name__ == "__main__":
    main()
