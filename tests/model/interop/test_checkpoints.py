"""Fake checkpoints in each project's format, made from its key names: the model in them is the one they came from."""

import io
import shutil
from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import safetensors.torch
import tomli_w
import torch
from torch import Tensor

from advflyp.cli.main import main
from advflyp.model.clip import CLIP
from advflyp.model.folder import save_model
from advflyp.model.load import load_model, split_name
from advflyp.training.loop import train
from helpers import TEXT, VISION, assert_equal64, make_tiny, siglip_config, small_model
from hubserver import Hub, use_hub

State = dict[str, Tensor]


def prefixed(state: State, prefix: str) -> State:
    return OrderedDict((prefix + key, value) for key, value in state.items())


def teaches(weights: dict[str, Any], robust: CLIP) -> dict[str, Any]:
    """What TeCoA's training script and those that grew out of it save beside the weights."""
    parameters = [parameter for parameter in robust.visual.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9)
    sum(parameter.sum() for parameter in parameters).backward()  # type: ignore[union-attr]
    optimizer.step()
    return {
        "epoch": 3,
        "state_dict": OrderedDict(),
        "add_prompter": OrderedDict({"module.prompt": torch.zeros(1, 0, 768)}),
        "best_acc1": np.float64(31.5),
        "optimizer": optimizer.state_dict(),
        **weights,
    }


def copied(state: dict[str, Tensor]) -> State:
    return OrderedDict((key, value.detach().clone()) for key, value in state.items())


FORMATS: dict[str, tuple[str, Callable[[CLIP], Any]]] = {
    "RobustVLM": ("final.pt", lambda robust: copied(robust.visual.state_dict())),
    "RobustVLM, wrapped": ("x.pt", lambda robust: prefixed(robust.visual.state_dict(), "module.model.")),
    "TeCoA, PMG-AFT, TGA-ZSR": (
        "model_best.pth.tar",
        lambda robust: teaches({"vision_encoder_state_dict": copied(robust.visual.state_dict())}, robust),
    ),
    "AdvFLYP": (
        "checkpoint.pth.tar",
        lambda robust: teaches(
            {
                "partial_state_dict": {
                    f"visual.{key}": value.detach().clone() for key, value in robust.visual.named_parameters()
                }
            },
            robust,
        ),
    ),
    "visual. under DataParallel": (
        "checkpoint.pth.tar",
        lambda robust: {
            "epoch": 1,
            "vision_encoder_state_dict": prefixed(robust.visual.state_dict(), "module.visual."),
        },
    ),
    "open_clip": (
        "epoch_5.pt",
        lambda robust: {
            "epoch": 5,
            "name": "run",
            "state_dict": prefixed(robust.net.state_dict(), "module."),
            "optimizer": {},
        },
    ),
    "plain": ("model.bin", lambda robust: copied(robust.net.state_dict())),
    "compiled": ("model.pth", lambda robust: prefixed(robust.net.state_dict(), "_orig_mod.")),
    "OpenAI": (
        "model.pt",
        lambda robust: {
            **robust.net.state_dict(),
            "input_resolution": torch.tensor(32),
            "context_length": torch.tensor(16),
            "vocab_size": torch.tensor(8192),
        },
    ),
}


@pytest.fixture
def robust(tiny_folder: Path) -> CLIP:
    """The tiny CLIP after some finetuning of its image tower."""
    model = load_model(tiny_folder)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.visual.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def same(one: CLIP, other: CLIP) -> None:
    images = torch.rand(
        3, 3, *one.image_size, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    texts = ["a red circle", "two blue bars"]
    one, other = (deepcopy(model).double() for model in (one, other))
    with torch.no_grad():
        embeddings = [torch.cat([m.encode_image(images), m.encode_text(texts)]) for m in (one, other)]
    assert_equal64(*embeddings)
    assert_equal64(one.logit_scale, other.logit_scale)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "pickle"])
@pytest.mark.parametrize("project", FORMATS)
def test_every_format(project: str, legacy: bool, robust: CLIP, tiny_folder: Path, tmp_path: Path) -> None:
    file, content = FORMATS[project]
    made = content(robust)
    torch.save(made, tmp_path / file, _use_new_zipfile_serialization=not legacy)
    name = f"{tmp_path / file}@{tiny_folder}"
    loaded = load_model(name)
    same(loaded, robust)
    assert loaded.name == name and not loaded.training
    assert loaded.config == robust.config


@pytest.mark.parametrize("project", ["RobustVLM", "plain"])
def test_safetensors_under_any_name(project: str, robust: CLIP, tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "really-safetensors.pt"
    state = {key: value.contiguous() for key, value in FORMATS[project][1](robust).items()}
    path.write_bytes(safetensors.torch.save(state))
    same(load_model(f"{path}@{tiny_folder}"), robust)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(
    dtype: torch.dtype, robust: CLIP, tiny_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "half.pt"
    torch.save({key: value.to(dtype) for key, value in robust.visual.state_dict().items()}, path)
    loaded = load_model(f"{path}@{tiny_folder}")
    assert {value.dtype for value in loaded.net.state_dict().values()} == {torch.float32}
    robust.visual.to(dtype).float()
    same(loaded, robust)


def test_what_was_not_trained_comes_from_the_base(tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "part.pth.tar"
    trained = {"visual.proj": torch.ones(32, 24), "text_projection": torch.ones(32, 24)}
    torch.save({"partial_state_dict": trained}, path)
    loaded, base = (
        model.net.state_dict() for model in (load_model(f"{path}@{tiny_folder}"), load_model(tiny_folder))
    )
    for key, value in loaded.items():
        assert torch.equal(value, {**base, **trained}[key]), key


def test_resnets_keep_their_statistics(tiny_rn_folder: Path, tmp_path: Path) -> None:
    robust = load_model(tiny_rn_folder)
    robust.train()
    robust.encode_image(torch.rand(8, 3, 64, 64))
    robust.eval()
    state = robust.visual.state_dict()
    torch.save(state, tmp_path / "rn.pt")
    same(load_model(f"{tmp_path / 'rn.pt'}@{tiny_rn_folder}"), robust)
    torch.save({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "rn.pt")
    same(load_model(f"{tmp_path / 'rn.pt'}@{tiny_rn_folder}"), robust)


def test_timm_towers_and_text_towers_of_their_own(tmp_path: Path) -> None:
    save_model(small_model(siglip_config(), seed=0), tmp_path / "base", {})
    save_model(small_model(siglip_config(), seed=1), tmp_path / "other", {})
    robust, other = load_model(tmp_path / "base"), load_model(tmp_path / "other")
    robust.visual.load_state_dict(other.visual.state_dict())
    torch.save(other.visual.state_dict(), tmp_path / "tower.pt")
    same(load_model(f"{tmp_path / 'tower.pt'}@{tmp_path / 'base'}"), robust)
    # Older files have the text tower at the top.
    old = {key.removeprefix("text."): value for key, value in other.net.state_dict().items()}
    torch.save(old, tmp_path / "whole.pt")
    same(load_model(f"{tmp_path / 'whole.pt'}@{tmp_path / 'base'}"), other)


def test_the_activation_is_that_of_the_base(robust: CLIP, tmp_path: Path) -> None:
    torch.save(robust.visual.state_dict(), tmp_path / "tower.pt")
    for quick in (False, True):
        config = {"embed_dim": 24, "vision_cfg": VISION["vit"], "text_cfg": TEXT, "quick_gelu": quick}
        save_model(small_model(config), tmp_path / "base", {})
        loaded = load_model(f"{tmp_path / 'tower.pt'}@{tmp_path / 'base'}")
        assert any(type(m).__name__ == "QuickGELU" for m in loaded.net.modules()) == quick
        assert loaded.config["model_cfg"]["quick_gelu"] == quick


def test_checkpoints_of_our_runs_say_what_they_are(recipe: Path, tmp_path: Path) -> None:
    run = train(recipe, out=tmp_path / "run")
    last = sorted((run.out / "checkpoints").glob("step-*.pt"))[-1]
    same(load_model(last), load_model(run.out))
    again = train(recipe, {"model.name": str(last), "train.max_steps": 1}, out=tmp_path / "again")
    assert again.steps == 1


def test_a_run_with_the_text_tower_of_another_model(recipe: Path, tmp_path: Path) -> None:
    other = make_tiny("vit", tmp_path / "other", seed=5)
    run = train(recipe, {"model.text": str(other), "train.max_steps": 1}, out=tmp_path / "run")
    loaded = load_model(sorted((run.out / "checkpoints").glob("step-*.pt"))[-1])
    same(loaded, load_model(run.out))
    assert torch.equal(loaded.encode_text(["a cat"]), load_model(other).encode_text(["a cat"]))


def test_a_checkpoint_of_a_run_whose_base_is_gone(recipe: Path, tmp_path: Path, tiny_folder: Path) -> None:
    base = make_tiny("vit", tmp_path / "base")
    run = train(recipe, {"model.name": str(base), "train.max_steps": 1}, out=tmp_path / "run")
    last = sorted((run.out / "checkpoints").glob("step-*.pt"))[-1]
    base.rename(tmp_path / "moved")
    with pytest.raises(
        ValueError, match=f"a run that started from {base}.*name a model of the same arch.*@MODEL"
    ):
        load_model(last)
    same(load_model(f"{last}@{tmp_path / 'moved'}"), load_model(run.out))


@pytest.mark.parametrize("key", ["name", "text"])
def test_a_checkpoint_decides_nothing_that_is_fetched(
    key: str, tiny_folder: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("some/clip", tiny_folder)
    use_hub(monkeypatch, hub.url, tmp_path / "cache")
    table = {"name": str(tiny_folder), key: "hf-hub:some/clip"}
    recipe = tomli_w.dumps({"model": table})
    torch.save({"model": load_model(tiny_folder).net.state_dict(), "recipe": recipe}, tmp_path / "x.pt")
    with pytest.raises(
        ValueError, match=r"started from hf-hub:some/clip; name that model, so that it is fetched"
    ):
        load_model(tmp_path / "x.pt")
    assert not hub.served
    same(load_model(f"{tmp_path / 'x.pt'}@hf-hub:some/clip"), load_model(tiny_folder))


def exit_code(*arguments: object) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_command_line_and_recipes(
    robust: CLIP, tiny_folder: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fare.pt"
    torch.save(robust.visual.state_dict(), path)
    name = f"{path}@{tiny_folder}"
    assert exit_code("eval", name, "--sets", "mini/flags", "--attacks", "clean", "--limit", 8) == 0
    started = ("train", recipe, "--model.name", name, "--train.max_steps", 1, "--out", tmp_path / "run")
    assert exit_code(*started) == 0
    capsys.readouterr()
    assert exit_code("eval", path, "--sets", "mini/flags") == 2
    error = capsys.readouterr().err
    assert (
        "fare.pt lacks a text tower and its activation (QuickGELU or GELU): name the model that it was"
        in error
    )
    assert len(error.strip().splitlines()) == 1


def test_a_whole_model_needs_a_base_too(tmp_path: Path) -> None:
    """Its tensors do not say the activation and the preprocessing; a look at the table of architectures may help."""
    mini = load_model("mini-vit")
    torch.save(mini.net.state_dict(), tmp_path / "mini.pt")
    with pytest.raises(
        ValueError, match=r"its preprocessing: .*; its image tower has the sizes of mini-vit$"
    ):
        load_model(tmp_path / "mini.pt")
    same(load_model(f"{tmp_path / 'mini.pt'}@mini-vit"), mini)


def test_names(tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a@b" / "x@y.pt"
    path.parent.mkdir()
    path.write_bytes(b"x")
    assert split_name(str(path)) == (path, None)
    assert split_name(f"{path}@ViT-B-32/openai") == (path, "ViT-B-32/openai")
    assert split_name(f"{path}@{path}@mini") == (path, f"{path}@mini")
    assert split_name("ViT-B-32/openai") is None
    with pytest.raises(ValueError, match="name a model after the @"):
        split_name(f"{path}@")
    for name in ("no.pt", "no.pth.tar@mini", "no.safetensors@mini"):
        with pytest.raises(ValueError, match=f"there is no file {name.split('@')[0]}"):
            load_model(name)


def test_checkpoints_may_be_the_base_of_others(robust: CLIP, tiny_folder: Path, tmp_path: Path) -> None:
    torch.save({"partial_state_dict": {"visual.proj": torch.ones(32, 24)}}, tmp_path / "part.pt")
    torch.save(robust.visual.state_dict(), tmp_path / "tower.pt")
    loaded = load_model(f"{tmp_path / 'part.pt'}@{tmp_path / 'tower.pt'}@{tiny_folder}")
    state, expected = loaded.visual.state_dict(), robust.visual.state_dict()
    assert torch.equal(state.pop("proj"), torch.ones(32, 24))
    assert all(torch.equal(value, expected[key]) for key, value in state.items())


def without(state: State, *keys: str) -> State:
    return {key: value for key, value in state.items() if key not in keys}


def test_tensors_that_do_not_fit_are_named(robust: CLIP, tiny_folder: Path, tmp_path: Path) -> None:
    state = robust.visual.state_dict()
    wrong = {
        "1 missing \\(visual.proj\\)": without(state, "proj"),
        "1 left over \\(visual.head.weight\\)": {**state, "head.weight": torch.ones(3)},
        "1 of another shape \\(visual.proj \\(32, 99\\) instead of \\(32, 24\\)\\)": {
            **state,
            "proj": torch.ones(32, 99),
        },
        "4 left over \\(visual.a0, visual.a1, visual.a2, …\\)": {
            **state,
            **{f"a{index}": torch.ones(1) for index in range(4)},
        },
    }
    for message, content in wrong.items():
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(ValueError, match=f"x.pt are not those of {tiny_folder}: {message}$"):
            load_model(f"{tmp_path / 'x.pt'}@{tiny_folder}")
    whole = without(robust.net.state_dict(), "ln_final.weight", "logit_scale")
    torch.save(whole, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="2 missing \\(logit_scale, ln_final.weight\\)"):
        load_model(f"{tmp_path / 'x.pt'}@{tiny_folder}")
    torch.save({"partial_state_dict": {"visual.prj": torch.ones(1)}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="1 left over \\(visual.prj\\)"):
        load_model(f"{tmp_path / 'x.pt'}@{tiny_folder}")
    # Names without "visual." are those of the text tower, whose shapes they may have.
    blocks = {k: v for k, v in robust.visual.state_dict().items() if k.startswith("transformer.resblocks.0")}
    torch.save({"partial_state_dict": blocks}, tmp_path / "x.pt")
    with pytest.raises(
        ValueError, match="tensors but none of an image tower as OpenAI's and open_clip's CLIP name"
    ):
        load_model(f"{tmp_path / 'x.pt'}@{tiny_folder}")


@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.bool])
def test_whole_numbers_are_no_weights(
    kind: torch.dtype, robust: CLIP, tiny_folder: Path, tmp_path: Path
) -> None:
    state = robust.visual.state_dict()
    torch.save({**state, "proj": state["proj"].to(kind)}, tmp_path / "x.pt")
    with pytest.raises(
        ValueError, match=r"x\.pt stores visual\.proj as whole numbers, which are no weights; save"
    ):
        load_model(f"{tmp_path / 'x.pt'}@{tiny_folder}")
    whole = {key: value.contiguous() for key, value in robust.net.state_dict().items()}
    folder = shutil.copytree(tiny_folder, tmp_path / "open_clip")
    file = folder / "open_clip_model.safetensors"
    safetensors.torch.save_file({**whole, "visual.proj": whole["visual.proj"].to(kind)}, file)
    with pytest.raises(ValueError, match=r"model\.safetensors stores visual\.proj as whole numbers"):
        load_model(folder)
    file.unlink()
    torch.save(
        {"state_dict": prefixed({**whole, "visual.proj": whole["visual.proj"].to(kind)}, "module.")},
        folder / "open_clip_pytorch_model.bin",
    )
    with pytest.raises(ValueError, match=r"model\.bin stores module\.visual\.proj as whole numbers"):
        load_model(folder)


def test_one_name_for_two_tensors(robust: CLIP, tiny_folder: Path, tmp_path: Path) -> None:
    state, name = copied(robust.net.state_dict()), f"{tmp_path / 'x.pt'}@{tiny_folder}"
    bias = state["ln_final.bias"]
    for key in ("text.ln_final.bias", "_orig_mod.ln_final.bias"):
        torch.save({**state, key: bias.clone()}, tmp_path / "x.pt")
        same(load_model(name), robust)
        torch.save({**state, key: bias + 1}, tmp_path / "x.pt")
        with pytest.raises(
            ValueError, match=r"x\.pt holds two different tensors that are both ln_final\.bias; save"
        ):
            load_model(name)
    tower = copied(robust.visual.state_dict())
    partial = {"visual.proj": tower["proj"] + 1}
    torch.save({"vision_encoder_state_dict": tower, "partial_state_dict": partial}, tmp_path / "x.pt")
    message = (
        r"several state dicts \(partial_state_dict, vision_encoder_state_dict\); save the one to load alone"
    )
    with pytest.raises(ValueError, match=message):
        load_model(name)


def test_another_width(tmp_path: Path, tiny_folder: Path) -> None:
    config = {"embed_dim": 24, "vision_cfg": {**VISION["vit"], "width": 48}, "text_cfg": TEXT}
    torch.save(small_model(config).visual.state_dict(), tmp_path / "wide.pt")
    with pytest.raises(ValueError, match="visual.class_embedding \\(48,\\) instead of \\(32,\\)"):
        load_model(f"{tmp_path / 'wide.pt'}@{tiny_folder}")
    with pytest.raises(ValueError, match=r"wide.pt@ViT-B-32/openai$"):
        load_model(tmp_path / "wide.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "optimizer": {"state": {}}}, "holds no state dict; its entries are: epoch, optimizer"),
        ({}, "holds no state dict; its entries are: none"),
        (
            {"fc1.weight": torch.ones(2), "fc1.bias": torch.ones(2)},
            "none of an image tower.*: fc1.weight, fc1.bias",
        ),
        (
            {"patch_embed.proj.weight": torch.ones(2), "head.weight": torch.ones(1000, 2)},
            r"an image classifier with 1000 fixed classes \(head.weight\), not a CLIP: it has no text tower",
        ),
        ({"vision_model.embeddings.class_embedding": torch.ones(2)}, "transformers' CLIP; name the folder"),
        (
            {"model": torch.nn.Linear(1, 1).state_dict(), "recipe": "x ="},
            "holds a recipe that cannot be read",
        ),
        (
            {"model": torch.nn.Linear(1, 1).state_dict(), "recipe": "[model]\nname = 3"},
            "holds a recipe that cannot be read",
        ),
        (
            {"state_dict": {"pad_up": torch.ones(1)}, "add_prompter": {}, "vision_encoder_state_dict": {}},
            "holds a trained visual prompt \\(state_dict: pad_up\\)",
        ),
        ([torch.ones(2)], "holds a list, not a state dict"),
        ({"fc.weight": torch.ones(())}, "none of an image tower"),
    ],
)
def test_other_contents(content: Any, message: str, tmp_path: Path, tiny_folder: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message) as error:
        load_model(f"{tmp_path / 'x.pt'}@{tiny_folder}")
    assert "\n" not in str(error.value)


def test_a_file_out_of_a_folder_names_the_folder(tiny_folder: Path) -> None:
    with pytest.raises(ValueError, match=f"belongs to {tiny_folder}; name that folder"):
        load_model(tiny_folder / "open_clip_model.safetensors")


def test_a_folder_with_the_name_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x.pt").mkdir()
    with pytest.raises(ValueError, match="x.pt holds no model"):
        load_model(tmp_path / "x.pt")
    with pytest.raises(ValueError, match="x.pt is a folder; name a checkpoint"):
        load_model(f"{tmp_path / 'x.pt'}@mini")


@pytest.mark.slow
def test_vit_b_32_in_each_form(tmp_path: Path) -> None:
    """Random weights of the architecture that the releases have, under its real names and sizes."""
    base, robust = load_model("ViT-B-32/random"), load_model("ViT-B-32-quickgelu/random")
    save_model(base, tmp_path / "base", {})
    torch.save(robust.visual.state_dict(), tmp_path / "fare.pt")
    with pytest.raises(
        ValueError, match="fare.pt@ViT-B-32/openai; its image tower has the sizes of ViT-B-32"
    ):
        load_model(tmp_path / "fare.pt")
    with pytest.raises(ValueError, match="instead of .*; its image tower has the sizes of ViT-B-32, "):
        load_model(f"{tmp_path / 'fare.pt'}@ViT-B-16/random")
    loaded = load_model(f"{tmp_path / 'fare.pt'}@{tmp_path / 'base'}")
    expected = load_model(tmp_path / "base")
    expected.visual.load_state_dict(robust.visual.state_dict())
    same(loaded, expected)
    # A whole model downloads nothing: the name gives activation and preprocessing only.
    torch.save({"state_dict": prefixed(robust.net.state_dict(), "module.")}, tmp_path / "epoch_1.pt")
    with pytest.raises(
        ValueError, match="lacks its activation \\(QuickGELU or GELU\\) and its preprocessing"
    ):
        load_model(tmp_path / "epoch_1.pt")
    loaded = load_model(f"{tmp_path / 'epoch_1.pt'}@ViT-B-32/openai")
    same(loaded, robust)
    assert loaded.config["model_cfg"]["quick_gelu"]
    images, buffer = torch.rand(2, 3, 224, 224), io.BytesIO()
    torch.save(robust.net.state_dict(), buffer)
    net: Any = open_clip.create_model("ViT-B-32-quickgelu")
    net.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    loaded, images = loaded.double(), images.double()
    assert_equal64(
        loaded.encode_image_raw(images), net.double().eval().encode_image((images - loaded.mean) / loaded.std)
    )
