"""A generative vision-language model that describes images, through transformers (extra `caption`)."""

import os
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from advflyp.errors import first_line
from advflyp.model.architectures import check_attention
from advflyp.model.interop.chat import chat_prompt
from advflyp.model.interop.hf import check_stored, greedy
from advflyp.model.load import pick_device
from advflyp.model.repository import Repository, open_repository
from advflyp.model.tokenizers import check_tokenizer, read_in_time
from advflyp.wording import counted

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# The files of a model that are fetched: of its weights, safetensors if there are any.
SMALL_FILES = (".json", ".txt", ".model", ".jinja")
WEIGHTS = re.compile(r"(pytorch_)?model(-\d+-of-\d+)?\.(safetensors|bin)")
MISSING = "captioning needs transformers; install it with `pip install transformers`"


class Captioner:
    """Images → the model's answers to the prompt, by greedy decoding.

    Sampling and penalties that the model's generation_config.json asks for are not applied: a repetition penalty also
    counts padding, so that a caption would depend on its neighbours in the batch.

    Args:
        model: A folder or a name on the Hugging Face hub; ValueError if it cannot be loaded, or takes no images.
        prompt: The user's turn after the image, in the chat template of the model's processor.
        max_new_tokens: Longest caption, in tokens.
        dtype: bf16, fp16 or fp32.
        device: As in `own_device`.
    """

    def __init__(
        self, model: str, prompt: str, *, max_new_tokens: int = 96, dtype: str = "bf16", device: str = "auto"
    ) -> None:
        try:
            transformers: Any = import_module("transformers")
        except ImportError:
            raise ValueError(MISSING) from None
        self.versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        self.device, self.dtype = own_device(device), DTYPES[dtype]
        place = _located(model)
        try:
            self.processor, self.net = _loaded(transformers, place, self.dtype)
        except Exception as error:  # transformers may raise anything on untrusted files
            raise ValueError(f"cannot caption with {model}: {first_line(error)}") from error
        self.net.to(self.device).eval()
        tokenizer = getattr(self.processor, "tokenizer", None)
        if tokenizer is None or not getattr(self.processor, "chat_template", None):
            raise ValueError(f"cannot caption with {model}: its processor has no chat template")
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.net.generation_config = greedy(self.net, tokenizer, max_new_tokens, tokenizer.pad_token_id)
        self.text = chat_prompt(self.processor, model)(prompt)
        # Its files may hold expressions that take very long; every batch has this text.
        read_in_time(lambda: tokenizer(self.text), 1)
        # If the template begins with the BOS token itself, it must not be added again.
        bos = tokenizer.bos_token
        self.special = bos is None or not self.text.startswith(bos)
        try:
            self._inputs([Image.new("RGB", (64, 64))])
        except Exception as error:
            raise ValueError(f"cannot caption with {model}: {first_line(error)}") from error

    def __call__(self, images: Sequence[Image.Image]) -> list[str | None]:
        """An answer on one line for each RGB image; None if the model's processor refuses the image.

        Raises:
            ValueError: The batch does not fit into the device's memory.
        """
        if not images:
            return []
        try:
            inputs = self._inputs(images)
        except ValueError:
            # One image may be too long and thin, for example; the others are still captioned.
            return [None] if len(images) == 1 else [self([image])[0] for image in images]
        try:
            with torch.inference_mode():
                tokens = self.net.generate(**inputs.to(self.device, self.dtype))
        except torch.OutOfMemoryError:
            raise ValueError(
                f"batches of {counted(len(images), 'image')} do not fit into the memory of {self.device}; lower "
                "--batch-size"
            ) from None
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts]

    def _inputs(self, images: Sequence[Image.Image]) -> Any:
        return self.processor(
            text=[self.text] * len(images),
            images=[[image] for image in images],
            padding=True,
            add_special_tokens=self.special,
            return_tensors="pt",
        )


def own_device(name: str) -> torch.device:
    """As `pick_device`, but "auto" and "cuda" give each process of torchrun its own GPU."""
    device = pick_device(name)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return device


def _located(model: str) -> Path | Repository:
    """A folder, or a repository of the hub; ValueError if it can be neither."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ValueError(f"there is no model folder {model}; name one, or a model of the Hugging Face hub")
    return open_repository(model)


def _loaded(transformers: Any, place: Path | Repository, dtype: torch.dtype) -> tuple[Any, Any]:
    """The processor and the net; ValueError if the model is of the wrong kind, or whatever transformers raises."""
    # transformers itself would read the hub's files unchecked, and ask a silent hub again and again.
    files = [] if isinstance(place, Path) else [file for file in place.files if file.endswith(SMALL_FILES)]
    folder = place if isinstance(place, Path) else place.fetch(files)
    # Unless told not to, transformers asks on the terminal whether to run a stranger's code.
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if type(config) not in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ValueError(f"a {config.model_type} model does not generate text from an image and a prompt")
    check_attention(config, "it")
    if getattr(config, "is_encoder_decoder", False):
        # Its answers do not begin with the prompt, which `Captioner` cuts off.
        raise ValueError("it is an encoder-decoder; name a decoder-only model")
    if isinstance(place, Repository):
        weights = [file for file in place.files if WEIGHTS.fullmatch(file)]
        safe = [file for file in weights if file.endswith(".safetensors")]
        folder = place.fetch([*files, *(safe or weights)])
    check_stored(transformers, config, folder)
    check_tokenizer(folder)
    processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    net, report = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, dtype=dtype, output_loading_info=True, trust_remote_code=False
    )
    if report["missing_keys"]:
        # transformers only warns, and initialises them at random.
        first = min(report["missing_keys"])
        raise ValueError(
            f"{len(report['missing_keys'])} of its weights are missing, such as {first}; fetch it again"
        )
    return processor, net
