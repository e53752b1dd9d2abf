"""Tiny random LLaVA models, saved as transformers saves the large ones."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from advflyp.lvlm.load import load_lvlm
from advflyp.lvlm.model import LVLM
from helpers import encoded_png, picture

WORDS = "user assistant : a the red blue green circle square bar cat dog maybe word yes no is what there in image ?"
SIDE, PATCH = 16, 8


def tokenizer() -> Any:
    words = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *WORDS.split()]
    words += [word.capitalize() for word in WORDS.split()]
    known = {word: number for number, word in enumerate(dict.fromkeys(words))}
    inner = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )


def save_llava(folder: Path, kind: str = "llava", **changes: Any) -> Path:
    """A random model of 2 and 3 layers, with processor and tokenizer."""
    words = tokenizer()
    # Its tower is as wide and deep as the tiny CLIP of tests/helpers.py.
    vision = CLIPVisionConfig(
        **{
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
            "image_size": SIDE, "patch_size": PATCH, "projection_dim": 24, **changes,
        }
    )  # fmt: skip
    text = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(words),
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    token = words.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    if kind == "llava":
        net: Any = LlavaForConditionalGeneration(
            LlavaConfig(vision_config=vision, text_config=text, image_token_index=token)
        )
    else:
        pinpoints = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
        net = LlavaNextForConditionalGeneration(
            LlavaNextConfig(
                vision_config=vision,
                text_config=text,
                image_token_index=token,
                image_grid_pinpoints=pinpoints,
            )
        )
    # At the usual 0.02 the image hardly moves the answer.
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    net.save_pretrained(folder)
    images = CLIPImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, do_convert_rgb=True
    )
    template = (
        "user : {% for part in messages[0]['content'] %}{% if part['type'] == 'image' %}<image> {% else %}"
        "{{ part['text'] }}{% endif %}{% endfor %} assistant :"
    )
    LlavaProcessor(images, words, patch_size=PATCH, chat_template=template).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="session")
def next_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava-next"), "llava_next")


@pytest.fixture(params=["llava", "llava_next"])
def lvlm(request: pytest.FixtureRequest, llava_folder: Path, next_folder: Path) -> LVLM:
    """Either of the two kinds, in float64."""
    folder = llava_folder if request.param == "llava" else next_folder
    return load_lvlm(folder, device="cpu").double()


@pytest.fixture
def images(lvlm: LVLM) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(3, 3, lvlm.image_side, lvlm.image_side, generator=generator, dtype=torch.float64)


ANSWERS = ["red"] * 4 + ["blue"] * 3 + ["cat", "a dog", "no"]


def write_tasks(root: Path, count: int = 4) -> Path:
    """Every task's official files, small: `count` images each."""

    def image(path: Path, number: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded_png(picture("red", "circle", random.Random(number))))

    def document(path: Path, value: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")

    names = [f"COCO_val2014_{number:012d}.jpg" for number in range(count)]
    captions = ["a red circle", "the red circle is there", "a circle", "red", "there is a circle", "a sixth"]
    for number, name in enumerate(names):
        image(root / "coco/val2014" / name, number)
        image(root / f"flickr30k/flickr30k-images/{number}.jpg", number)
        image(root / f"textvqa/train_images/{number:04x}.jpg", number)
        image(root / f"vizwiz/val/VizWiz_val_{number:08d}.jpg", number)
    sentences = [{"raw": caption} for caption in captions]
    karpathy = [
        {"filepath": "val2014", "filename": name, "split": "test", "sentences": sentences} for name in names
    ]
    karpathy += [{"filename": "other.jpg", "filepath": "train2014", "split": "train", "sentences": sentences}]
    document(root / "coco/dataset_coco.json", {"images": karpathy, "dataset": "coco"})
    flickr = [{"filename": f"{i}.jpg", "split": "test", "sentences": sentences[:5]} for i in range(count)]
    document(root / "flickr30k/dataset_flickr30k.json", {"images": flickr, "dataset": "flickr30k"})
    given = [{"answer": answer, "answer_id": i} for i, answer in enumerate(ANSWERS)]
    questions = [{"image_id": i, "question": "what is there ?", "question_id": 100 + i} for i in range(count)]
    document(root / "vqav2/v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    annotations = [{"question_id": 100 + i, "answers": given} for i in reversed(range(count))]
    document(root / "vqav2/v2_mscoco_val2014_annotations.json", {"annotations": annotations})
    text = [
        {"image_id": f"{i:04x}", "question_id": i, "question": "what word ?", "answers": ANSWERS}
        for i in range(count)
    ]
    document(root / "textvqa/TextVQA_0.5.1_val.json", {"data": text})
    blind = [
        {"image": f"VizWiz_val_{i:08d}.jpg", "question": "what is there ?", "answers": given}
        for i in range(count)
    ]
    document(root / "vizwiz/val.json", blind)
    for kind in ("random", "popular", "adversarial"):
        lines = [
            {"question_id": i, "image": name, "text": "is there a cat ?", "label": ("yes", "no")[i % 2]}
            for i, name in enumerate(names)
        ]
        document(root / f"pope/coco_pope_{kind}.json", "\n".join(map(json.dumps, lines)) + "\n")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tasks(tmp_path / "data")
