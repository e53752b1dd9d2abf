"""A large vision-language model as attacks see it: pixels in [0, 1] and prompts in, losses and answers out.

LLaVA reads its image through a CLIP tower: hidden state −2, without the class token, before the tower's last layer norm
(`vision_feature_layer` and `vision_feature_select_strategy` of its configuration). transformers selects these states;
the tower is a transformers model too, so no layer norm is applied on the way.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import Compose

from advflyp.devices import to_device
from advflyp.dtypes import at_least_float32
from advflyp.identity import json_sha256
from advflyp.model.clip import CLIP
from advflyp.model.folder import PROBES
from advflyp.model.interop.hf import greedy
from advflyp.model.precision import InPrecision
from advflyp.model.tokenizers import read_in_time

# LLaVA-NeXT takes an image of twice the tower's side, and sees it as a whole and as four tiles.
NEXT_TILES = 2
# Keys of a configuration that say where or how it was stored.
OF_FILES = {"_name_or_path", "architectures", "dtype", "id2label", "label2id", "text_config", "transformers_version",
            "vision_config"}  # fmt: skip


class Answers(NamedTuple):
    """Tokens of N prompts with their answers, padded on the left to length L.

    Attributes:
        ids: (N, L) int64.
        mask: (N, L), 0 where padded.
        is_answer: (N, A) bool, which of the last A tokens belong to the answer.
    """

    ids: Tensor
    mask: Tensor
    is_answer: Tensor


class LVLM(InPrecision, nn.Module):
    """LLaVA-1.5 or LLaVA-NeXT: `per_sample_loss` for attacks, `answer` for evaluations.

    Args:
        net: transformers' `LlavaForConditionalGeneration` or `LlavaNextForConditionalGeneration`.
        tokenizer: Its tokenizer, which knows the image token.
        template: A user's question → the whole prompt, which contains the image token once.
        mean: Mean of the tower's normalisation, three numbers.
        std: Standard deviation of that normalisation, three numbers.
        name: The model's name in results.
        clip: The CLIP that the image tower comes from, if known; it is frozen.

    Attributes:
        image_side: Height and width of its input images in pixels: those of the tower, or twice that for LLaVA-NeXT. A
            perturbation of these pixels appears in every tile that shows them.
        vision_name: The vision tower's name in results.
    """

    net: Any  # transformers' classes share methods, not a base with types
    clip: CLIP | None
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        tokenizer: Any,
        template: Callable[[str], str],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        name: str,
        vision_name: str = "its own",
        clip: CLIP | None = None,
    ) -> None:
        super().__init__()
        self.net = net.requires_grad_(False).eval()
        self.tokenizer, self.template = tokenizer, template
        self.name, self.vision_name = name, vision_name
        # Not registered as a submodule: it is moved to the device only when it is attacked.
        self.__dict__["clip"] = clip and clip.requires_grad_(False).eval()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        config = self.net.config
        self.is_next = config.model_type == "llava_next"
        self.tile = int(config.vision_config.image_size)
        self.image_side = NEXT_TILES * self.tile if self.is_next else self.tile
        settings = PreprocessCfg(size=self.image_side, mean=tuple(mean), std=tuple(std))
        # Resize the shorter side (bicubic), then crop the centre. LLaVA-1.5 first pads images to a square, as in its
        # training. Normalisation is left to the model.
        transform: Any = image_transform_v2(settings, is_train=False)
        own = [] if self.is_next else [partial(on_square, colour=tuple(int(255 * value) for value in mean))]
        self.preprocess: Callable[[Image.Image], Tensor] = Compose([*own, *transform.transforms[:-1]])

    def config_sha256(self) -> str:
        """A hash of what decides the answers besides the weights: settings, normalisation, template and tokenizer."""
        # Without empty settings, which a new release of transformers may add.
        given = self.net.config.to_dict()
        tables = [given, given["vision_config"], given["text_config"]]
        config = [
            {key: value for key, value in table.items() if value and key not in OF_FILES} for table in tables
        ]
        tokens = [self.tokenizer(self.template(text))["input_ids"] for text in PROBES]
        ends = self.net.generation_config.eos_token_id
        return json_sha256([config, self.mean.tolist(), self.std.tolist(), tokens, ends])

    @property
    def image_tokens(self) -> int:
        """The number of language-model tokens per image."""
        config = self.net.config
        side = self.tile // int(config.vision_config.patch_size)
        whole = side * side + (config.vision_feature_select_strategy == "full")
        # An extra token ends each row of the joined tiles.
        return whole + NEXT_TILES * side * (NEXT_TILES * side + 1) if self.is_next else whole

    def per_sample_loss(self, images: Tensor, prompts: Sequence[str], targets: Sequence[str]) -> Tensor:
        """The loss of each answer: −1/L Σ_l log p(target_l | image, prompt, target_<l) over its L tokens.

        The last token is the one that ends an answer.

        Args:
            images: (N, 3, image_side, image_side) pixels in [0, 1]; differentiable.
            prompts: N questions, without the image token.
            targets: N answers.

        Returns:
            (N,) in nats per token. A sample's loss does not depend on the rest of the batch.

        Raises:
            ValueError: A target has no tokens, a text contains the image token, or the images have a wrong shape.
        """
        return self.loss_of(images, self.tokens_of(prompts, targets))

    def tokens_of(self, prompts: Sequence[str], targets: Sequence[str]) -> Answers:
        """Tokenize prompts and answers once, for the many steps of an attack."""
        before = [self._prompt_ids(prompt) for prompt in prompts]
        after = [self._target_ids(target) for target in targets]
        # Padded on the left, so that all answers end at the last position and earlier positions need no logits.
        ids, mask = self._padded([[*one, *two] for one, two in zip(before, after, strict=True)])
        longest = max(map(len, after))
        is_answer = torch.tensor([[longest - i <= len(one) for i in range(longest)] for one in after])
        return Answers(ids, mask, to_device(is_answer, self.device))

    def loss_of(self, images: Tensor, answers: Answers) -> Tensor:
        """`per_sample_loss` of prompts and answers that `tokens_of` has tokenized."""
        longest = answers.is_answer.shape[1]
        with self._autocast():
            found = self.net(
                input_ids=answers.ids,
                attention_mask=answers.mask,
                # Count positions from the first real token, as in an unpadded prompt.
                position_ids=(answers.mask.cumsum(1) - 1).clamp_min(0),
                logits_to_keep=longest + 1,
                use_cache=False,
                **self._vision(images),
            )
        logits = at_least_float32(found.logits)[:, :-1]
        losses = F.cross_entropy(logits.transpose(1, 2), answers.ids[:, -longest:], reduction="none")
        return (losses * answers.is_answer).sum(1) / answers.is_answer.sum(1)

    @torch.no_grad()
    def answer(self, images: Tensor, prompts: Sequence[str], *, max_new_tokens: int = 64) -> list[str]:
        """The model's answer to each image and question, by greedy decoding, on one line.

        Args:
            images: (N, 3, image_side, image_side) pixels in [0, 1].
            prompts: N questions, without the image token.
            max_new_tokens: Maximum length of an answer in tokens.
        """
        ids, mask = self._padded([self._prompt_ids(prompt) for prompt in prompts])
        settings = greedy(self.net, self.tokenizer, max_new_tokens, self._pad_id)
        with self._autocast():
            tokens = self.net.generate(
                input_ids=ids, attention_mask=mask, generation_config=settings, **self._vision(images)
            )
        texts = self.tokenizer.batch_decode(tokens[:, ids.shape[1] :], skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]

    def caption_classifier(self, texts: Sequence[str]) -> Callable[[Tensor], Tensor]:
        """Zero-shot logits of the tower's CLIP for K texts: (N, 3, image_side, image_side) → (N, K).

        With LLaVA-NeXT, it sees the whole image downscaled, and no tiles.

        Raises:
            ValueError: The CLIP is not known.
        """
        clip = self.known_clip().to(device=self.device, dtype=self.mean.dtype)
        classifier = clip.classifier(texts, ["{}"])
        return lambda images: classifier(self._whole(images))

    def image_tokens_in(self, texts: Sequence[str]) -> list[int]:
        """How often each text holds the token that stands for an image: prompts once, questions and answers never."""
        # The tokenizer's files may hold expressions that take very long.
        rows = read_in_time(lambda: self.tokenizer(list(texts)).input_ids, len(texts))
        return [row.count(self._image_id) for row in rows]

    def known_clip(self) -> CLIP:
        """The CLIP that the image tower comes from; ValueError if it is not known."""
        if self.clip is None:
            raise ValueError(
                f"--attack encoder needs the CLIP that the image tower of {self.name} comes from; name it with "
                "--vision (LLaVA-1.5: ViT-L-14-336/openai)"
            )
        return self.clip

    def encode_tokens(self, images: Tensor, patches: bool) -> Tensor:
        """(N, 3, image_side, image_side) → (N, 1 + L, d) unit-norm hidden states of the layer that the model reads.

        The first is the class token of the whole image; `patches` adds the states of all patches, tile by tile.
        """
        layers, pixels = self.net.config.vision_feature_layer, self._vision(images)["pixel_values"]
        with self._autocast():
            found = self.net.model.vision_tower(pixels.flatten(0, -4), output_hidden_states=True)
        states = [found.hidden_states[i] for i in ([layers] if isinstance(layers, int) else layers)]
        tokens = at_least_float32(torch.cat(states, dim=-1)).unflatten(0, (len(images), -1))
        image = tokens[:, 0, :1]
        every = torch.cat([image, tokens[:, :, 1:].flatten(1, 2)], dim=1) if patches else image
        return F.normalize(every, dim=-1)

    def _vision(self, images: Tensor) -> dict[str, Tensor]:
        """The image inputs of the transformers model: normalised, and for LLaVA-NeXT tiled: (N, 5, 3, tile, tile)."""
        side = self.image_side
        if images.shape[1:] != (3, side, side):
            raise ValueError(
                f"{self.name} takes images of shape (N, 3, {side}, {side}), not {tuple(images.shape)}; "
                "use its preprocess"
            )
        if not self.is_next:
            return {"pixel_values": (images - self.mean) / self.std}
        whole = self._whole(images)
        quarters = [part for row in images.chunk(NEXT_TILES, 2) for part in row.chunk(NEXT_TILES, 3)]
        tiles = torch.stack([whole, *quarters], dim=1)
        sizes = torch.full((len(images), 2), side, device=images.device)
        return {"pixel_values": (tiles - self.mean[:, None]) / self.std[:, None], "image_sizes": sizes}

    def _whole(self, images: Tensor) -> Tensor:
        """The whole image at the tower's size; for LLaVA-NeXT it is downscaled."""
        return (
            F.interpolate(images, size=self.tile, mode="bicubic", antialias=True) if self.is_next else images
        )

    @property
    def _pad_id(self) -> int:
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(one for one in known if one is not None)

    @property
    def _image_id(self) -> int:
        return int(self.net.config.image_token_id)

    def _ids(self, text: str, special: bool) -> list[int]:
        # Its files may hold expressions that take very long.
        return read_in_time(lambda: self.tokenizer(text, add_special_tokens=special).input_ids, 1)

    def _prompt_ids(self, prompt: str) -> list[int]:
        text = self.template(prompt)
        bos = self.tokenizer.bos_token
        # A template that already begins with the BOS token must not get it twice.
        ids = self._ids(text, bos is None or not text.startswith(bos))
        if ids.count(self._image_id) != 1:
            raise ValueError(f"a prompt must not hold the image token itself: {prompt[:80]!r}")
        place = ids.index(self._image_id)
        return [*ids[:place], *[self._image_id] * self.image_tokens, *ids[place + 1 :]]

    def _target_ids(self, target: str) -> list[int]:
        ids = self._ids(target, False)
        if not ids or self._image_id in ids:
            raise ValueError(f"an answer needs words, and not the image token: {target[:80]!r}")
        end = self.tokenizer.eos_token_id
        return ids if end is None else [*ids, end]

    def _padded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        """(N, L) token ids and attention mask, padded on the left."""
        longest = max(map(len, rows))
        ids = torch.tensor([[self._pad_id] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return to_device(ids, self.device), to_device(mask, self.device)


def on_square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """Pad the image to a square with the side of its longer edge, centred."""
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), colour)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas
