"""Models under one protocol: measured here, measured by others and checked, and what their authors published."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from advflyp.__about__ import __version__
from advflyp.config import build, convert, read_toml
from advflyp.data.sets.labelled import set_names
from advflyp.evaluation.admission import Entrant, entrants, told_apart, zoo_weights
from advflyp.evaluation.evaluator import SetProgress
from advflyp.evaluation.expected import WEBDATASET, is_known
from advflyp.evaluation.protocols import Protocol, find_protocol
from advflyp.evaluation.results import Cell
from advflyp.evaluation.suite import evaluate
from advflyp.model.clip import CLIP
from advflyp.model.folder import BUNDLED, read_card
from advflyp.model.repository import HUB_PREFIX
from advflyp.model.zoo import ENTRIES, ZOO, Entry, find_entry
from advflyp.report.measure.estimates import Condition, attack_title, radius
from advflyp.report.measure.render import as_csv
from advflyp.report.measure.results import Results
from advflyp.report.measure.runs import training_eps
from advflyp.report.measure.tables import Table, Value
from advflyp.report.pages.jinja import render
from advflyp.wording import counted
from advflyp.written import check_files, write_files

PAGE, CSV, SUBMISSION = "index.html", "leaderboard.csv", "SUBMISSION.md"
# In a leaderboard's folder: results measured here, results from others, and facts about the models.
RESULTS, SUBMISSIONS, FACTS = "results", "submissions", "models.toml"
MEASURED = "measured here"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a leaderboard says about a model besides its accuracy; a table of models.toml.

    Attributes:
        method: What made it robust.
        backbone: Architecture.
        eps: Radius of its adversarial training.
        licence: Of the weights.
        link: Where the weights are.
        paper: Where the method is described.
    """

    method: str = "?"
    backbone: str = "?"
    eps: str = "?"
    licence: str = "?"
    link: str = ""
    paper: str = ""

    def __post_init__(self) -> None:
        for name in ("link", "paper"):
            address = getattr(self, name)
            if address and not re.match("https?://[^/]", address):
                raise ValueError(f"{name} must be an address that begins with https://, not '{address}'")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the page's tables; `values` are the columns after the facts.

    `precision` (of the attacks' search), `versions` (of advflyp) and `copies` (datasets that were read from CLIP
    benchmark's copy) may differ from row to row.
    """

    name: str
    facts: Facts
    sha256: str = ""
    source: str = ""
    status: str = "admitted"
    precision: str = ""
    versions: str = ""
    copies: str = ""
    values: Sequence[Value]


def leaderboard(
    models: Sequence[CLIP | str | Path] = (),
    protocol: Protocol | str = "advflyp-2026",
    out: str | Path = "leaderboard",
    *,
    batch_size: int | Literal["auto"] = "auto",
    device: str = "auto",
    watch: Callable[[Cell, SetProgress], None] = lambda cell, progress: None,
) -> Path:
    """Measure models under a protocol and write `out`/index.html, leaderboard.csv and SUBMISSION.md.

    The page lists every model with results in `out`/results (measured here, in this call or an earlier one), in
    `out`/submissions, or in the result files named in `models`. `out`/models.toml may hold `Facts` that neither the
    zoo nor a card knows, in a table named after each model.

    Args:
        models: Models, their names, and files of others' results (*.jsonl). A zoo or hub model whose results are
            complete is not loaded again.
        protocol: What is measured, or its name.
        out: The leaderboard's folder; the same call resumes.
        batch_size: As for `evaluate`.
        device: As for `evaluate`.
        watch: As for `evaluate`.

    Returns:
        The path of index.html.

    Raises:
        ValueError: A name is unknown, weights cannot be had, a file holds no results, or the protocol has a dataset of
            the user's own.
    """
    protocol = find_protocol(protocol) if isinstance(protocol, str) else protocol
    if unknown := [name for name in set_names(list(protocol.sets)) if not is_known(name)]:
        raise ValueError(
            f"a leaderboard cannot check results on {unknown[0]}, whose images and classes no table describes; compare "
            "models on it with `advflyp eval` and `advflyp report`"
        )
    out = Path(out)
    check_files(out, (PAGE, CSV, SUBMISSION))
    told = _read_facts(out / FACTS)
    files = [Path(one) for one in models if not isinstance(one, CLIP) and str(one).endswith(".jsonl")]
    others = [one for one in models if isinstance(one, CLIP) or not str(one).endswith(".jsonl")]
    for path in files:
        if not path.is_file():
            raise ValueError(f"there are no results at {path}; name a file of `advflyp eval --out`")
    for one in others:
        _check_name(one)
    for one in others:
        store = out / RESULTS / f"{_slug(one.name if isinstance(one, CLIP) else str(one))}.jsonl"
        if not _is_measured(one, store, protocol):
            _measure(one, store, protocol, batch_size=batch_size, device=device, watch=watch)
    submitted = sorted((out / SUBMISSIONS).glob("*.jsonl"))
    ours = sorted((out / RESULTS).glob("*.jsonl"))
    everybody = [one for path in ours for one in entrants(path, protocol, is_ours=True)]
    everybody += [one for path in files for one in entrants(path, protocol, is_ours=False)]
    everybody += [one for path in submitted for one in _submission(path, protocol)]
    if not everybody:
        raise ValueError("there is nothing to list; name models, or files of results, with --models")
    write_files(out, contents(told_apart(everybody), protocol, told))
    return out / PAGE


def contents(everybody: Sequence[Entrant], protocol: Protocol, told: dict[str, Facts]) -> dict[str, str]:
    """The files of a leaderboard, by name.

    Args:
        everybody: Who is admitted or refused.
        protocol: What was measured.
        told: Facts by model.
    """
    admitted = [one for one in everybody if not one.refused]
    # Cells of a version that did not record the configuration would count as another model.
    results = Results([replace(cell, config_sha256=one.config) for one in admitted for cell in one.cells])
    labels = {
        (cell.model, cell.checkpoint_sha256, cell.config_sha256): label
        for (label, _, _), cell in results.every
    }
    labelled = [(labels[one.model, one.sha256, one.config], one) for one in admitted]
    shown = results.conditions
    best = results.strongest(protocol.eps[0])

    def order(pair: tuple[str, Entrant]) -> float:
        value = results.mean(pair[0], best) if best else None
        return -value.value if value else 0.0

    zoo = zoo_weights(everybody)
    rows = [
        _row(one, told, zoo, label, [results.mean(label, condition) for condition in shown])
        for label, one in sorted(labelled, key=order)
    ]
    refused = [one for one in everybody if one.refused]
    page = render(
        "leaderboard.html",
        title=f"Leaderboard {protocol.name}",
        kicker=f"advflyp leaderboard, protocol {protocol.name}",
        headline=f"{counted(len(rows), 'model')} under one protocol" if rows else "No model is admitted yet",
        tiles=[],
        scope=_scope(protocol, rows, results),
        notes=protocol.notes,
        conditions=shown,
        rows=rows,
        published=_published(),
        refused=Table(
            title="Not admitted",
            columns=["model", "weights", "results", "why not"],
            rows=[[one.model, one.sha256[:12], _where(one), one.refused] for one in refused],
            words=True,
        ),
        files={"csv": CSV, "submission": SUBMISSION},
        backbones=sorted({row.facts.backbone for row in rows} | {entry.architecture for entry in ENTRIES}),
    )
    outside = [_row(one, told, zoo, one.model, [None] * len(shown)) for one in refused]
    table = _csv_table([*rows, *outside], shown, protocol)
    submission = render(
        "submission.md", protocol=protocol, sets=set_names(list(protocol.sets)), version=__version__
    )
    return {PAGE: page, CSV: as_csv(table), SUBMISSION: submission}


def facts_of(one: Entrant, told: dict[str, Facts], zoo: Mapping[str, str]) -> Facts:
    """What models.toml, the zoo, or the card (only if the model was measured here) says about a model.

    Results of others may name a model anything: no file is read by that name, and it is the zoo's only if its weights
    are.

    Args:
        one: The model.
        told: Facts by model.
        zoo: The hash of each zoo model's weights, as far as it is known.
    """
    is_ours, name = one.source is None, one.model
    if name in told:
        return told[name]
    if name in ZOO:
        is_the_zoos = zoo.get(name, one.sha256 if is_ours else None) == one.sha256
        return _zoo_facts(ZOO[name]) if is_the_zoos else Facts()
    card = read_card(name) if is_ours else {}
    # Under the name of a folder there may be other weights by now. The hash of a bundled model's is that of its file.
    is_its_own = (
        name in {path.name for path in BUNDLED.iterdir()}
        or card.get("weights_sha256", one.sha256) == one.sha256
    )
    recipe = card.get("recipe", {}) if is_its_own else {}
    method, start = (recipe.get(table, {}) for table in ("method", "model"))
    return Facts(
        method=str(method.get("name", "?")),
        backbone=str(start.get("name", "?")),
        eps=training_eps(recipe) or "?",
    )


def _zoo_facts(entry: Entry) -> Facts:
    paper = re.search(r"arXiv (\d{4}\.\d{4,5})", entry.paper)
    return Facts(
        method=entry.method,
        backbone=entry.architecture,
        eps=entry.eps or "?",
        licence=entry.licence or "?",
        link=f"https://huggingface.co/{entry.repository}",
        paper=f"https://arxiv.org/abs/{paper[1]}" if paper else "",
    )


def _submission(path: Path, protocol: Protocol) -> list[Entrant]:
    """The models in a file that somebody sent; one that cannot be read stops no others."""
    try:
        return entrants(path, protocol, is_ours=False)
    except ValueError as error:
        reason = str(error).replace(str(path), path.name)
        return [Entrant(model="?", sha256="", cells=[], source=path, refused=reason)]


def _read_facts(path: Path) -> dict[str, Facts]:
    tables = read_toml(path) if path.is_file() else {}
    return {
        name: build(Facts, convert(table, dict[str, str], f"{path}: {name}"), at=f"{path}: {name}.")
        for name, table in tables.items()
    }


def _measure(model: CLIP | str | Path, store: Path, protocol: Protocol, **how: Any) -> None:
    evaluate(
        model,
        protocol.sets,
        protocol.attacks,
        protocol.eps,
        out=store,
        norm=protocol.norm,
        limit=protocol.limit,
        precision=protocol.precision,
        seed=protocol.seed,
        sanity=protocol.evidence,
        protocol=protocol,
        **how,
    )


def _check_name(model: CLIP | str | Path) -> None:
    """ValueError for a misspelled zoo name, before anything is measured."""
    name = str(model)
    is_name = not isinstance(model, CLIP) and not re.search("[/@:]", name)
    if is_name and not Path(name).exists() and not (BUNDLED / name).is_dir():
        find_entry(name)


def _is_measured(model: CLIP | str | Path, store: Path, protocol: Protocol) -> bool:
    """Whether a zoo or hub model's results are complete; checked by name, as its hash would need a download."""
    name = str(model)
    is_remote = not isinstance(model, CLIP) and (name in ZOO or name.startswith(HUB_PREFIX))
    found = entrants(store, protocol, is_ours=True) if is_remote else []
    return any(one.model == name and not one.refused for one in found)


def _scope(protocol: Protocol, rows: Sequence[Row], results: Results) -> str:
    sets = set_names(list(protocol.sets))
    images = "all images" if protocol.limit is None else f"{protocol.limit:,} images"
    attacks = ", ".join(attack_title(protocol.attack(name).name) for name in protocol.attacks)
    radii = ", ".join(radius(eps, protocol.norm) for eps in protocol.eps)
    measured = sum(row.source == MEASURED for row in rows)
    versions = ", ".join(sorted({cell.version for _, cell in results.every}))
    return (
        f"{counted(len(sets), 'dataset')}, {images} of each; {attacks} at ε = {radii} ({protocol.norm}), seed "
        f"{protocol.seed}. Accuracies are means over the datasets in %, with 95 % intervals of sampled images. "
        f"{measured} of {counted(len(rows), 'model')} measured in this folder, the others from result files"
        + (f" (advflyp {versions})." if versions else ".")
    )


def _row(
    one: Entrant, told: dict[str, Facts], zoo: Mapping[str, str], name: str, values: Sequence[Value]
) -> Row:
    copies = [cell.set for cell in one.cells if cell.split.endswith(WEBDATASET)]
    return Row(
        name=name,
        facts=facts_of(one, told, zoo),
        sha256=one.sha256,
        source=_where(one),
        status=f"not admitted: {one.refused}" if one.refused else "admitted",
        precision=", ".join(sorted({cell.precision for cell in one.cells if cell.norm})),
        versions=", ".join(sorted({cell.version for cell in one.cells})),
        copies=", ".join(dict.fromkeys(copies)),
        values=values,
    )


def _where(one: Entrant) -> str:
    return MEASURED if one.source is None else f"file {one.source.name}"


def _published() -> list[tuple[str, list[str], list[Row]]]:
    """What authors published, a table for each protocol: how they measured, columns, rows."""
    tables: dict[str, list[Row]] = {}
    columns: dict[str, list[str]] = {}
    for entry in ENTRIES:
        for one in entry.published:
            radii = columns.setdefault(one.protocol, list(one.robust))
            values = [
                f"{one.clean:.1f}",
                *(f"{one.robust[eps]:.1f}" if eps in one.robust else None for eps in radii),
            ]
            tables.setdefault(one.protocol, []).append(
                Row(name=entry.name, facts=_zoo_facts(entry), values=values)
            )
    return [(protocol, columns[protocol], rows) for protocol, rows in tables.items()]


def _csv_table(rows: Sequence[Row], shown: Sequence[Condition], protocol: Protocol) -> Table:
    about = ["model", "checkpoint_sha256", "protocol", "source", "status", "precision", "versions", "copies"]
    facts = ["method", "backbone", "training_eps", "licence", "link", "paper"]
    return Table(
        title="",
        columns=[*about, *facts, *(condition.title for condition in shown)],
        rows=[
            [
                *(row.name, row.sha256, protocol.name, row.source, row.status),
                *(row.precision, row.versions, row.copies),
                *astuple(row.facts),
                *row.values,
            ]
            for row in rows
        ],
    )


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[-80:]
