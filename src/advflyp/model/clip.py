"""One interface for every CLIP-like model: pixels in [0, 1] in, unit-norm embeddings out."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from open_clip import get_model_preprocess_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torchvision import transforms

from advflyp.data.sets.prompts import several_texts
from advflyp.devices import to_device
from advflyp.dtypes import at_least_float32
from advflyp.model.architectures import architecture_config, config_of, embeds_as, is_built_by, pooled
from advflyp.model.graphs import Graphs
from advflyp.model.layers import patch_layers
from advflyp.model.patches import Patches, embed_patches, patch_grid
from advflyp.model.precision import InPrecision
from advflyp.model.recompute import in_parts
from advflyp.model.resolution import positions_at
from advflyp.model.text_tower import encode_unpadded
from advflyp.model.zeroshot import ZeroShotClassifier


class CLIP(InPrecision, nn.Module):
    """An open_clip model with its tokenizer and preprocessing.

    Attributes:
        net: The open_clip module (`CLIP`, `CustomTextCLIP`, …), float32 weights.
        tokenizer: List of N texts → (N, context) int64 tokens.
        config: {"model_cfg": …, "preprocess_cfg": …}, open_clip's own format; what a checkpoint stores.
        name: What the user asked for; recorded in results.
        card: The model card of computed weights, as a mixture's, and of the hub's; None for those of a file: see
            `card_of`.

    After `model.double()` it computes everything in float64; read "float32" below as float64 then.
    """

    net: Any  # open_clip's classes share methods, not a base
    std: Tensor
    card: dict[str, Any] | None = None

    def __init__(
        self, net: nn.Module, tokenizer: Callable[[list[str]], Tensor], config: dict[str, Any], name: str
    ) -> None:
        super().__init__()
        self.net = net
        self.tokenizer = tokenizer
        self.config = config
        self.name = name
        # Images that go through the tower at a time; None for all at once. See `recompute.py`.
        self.micro_batch: int | None = None
        self.graphs: Graphs | None = None
        settings = PreprocessCfg(**config["preprocess_cfg"])
        self.register_buffer("mean", torch.tensor(settings.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(settings.std).view(1, 3, 1, 1), persistent=False)
        size = settings.size
        self.image_size: tuple[int, int] = (size, size) if isinstance(size, int) else (size[0], size[1])
        # open_clip's own evaluation transform, without its last step: the model normalises.
        transform: Any = image_transform_v2(settings, is_train=False)
        self.preprocess: Callable[[Image.Image], Tensor] = transforms.Compose(transform.transforms[:-1])
        patch_layers(net, self.visual)

    @classmethod
    def from_open_clip(
        cls,
        net: nn.Module,
        preprocess: Callable[[Image.Image], Tensor],
        tokenizer: Callable[[list[str]], Tensor],
        *,
        architecture: str | dict[str, Any] | None = None,
        name: str = "open_clip",
    ) -> "CLIP":
        """Wrap a model made by open_clip.

            net, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32", pretrained="openai")
            model = CLIP.from_open_clip(net, preprocess, open_clip.get_tokenizer("ViT-B-32"))

        Args:
            net: An open_clip module with float32 weights. It is not copied: its first convolution, its attention layers
                and its last block are replaced by ones with the same parameters and embeddings (`layers.py`; the last
                block of a ViT outputs the class token alone), and training changes its weights.
            preprocess: The evaluation transform that open_clip made for `net`.
            tokenizer: What `open_clip.get_tokenizer` returns.
            architecture: The name or the "model_cfg" that open_clip built `net` from; a saved model has to record it.
                Only a ViT with CLIP's own text tower and vocabulary can do without: it is inferred from `net`.
            name: The model's name in results.

        Raises:
            ValueError: If `architecture` is needed or describes another model, a hook or the like changes the
                embeddings, the weights are not float32, or `preprocess` is not the evaluation transform of `net`.
        """
        if any(parameter.dtype != torch.float32 for parameter in net.parameters()):
            raise ValueError(f"{name} has half-precision weights; create it with precision='fp32'")
        config = architecture if architecture is not None else config_of(net, tokenizer)
        config = architecture_config(config) if isinstance(config, str) else config
        if config is None:
            raise ValueError(
                f"the architecture of {name} cannot be inferred from it: give from_open_clip the one that it was "
                "created with, a name (architecture='ViT-B-16-SigLIP') or a dictionary, open_clip's model_cfg "
                "(architecture={'embed_dim': …, 'vision_cfg': …, 'text_cfg': …})"
            )
        if not is_built_by(net, config):
            raise ValueError(
                f"{name} does not match the given architecture; name the one that it was created with, or give its "
                "model_cfg, a dictionary"
            )
        if not embeds_as(net, config):
            raise ValueError(
                f"{name} embeds differently from its architecture with the same weights, which a saved model would not "
                "do: undo what was changed in it, such as a hook, a method or a mask; to evaluate a defence, add it to "
                "the model that from_open_clip returns"
            )
        settings = dict(get_model_preprocess_cfg(net))
        # The string of a transform states all its settings.
        if str(preprocess) != str(image_transform_v2(PreprocessCfg(**settings), is_train=False)):
            raise ValueError(
                f"preprocess is not the evaluation transform of {name}: pass the third value of "
                "open_clip.create_model_and_transforms"
            )
        return cls(net, tokenizer, {"model_cfg": config, "preprocess_cfg": settings}, name)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of pixels, embeddings and losses: float32, or float64 after `model.double()`."""
        return self.mean.dtype

    @property
    def visual(self) -> nn.Module:
        """The image tower, projection included."""
        return self.net.visual

    @property
    def logit_scale(self) -> Tensor:
        """τ⁻¹, a scalar; the exponential is already applied."""
        return at_least_float32(self.net.logit_scale).exp().reshape(())

    @property
    def logit_bias(self) -> Tensor | None:
        """b of the sigmoid loss, a scalar; None for a model that was pretrained with another loss."""
        bias = getattr(self.net, "logit_bias", None)
        return None if bias is None else at_least_float32(bias).reshape(())

    def encode_image(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) pixels in [0, 1] → (N, d) float32 unit-norm embeddings.

        For images of another size than `image_size`, position embeddings are interpolated (`positions_at`).
        """
        return F.normalize(self.encode_image_raw(images), dim=-1)

    def encode_image_raw(self, images: Tensor) -> Tensor:
        """`encode_image` before the normalisation: (N, d) float32 embeddings of any norm."""
        if self.graphs is not None:
            return self.graphs(self._encode_image, images, self.precision)
        return self._in_parts(self._encode_image, images)

    @contextmanager
    def replaying(self, graphs: Graphs | None) -> Iterator[None]:
        """Encode the block's images by replaying `graphs`; the weights get no gradients there. None: do not replay."""
        before, self.graphs = self.graphs, graphs
        try:
            yield
        finally:
            self.graphs = before

    def _encode_image(self, images: Tensor) -> Tensor:
        size = (images.shape[-2], images.shape[-1])
        with self._autocast():
            if size == self.image_size:
                # CoCa normalises by default.
                features = self.net.encode_image(self.normalised(images), normalize=False)
            else:
                positions = positions_at(self.visual, size, self.name)
                features = functional_call(self.visual, positions, (self.normalised(images),))
                features = features[0] if isinstance(features, tuple) else features
        return at_least_float32(pooled(features, "image"))

    def classifier(self, classes: Sequence[str], templates: Sequence[str]) -> ZeroShotClassifier:
        """Make a zero-shot classifier.

        Args:
            classes: K class names.
            templates: Prompts with one "{}" each for the class name, such as "This is a photo of a {}.".

        Returns:
            A module: (N, 3, H, W) pixels in [0, 1] → (N, K) float32 logits.
        """
        return ZeroShotClassifier(self, classes, templates)

    @property
    def patch_grid(self) -> tuple[int, int]:
        """(rows, columns) of the image tower's patches; ValueError for an architecture that has none."""
        return patch_grid(self.visual, self.image_size, self.name)

    def encode_patches(self, images: Tensor) -> Patches:
        """(N, 3, H, W) pixels in [0, 1] → embeddings of the images and of each of their patches, in one forward pass.

        Raises:
            ValueError: The architecture has no patch tokens.
        """
        return self._patches(lambda part: F.normalize(self._encode_patches(part), dim=-1), images)

    def encode_tokens(self, images: Tensor, patches: bool) -> Tensor:
        """(N, 3, H, W) pixels in [0, 1] → (N, 1 + L, d) unit-norm embeddings: the image's, then, if `patches`, those
        of its L patches. ValueError if `patches` is set and the architecture has no patch tokens.
        """
        if not patches:
            return self.encode_image(images)[:, None]
        found = self.encode_patches(images)
        return torch.cat([found.image[:, None], found.tokens], dim=1)

    def encode_patches_raw(self, images: Tensor) -> Patches:
        """`encode_patches` before the normalisation: float32 embeddings of any norm."""
        return self._patches(self._encode_patches, images)

    def _patches(self, encode: Callable[[Tensor], Tensor], images: Tensor) -> Patches:
        grid = self.patch_grid
        embeddings = self._in_parts(encode, images)
        return Patches(embeddings[:, 0], embeddings[:, 1:], grid)

    def _encode_patches(self, images: Tensor) -> Tensor:
        """(N, 1 + rows · columns, d) embeddings of any norm: the image's, then those of its patches."""
        with self._autocast():
            image, tokens = embed_patches(self.visual, self.normalised(images))
        return at_least_float32(torch.cat([image[:, None], tokens], dim=1))

    def encode_text(self, texts: Sequence[str], tokens: Tensor | None = None) -> Tensor:
        """N texts → (N, d) float32 unit-norm embeddings. ValueError if the tokenizer gives tokens unknown to the model.

        Args:
            texts: N texts.
            tokens: Their tokens, (N, context) int64, if already known.
        """
        texts = several_texts(texts, "texts")
        if tokens is None:
            tokens = self.tokenizer(texts)
        vocabulary = getattr(self.net, "vocab_size", 0)
        # On a GPU an unknown token would crash the process.
        if vocabulary and tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
            raise ValueError(
                f"the tokenizer of {self.name} does not match its weights: it produced token {int(tokens.max())}, and "
                f"their vocabulary has {vocabulary}"
            )
        with self._autocast():
            features = encode_unpadded(self.net, tokens, self.device)
        return F.normalize(at_least_float32(pooled(features, "text")), dim=-1)

    def _in_parts(self, encode: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        if self.micro_batch is None:
            return encode(images)
        return in_parts(encode, images, self.micro_batch, list(self.visual.parameters()))

    def normalised(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) pixels in [0, 1] → what the image tower takes."""
        return (images - self.mean) / self.std


class TextCache:
    """Embeddings of a frozen text tower, each distinct text encoded once.

    Attributes:
        capacity: Maximum number of texts kept (2 KB each at d = 512); later ones are encoded every time.
    """

    def __init__(self, model: CLIP, capacity: int = 1_000_000) -> None:
        self.model = model
        self.capacity = capacity
        self.known: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], tokens: Tensor | None = None) -> Tensor:
        """N texts, with their tokens if known → (N, d) constants on the model's device."""
        missing = {text: row for row, text in enumerate(texts) if text not in self.known}
        fresh = {}
        if missing:
            embeddings = self.model.encode_text(list(missing), chosen(tokens, missing.values()))
            # Kept in host memory: a million captions would fill an accelerator.
            fresh = dict(zip(missing, embeddings.cpu(), strict=True))
            room = max(0, self.capacity - len(self.known))
            self.known.update({text: fresh[text] for text in list(missing)[:room]})
        rows = [fresh[text] if text in fresh else self.known[text] for text in texts]
        return to_device(torch.stack(rows), self.model.device)


def chosen(tokens: Tensor | None, rows: Iterable[int]) -> Tensor | None:
    """The given rows of the tokens; None if the tokens are not known."""
    return None if tokens is None else tokens[list(rows)]
