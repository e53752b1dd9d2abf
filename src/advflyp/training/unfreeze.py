"""Which parameters of a model are trained."""

import re
from typing import Any

from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import nn

from advflyp.model.clip import CLIP

WHAT = ("vision", "vision+text", "all")
# Parameters of a ViT before its first block, open_clip's and timm's.
STEM = re.compile(
    r"(trunk\.)?(conv1|class_embedding|positional_embedding|ln_pre|patch_embed|cls_token|reg_token|pos_embed|norm_pre)\b"
)


def first_blocks(what: str) -> int | None:
    """K of "vision[:K]", else None. ValueError for a value that `train.unfreeze` cannot have."""
    match = re.fullmatch(r"vision\[:(\d{1,4})\]", what)
    if match is None and what not in WHAT:
        raise ValueError(
            f"train.unfreeze must be one of {', '.join(WHAT)}, or 'vision[:4]' for the patch embedding and the first "
            f"4 blocks, not '{what}'"
        )
    return int(match[1]) if match else None


def unfreeze(model: CLIP, what: str) -> list[nn.Parameter]:
    """Make only the named part require gradients; returns the parameters to train.

    Args:
        model: The model.
        what: "vision", the image tower; "vision[:K]", its patch embedding and first K blocks; "vision+text"; or "all",
            also the logit scale and bias.

    Raises:
        ValueError: The image tower has no such blocks.
    """
    blocks = first_blocks(what)
    early = None if blocks is None else _early(model, blocks)
    chosen = []
    for name, parameter in model.net.named_parameters():
        is_vision, is_scale = name.startswith("visual."), name in ("logit_scale", "logit_bias")
        wanted = is_vision or (what == "all") or (what == "vision+text" and not is_scale)
        if early is not None:
            wanted = early.match(name) is not None
        # A parameter the architecture itself keeps constant (fixed position tables) stays so.
        parameter.requires_grad_(wanted and parameter.requires_grad)
        if parameter.requires_grad:
            chosen.append(parameter)
    return chosen


def _early(model: CLIP, count: int) -> re.Pattern[str]:
    """The names of the parameters up to the `count`-th block of the image tower."""
    visual: Any = model.visual
    tower, path = (visual.trunk, r"trunk\.blocks") if isinstance(visual, TimmModel) else (visual, "")
    if isinstance(visual, VisionTransformer):
        found, path = visual.transformer.resblocks, r"transformer\.resblocks"
    else:
        found = getattr(tower, "blocks", None) if hasattr(tower, "num_prefix_tokens") else None
    if found is None:
        raise ValueError(
            f"train.unfreeze = 'vision[:{count}]' is for ViTs: the image tower of {model.name}, "
            f"{type(tower).__name__}, has no sequence of blocks; use 'vision'"
        )
    if count > len(found):
        raise ValueError(
            f"train.unfreeze = 'vision[:{count}]': the image tower of {model.name} has {len(found)} blocks; name as "
            "many or fewer, or use 'vision'"
        )
    numbers = "|".join(map(str, range(count))) or r"\b\B"
    return re.compile(rf"visual\.({STEM.pattern}|{path}\.({numbers})\.)")
