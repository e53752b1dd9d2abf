"""A tiny LLaVA that names images: the tower of `mini-vit`, and a small Llama trained on the names of the mini corpus.

    python -m tools.mini_llava train runs/mini-llava            # 72 minutes on one AVX2 core
    python -m tools.mini_llava pack runs/mini-llava             # into the package
    python -m tools.mini_llava tasks data                       # held-out images in the layouts of COCO and VQAv2
    advflyp lvlm eval mini-llava --root data --tasks coco vqav2 --attack encoder --eps 2/255 --out lvlm.jsonl

The tower is frozen; projector and language model learn from scratch to answer either of two questions with the name of
the image. The same `train` command resumes a training that was stopped.
"""

import json
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers import decoders as decoding
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    CLIPImageProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from advflyp.data.config import DataConfig
from advflyp.data.mini import EMBEDDED
from advflyp.data.mini.compose import MiniLabelled
from advflyp.data.pairs.images import ImageReader
from advflyp.data.pairs.pairs import Reading
from advflyp.data.sets.labelled import load_set
from advflyp.data.training import PROXY_SET
from advflyp.lvlm.load import MINI_FOLDER, WEIGHTS, is_of_tower
from advflyp.lvlm.model import LVLM
from advflyp.lvlm.protocol import ENCODER
from advflyp.lvlm.tasks import CAPTION, SHORT, load_task
from advflyp.model.interop.hf import to_transformers
from advflyp.model.load import load_model
from advflyp.share import Share
from advflyp.training.optim import OptimConfig, learning_rate

QUESTION = "What is in the image?"
PROMPTS = (CAPTION, SHORT.format(QUESTION))
HELD_OUT = ("mini/food", "mini/animals", "mini/travel")
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
IMAGE = "<image>"
TEMPLATE = (
    "{{ bos_token }}USER: {% for part in messages[0]['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %} ASSISTANT:"
)
EVERY = 200  # updates between two saved states
OPTIM = OptimConfig(name="adamw", lr=1e-3, weight_decay=0.05, warmup_steps=50, lr_steps=None)


def train(
    out: Annotated[Path, tyro.conf.Positional],
    texts: int = 500,
    images: int = 2500,
    batch_size: int = 64,
    width: int = 192,
    layers: int = 4,
    words: int = 2048,
    seed: int = 0,
) -> None:
    """Train the model and write it as transformers does, in half precision.

    Args:
        out: The model's folder.
        texts: Updates on names alone, each at less than half the cost of one with images: they teach the language model
            which names there are.
        images: Updates on names that follow their images.
        batch_size: Names in each update.
        width: Hidden size of the language model.
        layers: Number of layers of the language model.
        words: Size of its vocabulary.
        seed: Random seed.
    """
    torch.manual_seed(seed)
    model = untrained(width, layers, words)
    how = Reading(
        config=DataConfig(train="mini", batch_size=batch_size),
        reader=ImageReader({"size": model.tile}),
        seed=seed,
        device=torch.device("cpu"),
        share=Share(batch_size),
    )
    pairs = MiniLabelled(EMBEDDED, how, load_set(PROXY_SET).classes, ("{}",))
    learned = [model.net.model.multi_modal_projector, model.net.model.language_model]
    parameters = [parameter.requires_grad_() for part in learned for parameter in part.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=OPTIM.lr, weight_decay=OPTIM.weight_decay, betas=(0.9, 0.98))
    done, state = 0, out / "state.pt"
    if state.is_file():
        saved = torch.load(state, weights_only=True)
        model.net.load_state_dict(saved["net"])
        optimiser.load_state_dict(saved["optimiser"])
        done = saved["step"]
    out.mkdir(parents=True, exist_ok=True)
    steps, begun = texts + images, time.monotonic()
    for step, loss in enumerate(losses(model, pairs, texts, done, seed), start=done + 1):
        optimiser.zero_grad()
        loss.backward()
        clip_grad_norm_(parameters, 1.0)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(OPTIM, step - 1, steps)
        optimiser.step()
        if step % 20 == 0:
            pace = (time.monotonic() - begun) / (step - done)
            print(f"step {step} of {steps}  loss {loss.item():.3f}  {pace:.2f} s a step", flush=True)
        if step % EVERY == 0 or step == steps:
            torch.save(
                {"net": model.net.state_dict(), "optimiser": optimiser.state_dict(), "step": step}, state
            )
            print(f"names of held-out images that are right: {right(model, 96):.1%}", flush=True)
        if step == steps:
            break
    save(model, out)
    state.unlink()


def losses(model: LVLM, pairs: MiniLabelled, texts: int, done: int, seed: int) -> Iterator[Tensor]:
    """The loss of each update after `done`: on names alone, then on names that follow their images."""
    for step in range(done, texts):
        rng = random.Random(f"{seed}/names/{step}")
        yield name_loss(model, rng.choices(pairs.classes, k=pairs.batch_size), rng)
    step = max(done - texts, 0)
    while True:
        epoch, place = divmod(step, len(pairs))
        for batch in pairs.epoch(epoch, {"batch": place}):
            rng = random.Random(f"{seed}/images/{step}")
            prompts = [rng.choice(PROMPTS) for _ in batch.captions]
            yield model.per_sample_loss(batch.images, prompts, batch.captions).mean()
            step += 1


def name_loss(model: LVLM, names: Sequence[str], rng: random.Random) -> Tensor:
    """The cross-entropy of names after a question without an image, in nats per token."""
    tokenizer: Any = model.tokenizer
    before = [tokenizer(template(rng.choice(PROMPTS)).replace(f"{IMAGE}\n", "")).input_ids for _ in names]
    after = [tokenizer(f"{name}</s>").input_ids for name in names]
    rows = [torch.tensor(one + two) for one, two in zip(before, after, strict=True)]
    ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
    logits = model.net(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).logits
    places = torch.arange(ids.shape[1])
    begin, end = (torch.tensor([len(one) for one in some])[:, None] for some in (before, rows))
    wanted = torch.where((places >= begin) & (places < end), ids, -100)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), wanted[:, 1:].flatten(), ignore_index=-100)


def untrained(width: int, layers: int, words: int) -> LVLM:
    """The model before its first update, in float32."""
    clip = load_model("mini-vit", device="cpu")
    tower: Any = to_transformers(clip)
    tokenizer = learned_tokenizer(words)
    language = LlamaConfig(
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 48,
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=tower.config.vision_config,
        text_config=language,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        tie_word_embeddings=True,
        # The last layer with its class token; LLaVA-1.5 reads the patches alone, one layer earlier.
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    net: Any = LlavaForConditionalGeneration(config)
    own = net.model.vision_tower
    getattr(own, "vision_model", own).load_state_dict(tower.vision_model.state_dict())
    mean, std = clip.mean.flatten().tolist(), clip.std.flatten().tolist()
    return LVLM(net, tokenizer, template, mean=mean, std=std, name="mini-llava")


def template(prompt: str) -> str:
    """What `TEMPLATE` makes of a question."""
    return f"<s>USER: {IMAGE}\n{prompt} ASSISTANT:"


def learned_tokenizer(words: int) -> Any:
    """A byte-pair tokenizer learned from the corpus' names and the two questions."""
    texts = [*load_set(PROXY_SET).classes, *(1000 * [template(prompt) for prompt in PROMPTS])]
    inner = Tokenizer(models.BPE())
    inner.normalizer = normalizers.NFC()
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoding.ByteLevel()
    special = [*SPECIAL.values(), IMAGE]
    trainer = trainers.BpeTrainer(
        vocab_size=words, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, **SPECIAL, extra_special_tokens={"image_token": IMAGE}
    )


def right(model: LVLM, count: int) -> float:
    """The share of a fixed sample of held-out images that the model names correctly."""
    model.eval()
    sets = [load_set(name) for name in HELD_OUT]
    places = [(labelled, place) for labelled in sets for place in range(len(labelled))]
    chosen = random.Random(0).sample(places, count)
    images = torch.stack([model.preprocess(labelled.image(place)) for labelled, place in chosen])
    answers = model.answer(images, [PROMPTS[0]] * count, max_new_tokens=12)
    names = [labelled.classes[int(labelled.labels[place])].lower() for labelled, place in chosen]
    return sum(one.lower() == two for one, two in zip(answers, names, strict=True)) / count


def save(model: LVLM, out: Path) -> None:
    """Weights in half precision, configuration, tokenizer, template and preprocessing, as transformers has them."""
    model.net.half().save_pretrained(out)
    side, mean, std = model.tile, model.mean.flatten().tolist(), model.std.flatten().tolist()
    images = CLIPImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        image_mean=mean,
        image_std=std,
        do_convert_rgb=True,
    )
    patch = model.net.config.vision_config.patch_size
    LlavaProcessor(images, model.tokenizer, patch_size=patch, chat_template=TEMPLATE).save_pretrained(out)


def pack(folder: Annotated[Path, tyro.conf.Positional]) -> None:
    """Copy the model into the package without its tower, which the package has as `mini-vit`.

    Args:
        folder: The folder it was trained in.
    """
    MINI_FOLDER.mkdir(exist_ok=True)
    for file in folder.iterdir():
        if file.suffix in (".json", ".jinja"):
            shutil.copy(file, MINI_FOLDER)
    weights = load_file(folder / WEIGHTS[0])
    learned = {key: value for key, value in weights.items() if not is_of_tower(key)}
    save_file(learned, MINI_FOLDER / WEIGHTS[0], metadata={"format": "pt"})


def tasks(root: Annotated[Path, tyro.conf.Positional], without: int = 0) -> None:
    """Write the held-out images with their names in the layouts of COCO's captions and of VQAv2.

    Args:
        root: What `advflyp lvlm eval --root` takes.
        without: Leave out the captions that `advflyp lvlm eval --limit N` draws for this N, to get another sample.
    """
    folder = root / "coco/val2014"
    folder.mkdir(parents=True)
    captions, questions, annotations = [], [], []
    number = 0
    for name in HELD_OUT:
        labelled = load_set(name)
        for place in range(len(labelled)):
            file = f"COCO_val2014_{number:012d}.jpg"
            answer = labelled.classes[int(labelled.labels[place])].lower()
            labelled.image(place).convert("RGB").save(folder / file, quality=95)
            captions.append(
                {"split": "test", "filepath": "val2014", "filename": file, "sentences": [{"raw": answer}]}
            )
            questions.append({"question_id": number, "image_id": number, "question": QUESTION})
            annotations.append({"question_id": number, "answers": 10 * [{"answer": answer}]})
            number += 1
    (root / "vqav2").mkdir()
    for file, content in (
        ("coco/dataset_coco.json", {"images": captions}),
        ("vqav2/v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions}),
        ("vqav2/v2_mscoco_val2014_annotations.json", {"annotations": annotations}),
    ):
        (root / file).write_text(json.dumps(content), encoding="utf-8")
    if without:
        drawn = {sample.image.name for sample in load_task("coco", root).drawn(without, ENCODER.seed).samples}
        others = [caption for caption in captions if caption["filename"] not in drawn]
        (root / "coco/dataset_coco.json").write_text(json.dumps({"images": others}), encoding="utf-8")
    print(f"{number} images in {root}")


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"train": train, "pack": pack, "tasks": tasks})
