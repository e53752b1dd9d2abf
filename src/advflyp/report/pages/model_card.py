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
from advflyp.model.interop.licences import find_licence
from advflyp.model.repository import HUB_PREFIX
from advflyp.model.zoo import ZOO
from advflyp.report.measure.estimates import Condition
from advflyp.report.measure.render import markdown
from advflyp.report.measure.results import Results, is_flagged
from advflyp.report.measure.runs import training_eps
from advflyp.report.measure.tables import accuracy_table
from advflyp.report.pages.prose import attack_texts

# Where a path of this machine begins in a text; not "https://", "1/255", "~2 h" or a lone "/".
BEFORE_PATH = re.compile(r"""(?:^|[\s@:=,;+|(\[{"'`]|file://)(?=/[^/\s]|~(?:[A-Za-z_][\w.-]*)?/)""")
TASK = "zero-shot-image-classification"
UNKNOWN = "not known"
# In every card of ours, and in hardly any other file.
MARK = "SHA-256 of the weights' tensors"
TITLE = "Finetune Like You Pretrain: Boosting Zero-shot Adversarial Robustness in Vision-language Models"
ADVFLYP = f"*{TITLE}*, arXiv:2604.11576"
# By method, as far as this project knows them.
PAPERS = {
    "advflyp": ADVFLYP,
    "tecoa": ZOO["tecoa2-vit-l-14"].paper.partition(". These weights")[0],
    "fare": ZOO["fare2-vit-l-14"].paper,
    "pmg_aft": "PMG-AFT (Wang et al. 2024)",
    "tga_zsr": "TGA-ZSR (Yu et al. 2024)",
    "flyp": "FLYP (Goyal et al. 2023)",
}


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
        licence: Identifier from the hub's list; by default the one that `card` records.
        vision: Whether vision/ holds the image tower alone.

    ValueError if `licence` contradicts `card`.
    """
    licence = known_licence(card, licence)
    recipe: dict[str, Any] = dict(card.get("recipe") or {})
    name = repo.rpartition("/")[2]
    strongest = "AutoAttack was not run; expect lower figures from it."
    if any(cell.attack == "autoattack" for cell in cells):
        strongest = "AutoAttack, the strongest here, is the figure to compare."
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
        how=_training(recipe, card),
        cited=_cited(recipe, card),
        strongest=strongest,
        flagged=any(map(is_flagged, cells)),
        facts=_facts(recipe, card, sha256),
        recipe=_as_toml(recipe),
        licence=_licence(card, licence),
        **_measured(cells, name),
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


def _method(recipe: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    """What the recipe, or else the card, calls the method; empty if neither does."""
    name = recipe.get("method", {}).get("name")
    return name if isinstance(name, str) else str(card.get("method") or "")


def _training(recipe: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    """How the weights were made, in words; empty if it is not known."""
    method = _method(recipe, card)
    if method != recipe.get("method", {}).get("name"):
        return f"made with the method {for_markdown(method)}" if method else ""
    how = "on clean images"
    if eps := training_eps(recipe):
        how = f"against images perturbed by PGD-{for_markdown(str(recipe['attack']['steps']))} at ε = {eps}"
    said = f"the method {for_markdown(method)}"
    if method in METHODS:
        about = (METHODS[method][0].__doc__ or "").strip().splitlines()[0].rstrip(".")
        said = f"advflyp's method `{method}` ({about})"
    start = str(recipe.get("model", {}).get("name", UNKNOWN)).replace("`", "'").replace("\n", " ")
    return f"finetuned from `{start}` {how} with {said}"


def _cited(recipe: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    """The paper of the method; empty if the method is not known."""
    method = _method(recipe, card)
    if paper := card.get("paper"):
        return for_markdown(str(paper))
    if method not in PAPERS:
        return f"{for_markdown(method)}, whose paper is {UNKNOWN} to advflyp" if method else ""
    weights = [recipe.get("method", {}).get(name) for name in ("feature_weight", "logit_weight")]
    return PAPERS[method] + (f"; its regularisers: {ADVFLYP}" if method == "tecoa" and any(weights) else "")


def _measured(cells: Sequence[Cell], name: str) -> dict[str, Any]:
    """The tables of accuracies as Markdown, and each attack with its settings."""
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
    said = Condition.of(cell).title
    return said if cell.protocol == DEFAULT_PROTOCOL else f"{said}, protocol {cell.protocol}"


def _facts(recipe: Mapping[str, Any], card: Mapping[str, Any], sha256: str) -> dict[str, str]:
    start, source = recipe.get("model", {}).get("name"), card.get("source")
    facts = {
        **({"source": source} if source and not start else {"start": start}),
        "data": card.get("data") or recipe.get("data", {}).get("train") or card.get("trained_on") or None,
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
    if isinstance(value, list):
        return for_markdown(", ".join(map(str, value)))
    return for_markdown(value if isinstance(value, str) else json.dumps(value))


def known_licence(card: Mapping[str, Any], licence: str | None) -> str | None:
    """The identifier of the weights' licence in the hub's list: `licence`, or else the one that the card records.

    ValueError if they contradict each other.
    """
    try:
        recorded = find_licence(str(card.get("licence") or "").partition(";")[0])
    except ValueError:  # none, or in other words
        return licence
    if licence not in (None, recorded):
        raise ValueError(
            f"--licence {licence} contradicts the card of these weights, which are under {recorded}: leave it out, or "
            "correct card.json"
        )
    return recorded


def _licence(card: Mapping[str, Any], licence: str | None) -> str:
    stated = for_markdown(str(card.get("licence") or ""))
    if licence is None or known_licence(card, None):
        return f"{stated or f'Of these weights: {UNKNOWN}'}."
    return f"{licence}." + (f" The card of the weights says: {stated}." if stated else "")


def scrubbed(tree: Any) -> Any:
    """The tree, its keys too, with paths of this machine (absolute, or beginning with ~) cut to their last part.

    What precedes a path stays, and so does a model after it: "folder:/data/pets" becomes "folder:pets", and
    "/data/a.pt@ViT-B-32/openai" becomes "a.pt@ViT-B-32/openai". Everything else after a path counts as a part of it,
    since a path may hold any character.
    """
    if isinstance(tree, Mapping):
        return {scrubbed(key): scrubbed(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(scrubbed(value) for value in tree)
    found = BEFORE_PATH.search(tree) if isinstance(tree, str) else None
    return tree if found is None else tree[: found.end()] + _last_part(tree[found.end() :])


def _last_part(path: str) -> str:
    """ "PATH" or "PATH@MODEL" without the folders of the path."""
    for place in (index for index in reversed(range(len(path))) if path[index] == "@"):
        model = path[place + 1 :]
        architecture, _, tag = model.partition("/")
        known = tag and architecture.casefold() in map(str.casefold, open_clip.list_models())
        # Otherwise the @ is in a folder's name, as in /home/user@company/a.pt.
        if known or "/" not in model or model.startswith(HUB_PREFIX) or BEFORE_PATH.match(model):
            return f"{_last_part(path[:place])}@{scrubbed(model)}"
    return Path(path).name
