"""What `advflyp reproduce` does when a training diverges or was begun in another precision."""

import dataclasses
import json
import signal
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from advflyp.errors import LostRank, RunError
from advflyp.paper import steps as module
from advflyp.paper import tuning as tune
from advflyp.paper.plan import Measure, Plan
from advflyp.paper.steps import carry_out
from advflyp.paper.tuning import read_tuning
from advflyp.training import loop
from paper.small_study import accuracies, small

DIVERGING = 1e6
AT_ONCE = {"optim.warmup_steps": 0, "optim.weight_decay": 0.0}


@pytest.fixture
def quiet() -> Console:
    return Console(quiet=True)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the trainings and tries that were begun."""
    begun: list[str] = []
    for one in (module, tune):
        real = one.train

        def counted(*args: Any, real: Any = real, **keys: Any) -> Any:
            begun.append(Path(keys["out"]).name)
            return real(*args, **keys)

        monkeypatch.setattr(one, "train", counted)
    monkeypatch.setattr(tune, "UPDATES", 2)
    monkeypatch.setattr(tune, "IMAGES", 8)
    return begun


def at_once(plan: Plan, diverging: tuple[str, ...] = ()) -> Plan:
    """The plan with learning rates that take effect at once, and with these runs diverging."""
    runs = tuple(
        dataclasses.replace(
            run,
            overrides=run.overrides | AT_ONCE | ({"optim.lr": DIVERGING} if run.name in diverging else {}),
        )
        if run.recipe
        else run
        for run in plan.runs
    )
    return dataclasses.replace(plan, runs=runs)


def test_a_rate_that_diverges_scores_nothing_and_is_not_tried_again(
    tiny_folder: Path, tmp_path: Path, trainings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = at_once(small(tiny_folder, grid=(1e-3, DIVERGING)))
    assert carry_out(plan, plan, tmp_path, Console(width=200)) == {}
    assert "advflyp: learning rate 1e+06 diverges and scores 0.000" in capsys.readouterr().out
    for name, rates in read_tuning(tmp_path).items():
        assert rates["1e+06"] == {"clean": 0.0, "robust": 0.0, "score": 0.0, "diverged": 1.0}
        assert "diverged" not in rates["0.001"]
        recipe = tomllib.loads((tmp_path / "runs" / f"{name}-s0" / "recipe.toml").read_text())
        assert recipe["optim"]["lr"] == 1e-3
    assert len(accuracies(tmp_path)) == 3 and not list((tmp_path / "tuning").iterdir())
    again = dataclasses.replace(plan, seeds=2)
    trainings.clear()
    assert carry_out(again, again, tmp_path, Console(quiet=True)) == {}
    assert sorted(trainings) == ["advflyp-s1", "advflyp_full-s1"]


def test_a_diverging_rate_loses_to_an_accuracy_of_0(tmp_path: Path, quiet: Console) -> None:
    """Also the smaller of two, to which ties would go."""
    known = {"flyp": {"0.001": tune.DIVERGED, "0.003": {"score": 0.0}}}
    (tmp_path / "tuning.json").write_text(json.dumps(known))
    assert tune.tuned_rate("flyp", Path("none"), {}, (1e-3, 3e-3), tmp_path, quiet) == 3e-3


def test_where_every_rate_diverges_the_method_fails(
    tiny_folder: Path, tmp_path: Path, quiet: Console, trainings: list[str]
) -> None:
    plan = at_once(small(tiny_folder, seeds=2, grid=(DIVERGING / 10, DIVERGING)))
    for tries in (4, 0):
        trainings.clear()
        failed = carry_out(plan, plan, tmp_path, quiet)
        assert sorted(step.split(":")[0] for step in failed) == [
            "advflyp-s0", "advflyp-s1", "advflyp_full-s0", "advflyp_full-s1",
        ]  # fmt: skip
        message = next(reason for step, reason in failed.items() if step.startswith("advflyp-s1"))
        assert "training of advflyp diverges at every learning rate that was tried (100000, 1e+06)" in message
        assert "remove advflyp from" in message and "tuning.json" in message
        assert len(trainings) == tries
    assert sorted(accuracies(tmp_path)) == ["original-s0"]


def test_a_training_that_diverges_leaves_the_others(
    tiny_folder: Path, tmp_path: Path, quiet: Console, trainings: list[str]
) -> None:
    plan = two_measures(at_once(small(tiny_folder), diverging=("advflyp_full",)))
    failed = carry_out(plan, plan, tmp_path, quiet)
    assert [step.split(":")[0] for step in failed] == ["advflyp_full-s0"] * 2, "both of its measures"
    assert all("the run diverged" in reason for reason in failed.values())
    assert trainings.count("advflyp_full-s0") == 1
    assert sorted(accuracies(tmp_path)) == ["advflyp-s0", "original-s0"]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_training_that_runs_out_of_memory_leaves_the_others(
    tiny_folder: Path,
    tmp_path: Path,
    quiet: Console,
    trainings: list[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    plan, real = two_measures(small(tiny_folder)), loop.update

    def starved(run: Any, batch: Any) -> Any:
        if run.folder.path.name == "advflyp_full-s0":
            raise error
        return real(run, batch)

    monkeypatch.setattr(loop, "update", starved)
    failed = carry_out(plan, plan, tmp_path, quiet)
    assert [step.split(":")[0] for step in failed] == ["advflyp_full-s0"] * 2, "both of its measures"
    assert {*failed.values()} == {module.NO_MEMORY} and trainings.count("advflyp_full-s0") == 1
    assert sorted(accuracies(tmp_path)) == ["advflyp-s0", "original-s0"]
    monkeypatch.setattr(loop, "update", real)
    assert carry_out(plan, plan, tmp_path, quiet) == {}
    assert sorted(accuracies(tmp_path)) == ["advflyp-s0", "advflyp_full-s0", "original-s0"]


def test_an_evaluation_that_runs_out_of_memory_leaves_the_others(
    tiny_folder: Path, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, real = two_measures(small(tiny_folder)), module.evaluate

    def starved(*args: Any, **keys: Any) -> Any:
        if keys["limit"] == 3:
            raise torch.OutOfMemoryError
        return real(*args, **keys)

    monkeypatch.setattr(module, "evaluate", starved)
    failed = carry_out(plan, plan, tmp_path, quiet)
    assert len(failed) == 3 and all("3 images a set" in step for step in failed), (
        "the other measures are done"
    )
    assert {*failed.values()} == {module.NO_MEMORY}


def two_measures(plan: Plan) -> Plan:
    """The plan with a second measure for all of its runs."""
    first = plan.experiments[0]
    more = Measure(sets=("mini/food",), attacks=("clean",), limit=3)
    return dataclasses.replace(
        plan, experiments=(dataclasses.replace(first, measures=(*first.measures, more)),)
    )


@pytest.mark.parametrize("error", [RunError("cannot write to weights: No space left on device"), LostRank()])
def test_a_failing_machine_stops_the_study(
    tiny_folder: Path, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch, error: RunError
) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(module, "train", failing)
    plan = small(tiny_folder)
    with pytest.raises(type(error), match=str(error)[:20]):
        carry_out(plan, plan, tmp_path, quiet)


def test_a_training_that_was_begun_keeps_its_precision(
    tiny_folder: Path, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--precision` names that of the remaining work."""
    plan = dataclasses.replace(small(tiny_folder), precision="fp32")
    real = loop.update

    def stopped(run: Any, batch: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return real(run, batch)

    monkeypatch.setattr(loop, "update", stopped)
    with pytest.raises(RunError, match="stopped the training of advflyp_full-s0"):
        carry_out(plan, plan, tmp_path, quiet)
    monkeypatch.setattr(loop, "update", real)
    other = dataclasses.replace(plan, precision="bf16")
    assert carry_out(other, plan, tmp_path, quiet) == {}
    recipes = {
        path.parent.name: tomllib.loads(path.read_text()) for path in tmp_path.glob("runs/*/recipe.toml")
    }
    assert {name: recipe["train"]["precision"] for name, recipe in recipes.items()} == {
        "advflyp_full-s0": "fp32",
        "advflyp-s0": "bf16",
    }
