"""What the training loop asks of a method."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from advflyp.data.batch import Batch
from advflyp.distributed import ALONE, Ranks
from advflyp.model.clip import CLIP


class Method(ABC):
    """An inner loss, maximised over perturbations, and outer losses, minimised over weights.

    Attributes:
        trains_on: "pairs" of image and caption, "labelled" images, or "images" alone, whatever they come with
            (batches then hold no embeddings of texts).
        needs_classes: For labelled data: whether it uses `class_embeddings`; where it does not, and captions are
            drawn from many templates, only the captions are encoded.
        config: The method's own keys of the recipe table `method`.
        model: The one being trained.
        original: A frozen copy of the model before training, where `needs_original`; else None.
        ranks: The processes that share a batch.
        flat_at_clean: The attack's loss has no gradient at the clean images of the model it starts from.
        any_size: The losses take images of another size than the model's own.
    """

    trains_on: ClassVar[Literal["pairs", "labelled", "images"]] = "pairs"
    needs_classes: ClassVar[bool] = True
    flat_at_clean: ClassVar[bool] = False
    any_size: ClassVar[bool] = True

    def __init__(self, config: Any, model: CLIP) -> None:
        self.config = config
        self.model = model
        self.original: CLIP | None = None
        self.ranks: Ranks = ALONE

    @property
    @abstractmethod
    def needs_original(self) -> bool:
        """Whether the losses compare with the model as it was before training."""

    @abstractmethod
    def attack_loss(self, images_adv: Tensor, batch: Batch) -> Tensor:
        """(N, 3, H, W) → (N,), or a scalar for the whole batch; to be maximised."""

    @abstractmethod
    def losses(self, images: Tensor, images_adv: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Weighted scalar terms by name; their sum is minimised. The first is the attack's loss of what it found.

        With several processes each term is that of the whole batch, as a function of the own rows: `self.ranks` has
        the means and sums for it.
        """


class FromEmbeddings(Method):
    """A method whose attack sees the images through f_θ alone: one step may share its forward pass with `losses`."""

    @property
    @abstractmethod
    def shares_clean(self) -> bool:
        """Whether `losses` need f_θ(x) with gradients, which are `batch.clean_embeddings` where the attack has them."""

    @abstractmethod
    def attack_loss_of(self, embeddings: Tensor, batch: Batch) -> Tensor:
        """`attack_loss` of images whose (N, d) unit-norm embeddings are known."""

    def attack_loss(self, images_adv: Tensor, batch: Batch) -> Tensor:
        return self.attack_loss_of(self.model.encode_image(images_adv), batch)

    def encode_branches(
        self, images: Tensor, images_adv: Tensor, batch: Batch
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """f_θ(x + δ); where `shares_clean`, f_θ(x) with gradients; with an original, F_θ₀(x + δ) without; each (N, d).

        What gradients flow through is one forward pass over adversarial and clean images together, unless it goes in
        parts or the attack has computed f_θ(x) already.
        """
        model, clean = self.model, batch.clean_embeddings
        if not self.shares_clean:
            adversarial, clean = model.encode_image(images_adv), None
        elif clean is not None:
            adversarial = model.encode_image(images_adv)
        elif model.micro_batch is not None:
            adversarial, clean = model.encode_image(images_adv), model.encode_image(images)
        else:
            adversarial, clean = model.encode_image(torch.cat([images_adv, images])).chunk(2)
        if self.original is None:
            return adversarial, clean, None
        with torch.no_grad():
            return adversarial, clean, self.original.encode_image(images_adv)
