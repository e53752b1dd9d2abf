"""What a tracker is given, read back with the tracker's own reader."""

import importlib.util
import time
from pathlib import Path
from unittest import mock

import pytest
from accelerate.tracking import TensorBoardTracker

from advflyp.data.batch import Batch
from advflyp.errors import RunError
from advflyp.training import loop
from advflyp.training.build import TrainingRun
from advflyp.training.loop import train
from advflyp.training.runlog import read_metrics
from advflyp.training.update import Updated

OVERRIDES = {"log.every": "1", "log.trackers": "tensorboard", "log.project": "my-project"}


def scalars(run: Path) -> dict[str, dict[int, float]]:
    """{tag: {step: value}} of the events in a run folder; a value seen twice fails."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard/my-project"))
    events.Reload()
    found: dict[str, dict[int, float]] = {}
    for tag in events.Tags()["scalars"]:
        points = events.Scalars(tag)
        found[tag] = {point.step: point.value for point in points}
        assert len(found[tag]) == len(points), f"{tag} has a step twice: {[p.step for p in points]}"
    return found


def logged(run: Path) -> dict[str, dict[int, float]]:
    """The numbers of metrics.jsonl in the same form."""
    found: dict[str, dict[int, float]] = {}
    for line in read_metrics(run):
        for key, value in line.items():
            if key not in ("kind", "step", "time") and isinstance(value, int | float):
                found.setdefault(f"{line['kind']}/{key}", {})[line["step"]] = float(value)
    return found


def check_agreement(run: Path) -> None:
    assert scalars(run) == {tag: pytest.approx(points, rel=1e-5) for tag, points in logged(run).items()}


def in_the_next_second() -> None:
    """TensorBoard reads files in the order of their names, which hold the second and then a number: 10 before 9."""
    begun = int(time.time())
    while int(time.time()) == begun:
        time.sleep(0.02)


def test_tensorboard_has_every_number_of_the_metrics(recipe: Path, tmp_path: Path) -> None:
    validated = {"validate.set": "mini/val", "validate.limit": "12", "validate.attack": "pgd2"}
    train(recipe, {**OVERRIDES, **validated}, out=tmp_path / "run")
    found = scalars(tmp_path / "run")
    assert list(found["train/loss"]) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert {"train/loss/clip", "train/phi", "train/lr", "validate/clean", "validate/robust"} <= found.keys()
    check_agreement(tmp_path / "run")


@pytest.mark.parametrize("step", [1, 5])
def test_an_interrupted_run_goes_on_in_tensorboard_as_in_the_metrics(
    recipe: Path, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.update

    def broken(run: TrainingRun, batch: Batch) -> Updated:
        if run.state.step == step:
            raise AssertionError
        return real(run, batch)

    monkeypatch.setattr(loop, "update", broken)
    with pytest.raises(AssertionError):
        train(recipe, OVERRIDES, out=tmp_path / "run")
    assert list(scalars(tmp_path / "run")["train/loss"]) == list(range(1, step + 1))
    monkeypatch.setattr(loop, "update", real)
    in_the_next_second()
    train(recipe, OVERRIDES, out=tmp_path / "run", resume=True)
    assert list(scalars(tmp_path / "run")["train/loss"]) == [1, 2, 3, 4, 5, 6, 7, 8]
    check_agreement(tmp_path / "run")


def test_a_run_that_died_before_its_first_checkpoint_begins_anew(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tracker's folder is one of the run's own: it does not make the run folder a foreign one."""
    real = loop.write_checkpoint

    def broken(self: TrainingRun, *_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(loop, "write_checkpoint", broken)
    with pytest.raises(AssertionError):
        train(recipe, OVERRIDES, out=tmp_path / "run")
    monkeypatch.setattr(loop, "write_checkpoint", real)
    in_the_next_second()
    assert train(recipe, OVERRIDES, out=tmp_path / "run").finished
    check_agreement(tmp_path / "run")


def test_a_missing_package_is_named(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: None if name == "tensorboard" else real(name, *more)
    )
    message = "^log.trackers = 'tensorboard' needs a package: pip install tensorboard$"
    with pytest.raises(ValueError, match=message):
        train(recipe, OVERRIDES, out=tmp_path / "run")
    with pytest.raises(
        ValueError, match="^log.trackers cannot be 'mlflow'; known: tensorboard, wandb, trackio$"
    ):
        train(recipe, {"log.trackers": "mlflow"}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("project", ["../other", "/tmp/other", "a\0b", "two\nlines"])
def test_a_project_is_a_name(project: str, recipe: Path, tmp_path: Path) -> None:
    """TensorBoard makes a folder of it, which would lie outside of the run's."""
    with pytest.raises(ValueError, match="^log.project must be a name such as 'advflyp', not "):
        train(recipe, {**OVERRIDES, "log.project": project}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "error", [Exception("api_key not configured\nsee the docs"), OSError(28, "No space")]
)
def test_a_tracker_that_cannot_start(
    error: Exception, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wandb without a login. It has nothing to finish, and the run that it prevented can begin."""
    message = (
        r"^log.trackers: tensorboard cannot start \(api_key not configured\); leave it out, or correct that$"
    )
    if isinstance(error, OSError):
        message = "No space.*There is no checkpoint yet"
    with monkeypatch.context() as patch, pytest.raises((ValueError, RunError), match=message):
        patch.setattr(TensorBoardTracker, "start", mock.Mock(side_effect=error))
        train(recipe, OVERRIDES, out=tmp_path / "run")
    assert train(recipe, OVERRIDES, out=tmp_path / "run").finished
