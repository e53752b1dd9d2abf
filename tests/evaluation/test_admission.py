"""A leaderboard's rules, one by one, on results of which one thing was changed."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from advflyp.evaluation.admission import Entrant, entrants, told_apart
from advflyp.evaluation.protocols import Protocol, find_protocol
from advflyp.evaluation.results import Cell, append_cell, read_cells, wilson
from advflyp.evaluation.samples import samples_folder, write_samples

MINI = find_protocol("advflyp-2026-mini")


@pytest.fixture(scope="module")
def cells(reproduce_mini: Path) -> list[Cell]:
    file = reproduce_mini / "results/fare-s0.jsonl"
    return [cell for cell in read_cells(file) if cell.attack != "autoattack"]


def judged(tmp_path: Path, cells: list[Cell], protocol: Protocol = MINI) -> Entrant:
    path = tmp_path / "sent.jsonl"
    path.write_text("".join(json.dumps(asdict(cell)) + "\n" for cell in cells))
    (found,) = entrants(path, protocol, is_ours=False)
    return found


def test_whole_results_are_admitted(tmp_path: Path, cells: list[Cell]) -> None:
    found = judged(tmp_path, cells)
    assert (found.model, found.refused, len(found.cells)) == ("FARE", "", 70)
    assert found.source == tmp_path / "sent.jsonl"


def counts(cell: Cell, correct: int, n: int) -> dict[str, Any]:
    return {"correct": correct, "n": n, "accuracy": correct / n, "ci95": wilson(correct, n)}


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda c: {"protocol": "tecoa"}, "protocol is 'tecoa', not 'advflyp'"),
        (lambda c: {"prompt": "a {}"}, "prompt is 'a {}', not"),
        (lambda c: {"seed": 3}, "seed is 3, not 0"),
        (lambda c: {"subset": {"of": 88}}, "subset is"),
        (lambda c: {"attack_args": {**c.attack_args, "steps": 1}}, "attack_args is"),
        (lambda c: {"checkpoint_sha256": "f" * 12}, "is not a SHA-256"),
        (lambda c: {"subset": {**c.subset, "of": 99}}, "the dataset has 99 images, not 88"),
        (
            lambda c: {"subset": {k: v for k, v in c.subset.items() if k != "of"}},
            "subset is",
        ),
        (lambda c: counts(c, 10, 50), "n is 50 of 60 images"),
        (lambda c: {"accuracy": c.accuracy + 0.1}, "not those of its counts"),
        (lambda c: {"ci95": (0.0, 1.0)}, "not those of its counts"),
        (lambda c: counts(c, c.correct - 1, 60), "per_class does not add up"),
        (
            lambda c: {**counts(c, 60, 60), "per_class": {"0": [60, 60]}},
            "more images are correct under attack than without",
        ),
        (
            lambda c: {"sanity": {"passed": False, "n": 9, "failed": ["noise beats PGD"]}},
            r"gradients look masked \(noise beats PGD\)",
        ),
    ],
)
def test_what_is_refused(
    change: Callable[[Cell], dict[str, Any]], reason: str, tmp_path: Path, cells: list[Cell]
) -> None:
    place = next(n for n, cell in enumerate(cells) if cell.set == "mini/food" and cell.attack == "pgd10")
    changed = replace(cells[place], **change(cells[place]))
    if changed.checkpoint_sha256 != cells[0].checkpoint_sha256:
        others = [replace(cell, checkpoint_sha256=changed.checkpoint_sha256) for cell in cells]
    else:
        others = cells
    found = judged(tmp_path, [*others[:place], changed, *others[place + 1 :]])
    assert "mini/food, pgd10 at 1/255" in found.refused or reason == "is not a SHA-256"
    with pytest.raises(ValueError, match=reason):
        raise ValueError(found.refused)


def test_a_search_in_another_precision_and_missing_results(tmp_path: Path, cells: list[Cell]) -> None:
    assert (
        "precision is 'bf16', not 'fp32'" in judged(tmp_path, cells, replace(MINI, precision="fp32")).refused
    )
    rest = [cell for cell in cells if (cell.set, cell.attack) != ("mini/flags", "cw10")]
    assert judged(tmp_path, rest).refused == "3 of 70 results missing, first mini/flags, cw10 at 1/255"


def test_evidence(tmp_path: Path, cells: list[Cell]) -> None:
    """Predictions for every image and checks, where the protocol asks for them; predictions must give the counts."""
    strict = replace(MINI, sets=("mini/food",), evidence=True)
    food = [cell for cell in cells if cell.set == "mini/food"]
    attacked = replace(strict, attacks=("pgd10",))
    assert "no check for masked gradients" in judged(tmp_path, food, attacked).refused
    green = {"passed": True, "n": 9, "failed": []}
    checked = [replace(cell, sanity=green if cell.norm else None) for cell in food]
    assert "predictions for every image are missing" in judged(tmp_path, checked, strict).refused
    store = tmp_path / "sent.jsonl"
    for cell in checked:
        right = [1] * cell.correct + [0] * (cell.n - cell.correct)
        write_samples(store, cell, index=range(cell.n), label=[1] * cell.n, clean=right, attacked=right)
    assert judged(tmp_path, checked, strict).refused == ""
    last = checked[-1]
    write_samples(store, last, index=range(60), label=[1] * 60, clean=[1] * 60, attacked=[1] * 60)
    assert "give other counts" in judged(tmp_path, checked, strict).refused
    for path in samples_folder(store).glob("*.parquet"):
        path.write_bytes(b"PAR1")
    assert "cannot be read" in judged(tmp_path, checked, strict).refused, (
        "one who sends nonsense stops no others"
    )


def test_the_same_weights_once_and_names_of_the_zoo() -> None:
    def one(model: str, sha256: str, source: str | None = None) -> Entrant:
        return Entrant(model=model, sha256=sha256, cells=[], source=Path(source) if source else None)

    zoo = "fare4-vit-l-14"
    everybody = [one("theirs", "a", "x.jsonl"), one("ours", "a"), one(zoo, "b", "y.jsonl"), one(zoo, "c")]
    everybody += [one("p", "d", "x.jsonl"), one("q", "d", "z.jsonl")]
    found = {(entrant.model, entrant.sha256): entrant.refused for entrant in told_apart(everybody)}
    assert found == {
        ("ours", "a"): "",
        (zoo, "c"): "",
        ("theirs", "a"): "the same weights are measured here as ours",
        (zoo, "b"): f"these weights differ from those measured here as the zoo's {zoo} (c)",
        ("p", "d"): "",
        ("q", "d"): "the same weights are in x.jsonl as p",
    }


def test_the_same_weights_in_two_configurations_are_two_models(tmp_path: Path, cells: list[Cell]) -> None:
    """Results that do not record the configuration may be of either, so they are of the same weights."""

    def one(config: str) -> Entrant:
        return Entrant(model=config or "older", sha256="a", cells=[], config=config)

    refused = [entrant.refused for entrant in told_apart([one("c1"), one("c2"), one("")])]
    assert refused == ["", "", "the same weights are measured here as c1"]
    for cell in [*cells[:3], *(replace(cell, config_sha256="f" * 64) for cell in cells[3:])]:
        append_cell(tmp_path / "r.jsonl", cell)
    (found,) = entrants(tmp_path / "r.jsonl", MINI, is_ours=True)
    assert len(found.cells) == 70 and found.config == "f" * 64, "a file that an older version began"


def test_a_file_without_results(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="there are no results in"):
        entrants(tmp_path / "empty.jsonl", MINI, is_ours=False)


def test_a_cell_that_is_written_again_counts_once(tmp_path: Path, cells: list[Cell]) -> None:
    for cell in [*cells, cells[0]]:
        append_cell(tmp_path / "r.jsonl", cell)
    (found,) = entrants(tmp_path / "r.jsonl", MINI, is_ours=True)
    assert len(found.cells) == 70 and not found.refused


def test_the_last_of_several_versions_counts(tmp_path: Path, cells: list[Cell]) -> None:
    old = replace(cells[0], version="0.0.1")
    assert judged(tmp_path, [old, *cells]).cells == judged(tmp_path, cells).cells
