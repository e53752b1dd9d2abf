"""Shapes of tensors → which of open_clip's models they may be of."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import open_clip
import torch
from open_clip.model import CLIPTextCfg, _build_vision_tower

from advflyp.model.load import ARCHITECTURES, BUNDLED, PREPROCESSING

Shapes = Mapping[str, torch.Size]
# How many models of one activation a message names.
SHOWN = 4
TEXT_FIELDS = {field.name for field in fields(CLIPTextCfg)}


def fitting_architectures(shapes: Shapes, *, whole: bool) -> list[str]:
    """Those of open_clip's architectures, and ours, that have exactly these tensors.

    shapes: by open_clip's names, those of the image tower with "visual." before them
    whole:  the text tower, too
    """
    open_clip.add_model_config(ARCHITECTURES)
    image = {key.removeprefix("visual."): shape for key, shape in shapes.items() if key.startswith("visual.")}
    configs = {name: open_clip.get_model_config(name) or {} for name in open_clip.list_models()}
    # The plainest name first.
    configs = dict(sorted(configs.items(), key=lambda item: (len(item[0]), item[0])))
    return [
        name
        for name, config in configs.items()
        if _image_may_fit(config, image)
        and (not whole or _text_fits(config["text_cfg"], shapes))
        and _image_fits(config, image)
    ]


def _image_may_fit(config: dict[str, Any], image: Shapes) -> bool:
    """Cheap: building every tower would take a minute."""
    vision = config["vision_cfg"]
    if ("timm_model_name" in vision) != any(key.startswith("trunk.") for key in image):
        return False
    sizes = {size for shape in image.values() for size in shape}
    return config["embed_dim"] in sizes and vision.get("width", config["embed_dim"]) in sizes


def _image_fits(config: dict[str, Any], image: Shapes) -> bool:
    vision: Any = {**config["vision_cfg"]}
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    with torch.device("meta"):
        tower = _build_vision_tower(config["embed_dim"], vision)
    own = {key: value.shape for key, value in tower.state_dict().items()}
    return _counted(own) == _counted(image)


def _counted(shapes: Shapes) -> dict[str, torch.Size]:
    """Without the counters of batch normalisation, which not every file keeps."""
    return {key: shape for key, shape in shapes.items() if not key.endswith("num_batches_tracked")}


def _text_fits(text: dict[str, Any], shapes: Shapes) -> bool:
    inside = {
        key.removeprefix("text."): shape for key, shape in shapes.items() if not key.startswith("visual.")
    }
    table, places = inside.get("token_embedding.weight"), inside.get("positional_embedding")
    if table is None or places is None or "hf_model_name" in text:
        return table is None and "hf_model_name" in text
    config = CLIPTextCfg(**{key: value for key, value in text.items() if key in TEXT_FIELDS})
    layers = len({key.split(".")[2] for key in inside if key.startswith("transformer.resblocks.")})
    own = (config.vocab_size, config.width, config.context_length + config.embed_cls, config.layers)
    return (*table, places[0], layers) == own


def models_of(architectures: list[str]) -> dict[str, tuple[Any, ...]]:
    """Names of models with these architectures → what their weights' shapes do not tell.

    Its first entry is whether they use QuickGELU. Models without weights are named only where there are no others: as
    a base they would lend a text tower that knows nothing.
    """
    tags = {name: open_clip.list_pretrained_tags_by_model(name) for name in architectures}
    models: dict[str, tuple[Any, ...]] = {
        name: (False,) for name in architectures if (BUNDLED / name).is_dir()
    }
    for architecture in architectures:
        plain = architecture.removesuffix("-quickgelu")
        for tag in tags[architecture]:
            hidden = _hidden(architecture, tag)
            # Most tags of ViT-B-32-quickgelu are also of ViT-B-32, with the same meaning.
            if models.get(f"{plain}/{tag}") != hidden:
                models[f"{architecture}/{tag}"] = hidden
    return models or {f"{name}/random": _hidden(name, "random") for name in architectures}


def _hidden(architecture: str, tag: str) -> tuple[Any, ...]:
    config = open_clip.get_model_config(architecture) or {}
    pretrained = open_clip.get_pretrained_cfg(architecture, tag) or {}
    quick_gelu = bool(config.get("quick_gelu", False) or pretrained.get("quick_gelu", False))
    return quick_gelu, *(str(pretrained.get(key)) for key in PREPROCESSING)


def only_model(models: dict[str, tuple[Any, ...]]) -> str | None:
    """A model of these that stands for all of them, if they differ in nothing but their weights."""
    first = next(iter(models), None)
    if first is None or len({name.rpartition("/")[0] for name in models}) > 1 or len({*models.values()}) > 1:
        return None
    return first


def describe_models(models: dict[str, tuple[Any, ...]]) -> str:
    """Some of them by activation: "ViT-B-32/openai, … (QuickGELU) or ViT-B-32/laion2b_s34b_b79k, … (GELU)"."""
    return " or ".join(_groups(models))


def _groups(models: dict[str, tuple[Any, ...]]) -> Iterator[str]:
    for quick, activation in ((True, "QuickGELU"), (False, "GELU")):
        names = [name for name, hidden in models.items() if hidden[0] == quick]
        names.sort(key=lambda name: not name.endswith("/openai"))
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            yield f"{', '.join(names[:SHOWN])}{more} ({activation})"
