"""The interface between the training loop and a method."""

from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from advflyp.data.batch import Batch
from advflyp.distributed import ALONE, Ranks
from advflyp.model.clip import CLIP


class Method(ABC):
    """An inner loss, maximised over perturbations, and outer losses, minimised over weights.

    Attributes:
        trains_on: "pairs" of image and caption, "labelled" images, or "images" alone, without any labels or
            captions that they come with (batches then hold no text embeddings).
        needs_classes: For labelled data: whether it uses `class_embeddings`. If not, and captions are drawn from many
            templates, only the captions are encoded.
        config: The method's own keys of the recipe table `method`.
        model: The one being trained.
        original: A frozen copy of the model before training, where `needs_original`; else None.
        ranks: The ranks that share a batch.
        flat_at_clean: Whether the attack's loss has zero gradient at the clean images when training starts.
        any_size: Whether the losses accept images of another size than the model's own.
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

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the method, on each rank: by default, its attributes that are tensors or numbers.

        Override both methods for other values: lists and dicts of tensors, numbers and text.
        """
        kept = {name: value for name, value in vars(self).items() if isinstance(value, Tensor | int | float)}
        return {name: value.detach() if isinstance(value, Tensor) else value for name, value in kept.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, as a run is resumed."""
        for name, value in state.items():
            setattr(self, name, value.to(self.model.device) if isinstance(value, Tensor) else value)

    @classmethod
    def without_effect(cls, config: Any, *, attacks: bool, trains_texts: bool) -> list[tuple[str, str]]:
        """Name the keys of `config` that change nothing; a run says so if they are set. By default there are none.

        Args:
            config: The method's.
            attacks: Whether images are perturbed.
            trains_texts: Whether more than the image tower is trained.

        Returns:
            Keys, such as "method.feature_norm" (several with spaces between them), and why.
        """
        return []

    @property
    @abstractmethod
    def needs_original(self) -> bool:
        """Whether the losses compare with the model as it was before training."""

    @property
    def images_per_row(self) -> int:
        """How many images of each row of a batch `losses` encodes in one pass."""
        return 1

    @abstractmethod
    def attack_loss(self, images_adv: Tensor, batch: Batch) -> Tensor:
        """(N, 3, H, W) → (N,), or a scalar for the whole batch, which the attack maximises."""

    @abstractmethod
    def losses(self, images: Tensor, images_adv: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Weighted scalar terms by name; their sum is minimised. The first is the attack's loss at its result.

        With several ranks, each term is that of the whole batch, as a function of this rank's rows; `self.ranks` has
        the means and sums for this.
        """


class FromEmbeddings(Method):
    """A method whose attack uses only f_θ of the images, so a single step may share its forward pass with `losses`."""

    @property
    @abstractmethod
    def shares_clean(self) -> bool:
        """Whether `losses` need f_θ(x): `batch.clean_embeddings`, if the attack has computed them."""

    @property
    def images_per_row(self) -> int:
        return 2 if self.shares_clean else 1

    @abstractmethod
    def attack_loss_of(self, embeddings: Tensor, batch: Batch) -> Tensor:
        """`attack_loss` of images whose (N, d) unit-norm embeddings are known."""

    def attack_loss(self, images_adv: Tensor, batch: Batch) -> Tensor:
        return self.attack_loss_of(self.model.encode_image(images_adv), batch)

    def encode_branches(
        self,
        images: Tensor,
        images_adv: Tensor,
        batch: Batch,
        *,
        clean_gradients: bool = True,
        original_sees: Literal["adversarial", "clean"] = "adversarial",
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(N, d) each: f_θ(x + δ); if `shares_clean`, f_θ(x); if `needs_original`, F_θ₀(x + δ) without gradients.

        Adversarial and clean images share one forward pass with gradients, unless it runs in micro-batches or the
        attack has already computed f_θ(x).

        Args:
            clean_gradients: Whether f_θ(x) has gradients.
            original_sees: "clean" gives F_θ₀(x) instead of F_θ₀(x + δ).
        """
        model, clean = self.model, batch.clean_embeddings
        if not self.shares_clean:
            adversarial, clean = model.encode_image(images_adv), None
        elif clean is not None:
            adversarial = model.encode_image(images_adv)
            clean = clean if clean_gradients else clean.detach()
        elif clean_gradients and model.micro_batch is None:
            adversarial, clean = model.encode_image(torch.cat([images_adv, images])).chunk(2)
        else:
            adversarial = model.encode_image(images_adv)
            with nullcontext() if clean_gradients else torch.no_grad():
                clean = model.encode_image(images)
        if self.original is None:
            return adversarial, clean, None
        with torch.no_grad():
            seen = images if original_sees == "clean" else images_adv
            return adversarial, clean, self.original.encode_image(seen)
