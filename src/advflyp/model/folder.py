"""Read and write folders in open_clip's format; open_clip loads them, too (`local-dir:FOLDER`)."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import open_clip
import safetensors.torch
import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from torch import nn

from advflyp.config import convert
from advflyp.documents import read_json_object
from advflyp.files import draft_folder, names_in, publish_folder, write_atomically, write_text
from advflyp.identity import (
    ADDRESS,
    class_source,
    foreign,
    json_sha256,
    own_code,
    source_sha256,
    state_sha256,
)
from advflyp.model.architectures import settings_of
from advflyp.model.build import CONFIG_FILE, UNREADABLE, build_net, open_clip_weights, read_open_clip_config
from advflyp.model.clip import CLIP
from advflyp.model.text_tower import without_padding
from advflyp.model.tokenizers import TOKENIZER_FILES, load_tokenizer, shortened
from advflyp.model.zoo import ZOO

# The models that come with the package.
BUNDLED = Path(__file__).parent / "weights"
# Where a run keeps its best weights, and those of its last step.
BEST, LAST = "best", "last"
# As open_clip writes them.
WEIGHTS_FILE = "open_clip_model.safetensors"
CARD_FILE = "card.json"
# Attempts to load a model from a folder that is being replaced again and again.
ATTEMPTS = 3
# Texts that tokenizers of different vocabularies or cleaning turn into different tokens.
PROBES = ["A photo of 17 Zebras, isn't it?", "une fête à la plage -- 犬"]
CARD_KEYS: dict[str, Any] = {
    "recipe": dict[str, dict[str, Any]],
    "trained_on": list[str],
    "pairs_seen": int,
    "attack_steps": int,
    "pflops": float,
    "weights_sha256": str,
}


def load_folder(folder: Path, name: str, repository: str | None = None) -> CLIP:
    """Load a folder in open_clip's format.

    Args:
        folder: Holds configuration, weights and tokenizer.
        name: What the user called it.
        repository: The hub repository that it comes from, if any.

    Raises:
        ValueError: If it is incomplete, damaged, or would have to run code of its own.
    """
    config = read_open_clip_config(folder)
    weights = folder / open_clip_weights({path.name for path in folder.iterdir()})
    try:
        net = build_net(config["model_cfg"], config["preprocess_cfg"], weights)
    except Exception as error:  # a wrong configuration may raise anything
        if isinstance(error, ValueError) and str(folder) in str(error):
            raise
        raise ValueError(f"{UNREADABLE.format(folder)}: {shortened(error)}") from None
    tokenizer = load_tokenizer(config["model_cfg"]["text_cfg"], folder, repository)
    _check_vocabulary(net, tokenizer, folder)
    config["preprocess_cfg"] = dict(open_clip.get_model_preprocess_cfg(net))
    return CLIP(net, tokenizer, config, name)


def _check_vocabulary(net: nn.Module, tokenizer: Any, folder: Path) -> None:
    """ValueError for a tokenizer with tokens that the text tower does not know."""
    embedding = getattr(getattr(net, "text", net), "token_embedding", None)
    tokens = 1 + max(tokenizer.encoder.values()) if isinstance(tokenizer, SimpleTokenizer) else 0
    if isinstance(embedding, nn.Embedding) and tokens > embedding.num_embeddings:
        raise ValueError(
            f"{UNREADABLE.format(folder)}: its tokenizer has {tokens:,} tokens and its text tower "
            f"{embedding.num_embeddings:,}"
        )


def not_finite(state: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity."""
    # x − x is 0 for finite x, else NaN; on a CPU this takes a fifth of the time of isfinite.
    checked = {
        name: (value - value).sum().isfinite() for name, value in state.items() if value.is_floating_point()
    }
    # Read all together: each read waits for the device.
    finite = torch.stack([*checked.values()]).tolist() if checked else []
    return [name for name, fine in zip(checked, finite, strict=True) if not fine]


def check_finite(model: CLIP, refused: str) -> None:
    """Raise a ValueError that begins with `refused` if a weight is NaN or infinite."""
    if wrong := not_finite(model.net.state_dict()):
        raise ValueError(
            f"{refused}: {broken_weights(wrong)}, so its training diverged or a file is damaged; use an earlier "
            "checkpoint"
        )


def broken_weights(names: Sequence[str]) -> str:
    """ "3 of its tensors are not finite (visual.proj, …)"."""
    noun = f"{len(names)} of its tensors {'is' if len(names) == 1 else 'are'}"
    return f"{noun} not finite ({names[0]}{', …' if len(names) > 1 else ''})"


def save_model(
    model: CLIP, folder: Path, card: dict[str, Any], *, half: bool = False, replace: bool = True
) -> None:
    """Write weights, configuration and card into `folder`, which appears only when it is complete.

    Args:
        card: What a reader should know about these weights (data, recipe, results), as JSON.
        half: Store float16 weights, half the size.
        replace: Whether to replace another model that this function saved, also one that appears meanwhile.

    Warns:
        UserWarning: The model has code of the user's, such as hooks and replaced methods, which no folder holds.

    ValueError, with nothing written, if a weight is not finite, or if `folder` holds anything but a model that this
    function saved.
    """
    check_replaceable(folder)
    if own := own_code(model):
        names = ", ".join(name.lstrip(":").replace(":", ".") for name in sorted(own)[:3])
        warnings.warn(
            f"{folder} holds the model's weights and settings, but no code such as {names}: what is loaded from there "
            "may compute something else",
            stacklevel=2,
        )
    with draft_folder(folder) as draft:
        _write(model, draft, card, half, folder)
        publish_folder(draft, folder, replace=replace)


def check_replaceable(folder: Path) -> None:
    """ValueError unless `folder` is new, empty, or holds only what `save_model` wrote."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder")
    names = names_in(folder)
    known = {WEIGHTS_FILE, CONFIG_FILE, CARD_FILE, *TOKENIZER_FILES}
    if names and (names - known or "weights_sha256" not in read_card(folder.absolute())):
        foreign = min(names - known or names)
        raise ValueError(
            f"{folder} holds {foreign}, which advflyp did not write, so the folder is not replaced; move it away, or "
            "name another folder"
        )


def _write(model: CLIP, folder: Path, card: dict[str, Any], half: bool, asked: Path) -> None:
    """Write the files into `folder`, a draft of the folder `asked` for."""
    state = {key: value.detach().cpu().contiguous() for key, value in model.net.state_dict().items()}
    if half:
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    if wrong := not_finite(state):
        raise ValueError(f"{model.name} is not saved to {asked}: {broken_weights(wrong)}")
    # Not save_file: it makes files that only their owner can read.
    with write_atomically(folder / WEIGHTS_FILE) as file:
        file.write(safetensors.torch.save(state))
    write_text(folder / CONFIG_FILE, json.dumps(model.config, indent=2) + "\n")
    if isinstance(model.tokenizer, HFTokenizer):
        # open_clip looks for it beside the configuration.
        model.tokenizer.tokenizer.save_pretrained(folder)
    card = {**card, "weights_sha256": state_sha256(state)}
    write_text(folder / CARD_FILE, json.dumps(card, indent=2) + "\n")


def read_card(name: str | Path) -> dict[str, Any]:
    """The card of the model called `name`, from its folder or the zoo; {} if there is none.

    Raises:
        ValueError: The card is damaged.
    """
    # As in `load_model`: "./mini" is a folder of the user's.
    bundled = [BUNDLED / name] if isinstance(name, str) and "/" not in name else []
    for folder in (*bundled, Path(name) / BEST, Path(name)):
        path = folder / CARD_FILE
        if path.is_file():
            card = read_json_object(path)
            # Anybody may have written the card, so check the types of its known keys.
            known = {key: convert(card[key], hint, key) for key, hint in CARD_KEYS.items() if key in card}
            return card | known
    return ZOO[name].card() if isinstance(name, str) and name in ZOO else {}


def with_card(folder: Path, load: Callable[[], CLIP]) -> CLIP:
    """The model that `load` reads from a folder, with the card that belongs to its weights.

    A run that is still going replaces both at any moment; results and exports need the card much later.
    """
    for _ in range(ATTEMPTS):
        before = _card_files(folder)
        model = load()
        with suppress(ValueError):  # it is damaged, as `card_of` will say
            model.card = read_card(folder.absolute())
        if _card_files(folder) == before:
            return model
    raise ValueError(f"{folder} was replaced while it was read; try again")


def _card_files(folder: Path) -> list[tuple[int, ...]]:
    """Which files the cards in a folder are: `save_model` always writes a new one."""
    found = []
    for path in (folder / BEST / CARD_FILE, folder / CARD_FILE):
        with suppress(OSError):
            about = path.stat()
            found.append((about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns))
    return found


def card_of(model: CLIP) -> dict[str, Any]:
    """The card of a model: its own, or that of the name it was loaded by."""
    if model.card is not None:
        return model.card
    return read_card(model.name) if model.name else {}


def weights_sha256(model: CLIP) -> str:
    """One SHA-256 over all tensors of the model, whatever file they came from."""
    return state_sha256(model.net.state_dict())


def config_sha256(model: CLIP) -> str:
    """One SHA-256 over what decides the model's embeddings besides its weights.

    That is the settings of its modules, such as their activation functions, its preprocessing and normalisation, the
    tokens of `PROBES`, and what is the user's own: the source of classes and of a tokenizer, hooks, replaced methods.
    """
    tokenizer: Any = model.tokenizer
    parts = {
        "modules": settings_of(model.net),
        "preprocess": ADDRESS.sub("", str(model.preprocess)),
        "normalisation": [model.mean.tolist(), model.std.tolist()],
        "tokens": without_padding(model.net, tokenizer(PROBES))
        if isinstance(tokenizer, SimpleTokenizer | HFTokenizer)
        else source_sha256(tokenizer),
        "sources": [class_source(kind) for kind in foreign(type(module) for module in model.modules())],
    }
    # Most models have none, and keep their hash.
    own = own_code(model)
    return json_sha256(parts | {"own": own} if own else parts)
