"""`advflyp reproduce` for real, on a plan cut down to seconds."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from advflyp.errors import RunError
from advflyp.evaluation.results import read_cells
from advflyp.evaluation.samples import read_samples
from advflyp.model.folder import weights_sha256
from advflyp.model.load import load_model
from advflyp.model.precision import Resolved, resolve
from advflyp.paper import reproduce as module
from advflyp.paper import tuning as tune
from advflyp.paper.cost import cost
from advflyp.paper.experiments import make_plan
from advflyp.paper.page import experiment_means
from advflyp.paper.plan import Plan, read_begun
from advflyp.paper.proxies.plan import PROXIES
from advflyp.paper.reproduce import reproduce
from advflyp.paper.steps import carry_out, is_done, steps_of
from advflyp.paper.study import main_experiment, read_study
from advflyp.paper.tuning import read_tuning, tuned_rate
from advflyp.training import loop
from advflyp.training.build import TrainingRun
from paper.small_study import accuracies, small
from report.sample import write_sample


@pytest.fixture
def quiet() -> Console:
    return Console(quiet=True)


def test_everything_is_measured_once(tiny_folder: Path, tmp_path: Path, quiet: Console) -> None:
    plan = small(tiny_folder, seeds=2)
    assert carry_out(plan, plan, tmp_path, quiet) == {}
    found = accuracies(tmp_path)
    assert sorted(found) == [
        "advflyp-s0", "advflyp-s1", "advflyp_full-s0", "advflyp_full-s1", "original-s0",
    ]  # fmt: skip
    assert all(len(cells) == 4 for cells in found.values())
    seeds = [read_cells(tmp_path / f"results/advflyp-s{seed}.jsonl")[0] for seed in (0, 1)]
    assert seeds[0].model == seeds[1].model == "AdvFLYP"
    assert seeds[0].checkpoint_sha256 != seeds[1].checkpoint_sha256
    assert not list(tmp_path.glob("runs/*/checkpoints"))

    # A second call has nothing to do, also without the weights.
    shutil.rmtree(tmp_path / "runs")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()}
    assert carry_out(plan, plan, tmp_path, quiet) == {}
    assert not (tmp_path / "runs").exists()
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()}


@pytest.mark.parametrize("best", [1, 2])
def test_a_training_gives_its_last_weights_and_its_best(
    tiny_folder: Path, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch, best: int
) -> None:
    """Of two updates the first or the second is the best; what is both is measured once."""
    scores = iter([0.0, *(float(step == best) for step in (1, 2))])

    class FakeEvaluator:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def run(self, *_: object, **__: object) -> SimpleNamespace:
            return SimpleNamespace(accuracy=next(scores))

    monkeypatch.setattr("advflyp.training.validation.Evaluator", FakeEvaluator)
    plan = small(tiny_folder)
    keys = {
        "validate.set": "mini/val", "validate.attack": "clean", "validate.every": 1, "validate.epochs": 99,
        "checkpoint.last": True,
    }  # fmt: skip
    run = dataclasses.replace(plan.run("advflyp"), overrides=plan.run("advflyp").overrides | keys)
    twin = dataclasses.replace(run, name="advflyp-best", label="AdvFLYP, best", best_of="advflyp")
    experiment = dataclasses.replace(plan.experiments[0], runs=("advflyp", "advflyp-best"))
    plan = dataclasses.replace(plan, runs=(run, twin), experiments=(experiment,))
    assert [name.split(":")[0] for name, _ in cost(plan, tmp_path, lambda _: 4)] == [
        "train advflyp-s0", "measure advflyp-s0", "measure advflyp-best-s0",
    ]  # fmt: skip
    assert carry_out(plan, plan, tmp_path, quiet) == {}
    stores = [tmp_path / "results" / f"{name}-s0.jsonl" for name in ("advflyp", "advflyp-best")]
    last, chosen = (read_cells(store) for store in stores)
    folders = [tmp_path / "runs" / "advflyp-s0" / name for name in ("last", "best")]
    for cells, folder, store in zip((last, chosen), folders, stores, strict=True):
        sha256 = weights_sha256(load_model(folder))
        assert len(cells) == 4 and {cell.checkpoint_sha256 for cell in cells} == {sha256}
        assert all(len(read_samples(store, cell).correct) == 4 for cell in cells)
    assert {cell.model for cell in chosen} == {"AdvFLYP, best"}
    same = [dataclasses.replace(cell, model="AdvFLYP, best") for cell in last] == chosen
    assert same == (best == 2), "to the second that it took"
    assert cost(plan, tmp_path, lambda _: 4) == []


def test_goes_on_where_it_was_stopped(tiny_folder: Path, tmp_path: Path, quiet: Console) -> None:
    plan = small(tiny_folder)
    carry_out(plan, plan, tmp_path / "whole", quiet)
    one = dataclasses.replace(plan, runs=plan.runs[:2])
    part = dataclasses.replace(
        one, experiments=(dataclasses.replace(plan.experiments[0], runs=("original",)),)
    )
    carry_out(part, plan, tmp_path / "parts", quiet)
    assert [step.name for step in steps_of(plan) if not is_done(step, tmp_path / "parts")] == [
        "advflyp_full-s0",
        "advflyp-s0",
    ]
    # Half of a result file, as an interruption leaves it.
    store = tmp_path / "parts/results/original-s0.jsonl"
    store.write_text("".join(store.read_text().splitlines(keepends=True)[:2]))
    carry_out(plan, plan, tmp_path / "parts", quiet)
    assert accuracies(tmp_path / "parts") == accuracies(tmp_path / "whole")


def test_a_training_that_a_signal_stopped_is_continued(
    tiny_folder: Path, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small(tiny_folder)
    carry_out(plan, plan, tmp_path / "whole", quiet)
    real_step = loop.update

    def stopped(run: TrainingRun, batch: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return real_step(run, batch)

    monkeypatch.setattr(loop, "update", stopped)
    with pytest.raises(RunError, match="stopped the training of advflyp_full-s0; the same command continues"):
        carry_out(plan, plan, tmp_path / "parts", quiet)
    # One of two steps is made: these weights are no result.
    assert sorted(accuracies(tmp_path / "parts")) == ["original-s0"]
    monkeypatch.undo()
    carry_out(plan, plan, tmp_path / "parts", quiet)
    assert accuracies(tmp_path / "parts") == accuracies(tmp_path / "whole")


def test_a_failing_step_leaves_the_others(tiny_folder: Path, tmp_path: Path, quiet: Console) -> None:
    plan = small(tiny_folder)
    broken = dataclasses.replace(plan.runs[1], overrides=plan.runs[1].overrides | {"data.train": "nowhere"})
    plan = dataclasses.replace(plan, runs=(plan.runs[0], broken, plan.runs[2]))
    failed = carry_out(plan, plan, tmp_path, quiet)
    assert len(failed) == 1
    assert f"{broken.name}-s0" in next(iter(failed)) and "no pairs at nowhere" in next(iter(failed.values()))
    assert sorted(accuracies(tmp_path)) == sorted(f"{run.name}-s0" for run in plan.runs if run != broken)


def test_results_of_other_weights_are_not_mixed_in(tiny_folder: Path, tmp_path: Path, quiet: Console) -> None:
    plan = small(tiny_folder)
    plan = dataclasses.replace(
        plan, runs=plan.runs[:1], experiments=(dataclasses.replace(plan.experiments[0], runs=("original",)),)
    )
    carry_out(plan, plan, tmp_path, quiet)
    store = tmp_path / "results/original-s0.jsonl"
    first = json.loads(store.read_text().splitlines()[0])
    store.write_text(json.dumps(first | {"checkpoint_sha256": "0" * 64}) + "\n")
    failed = carry_out(plan, plan, tmp_path, quiet)
    assert "holds results of weights other than" in next(iter(failed.values()))
    assert len(store.read_text().splitlines()) == 1


@pytest.mark.long
def test_two_processes_share_the_work(tiny_folder: Path, tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from pathlib import Path
        from rich.console import Console
        from advflyp.paper.steps import carry_out
        from paper.small_study import small
        plan = small(Path({str(tiny_folder)!r}))
        assert carry_out(plan, plan, Path({str(tmp_path)!r}), Console(width=200)) == {{}}
    """)
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert all(len(cells) == 4 for cells in accuracies(tmp_path).values())
    # Each step was begun by exactly one of them.
    begun = "".join(printed for printed, _ in outputs)
    for name in ("original-s0", "advflyp-s0", "advflyp_full-s0"):
        assert begun.count(f"{name}: clean pgd2") == 1


def test_the_rate_with_the_best_score_is_taken(
    tiny_folder: Path, tmp_path: Path, quiet: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "UPDATES", 2)
    monkeypatch.setattr(tune, "IMAGES", 20)
    plan = small(tiny_folder, grid=(1e-5, 1e-3))
    carry_out(plan, plan, tmp_path, quiet)
    scores = read_tuning(tmp_path)
    assert set(scores) == {"advflyp", "advflyp_full"}
    assert set(scores["advflyp"]) == {"1e-05", "0.001"}
    for name, rates in scores.items():
        for one in rates.values():
            assert one["score"] == pytest.approx((one["clean"] + one["robust"]) / 2)
        best = max(map(float, rates), key=lambda rate: (rates[f"{rate:g}"]["score"], -rate))
        recipe = tomllib.loads((tmp_path / "runs" / f"{name}-s0" / "recipe.toml").read_text())
        assert recipe["optim"]["lr"] == best
    assert not list((tmp_path / "tuning").iterdir())

    # Known scores are not searched again, and decide.
    known = {"advflyp": {"1e-05": {"score": 0.1}, "0.001": {"score": 0.2}}}
    (tmp_path / "tuning.json").write_text(json.dumps(known))
    never: Any = None
    assert tuned_rate("advflyp", never, {}, (1e-5, 1e-3), tmp_path, quiet) == 1e-3


def test_dry_run_says_what_is_left_and_writes_nothing(
    tiny_folder: Path, tmp_path: Path, quiet: Console
) -> None:
    plan = small(tiny_folder)
    left = cost(plan, tmp_path / "new", lambda name: 100)
    assert [name.split()[0] for name, _ in left] == ["measure", "train", "measure", "train", "measure"]
    assert not (tmp_path / "new").exists()
    by_name = dict(left)
    # 2 steps of 16 pairs, PGD-2: 4 + 3 forward passes a pair; both regularisers 4 more.
    basic, full = by_name["train advflyp-s0"].hours, by_name["train advflyp_full-s0"].hours
    assert full / basic == pytest.approx(11 / 7)
    carry_out(plan, plan, tmp_path / "new", quiet)
    assert cost(plan, tmp_path / "new", lambda name: 100) == []


def test_tables_are_printed_and_written(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "make_plan", lambda *_, **__: small(tiny_folder))
    assert reproduce(tmp_path / "out", console=Console(width=160)) == {}
    printed = capsys.readouterr().out
    assert "AdvFLYP_full" in printed and "Table 4" in printed
    assert (tmp_path / "out/report/index.html").is_file() and list(
        (tmp_path / "out/report/tables").glob("*.tex")
    )


@pytest.mark.parametrize("begun", [None, "bf16", "fp32"])
@pytest.mark.parametrize("asked", [None, "bf16", "fp32"])
def test_a_study_keeps_its_precision_until_another_is_asked_for(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    begun: Resolved | None,
    asked: Resolved | None,
) -> None:
    monkeypatch.setattr(module, "make_plan", lambda *_, **__: small(tiny_folder))
    monkeypatch.setattr(module, "paper_report", lambda *_: None)
    monkeypatch.setattr(module, "_print_means", lambda *_: None)
    seen = []
    monkeypatch.setattr(module, "carry_out", lambda plan, whole, *_: seen.append((plan, whole)) or {})
    if begun:
        dataclasses.replace(small(tiny_folder), precision=begun).write(tmp_path)
    reproduce(tmp_path, only=["table4"], precision=asked)
    [(plan, whole)] = seen
    assert plan.precision == (asked or begun or resolve("auto", "cpu"))
    assert whole.precision == (begun or plan.precision)


def test_a_study_goes_on_with_the_trainings_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results count by name: those of ten updates would pass for those of a hundred."""
    done: list[Plan] = []
    monkeypatch.setattr(
        module, "carry_out", lambda plan, whole, out, _: whole.write(out) or done.append(plan) or {}
    )
    monkeypatch.setattr(module, "paper_report", lambda *_: None)
    monkeypatch.setattr(module, "_print_means", lambda *_: None)
    reproduce(tmp_path, steps=10, only=[PROXIES])
    with pytest.raises(
        ValueError, match="this study began with train.max_steps = 10 for .*, not 100; repeat"
    ):
        reproduce(tmp_path)
    with pytest.raises(ValueError, match="not 100; repeat"):
        reproduce(tmp_path, dry_run=True)
    reproduce(tmp_path, report_only=True)
    reproduce(tmp_path, steps=10, seeds=2, only=["table1"])
    # The plan keeps what the study has; it is carried out if asked for.
    assert PROXIES in {e["id"] for e in read_begun(tmp_path)["experiments"]}
    reproduce(tmp_path, steps=10)
    assert [[e.id for e in plan.experiments][:1] for plan in done[:2]] == [[PROXIES], ["table1"]]
    assert len(done) == 3 and PROXIES not in {e.id for e in done[2].experiments}
    assert {run.name for run in done[2].runs} == {run.name for run in make_plan("mini", steps=10).runs}


def test_folders_that_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        reproduce(tmp_path / "file")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").write_text("")
    with pytest.raises(ValueError, match="holds other files"):
        reproduce(tmp_path / "photos")
    # Common names, of others.
    (tmp_path / "photos/cat.jpg").unlink()
    (tmp_path / "photos/results").mkdir()
    with pytest.raises(ValueError, match=r"holds other files \(results\)"):
        reproduce(tmp_path / "photos")
    (tmp_path / "photos/plan.json").write_text('{"precision": "fp32"}')
    with pytest.raises(ValueError, match="is not a plan of `advflyp reproduce`"):
        reproduce(tmp_path / "photos")
    assert (tmp_path / "photos/plan.json").read_text() == '{"precision": "fp32"}'
    with pytest.raises(ValueError, match="there is no .*plan.json"):
        reproduce(tmp_path / "none", report_only=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "photos"]


@pytest.mark.parametrize("only", [(), ("table6", "figure3")])
def test_what_is_printed_fits_a_terminal(tmp_path: Path, only: tuple[str, ...]) -> None:
    """The means of the main experiment or of those asked for, whole; all tables are in the report."""
    write_sample(tmp_path, seeds=1, embedding=False)
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        module._print_means(tmp_path, only, console)
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) < 100 and not any("…" in line for line in lines)
    text = "\n".join(lines)
    titles = ("Table 6: tunable modules", "Fig. 3: amount of data") if only else ("Table 1: robust accuracy",)
    places = [text.index(title) for title in titles]
    assert places == sorted(places) and text.count("means over sets in %") == len(titles)
    table = experiment_means(read_study(tmp_path), main_experiment(read_study(tmp_path)))
    for row in [] if only else table.rows:
        for value in row:
            assert isinstance(value, str) or value is None or value.number in text
