"""What the report says in words: what the numbers mean, and how they were made."""

import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from advflyp.__about__ import __version__
from advflyp.data.mini import full_corpus_folder, mini_sets
from advflyp.documents import read_text
from advflyp.escape import for_html
from advflyp.evaluation.results import DEFAULT_PROTOCOL, Cell
from advflyp.report.measure.grid import sides
from advflyp.report.measure.measured import Condition, Results, attack_title, competitors, radius
from advflyp.report.measure.runs import RECIPE_FILE
from advflyp.report.measure.tables import Table, Value, set_heading
from advflyp.report.pages import elements
from advflyp.training.runlog import duration
from advflyp.wording import counted, plural

LOSS_NAMES = {"margin": "margin between the likeliest wrong class and the right one"}
PAPER = "https://arxiv.org/abs/2604.11576"
PAPER_TITLE = (
    "Finetune Like You Pretrain: Boosting Zero-shot Adversarial Robustness in Vision-language Models"
)


def headline(
    results: Results, models: Sequence[str], pair: tuple[str, str] | None, shown: Sequence[Condition]
) -> str:
    """The result in one sentence.

    models: all of them
    pair:   the two to compare, if any
    shown:  the conditions to speak of: clean and an attack, as far as they were measured
    """
    nothing = f"{counted(len(models), 'model')} on {counted(len(results.sets), 'set')}."
    if not results.mean_sets or (results.mixes_protocols and not pair):
        return nothing  # numbers of different protocols are not compared
    leading = shown[-1]
    if pair:
        changes = [
            (c, one, two)
            for c in reversed(shown)
            if (one := results.mean(pair[0], c)) and (two := results.mean(pair[1], c))
        ]
        parts = [
            f"{_where(c)}, {two.number} % against {one.number} %"
            if place
            else f"{_where(c)}, {pair[1]} classifies {two.number} % of pictures correctly, {pair[0]} {one.number} %"
            for place, (c, one, two) in enumerate(changes)
        ]
        return _sentence("; ".join(parts)) if parts else nothing
    if len(models) == 1:
        found = [(c, results.mean(models[0], c)) for c in shown]
        parts = [
            f"{value.number} % {_where(c)}"
            if place
            else f"{value.number} % of pictures correctly {_where(c)}"
            for place, (c, value) in enumerate(found)
            if value
        ]
        return _sentence(f"{models[0]} classifies {', '.join(parts)}")
    known = {model: value for model in models if (value := results.mean(model, leading))}
    ranked = competitors(known)
    if len(ranked) < 2:
        return nothing
    best = max(ranked, key=lambda model: ranked[model].value)
    return _sentence(
        f"{_where(leading)}, {best} classifies the most pictures correctly of {len(ranked)} models, "
        f"{ranked[best].number} %"
    )


def seen(results: Results) -> str:
    """Which results are not zero-shot, as sentences; "" where none is known not to be."""
    found: dict[str, list[str]] = {}
    for (model, name, _), cell in results.cells.items():
        if cell.seen:
            found[model] = [*dict.fromkeys([*found.get(model, []), name])]
    return "".join(
        f" {model} was trained on {', '.join(names)}; its accuracy there is not zero-shot."
        for model, names in found.items()
    )


def scope(results: Results) -> str:
    """Over what the means are taken, and which protocol was followed, in sentences."""
    return _scope(results) + _protocol(results)


def _protocol(results: Results) -> str:
    if results.protocol:
        return f" Protocol: {results.protocol}."
    if results.mixes_protocols:
        return " A name in brackets is the protocol of these results; without one it is this package's."
    return ""


def _protocols(results: Results) -> dict[str, str]:
    """Each protocol that is not ours with what it changes of images, and on which sets."""
    found: dict[str, dict[str, dict[str, None]]] = {}
    for cell in results.cells.values():
        if cell.protocol != DEFAULT_PROTOCOL:
            shown = {name: value for name, value in cell.settings.items() if name in SHOWN_SETTINGS}
            changes = ", ".join(map(_setting, shown.items())) or "images as the model was trained"
            found.setdefault(cell.protocol, {}).setdefault(changes, {})[results.short[cell.set]] = None
    return {
        f"Protocol {name}": "Class names, prompts, images and the meaning of AutoAttack are those of this protocol "
        "(`advflyp protocols`). "
        + " ".join(f"On {', '.join(sets)}: {changes}." for changes, sets in places.items())
        for name, places in found.items()
    }


SHOWN_SETTINGS = ("resize", "interpolation", "perturbation", "upsampling")


def _scope(results: Results) -> str:
    sets, means = results.sets, results.mean_sets
    spread = (
        "± is one standard deviation over training seeds"
        if results.replicated
        else "ranges are 95 % intervals"
    )
    if len(sets) == 1:
        return f"Zero-shot accuracy on {sets[0]}, {images(results, sets)}; {spread}."
    if not means:
        shared = f"only {results.common_sets[0]}" if results.common_sets else "no set"
        return (
            f"Zero-shot accuracy on {len(sets)} sets, {images(results, sets)}; {shared} was measured for every model "
            f"and attack, so that there is no mean over sets: measure the others with `advflyp eval`; {spread}."
        )
    over = counted(len(sets), "set") if len(means) == len(sets) else f"{len(means)} of {len(sets)} sets"
    only = "" if len(means) == len(sets) else ", those measured for every model and attack"
    return f"Zero-shot accuracy, mean over {over} ({images(results, means)}{only}); {spread}."


def images(results: Results, sets: Sequence[str]) -> str:
    """How many images of these sets were judged: "60 images each", "88 to 1,000 images each"."""
    counts = {count for name in sets for count in results.counts.get(name, ())}
    ends = " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))
    word = "image" if ends == "1" else plural("image")
    return f"{ends} {word} each" if len(sets) > 1 else f"{ends} {word}"


def meaning(results: Results) -> str:
    """Each term with its explanation, as far as the results use it."""
    attacked = [cell for cell in results.cells.values() if cell.norm is not None]
    terms = {
        "Accuracy": "The share of pictures whose likeliest class is the right one. Zero-shot: the classes come in "
        "only as prompts (see The prompts); no classifier was trained on these sets. An attacked picture counts as "
        "right only if the clean one is classified correctly as well."
    }
    if any(cell.norm == "linf" for cell in attacked):
        terms["ε"] = (
            "How far each pixel's red, green and blue may be moved, in steps of 1/255, one level of an 8-bit picture. "
            "The perturbation is made at the resolution the model sees and stays within the valid range of pixels."
        )
        native = {cell.set: None for cell in attacked if "perturbation" in cell.settings}
        if native:
            terms["ε"] += (
                f" On {', '.join(native)} it is made at the images' own size, as the protocol has it."
            )
    if any(cell.norm == "l2" for cell in attacked):
        terms["ε (L2)"] = (
            "The greatest length of the perturbation, the root of the sum of squares over all pixels and colours, "
            "pixels from 0 to 1."
        )
    for cell in attacked:
        terms.setdefault(attack_title(cell.attack), attack_text(cell))
    terms |= _protocols(results)
    if attacked:
        precisions = " and ".join(sorted({cell.precision for cell in attacked}))
        terms["Precision"] = (
            f"The attack searches in {precisions}; every adversarial picture is judged in float32, whatever "
            "precision found it."
        )
    terms["95 % intervals"] = (
        "Of one set: Wilson's interval for its n images. Of a mean: from the sets' binomial variances. Of a change: "
        "Agresti and Min's interval for matched pairs, as in advflyp compare, since both models saw the same images; a "
        "change has none where they did not, or where it is not stored what became of each image. The intervals say "
        "how well n images stand for the whole set, not how much another training seed would change."
    )
    if results.replicated:
        terms["±"] = (
            "Where a method was trained with several seeds, its accuracy is their mean and ± the sample standard "
            "deviation over them (n − 1); of a mean over sets, each seed is averaged first. It says how much another "
            "training seed changes, and not how well n images stand for the whole set. Of a change: one standard "
            "deviation of the difference of two such trainings. A mean of several trainings is not ranked against a "
            "single one."
        )
    if sides(results.sets):
        terms["In proxy, out of proxy"] = (
            "Whether the labelled set that classification-style methods are finetuned on covers most of the set's "
            "classes. A mean over both kinds depends on how many there are of each, so each has its own mean."
        )
    inner = "".join(f"<dt>{for_html(term)}</dt><dd>{for_html(text)}</dd>" for term, text in terms.items())
    return f'<dl class="terms">{inner}</dl>'


def made(results: Results, runs: Mapping[str, Path]) -> str:
    """Checkpoints, versions, seeds, recipes, this machine."""
    cells = list(results.cells.values())
    rows: list[list[Value]] = [
        [model, "\n".join(results.hashes[model]) or None, duration(results.seconds[model])]
        for model in results.models
    ]
    table = Table(title="", columns=["model", "sha256 of the weights", "time to evaluate"], rows=rows)
    versions = ", ".join(sorted({cell.version for cell in cells}))
    seeds = ", ".join(str(seed) for seed in sorted({cell.seed for cell in cells}))
    software = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "open_clip_torch"))
    recipes = "".join(
        f"<details><summary>Recipe of {for_html(name)}</summary><pre>{for_html(text)}</pre></details>"
        for name, folder in runs.items()
        if (text := _recipe_text(folder))
    )
    return (
        f"{elements.table(table, words=True)}"
        f"<p>Measured with advflyp {for_html(versions)}, attack seed {for_html(seeds)}. This page was written by "
        f"advflyp {__version__} with Python {platform.python_version()}, {software} on "
        f"{for_html(_hardware())}.</p>{recipes}"
        f'<p>AdvFLYP is the method of <a href="{PAPER}">{PAPER_TITLE}</a> (Xing et al., 2026). '
        'The tables are also in <a href="results.md">results.md</a>, and in the folder tables as CSV and LaTeX.</p>'
    )


def sets_table(results: Results) -> Table:
    """What each set is: only what its description says."""
    known = {**mini_sets(full_corpus_folder()), **mini_sets()}
    rows: list[list[Value]] = []
    for name in results.sets:
        info: Mapping[str, Any] = (
            known.get(name.removeprefix("mini/"), {}) if name.startswith("mini/") else {}
        )
        classes = len(info.get("classes", ()))
        rows.append(
            [
                results.short[name],
                results.images(name),
                str(classes) if classes else None,
                f"{100 / classes:.1f} %" if classes else None,
                info.get("domain"),
                ", ".join(str(info[key]) for key in ("source", "licence") if info.get(key)) or None,
            ]
        )
    columns = [set_heading(results), "images", "classes", "chance", "domain", "source, licence"]
    # A column of which nothing is known is left out.
    kept = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    return Table(
        title="The sets", columns=[columns[i] for i in kept], rows=[[row[i] for i in kept] for row in rows]
    )


def prompts_table(results: Results) -> Table:
    """The prompts that each set's class names were put into."""
    prompts: dict[tuple[str, str], None] = {}
    for (_, name, _), cell in results.cells.items():
        is_apart = cell.protocol not in (DEFAULT_PROTOCOL, results.protocol)
        title = f"{results.short[name]} [{cell.protocol}]" if is_apart else results.short[name]
        prompts[title, cell.prompt] = None
    rows: list[list[Value]] = [[title, prompt] for title, prompt in prompts]
    return Table(
        title="The prompts", columns=[set_heading(results), "{} is the name of the class"], rows=rows
    )


def _where(condition: Condition) -> str:
    return "without attack" if condition.norm is None else f"under attack (ε = {condition.radius})"


def _sentence(text: str) -> str:
    # A model's name keeps its spelling.
    first = text.partition(" ")[0]
    return f"{text[:1].upper() if first in ('under', 'without') else text[:1]}{text[1:]}."


def attack_text(cell: Cell) -> str:
    """The attack of a cell with all its settings, in sentences."""
    arguments = dict(cell.attack_args)
    text = ""
    if {"steps", "step_size"} <= set(arguments):
        steps, size = arguments.pop("steps"), arguments.pop("step_size")
        start = "a random start" if arguments.pop("random_start", False) else "the clean picture"
        restarts = arguments.pop("restarts", 1)
        # Results of older versions do not say it.
        unsaid = "margin" if cell.attack.startswith("cw") else "cross-entropy"
        loss = str(arguments.pop("loss", unsaid)).replace("_", "-")
        text = (
            f"Projected gradient ascent on the {LOSS_NAMES.get(loss, loss)}: {counted(steps, 'step')} of "
            f"α = {radius(size, cell.norm)} from {start}, each projected back into the ε-ball, with the model's own "
            f"gradients and the right label (white box){f', the worst of {restarts} runs' if restarts > 1 else ''}. "
        )
    rest = ", ".join(map(_setting, arguments.items()))
    return (f"{text}Settings: {rest}." if rest else text or "With its standard settings.").strip()


def _setting(pair: tuple[str, Any]) -> str:
    """ "queries 5000"; of a part of an attack with settings of its own "apgd-ce (steps 100, loss cross-entropy)"."""
    name, value = pair
    if isinstance(value, Mapping):
        return f"{name} ({', '.join(map(_setting, value.items()))})"
    if isinstance(value, bool):
        return f"{name} {'yes' if value else 'no'}"
    return f"{name} {str(value).replace('_', '-')}"


def _recipe_text(folder: Path) -> str:
    path = folder / RECIPE_FILE
    return read_text(path) if path.is_file() else ""


def _hardware() -> str:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = f"{platform.system()} {platform.machine()}, {cores} CPU cores"
    return f"{name}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else name
