"""A leaderboard's rules, one by one, on results of which one thing was changed."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from advflyp.data.sets.labelled import load_set
from advflyp.evaluation.admission import Entrant, entrants, told_apart, zoo_weights
from advflyp.evaluation.protocols import Protocol, find_protocol
from advflyp.evaluation.results import Cell, append_cell, read_cells, wilson
from advflyp.evaluation.samples import write_samples
from advflyp.evaluation.suite import evaluate
from advflyp.model.clip import CLIP

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
        (
            lambda c: {"settings": {"resize": 96, "interpolation": "bicubic"}},
            "interpolation is 'bicubic', not None",
        ),
        (
            lambda c: {"settings": {"perturbation": "native pixels"}},
            "perturbation is 'native pixels', not None",
        ),
        (
            lambda c: {"settings": {"set_sha256": "f" * 64}},
            "passed as an object may only be called mini/food",
        ),
        (lambda c: {"settings": {"classnames_sha256": "f" * 64}}, "classnames_sha256 is"),
        (lambda c: {"settings": {"repeated_classes": [1]}}, "repeated_classes is"),
        (
            lambda c: {"per_class": {"88": [c.correct, 60]}},
            "per_class has others than the 88 classes of the dataset",
        ),
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


def predicted(store: Path, cell: Cell, index: Sequence[int] | None = None, label: Any = None) -> None:
    """Store predictions for every image that give the counts of the cell, unless others are given."""
    pairs = [(int(name), right < r) for name, (r, n) in cell.per_class.items() for right in range(n)]
    labels = [name for name, _ in pairs] if label is None else label
    answers = [one if is_right else one + 1 for one, (_, is_right) in zip(labels, pairs, strict=True)]
    places = range(cell.n) if index is None else index
    write_samples(store, cell, index=places, label=labels, clean=answers, attacked=answers)


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
        predicted(store, cell)
    assert judged(tmp_path, checked, strict).refused == ""
    # Later results without evidence hide none that have it; a failed check is not passed over.
    for later, reason in (
        ({"sanity": None}, ""),
        ({"sanity": {**green, "passed": False, "failed": ["noise beats PGD"]}}, "gradients look masked"),
    ):
        newer = [replace(cell, version="99", **later) for cell in checked if cell.norm]
        found = judged(tmp_path, [*checked, *newer], strict)
        assert reason in found.refused and bool(reason) == bool(found.refused)
    last = checked[-1]
    for index, label, reason in (
        (range(60), [1] * 60, "give other counts in per_class"),
        ([7] * 60, None, "it holds an image twice"),
        (range(29, 89), None, "it holds images that the dataset lacks"),
        (range(-1, 59), None, "it holds images that the dataset lacks"),
    ):
        predicted(store, last, index, label)
        assert reason in judged(tmp_path, checked, strict).refused
    write_samples(store, last, index=range(60), label=[1] * 60, clean=[1] * 60, attacked=[1] * 60)
    assert "give other counts" in judged(tmp_path, checked, strict).refused
    for path in store.with_suffix(".samples").glob("*.parquet"):
        path.write_bytes(b"PAR1")
    refused = judged(tmp_path, checked, strict).refused
    assert "cannot be read" in refused, "one who sends nonsense stops no others"
    assert str(tmp_path) not in refused and "sent.samples/" in refused, "no folder of this machine is shown"


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


def test_another_set_under_a_name(tiny: CLIP, tmp_path: Path) -> None:
    """What a user passes as an object may have any name; it is not the named dataset."""
    small = replace(MINI, sets=("mini/food",), attacks=("clean", "pgd1"), eps=(1 / 255,), limit=8)
    easy = replace(load_set("mini/food"), classes=[f"zqx {number}" for number in range(88)])
    for sets, reason in (("mini/food", ""), (easy, "only be called mini/food; pass its name")):
        store = tmp_path / f"{len(reason)}.jsonl"
        evaluate(tiny, sets, small.attacks, small.eps, out=store, limit=8, protocol=small, precision="fp32")
        (found,) = entrants(store, small, is_ours=False)
        assert reason in found.refused and bool(reason) == bool(found.refused)


def one_of(cells: list[Cell], set_name: str, k: int, of: int, name: str = "M", **changes: Any) -> list[Cell]:
    """The cells of mini/food as if they were of another dataset, all correct."""
    n = min(of, 60)
    subset = {"of": of} if of <= 60 else {"of": of, "limit": 60, "seed": 0}
    values = {**counts(cells[0], n, n), "per_class": {str(k - 1): [n, n]}, "subset": subset, "set": set_name}
    food = [cell for cell in cells if cell.set == "mini/food" and cell.eps in (0, 1 / 255)]
    chosen = [cell for cell in food if cell.attack in ("clean", "pgd10")]
    return [replace(cell, **{**values, "model": name, "split": "test", **changes}) for cell in chosen]


CIFAR = replace(MINI, sets=("cifar10",), attacks=("clean", "pgd10"), eps=(1 / 255,))


@pytest.mark.parametrize(
    "of, split, reason",
    [
        (10_000, "test", ""),
        (9_999, "test", "the dataset has 9,999 images, not 10,000"),
        (10_000, "test (webdataset)", ""),
        (9_700, "test (webdataset)", ""),
        (9_699, "test (webdataset)", "the dataset has 9,699 images, not 10,000"),
        (20, "test (webdataset)", "the dataset has 20 images, not 10,000"),
        (10_001, "test (webdataset)", "the dataset has 10,001 images, not 10,000"),
    ],
)
def test_the_size_of_a_copy(of: int, split: str, reason: str, tmp_path: Path, cells: list[Cell]) -> None:
    prompt = "This is a photo of a {}."
    found = judged(tmp_path, one_of(cells, "cifar10", 10, of, split=split, prompt=prompt), CIFAR)
    assert reason in found.refused and bool(reason) == bool(found.refused)


def test_one_dataset_for_everybody(cells: list[Cell]) -> None:
    """What only a dataset's files tell is the same for all: class names, prompts, the size of a copy."""

    def enter(model: str, **changes: Any) -> Entrant:
        some = one_of(cells, "cifar10", 10, 10_000, **changes)
        return Entrant(model=model, sha256=model, cells=some, source=Path(f"{model}.jsonl"))

    copy = {"split": "test (webdataset)"}
    first = enter("a", settings={"classnames_sha256": "1"})
    others = [
        enter("b", settings={"classnames_sha256": "2"}),
        enter("c", settings={"classnames_sha256": "1"}, prompt="x {}"),
        enter("d", settings={"classnames_sha256": "1"}, **copy),
        enter("e", settings={"classnames_sha256": "1"}, subset={"of": 9_900}, **copy),
        enter("f", settings={"classnames_sha256": "1"}),
    ]
    assert [one.refused for one in told_apart([first, *others])] == [
        "",
        "cifar10 differs in its class names from the set of a (in a.jsonl)",
        "cifar10 differs in its prompts from the set of a (in a.jsonl)",
        "",
        "cifar10 differs in its number of images from the set of d (in d.jsonl)",
        "",
    ]


def test_only_admitted_weights_are_the_zoo_s() -> None:
    """Not those of an older measurement that is refused, or of a later one."""
    zoo = "fare4-vit-l-14"

    def one(sha256: str, refused: str = "") -> Entrant:
        return Entrant(model=zoo, sha256=sha256, cells=[], refused=refused)

    found = told_apart([one("stale", "3 of 70 results missing"), one("true"), one("other")])
    assert {entrant.sha256: entrant.refused for entrant in found} == {
        "stale": "3 of 70 results missing",
        "true": "",
        "other": f"these weights differ from those measured here as the zoo's {zoo} (true)",
    }
    assert zoo_weights(found) == {zoo: "true"}


def test_one_precision_of_the_search(tmp_path: Path, cells: list[Cell]) -> None:
    exact = [replace(cell, precision="fp32") for cell in cells]
    mixed = [*cells[:35], *exact[35:]]
    assert (
        judged(tmp_path, mixed).refused
        == "the attacks searched in bf16 and fp32; measure all with one --precision"
    )
    found = judged(tmp_path, [*cells, *exact[:20]])
    assert not found.refused and {cell.precision for cell in found.cells if cell.norm} == {"bf16"}
    found = judged(tmp_path, [*cells, *exact])
    assert not found.refused and {cell.precision for cell in found.cells if cell.norm} == {"fp32"}
