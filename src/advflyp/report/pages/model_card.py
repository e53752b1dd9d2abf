"""The model card of published weights: what is known about them, and what is not."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import open_clip
import tomli_w
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from advflyp.__about__ import __version__
from advflyp.escape import for_markdown, for_terminal
from advflyp.evaluation.results import DEFAULT_PROTOCOL, Cell
from advflyp.method import METHODS
from advflyp.report.measure.estimates import Condition
from advflyp.report.measure.render import markdown
from advflyp.report.measure.results import Results, is_flagged
from advflyp.report.measure.runs import training_eps
from advflyp.report.measure.tables import accuracy_table
from advflyp.report.pages.prose import attack_texts

TASK = "zero-shot-image-classification"
UNKNOWN = "not known"
# In every card of ours, and in hardly any other file.
MARK = "SHA-256 of the weights' tensors"


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

    Args:
        repo: Its name, "OWNER/NAME".
        kind: "open_clip", "transformers" or "onnx".
        card: What is known of the weights, as `save_model` writes it, without paths.
        cells: Results of these weights, in any order.
        licence: Identifier from the hub's list.
        vision: Whether vision/ holds the image tower alone.
    """
    recipe: dict[str, Any] = dict(card.get("recipe") or {})
    name = repo.rpartition("/")[2]
    strongest = "AutoAttack was not run; expect lower figures from it."
    if any(cell.attack == "autoattack" for cell in cells):
        strongest = "AutoAttack, the strongest here, is the figure to compare."
    known: dict[str, Any] = {**_training(recipe), **_measured(cells, name)}
    made = ModelCard.from_template(
        _data(name, kind, recipe, cells, licence),
        template_str=(files("advflyp.report.pages") / "templates" / "model_card.md").read_text("utf-8"),
        name=name,
        repo=repo,
        kind=kind,
        vision=vision,
        what="The image tower of a CLIP-like model" if kind == "onnx" else "A CLIP-like model",
        version=__version__,
        unknown=UNKNOWN,
        strongest=strongest,
        flagged=any(map(is_flagged, cells)),
        facts=_facts(recipe, card, sha256),
        recipe=_as_toml(recipe),
        licence=_licence(card, licence),
        **known,
    )
    # An omitted part leaves its blank lines behind.
    return for_terminal(re.sub(r"\n{3,}", "\n\n", str(made)).rstrip("\n"), keep="\n") + "\n"


def _as_toml(recipe: Mapping[str, Any]) -> str:
    """The recipe as TOML; empty if TOML cannot hold it, as with JSON's null, which a stranger's card may have."""
    try:
        return tomli_w.dumps(recipe).strip()
    except TypeError:
        return ""


def _data(
    name: str, kind: str, recipe: Mapping[str, Any], cells: Sequence[Cell], licence: str | None
) -> ModelCardData:
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
    tags = ["clip", "adversarial-robustness", "advflyp"]
    return ModelCardData(
        license=licence,
        library_name=kind,
        pipeline_tag=TASK if kind != "onnx" else "image-feature-extraction",
        tags=tags + ([method] if method and method != "advflyp" else []),
        base_model=_hub_name(recipe),
        model_name=name if results else None,
        eval_results=results or None,
    )


def _hub_name(recipe: Mapping[str, Any]) -> str | None:
    """The hub repository of the model that the recipe starts from, if open_clip's table has it."""
    architecture, _, tag = str(recipe.get("model", {}).get("name", "")).rpartition("/")
    found = open_clip.get_pretrained_cfg(architecture, tag) if architecture else None
    return str(found["hf_hub"]).rstrip("/") if found and found.get("hf_hub") else None


def _training(recipe: Mapping[str, Any]) -> dict[str, str]:
    """How the weights were made, in words; no method if none of ours made them."""
    method = str(recipe.get("method", {}).get("name"))
    if method not in METHODS:
        return {"method": ""}
    how = "on clean images"
    if eps := training_eps(recipe):
        how = f"against images perturbed by PGD-{for_markdown(str(recipe['attack']['steps']))} at ε = {eps}"
    return {
        "method": method,
        "how": how,
        "about": (METHODS[method][0].__doc__ or "").strip().splitlines()[0],
        "start": str(recipe.get("model", {}).get("name", UNKNOWN)).replace("`", "'").replace("\n", " "),
    }


def _measured(cells: Sequence[Cell], name: str) -> dict[str, list[str]]:
    """The tables of accuracies as Markdown, and each attack with its settings."""
    if not cells:
        return {"tables": [], "attacks": []}
    results = Results([replace(cell, model=name) for cell in cells])
    several = len(results.models) > 1
    tables = [
        markdown(accuracy_table(results, model, name_model=several)).removeprefix("### ").strip()
        for model in results.models
    ]
    attacked = [cell for cell in cells if cell.norm is not None]
    precisions = " and ".join(sorted({cell.precision for cell in attacked}))
    seeds = ", ".join(map(str, sorted({cell.seed for cell in attacked})))
    return {
        "tables": tables,
        "attacks": [
            for_markdown(f"{attack}: {text} Search in {precisions}, evaluated in fp32; seed {seeds}.")
            for attack, text in attack_texts(attacked)
        ],
    }


def _condition(cell: Cell) -> str:
    said = Condition(cell.attack, cell.norm, cell.eps).title
    return said if cell.protocol == DEFAULT_PROTOCOL else f"{said}, protocol {cell.protocol}"


def _facts(recipe: Mapping[str, Any], card: Mapping[str, Any], sha256: str) -> dict[str, str]:
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
    return {name: UNKNOWN if value is None else _plain(value) for name, value in facts.items()}


def _plain(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return for_markdown(value if isinstance(value, str) else json.dumps(value))


def _licence(card: Mapping[str, Any], licence: str | None) -> str:
    stated = card.get("licence")
    return (
        f"{licence or for_markdown(str(stated))}." if licence or stated else f"Of these weights: {UNKNOWN}."
    )


def scrubbed(tree: Any) -> Any:
    """The tree without paths of this machine: an absolute path, or one that begins with ~, keeps its last part."""
    if isinstance(tree, Mapping):
        return {key: scrubbed(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [scrubbed(value) for value in tree]
    if isinstance(tree, str) and (tree.startswith("~") or Path(tree).is_absolute()):
        return Path(tree).name
    return tree
