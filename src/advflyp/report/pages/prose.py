"""The sentences of a report: the headline, what the means are over, attacks and their settings."""

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from advflyp.__about__ import __version__
from advflyp.data.mini import full_corpus_folder, mini_sets
from advflyp.documents import read_text
from advflyp.evaluation.results import DEFAULT_PROTOCOL, Cell
from advflyp.report.measure.estimates import Condition, attack_title, competitors, radius
from advflyp.report.measure.grid import sides
from advflyp.report.measure.results import Results
from advflyp.report.measure.tables import Table, Value, set_heading
from advflyp.training.folder import RECIPE_FILE
from advflyp.training.runlog import duration
from advflyp.wording import counted

LOSS_NAMES = {"margin": "margin between the likeliest wrong class and the right one"}
SHOWN_SETTINGS = ("resize", "interpolation", "perturbation", "upsampling")


def headline(
    results: Results, models: Sequence[str], pair: tuple[str, str] | None, shown: Sequence[Condition]
) -> str:
    """The result in one sentence.

    Args:
        pair: The two to compare, if any.
        shown: The conditions to mention: clean and an attack, as far as they were measured.
    """
    nothing = f"{counted(len(models), 'model')} on {counted(len(results.sets), 'set')}."
    if not results.mean_sets or (results.mixes_protocols and not pair):
        return nothing  # numbers of different protocols are not compared
    parts: list[str] = []
    if pair:
        for condition in reversed(shown):
            one, two = (results.mean(model, condition) for model in pair)
            if one and two:
                parts.append(
                    f"{_where(condition)}, {two.number} % against {one.number} %"
                    if parts
                    else f"{_where(condition)}, {pair[1]} classifies {two.number} % of images correctly, "
                    f"{pair[0]} {one.number} %"
                )
        return _sentence("; ".join(parts)) if parts else nothing
    if len(models) == 1:
        for condition in shown:
            if value := results.mean(models[0], condition):
                of = "" if parts else " of images correctly"
                parts.append(f"{value.number} %{of} {_where(condition)}")
        return _sentence(f"{models[0]} classifies {', '.join(parts)}")
    known = {model: value for model in models if (value := results.mean(model, shown[-1]))}
    ranked = competitors(known)
    if len(ranked) < 2:
        return nothing
    best = max(ranked, key=lambda model: ranked[model].value)
    return _sentence(
        f"{_where(shown[-1])}, {best} has the highest accuracy of {len(ranked)} models, "
        f"{ranked[best].number} %"
    )


def seen(results: Results) -> str:
    """Which results are not zero-shot, as sentences; "" if no such result is known."""
    found: dict[str, dict[str, None]] = {}
    for (model, name, _), cell in results.every:
        if cell.seen:
            found.setdefault(model, {})[name] = None
    return "".join(
        f" {model} was trained on {', '.join(names)}; its accuracy there is not zero-shot."
        for model, names in found.items()
    )


def scope(results: Results) -> str:
    """What the means are over, and which protocol was followed, in sentences."""
    sets, means = results.sets, results.mean_sets
    spread = "ranges are 95 % intervals"
    if results.replicated:
        spread = "± is one standard deviation over training seeds"
    if len(sets) == 1:
        text = f"Zero-shot accuracy on {sets[0]}, {images(results, sets)}; {spread}."
    elif not means:
        shared = f"only {results.common_sets[0]}" if results.common_sets else "no set"
        text = (
            f"Zero-shot accuracy on {len(sets)} sets, {images(results, sets)}; {shared} was measured for every model "
            f"and attack, so that there is no mean over sets: measure the others with `advflyp eval`; {spread}."
        )
    else:
        whole = len(means) == len(sets)
        over = counted(len(sets), "set") if whole else f"{len(means)} of {len(sets)} sets"
        only = "" if whole else ", those measured for every model and attack"
        text = f"Zero-shot accuracy, mean over {over} ({images(results, means)}{only}); {spread}."
    if results.protocol:
        text += f" Protocol: {results.protocol}."
    elif results.mixes_protocols:
        text += " A name in brackets is the protocol of these results; without one it is this package's."
    return text


def images(results: Results, sets: Sequence[str]) -> str:
    """How many images of these sets were evaluated: "60 images each", "88 to 1,000 images each"."""
    counts = {count for name in sets for count in results.counts(name)}
    ends = " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))
    return f"{ends} image{'' if ends == '1' else 's'}" + (" each" if len(sets) > 1 else "")


def meaning(results: Results) -> dict[str, Any]:
    """Which terms the results use, for the section that explains them."""
    attacked = [cell for _, cell in results.every if cell.norm is not None]
    protocols: dict[str, dict[str, dict[str, None]]] = {}
    for _, cell in results.every:
        if cell.protocol != DEFAULT_PROTOCOL:
            shown = {name: value for name, value in cell.settings.items() if name in SHOWN_SETTINGS}
            changes = ", ".join(map(setting, shown.items())) or "images as the model was trained"
            places = protocols.setdefault(cell.protocol, {}).setdefault(changes, {})
            places[results.short[cell.set]] = None
    return {
        "linf": any(cell.norm == "linf" for cell in attacked),
        "native": list(dict.fromkeys(cell.set for cell in attacked if "perturbation" in cell.settings)),
        "l2": any(cell.norm == "l2" for cell in attacked),
        "attacks": attack_texts(attacked),
        "protocols": protocols,
        "precisions": sorted({cell.precision for cell in attacked}),
        "replicated": results.replicated,
        "sides": bool(sides(results.sets)),
    }


def made(results: Results, runs: Mapping[str, Path]) -> dict[str, Any]:
    """Checkpoints, versions, seeds and recipes, for the section that lists them."""
    rows: list[list[Value]] = [
        [
            model,
            "\n".join(results.hashes[model]) or None,
            duration(sum(cell.seconds for (one, _, _), cell in results.every if one == model)),
        ]
        for model in results.models
    ]
    columns = ["model", "sha256 of the weights", "time to evaluate"]
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "open_clip_torch"))
    recipes = {name: folder / RECIPE_FILE for name, folder in runs.items()}
    return {
        "table": Table(title="", columns=columns, rows=rows, words=True),
        "versions": sorted({cell.version for _, cell in results.every}),
        "seeds": sorted({cell.seed for _, cell in results.every}),
        "software": f"{__version__} with Python {platform.python_version()}, {packages}",
        "recipes": {name: read_text(path) for name, path in recipes.items() if path.is_file()},
    }


def sets_table(results: Results) -> Table:
    """What each set is, as far as its description says."""
    known = {**mini_sets(full_corpus_folder()), **mini_sets()}
    rows: list[list[Value]] = []
    for name in results.sets:
        is_mini = name.startswith("mini/")
        info: Mapping[str, Any] = known.get(name.removeprefix("mini/"), {}) if is_mini else {}
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
    # Empty columns are left out.
    kept = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    return Table(
        title="The sets",
        columns=[columns[i] for i in kept],
        rows=[[row[i] for i in kept] for row in rows],
        words=True,
    )


def prompts_table(results: Results) -> Table:
    """The prompts that each set's class names were put into."""
    prompts: dict[tuple[str, str], None] = {}
    for (_, name, _), cell in results.every:
        is_apart = cell.protocol not in (DEFAULT_PROTOCOL, results.protocol)
        title = f"{results.short[name]} [{cell.protocol}]" if is_apart else results.short[name]
        prompts[title, cell.prompt] = None
    columns = [set_heading(results), "{} is the name of the class"]
    return Table(title="The prompts", columns=columns, rows=[list(pair) for pair in prompts], words=True)


def attack_texts(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """(attack, its settings) of attacked cells; with the radii, if an attack's settings differ between them."""
    found: dict[str, dict[str, dict[str, None]]] = {}
    for cell in cells:
        radii = found.setdefault(attack_title(cell.attack), {}).setdefault(attack_text(cell), {})
        radii[radius(cell.eps, cell.norm)] = None
    return [
        (f"{attack}, ε = {', '.join(radii)}" if len(texts) > 1 else attack, text)
        for attack, texts in found.items()
        for text, radii in texts.items()
    ]


def attack_text(cell: Cell) -> str:
    """The attack of a cell with all its settings, in sentences."""
    arguments = dict(cell.attack_args)
    text = ""
    if None not in (arguments.get("steps"), arguments.get("step_size")):
        steps, size = arguments.pop("steps"), arguments.pop("step_size")
        start = "a random start" if arguments.pop("random_start", False) else "the clean image"
        restarts = arguments.pop("restarts", None) or 1
        # Results of older versions do not record the loss.
        unsaid = "margin" if cell.attack.startswith("cw") else "cross-entropy"
        loss = str(arguments.pop("loss", unsaid)).replace("_", "-")
        text = (
            f"Projected gradient ascent on the {LOSS_NAMES.get(loss, loss)}: {counted(steps, 'step')} of "
            f"α = {radius(size, cell.norm)} from {start}, each projected back into the ε-ball, with the model's own "
            f"gradients and the right label (white box){f', worst of {restarts} restarts' if restarts > 1 else ''}. "
        )
    rest = ", ".join(map(setting, arguments.items()))
    return (f"{text}Settings: {rest}." if rest else text or "With its standard settings.").strip()


def setting(pair: tuple[str, Any]) -> str:
    """ "queries 5000"; for a part of an attack with its own settings, "apgd-ce (steps 100, loss cross-entropy)"."""
    name, value = pair
    if isinstance(value, Mapping):
        return f"{name} ({', '.join(map(setting, value.items()))})"
    if isinstance(value, bool):
        return f"{name} {'yes' if value else 'no'}"
    if name == "step_size" and isinstance(value, int | float):
        return f"{name} {radius(value, 'linf')}"
    return f"{name} {str(value).replace('_', '-')}"


def _where(condition: Condition) -> str:
    return "without attack" if condition.norm is None else f"under attack (ε = {condition.radius})"


def _sentence(text: str) -> str:
    # A model's name keeps its spelling.
    first = text.partition(" ")[0]
    return f"{text[:1].upper() if first in ('under', 'without') else text[:1]}{text[1:]}."
