"""Captioning with a tiny random Qwen2.5-VL that is loaded the way the published one is."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from advflyp.data.pairs.manifest import read_manifest
from advflyp.data.pairs.samples import in_order
from advflyp.data.pairs.sources import open_source
from advflyp.data.sets import labelled
from advflyp.data.sets.labelled import LabelledSet, load_set
from advflyp.data.tools import vlm
from advflyp.data.tools.caption import MODEL, PROMPT, Captioned, Options, caption, which_part
from advflyp.data.tools.vlm import Captioner
from helpers import COLOURS, SHAPES, picture
from hubserver import NOWHERE, Hub, use_hub

transformers: Any = pytest.importorskip("transformers")
tokenizers: Any = pytest.importorskip("tokenizers")

SPECIAL = [
    f"<|{name}|>"
    for name in ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")
]
ENDS = ("<|endoftext|>", "<|im_end|>")
WORDS = [f"w{number}" for number in range(40)]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_vlm(folder: Path) -> Path:
    """The files of Qwen/Qwen2.5-VL-3B-Instruct in small. Its generation_config.json samples and penalises, too."""
    vocabulary = [*SPECIAL, "[UNK]", *PROMPT.split(), "user", "assistant", *WORDS]
    ids = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[0],
        eos_token="<|im_end|>",
        additional_special_tokens=SPECIAL[3:],
    ).save_pretrained(folder)
    common = {"processor_class": "Qwen2_5_VLProcessor"}
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast", **common}
    path.write_text(json.dumps(settings))
    sizes = {"min_pixels": 4 * 28 * 28, "max_pixels": 12 * 28 * 28}
    patches = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    processor = {"image_processor_type": "Qwen2VLImageProcessor", **sizes, **patches, **common}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    text = {
        "vocab_size": len(ids),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        "initializer_range": 0.4,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
        "initializer_range": 0.4,
    }
    names = {
        f"{name}_token_id": ids[f"<|{token}|>"]
        for name, token in (
            ("image", "image_pad"),
            ("video", "video_pad"),
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }
    torch.manual_seed(0)
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **names)
    net = transformers.Qwen2_5_VLForConditionalGeneration(config)
    # As a trained model would, it answers without pictures of its own: their logit is 0, so never the largest.
    net.lm_head.weight.data[[ids[token] for token in SPECIAL if token not in ENDS]] = 0
    net.generation_config = transformers.GenerationConfig(
        do_sample=True,
        temperature=5.0,
        repetition_penalty=1.5,
        eos_token_id=[ids[token] for token in ENDS],
        pad_token_id=ids["<|endoftext|>"],
    )
    net.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_vlm(tmp_path_factory.mktemp("vlm") / "tiny"))


def encoded(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def drawn(index: int) -> Image.Image:
    """Pictures of different shapes, so that batches need padding."""
    rng = random.Random(index)
    image = picture(list(COLOURS)[index % 4], SHAPES[index // 4 % 4], rng, 40 + 8 * (index % 7))
    return image.resize((image.width * (1 + index % 3), image.height))


def write_set(folder: Path, n: int = 11) -> Path:
    for index in range(n):
        path = folder / ("cat" if index % 2 else "dog") / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(drawn(index), "png"))
    return folder


@pytest.fixture
def images(tmp_path: Path) -> str:
    return str(write_set(tmp_path / "set"))


@pytest.fixture
def run(model: str, images: str, tmp_path: Path) -> Callable[..., Captioned]:
    """`caption` with what suits the tiny model."""

    def call(out: str = "out", name: str = images, **given: Any) -> Captioned:
        progress = given.pop("progress", None)
        tiny = {"model": model, "max_new_tokens": 10, "dtype": "fp32", "device": "cpu", "per_shard": 4}
        return caption(name, Options(out=tmp_path / out, **{**tiny, **given}), progress)

    return call


def members(folder: Path) -> dict[str, dict[str, bytes]]:
    """{shard: {member: content}}"""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found[path.name] = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    return found


def greedy(folder: str, image: Image.Image, steps: int) -> str:
    """The answer by its definition: the likeliest token is appended until one ends it; no cache, no batch."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    net = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    grid = processor.image_processor(images=[image], return_tensors="pt")
    n = int(grid["image_grid_thw"].prod()) // 4
    text = (
        f"<|im_start|> user <|vision_start|> {'<|image_pad|> ' * n}<|vision_end|> {PROMPT} <|im_end|> "
        "<|im_start|> assistant"
    )
    vocabulary = processor.tokenizer.get_vocab()
    names = {number: word for word, number in vocabulary.items()}
    ids = [vocabulary[word] for word in text.split()]
    answer: list[int] = []
    for _ in range(steps):
        tokens = torch.tensor([ids + answer])
        kinds = (tokens == vocabulary["<|image_pad|>"]).long()
        with torch.no_grad():
            out = net(input_ids=tokens, mm_token_type_ids=kinds, use_cache=False, **grid)
        best = int(out.logits[0, -1].argmax())
        if names[best] in ENDS:
            break
        answer.append(best)
    return " ".join(names[token] for token in answer)


def test_answers_are_the_greedy_continuation_and_nothing_of_the_prompt(model: str) -> None:
    captioner = Captioner(model, PROMPT, max_new_tokens=12, dtype="fp32", device="cpu")
    pictures = [drawn(index) for index in range(8)]
    answers = captioner(pictures)
    assert answers == [greedy(model, image, 12) for image in pictures]
    assert len(set(answers)) > 4 and len({len(str(answer).split()) for answer in answers}) > 1
    assert captioner([]) == []


def test_an_answer_is_one_line(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    captioner = Captioner(model, PROMPT, max_new_tokens=2, dtype="fp32", device="cpu")
    said = [" A dog\n\n\ton\u00a0a  lawn.\r\n", "\n \t"]
    monkeypatch.setattr(captioner.processor.tokenizer, "batch_decode", lambda *_, **__: said)
    assert captioner([drawn(0), drawn(1)]) == ["A dog on a lawn.", ""]


def test_another_family_whose_tokenizer_begins_every_text(tmp_path: Path) -> None:
    """LLaVA; its template writes the token that the tokenizer would put before it once more."""
    special = ["<pad>", "<s>", "</s>", "<image>"]
    ids = {word: number for number, word in enumerate([*special, "[UNK]", *PROMPT.split(), *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", ids["<s>"])]
    )
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    side = {"height": 28, "width": 28}
    transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=side),
        tokenizer=wrapped,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="<s> {% for m in messages %}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}",
    ).save_pretrained(tmp_path)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**size, image_size=28, patch_size=14),
        text_config=transformers.LlamaConfig(**size, vocab_size=len(ids), initializer_range=0.4),
        image_token_id=ids["<image>"],
    )
    transformers.LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    captioner = Captioner(str(tmp_path), PROMPT, max_new_tokens=8, dtype="fp32", device="cpu")
    pictures = [drawn(index) for index in range(6)]
    tokens = captioner._inputs(pictures)["input_ids"]
    assert (tokens == ids["<s>"]).sum(dim=1).tolist() == [1] * 6
    answers = captioner(pictures)
    assert answers == [captioner([image])[0] for image in pictures] and len(set(answers)) > 3
    assert all(answer and PROMPT not in answer for answer in answers)


def test_shards_read_back_as_pairs(
    model: str, images: str, tmp_path: Path, run: Callable[..., Captioned]
) -> None:
    seen: list[tuple[int, int]] = []
    done = run(batch_size=3, progress=lambda n, total: seen.append((n, total)))
    assert seen == [(3, 11), (4, 11), (7, 11), (8, 11), (11, 11)]
    assert (done.pairs, done.fresh, done.part, dict(done.skipped.counts)) == (11, 11, (0, 1), {})
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None and manifest == done.manifest
    assert [(s.name, s.pairs) for s in manifest.shards] == [
        ("part0-00000.tar", 4),
        ("part0-00001.tar", 4),
        ("part0-00002.tar", 3),
    ]
    assert (manifest.source["captioned_from"], manifest.source["prompt"]) == (images, PROMPT)
    assert manifest.versions["transformers"] == transformers.__version__
    loaded = load_set(images)
    captioner = Captioner(model, PROMPT, max_new_tokens=10, dtype="fp32", device="cpu")
    samples = {
        sample.key.partition(":")[2]: sample for sample in in_order(open_source(str(tmp_path / "out")))
    }
    files = {name: data for shard in members(tmp_path / "out").values() for name, data in shard.items()}
    assert len(samples) == 11 and len(files) == 33
    for place in range(11):
        key, label = loaded.key(place), int(loaded.labels[place])
        sample = samples[f"{place:09d}"]
        assert sample.image_bytes() == (Path(images) / key).read_bytes()
        assert sample.captions() == tuple(captioner([loaded.dataset[place][0].convert("RGB")]))
        assert json.loads(files[f"{place:09d}.json"]) == {
            "key": key,
            "class": loaded.classes[label],
            "label": label,
            "model": model,
            "prompt": PROMPT,
        }


def test_batches_change_nothing(tmp_path: Path, run: Callable[..., Captioned]) -> None:
    for size in (1, 3, 16):
        run(f"out{size}", batch_size=size)
    one = members(tmp_path / "out1")
    assert one == members(tmp_path / "out3") == members(tmp_path / "out16")
    order = [name for shard in one.values() for name in shard if name.endswith("txt")]
    assert order != sorted(order) and len({*order}) == 11


@pytest.mark.long
def test_a_killed_run_goes_on(tmp_path: Path, model: str, images: str, run: Callable[..., Captioned]) -> None:
    script = f"""
import os, signal
from pathlib import Path
from advflyp.data.tools.caption import Options, caption

def progress(done, total):
    if done == 6:
        os.kill(os.getpid(), signal.SIGKILL)

options = Options(out=Path({str(tmp_path / "out")!r}), model={model!r}, max_new_tokens=10, dtype="fp32",
                  device="cpu", per_shard=4, batch_size=2)
caption({images!r}, options, progress)
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    out = tmp_path / "out"
    assert [path.name for path in out.glob("*.tar")] == ["part0-00000.tar"]
    first = (out / "part0-00000.tar").stat().st_mtime_ns
    done = run(batch_size=2)
    assert (done.pairs, done.fresh) == (11, 7) and (out / "part0-00000.tar").stat().st_mtime_ns == first
    run("whole", batch_size=2)
    assert members(out) == members(tmp_path / "whole")
    again = run()
    assert again.fresh == 0 and again.pairs == 11 and again.manifest == done.manifest
    (out / "part0-00001.tar").unlink()
    mended = run()
    assert mended.fresh == 4 and mended.manifest is not None and mended.manifest.pairs == 11
    assert members(out) == members(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["{", "{}", '{"pairs": 4, "left_out": 3}'])
def test_a_damaged_record_is_removed_and_its_shard_captioned_again(
    damage: str, tmp_path: Path, run: Callable[..., Captioned]
) -> None:
    run()
    out = tmp_path / "out"
    before, record = members(out), out / ".caption" / "part0-00000.tar.json"
    record.write_text(damage)
    with pytest.raises(
        ValueError, match=r"part0-00000\.tar\.json is .*; remove it, and the shard is captioned again"
    ):
        run()
    record.unlink()
    again = run()
    assert again.fresh == 4 and again.manifest is not None and members(out) == before


def test_parts_cover_every_picture_once(
    tmp_path: Path, run: Callable[..., Captioned], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(part="1/2")
    assert (
        first.manifest is None and first.part == (1, 2) and not (tmp_path / "out" / "manifest.json").exists()
    )
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    second = run()
    assert second.part == (0, 2) and (first.pairs, second.pairs) == (5, 6)
    assert second.manifest is not None and second.manifest.pairs == 11
    found = members(tmp_path / "out")
    assert list(found) == [f"part{part}-0000{shard}.tar" for part in (0, 1) for shard in (0, 1)]
    run("whole", part="0/1")
    parts, whole = (
        [item for shard in members(tmp_path / name).values() for item in shard.items()]
        for name in ("out", "whole")
    )
    assert len(parts) == 33 and sorted(parts) == sorted(whole)
    with pytest.raises(ValueError, match="out was begun in 2 parts, not 3 parts; use the same, or"):
        run(part="0/3")
    # More processes than pictures: a part may have nothing to do.
    last = [run("few", part=f"{part}/3", limit=2) for part in (2, 0, 1)]
    assert [part.pairs for part in last] == [0, 1, 1]
    assert last[0].manifest is None and last[2].manifest is not None


def test_what_cannot_be_captioned_is_left_out_and_named(
    tmp_path: Path, run: Callable[..., Captioned], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_set(tmp_path / "dirty", 8)
    (folder / "dog" / "00.png").write_bytes(b"no picture")
    (folder / "cat" / "01.png").write_bytes((folder / "cat" / "01.png").read_bytes()[:200])
    (folder / "dog" / "02.png").write_bytes(encoded(Image.new("RGB", (4, 4)), "png"))
    (folder / "cat" / "03.png").write_bytes(encoded(Image.new("RGB", (8, 2000)), "png"))
    (folder / "dog" / "04.png").write_bytes(encoded(Image.new("RGB", (50, 51)), "png"))
    ask = Captioner.__call__

    def silent(self: Captioner, pictures: Any) -> list[str | None]:
        return [
            "" if image.size == (50, 51) else answer
            for image, answer in zip(pictures, ask(self, pictures), strict=True)
        ]

    monkeypatch.setattr(Captioner, "__call__", silent)
    done = run(name=str(folder))
    reasons = {
        "not an image": "dog/00.png",
        "truncated image": "cat/01.png",
        "image is too small": "dog/02.png",
        "refused by the model's processor": "cat/03.png",
        "empty caption": "dog/04.png",
    }
    assert done.skipped.examples == reasons and set(done.skipped.counts.values()) == {1}
    assert done.pairs == 3 and done.manifest is not None
    assert done.manifest.failures == dict.fromkeys(reasons, 1) and done.manifest.source["left_out"] == reasons
    # Also known when nothing is left to do, and to the next process.
    assert run(name=str(folder)).skipped == done.skipped


def test_nothing_is_left_of_a_set_without_a_usable_picture(
    tmp_path: Path, run: Callable[..., Captioned]
) -> None:
    folder = write_set(tmp_path / "dirty", 6)
    for path in folder.glob("*/*"):
        path.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"no image of .*dirty could be captioned: 6 not an image \(such as"):
        run(name=str(folder))
    assert not (tmp_path / "out").exists()


def test_files_stay_as_they_are_and_other_pictures_become_png(
    tmp_path: Path, run: Callable[..., Captioned], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kinds"
    files = {
        f"{kind}/{number}.{suffix}": encoded(drawn(number), kind)
        for number, (kind, suffix) in enumerate([("jpeg", "jpg"), ("webp", "webp"), ("bmp", "bmp")])
    }
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(data)
    sizes: list[tuple[int, int]] = []
    ask = Captioner.__call__

    def watched(self: Captioner, pictures: Any) -> list[str | None]:
        sizes.extend(image.size for image in pictures)
        return ask(self, pictures)

    monkeypatch.setattr(Captioner, "__call__", watched)
    monkeypatch.setattr("advflyp.data.tools.caption.MAX_PIXELS", 1600)
    run(name=str(folder))
    found = {
        json.loads(shard[f"{Path(name).stem}.json"])["key"]: (name, data)
        for shard in members(tmp_path / "out").values()
        for name, data in shard.items()
        if not name.endswith(("json", "txt"))
    }
    for name, data in files.items():
        member, content = found[name]
        if name.startswith("bmp"):
            assert member.endswith(".png")
            assert Image.open(io.BytesIO(content)).tobytes() == Image.open(io.BytesIO(data)).tobytes()
        else:
            assert member.endswith(Path(name).suffix) and content == data
    assert len(sizes) == 3 and all(0.9 * 1600 < width * height <= 1600 for width, height in sizes)
    # A set in memory, and one whose pictures are packed.
    pixels = [(drawn(number), number % 2) for number in range(3)]
    arrays = LabelledSet(pixels, ["a", "b"], "{}", name="arrays")
    monkeypatch.setattr("advflyp.data.tools.caption.load_set", lambda _: arrays)
    run("arrays", name="arrays")
    (shard,) = members(tmp_path / "arrays").values()
    for number, (image, _) in enumerate(pixels):
        assert Image.open(io.BytesIO(shard[f"{number:09d}.png"])).tobytes() == image.tobytes()
    monkeypatch.undo()
    assert run("food", name="mini/food", limit=3).pairs == 3
    assert {name.rpartition(".")[2] for name in next(iter(members(tmp_path / "food").values()))} == {
        "webp",
        "txt",
        "json",
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"part": "4/4"}, "--part must be i/n with i from 0 to n - 1, for example 0/4 to 3/4, not '4/4'"),
        ({"part": "half"}, "--part must be i/n"),
        ({"batch_size": 0}, "--batch-size must be at least 1, not 0"),
        ({"max_new_tokens": 0}, "--max-new-tokens must be at least 1, not 0"),
        ({"limit": 0}, "limit must be at least 1, not 0"),
        ({"prompt": " "}, "--prompt is empty"),
        (
            {"model": "./none"},
            "there is no model folder ./none; name one, or a model of the Hugging Face hub",
        ),
        ({"name": "no-such-set"}, "there is no set 'no-such-set'"),
    ],
)
def test_mistakes_leave_nothing(
    given: dict[str, Any], message: str, tmp_path: Path, run: Callable[..., Captioned]
) -> None:
    with pytest.raises(ValueError) as error:
        run(**given)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_folders_that_are_no_captioning_model(
    tmp_path: Path, model: str, tiny_folder: Path, run: Callable[..., Captioned]
) -> None:
    text = tmp_path / "text"
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=20)
    config.save_pretrained(text)
    mute, bare, gap, t5, broken, kernel, strange, odd, zero = (
        Path(shutil.copytree(model, tmp_path / name))
        for name in ("mute", "bare", "gap", "t5", "broken", "kernel", "strange", "odd", "zero")
    )
    weights = load_file(gap / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "visual.blocks.1." not in name}
    save_file(kept, gap / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((t5 / "config.json").read_text())
    (t5 / "config.json").write_text(json.dumps(settings | {"is_encoder_decoder": True}))
    (kernel / "config.json").write_text(json.dumps(settings | {"attn_implementation": "evil/kernel"}))
    (strange / "config.json").write_text(json.dumps(settings | {"text_config": 3}))
    (odd / "preprocessor_config.json").write_text("[]")
    processor = json.loads((zero / "preprocessor_config.json").read_text())
    (zero / "preprocessor_config.json").write_text(json.dumps(processor | {"patch_size": 0}))
    (mute / "chat_template.json").unlink()
    (broken / "chat_template.json").write_text(json.dumps({"chat_template": "{% if %}"}))
    (bare / "model.safetensors").write_bytes(b"cut off")
    for folder, message in (
        (tiny_folder, "cannot caption with "),
        (text, "a gpt2 model does not generate text from an image and a prompt"),
        (mute, "its processor has no chat template"),
        (broken, "the chat template of .* cannot be used"),
        (kernel, "it asks for the attention implementation evil/kernel, which may be code"),
        (bare, "cannot caption with "),
        (strange, "cannot caption with "),
        (odd, "cannot caption with "),
        (zero, "cannot caption with .*zero: "),
        (
            gap,
            f"{len(weights) - len(kept)} of its weights are missing, such as .*visual.blocks.1.*; fetch it",
        ),
        (t5, "it is an encoder-decoder; name a decoder-only model"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            run(model=str(folder))
        assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_captioning_model_that_is_a_program(
    tmp_path: Path, model: str, run: Callable[..., Captioned], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not run, not even where the terminal is asked and somebody says yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    evil = Path(shutil.copytree(model, tmp_path / "evil"))
    settings = json.loads((evil / "config.json").read_text())
    changed = {"model_type": "evil", "auto_map": {"AutoConfig": "code.Evil"}}
    (evil / "config.json").write_text(json.dumps(settings | changed))
    (evil / "code.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    with pytest.raises(ValueError, match=r"cannot caption with .*evil: The repository .* custom code"):
        run(model=str(evil))
    assert not (tmp_path / "run").exists()


def test_transformers_missing(
    tmp_path: Path, run: Callable[..., Captioned], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"needs transformers; install it with `pip install transformers`$"):
        run()
    assert not (tmp_path / "out").exists()


def test_the_hub_is_out_of_reach(
    tmp_path: Path, images: str, run: Callable[..., Captioned], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(monkeypatch, NOWHERE, tmp_path / "cache")
    started = time.monotonic()
    with pytest.raises(
        ValueError, match=r"the hub \(.*\) cannot be reached and user/vlm is not in its cache"
    ):
        run("out", model="user/vlm")
    assert time.monotonic() - started < 20 and not (tmp_path / "out").exists()


def test_a_model_of_the_hub_is_checked_as_a_folder_is(
    tmp_path: Path, model: str, hub: Hub, run: Callable[..., Captioned], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path.read_bytes() for path in Path(model).iterdir()}
    tokenizer = json.loads(files["tokenizer.json"])
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"Regex": "(a|a)*b"}, "content": "x"}
    hub.repos["user/vlm"] = files | {
        "pytorch_model.bin": b"the same again",
        "consolidated.safetensors": b"and again",
    }
    hub.repos["user/slow"] = files | {"tokenizer.json": json.dumps(tokenizer).encode()}
    hub.repos["user/text"] = files | {"config.json": b'{"model_type": "gpt2"}'}
    use_hub(monkeypatch, hub.url, tmp_path / "cache")
    with pytest.raises(ValueError, match="cannot caption with user/slow: .*normalizer"):
        run(model="user/slow")
    with pytest.raises(
        ValueError, match="cannot caption with user/text: a gpt2 model does not generate text"
    ):
        run(model="user/text")
    assert not (tmp_path / "out").exists()
    run("local")
    assert run(model="user/vlm").pairs == 11
    texts = [
        {name: data for name, data in content.items() if not name.endswith(".json")}
        for folder in ("out", "local")
        for content in members(tmp_path / folder).values()
    ]
    assert texts[:3] == texts[3:]
    needless = {
        "user/vlm/pytorch_model.bin",
        "user/vlm/consolidated.safetensors",
        "user/text/model.safetensors",
    }
    assert "user/vlm/model.safetensors" in hub.served and not needless & set(hub.served)


def test_out_belongs_to_one_run(tmp_path: Path, run: Callable[..., Captioned], images: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    for name in ("full", "file"):
        with pytest.raises(ValueError, match=f"{name} already exists and is not an empty folder"):
            run(name)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]
    run(limit=4)
    before = members(tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"out was begun with --prompt 'Describe.*', not 'Why'; use the same"
    ):
        run(limit=4, prompt="Why")
    with pytest.raises(ValueError, match="out was begun with --limit 4, not None"):
        run()
    assert run(limit=4, batch_size=2).fresh == 0
    (tmp_path / "out" / ".caption" / "settings.json").write_text("{")
    with pytest.raises(ValueError, match=r"settings\.json is damaged; name another folder, or remove"):
        run(limit=4)
    assert members(tmp_path / "out") == before


def test_a_set_that_changed_is_not_gone_on_with(
    tmp_path: Path, run: Callable[..., Captioned], images: str
) -> None:
    run()
    settings = tmp_path / "out" / ".caption" / "settings.json"
    settings.write_text(settings.read_text().replace('"images"', '"pictures"'))  # as versions before wrote it
    assert run().fresh == 0
    labelled._load.cache_clear()
    (Path(images) / "cat" / "01.png").rename(Path(images) / "cat" / "99.png")
    with pytest.raises(
        ValueError, match="was begun with images other than those now in .*; name another folder"
    ):
        run()


def test_one_process_a_part(tmp_path: Path, run: Callable[..., Captioned]) -> None:
    def second(done: int, total: int) -> None:
        with pytest.raises(
            ValueError, match=rf"process {os.getpid()} on \S+ is captioning part 0/1 to .*; wait for it, or"
        ):
            run(limit=4)

    assert run(progress=second, limit=4).pairs == 4


def test_what_another_process_has_done_meanwhile_is_not_done_again(
    tmp_path: Path, run: Callable[..., Captioned], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Captioner.__init__

    def slowly(self: Captioner, *given: Any, **named: Any) -> None:
        load(self, *given, **named)
        monkeypatch.undo()
        assert run().fresh == 11

    monkeypatch.setattr(Captioner, "__init__", slowly)
    late = run()
    assert (late.fresh, late.pairs) == (0, 11) and late.manifest == read_manifest(tmp_path / "out")


def test_parts_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        MODEL == "Qwen/Qwen2.5-VL-3B-Instruct" and PROMPT == "Describe this image with no more than 50 words"
    )
    assert which_part(None) == (0, 1) and which_part("3/4") == (3, 4)
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert which_part(None) == (5, 8) and which_part("0/2") == (0, 2)
    monkeypatch.setenv("WORLD_SIZE", "5")
    with pytest.raises(ValueError, match="RANK/WORLD_SIZE must be i/n with"):
        which_part(None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert vlm.own_device("auto") == torch.device("cuda", 1) and vlm.own_device("cuda:3").index == 3
    assert vlm.own_device("cpu") == torch.device("cpu")


@pytest.mark.slow
def test_torchrun_and_the_default_model(
    tmp_path: Path, model: str, images: str, run: Callable[..., Captioned]
) -> None:
    cache = tmp_path / "cache" / f"models--{MODEL.replace('/', '--')}"
    shutil.copytree(model, cache / "snapshots" / ("0" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    script = tmp_path / "script.py"
    script.write_text(
        f"from pathlib import Path\nfrom advflyp.data.tools.caption import Options, caption\ncaption({images!r}, "
        f"Options(out=Path({str(tmp_path / 'out')!r}), max_new_tokens=10, dtype='fp32', device='cpu', per_shard=4))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "HF_HUB_CACHE": str(cache.parent), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, str(script)], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None and manifest.pairs == 11 and len(manifest.shards) == 4
    run("whole")
    parts, whole = (
        {name: text for shard in members(tmp_path / out).values() for name, text in shard.items()}
        for out in ("out", "whole")
    )
    captions = {name: text for name, text in whole.items() if name.endswith("txt")}
    assert len(captions) == 11 and captions.items() <= parts.items()
    assert all(json.loads(text)["model"] == MODEL for name, text in parts.items() if name.endswith("json"))
