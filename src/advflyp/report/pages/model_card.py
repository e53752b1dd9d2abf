"""The model card of weights that are published: what is known of them, and that the rest is not known."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import tomli_w
from huggingface_hub import EvalResult, ModelCardData

from advflyp.__about__ import __version__
from advflyp.escape import for_markdown, for_terminal
from advflyp.evaluation.results import DEFAULT_PROTOCOL, Cell
from advflyp.method import METHODS
from advflyp.report.measure.measured import Results, attack_title, is_flagged, radius
from advflyp.report.measure.render import markdown
from advflyp.report.measure.tables import accuracy_table
from advflyp.report.pages.prose import attack_text

TASK = "zero-shot-image-classification"
PAPER = "2604.11576"
UNKNOWN = "not known"
# In every card of ours, and in hardly any other file.
MARK = "SHA-256 of the weights' tensors"

HOW_TO = {
    "open_clip": """```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("hf-hub:{repo}")
tokenizer = open_clip.get_tokenizer("hf-hub:{repo}")
```

Or `advflyp.load_model("hf-hub:{repo}")`, and `advflyp eval hf-hub:{repo} …` to measure it again.""",
    "transformers": """```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{repo}")
processor = AutoProcessor.from_pretrained("{repo}")
```

Or `advflyp.load_model("hf-hub:{repo}")`, and `advflyp eval hf-hub:{repo} …` to measure it again.{vision}""",
    "onnx": """`image_tower.onnx` takes `pixels`, (N, 3, H, W) float32 in [0, 1] and not normalised, and gives
`embedding`, (N, d) with unit norm; `preprocessing.json` says how a picture becomes pixels. It holds no text tower.""",
}

LIMITS = """- Robust accuracy under an attack is an upper bound: another attack may find more. {strongest}
- It holds for the norm and the ε above, at the model's input resolution, and for pictures like those of the sets above.
  Larger or other changes (rotations, patches, corruptions) are another matter.
- The interval after an accuracy is Wilson's 95 % interval of that many pictures. It says nothing about other seeds of
  the training.
- Robust weights answer clean pictures less well than the original ones where the table says so. What biases the
  original had, these have too."""


def model_card(
    repo: str,
    kind: str,
    card: Mapping[str, Any],
    sha256: str,
    cells: Sequence[Cell],
    licence: str | None,
    vision: bool,
) -> str:
    """README.md of a repository on the Hugging Face hub.

    kind:    "open_clip", "transformers" or "onnx"
    card:    what is known of the weights, as `save_model` writes it, without paths
    sha256:  of the weights
    cells:   results of these weights, in any order
    licence: identifier of the hub's list
    vision:  the image tower alone is in vision/
    """
    recipe: dict[str, Any] = dict(card.get("recipe") or {})
    name = repo.rpartition("/")[2]
    parts = [
        f"---\n{_data(name, kind, recipe, cells, licence)}\n---\n\n# {name}",
        _summary(recipe, kind),
        "## Use\n\n" + HOW_TO[kind].format(repo=repo, vision=VISION.format(repo=repo) if vision else ""),
        "## How robust it is\n\n" + _measured(cells, name),
        "## Limits\n\n" + LIMITS.format(strongest=_strongest(cells)),
        "## How it was made\n\n" + _made(recipe, card, sha256),
        f"## Licence\n\n{_licence(card, licence)}",
        f"## Cite\n\n{CITATION}",
    ]
    return for_terminal("\n\n".join(parts), keep="\n") + "\n"


VISION = (
    '\n\n`vision/` is the image tower alone: `CLIPVisionModel.from_pretrained("{repo}", subfolder="vision")`.'
)


def _data(name: str, kind: str, recipe: Mapping[str, Any], cells: Sequence[Cell], licence: str | None) -> str:
    method = recipe.get("method", {}).get("name")
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=cell.set,
            dataset_name=f"{cell.set} ({cell.split})",
            metric_type="accuracy",
            metric_value=round(cell.accuracy, 4),
            metric_name=f"accuracy, {_condition(cell)}",
        )
        for cell in cells
    ]
    data = ModelCardData(
        license=licence,
        library_name=kind,
        pipeline_tag=TASK if kind != "onnx" else "image-feature-extraction",
        tags=[
            "clip",
            "adversarial-robustness",
            "advflyp",
            *([method] if method and method != "advflyp" else []),
        ],
        base_model=_hub_name(recipe),
        model_name=name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml().strip()


def _hub_name(recipe: Mapping[str, Any]) -> str | None:
    """Where the model that the recipe starts from lies on the hub, if open_clip's table says so."""
    architecture, _, tag = str(recipe.get("model", {}).get("name", "")).rpartition("/")
    found = open_clip.get_pretrained_cfg(architecture, tag) if architecture else None
    return str(found["hf_hub"]).rstrip("/") if found and found.get("hf_hub") else None


def _summary(recipe: Mapping[str, Any], kind: str) -> str:
    what = "The image tower of a CLIP-like model" if kind == "onnx" else "A CLIP-like model"
    method = recipe.get("method", {}).get("name")
    if method not in METHODS:
        return f"{what}, published with advflyp {__version__}. How its weights were made is {UNKNOWN} to advflyp."
    attack = recipe.get("attack", {})
    how = (
        f"against images perturbed by PGD-{attack['steps']} at ε = {radius(attack['eps'], attack.get('norm'))}"
        if attack.get("steps")
        else "on clean images"
    )
    about = (METHODS[method][0].__doc__ or "").strip().splitlines()[0]
    start = str(recipe.get("model", {}).get("name", UNKNOWN)).replace("`", "'").replace("\n", " ")
    return (
        f"{what}, finetuned from `{start}` {how} with advflyp's method `{method}` ({about}). It is meant for zero-shot "
        "classification and retrieval where images may have been changed by an adversary, and for research into that."
    )


def _measured(cells: Sequence[Cell], name: str) -> str:
    if not cells:
        return (
            "Not measured: nothing is known of the accuracy of these weights, clean or attacked. Measure before you "
            "rely on it."
        )
    results = Results([Cell(**{**vars(cell), "model": name}) for cell in cells])
    attacks = {cell.attack: cell for cell in cells if cell.norm is not None}
    said = [
        f"- {attack_title(attack)}: {attack_text(cell)} Search in {cell.precision}, judged in fp32; seed {cell.seed}."
        for attack, cell in attacks.items()
    ]
    flagged = ["**A check for masked gradients failed: these figures may be too high.**"] * any(
        map(is_flagged, cells)
    )
    several = len(results.models) > 1
    tables = [
        markdown(accuracy_table(results, model, name_model=several)).removeprefix("### ").strip()
        for model in results.models
    ]
    return "\n\n".join([*tables, *(["\n".join(said)] if said else []), *flagged])


def _condition(cell: Cell) -> str:
    said = "clean" if cell.norm is None else f"{attack_title(cell.attack)}, ε = {radius(cell.eps, cell.norm)}"
    return said if cell.protocol == DEFAULT_PROTOCOL else f"{said}, protocol {cell.protocol}"


def _strongest(cells: Sequence[Cell]) -> str:
    if any(cell.attack == "autoattack" for cell in cells):
        return "AutoAttack, the strongest here, is the figure to compare."
    return "AutoAttack was not run; expect lower figures from it."


def _made(recipe: dict[str, Any], card: Mapping[str, Any], sha256: str) -> str:
    facts = {
        "start": recipe.get("model", {}).get("name"),
        "data": card.get("data") or recipe.get("data", {}).get("train"),
        "images seen": card.get("pairs_seen"),
        "steps": card.get("steps") or card.get("step"),
        "hardware": card.get("hardware"),
        "hours": card.get("hours"),
        "advflyp": card.get("version"),
        MARK: sha256,
    }
    lines = [f"- {name}: {UNKNOWN if value is None else _plain(value)}" for name, value in facts.items()]
    text = "\n".join(lines)
    if recipe:
        text += f"\n\nThe whole recipe:\n\n```toml\n{tomli_w.dumps(recipe).strip()}\n```"
    return text


def _plain(value: Any) -> str:
    return (
        f"{value:,}"
        if isinstance(value, int)
        else for_markdown(value if isinstance(value, str) else json.dumps(value))
    )


def _licence(card: Mapping[str, Any], licence: str | None) -> str:
    stated = card.get("licence")
    first = (
        f"{licence}."
        if licence
        else f"Of these weights: {UNKNOWN}."
        if not stated
        else f"{for_markdown(str(stated))}."
    )
    return f"{first} The model they began as and the data they learned from have licences of their own."


CITATION = f"""The method: *Finetune Like You Pretrain: Boosting Zero-shot Adversarial Robustness in
Vision-language Models*, arXiv:{PAPER}. The software: advflyp {__version__}."""


def scrubbed(tree: Any) -> Any:
    """Without paths of this machine: of an absolute one, or one from the home folder, the last part stays."""
    if isinstance(tree, Mapping):
        return {key: scrubbed(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [scrubbed(value) for value in tree]
    if isinstance(tree, str) and (tree.startswith("~") or Path(tree).is_absolute()):
        return Path(tree).name
    return tree
