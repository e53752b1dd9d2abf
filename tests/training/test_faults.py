"""What can go wrong with a run, done to real processes: each fault ends in the state that is promised."""

import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from advflyp.data.batch import Batch
from advflyp.data.pairs.stream import permutation
from advflyp.errors import RunError
from advflyp.model.load import load_model
from advflyp.training import loop
from advflyp.training.build import TrainingRun
from advflyp.training.checkpoint import Damaged, checkpoints, load_checkpoint, load_last, step_of
from advflyp.training.failures import diagnose
from advflyp.training.loop import train
from advflyp.training.runlog import read_metrics
from advflyp.training.update import Updated
from training.processes import PATIENCE, Running, finish, run, start

# Small steps, and so many of them that a run can be hit anywhere.
LONG = pytest.mark.long
OVERRIDES = {"checkpoint.every": "2", "train.epochs": "6", "optim.name": "sgd", "optim.lr": "0.05"}
VALIDATED = {**OVERRIDES, "validate.set": "mini/val", "validate.limit": "12", "validate.every": "3",
             "validate.attack": "pgd2"}  # fmt: skip
STEPS = 24


def command(recipe: Path, out: Path, overrides: dict[str, str], *more: str) -> list[str]:
    options = [text for key, value in overrides.items() for text in (f"--{key}", value)]
    return ["advflyp", "train", str(recipe), "--out", str(out), *options, *more]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_model(run).net.state_dict()


def logged(run: Path) -> list[tuple[str, int]]:
    return [(line["kind"], line["step"]) for line in read_metrics(run)]


def same(a: Path, b: Path) -> bool:
    return all(torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True))


def wait_for_steps(run: Path, process: Running, step: int) -> None:
    begun = time.monotonic()
    while process.poll() is None and time.monotonic() - begun < PATIENCE:
        if any(step_of(path) >= step for path in checkpoints(run / "checkpoints")):
            return
        time.sleep(0.01)
    pytest.fail(f"no step {step}: {process.communicate()}")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> tuple[Path, Path]:
    """A recipe, and the run of it that nothing happened to."""
    from helpers import RECIPE, write_folder

    folder = tmp_path_factory.mktemp("faults")
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(model=tiny_folder, data=write_folder(folder / "pairs", 64)))
    train(recipe, VALIDATED, out=folder / "whole")
    return recipe, folder / "whole"


def killed_at_random(recipe: Path, out: Path, kills: int, seed: int) -> int:
    """Kill and resume the run `kills` times at random moments; how often it was really killed."""
    moments, done = random.Random(seed), 0
    seconds = 3.0
    for _ in range(kills):
        begun = time.monotonic()
        (process,) = start(1, command(recipe, out, VALIDATED, "--resume"))
        try:
            _, err = process.communicate(timeout=moments.uniform(0, seconds))
            assert process.returncode == 0, err
            # It was over before: the run takes less than thought, or little of it was left.
            seconds = 0.5 * (time.monotonic() - begun)
            shutil.rmtree(out)
        except TimeoutError:
            process.kill()
            process.communicate()
            done += 1
    run(1, command(recipe, out, VALIDATED, "--resume"))
    return done


@pytest.mark.parametrize(
    "kills", [pytest.param(4, marks=pytest.mark.long), pytest.param(60, marks=pytest.mark.slow)]
)
def test_kill_9_at_any_moment(expected: tuple[Path, Path], tmp_path: Path, kills: int) -> None:
    recipe, whole = expected
    assert killed_at_random(recipe, tmp_path / "run", kills, seed=kills) >= kills // 2
    assert same(tmp_path / "run", whole)
    (last,) = [p for p in checkpoints(tmp_path / "run/checkpoints") if step_of(p) == STEPS]
    (other,) = [p for p in checkpoints(whole / "checkpoints") if step_of(p) == STEPS]
    found, wanted = load_checkpoint(last), load_checkpoint(other)
    assert found["progress"] == wanted["progress"]
    for key, value in wanted["model"].items():
        assert torch.equal(found["model"][key], value), key
    assert logged(tmp_path / "run") == logged(whole)
    assert not list((tmp_path / "run").rglob("*.partial")), "drafts are taken away by the next one who writes"


def test_what_was_logged_after_the_checkpoint_is_logged_once(
    expected: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of epoch 1 validates at step 4, of which there is a checkpoint already; the one after it never comes."""
    recipe, whole = expected
    save = loop.write_checkpoint

    def gone(run: TrainingRun, *args: object) -> None:
        if run.state.validated_at == 4:
            raise KeyboardInterrupt
        save(run, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "write_checkpoint", gone)
        train(recipe, VALIDATED, out=tmp_path / "run")
    assert (
        read_metrics(tmp_path / "run")[-1]["step"]
        == step_of(checkpoints(tmp_path / "run/checkpoints")[-1])
        == 4
    )
    train(recipe, VALIDATED, out=tmp_path / "run", resume=True)
    assert logged(tmp_path / "run") == logged(whole)
    # What counts towards patience, too.
    found, wanted = (load_last(run / "checkpoints")[0]["progress"] for run in (tmp_path / "run", whole))
    assert found == wanted and wanted["validations_without_gain"] > 0


@pytest.mark.parametrize(
    ("name", "code"),
    [("SIGTERM", 0), pytest.param("SIGUSR1", 0, marks=LONG), pytest.param("SIGINT", 130, marks=LONG)],
)
def test_a_signal_saves_and_ends(expected: tuple[Path, Path], tmp_path: Path, name: str, code: int) -> None:
    recipe, whole = expected
    out = tmp_path / "run"
    # Checkpoints only where the signal asks for one.
    overrides = {**VALIDATED, "checkpoint.every": "1000"}
    (process,) = start(1, command(recipe, out, overrides))
    wait_for_steps(out, process, 4)  # the end of the first epoch
    process.send_signal(getattr(signal, name))
    said, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, err
    assert err == ("advflyp: interrupted; continue with --resume\n" if code else "")
    step = step_of(checkpoints(out / "checkpoints")[-1])
    assert 4 <= step < STEPS
    assert f"{name} ended the run after step {step}; continue it with --resume" in " ".join(said.split())
    assert "the model is" not in said
    result = train(recipe, overrides, out=out, resume=True)
    assert result.finished and result.steps == STEPS
    assert same(out, whole)


def test_a_signal_during_a_validation(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of an epoch, whose last samples, among them unusable ones, fill no batch."""
    images = sorted((recipe.parent / "pairs").glob("*.png"))
    left_over = permutation(len(images), 0, 0)[-(len(images) % 16) :]
    for place in left_over[:2]:
        images[place].write_bytes(b"no image")
    overrides = {**VALIDATED, "train.epochs": "2"}
    whole = train(recipe, overrides, out=tmp_path / "whole")
    real = loop.validate
    asked = []

    def interrupted(run: TrainingRun, log: object) -> None:
        if run.state.step == 6 and not asked:
            asked.append(os.kill(os.getpid(), signal.SIGTERM))
        real(run, log)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "validate", interrupted)
    result = train(recipe, overrides, out=tmp_path / "run")
    assert (result.finished, result.steps) == (False, 6)
    assert not [
        line for line in read_metrics(tmp_path / "run") if line["kind"] == "validate" and line["step"] == 6
    ]
    again = train(recipe, overrides, out=tmp_path / "run", resume=True)
    assert (again.finished, again.best) == (True, whole.best)
    assert same(tmp_path / "run", tmp_path / "whole")
    skipped = [
        [(line["step"], line["skipped"]) for line in read_metrics(tmp_path / name) if line["kind"] == "data"]
        for name in ("run", "whole")
    ]
    assert skipped[0] == skipped[1] and [number for _, number in skipped[0]] == [
        {"not an image": 2},
        {"not an image": 4},
    ]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "outside a run the signals do what they did"


@pytest.mark.parametrize(
    ("at", "times", "left"),
    [
        pytest.param(0, 1, [0], marks=LONG),
        pytest.param(0, 2, [], marks=LONG),
        (6, 1, [4, 6]),
        pytest.param(6, 2, [2, 4], marks=LONG),
    ],
)
def test_ctrl_c_during_a_checkpoint(
    expected: tuple[Path, Path],
    tmp_path: Path,
    at: int,
    times: int,
    left: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once, and the run ends behind it; twice, and what was being written is dropped."""
    recipe, whole = expected
    out = tmp_path / "run"
    real = torch.save

    def save(state: dict, file: object) -> None:
        real(state, file)  # type: ignore[arg-type]
        if state["progress"]["step"] == at:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, VALIDATED, out=out)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert [step_of(path) for path in checkpoints(out / "checkpoints")] == left
    assert not list(out.rglob("*.partial"))
    train(recipe, VALIDATED, out=out, resume=True)
    assert same(out, whole)


def test_the_original_is_not_measured_twice(
    expected: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, whole = expected
    out = tmp_path / "run"
    real = loop.validate_original

    def interrupted(run: TrainingRun, log: object) -> None:
        real(run, log)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate_original", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, VALIDATED, out=out)
    train(recipe, VALIDATED, out=out, resume=True)
    steps = [
        [line["step"] for line in read_metrics(run) if line["kind"] == "validate"] for run in (out, whole)
    ]
    assert steps[0] == steps[1]
    assert same(out, whole)


def test_ctrl_c_that_the_shell_has_turned_off(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does for what runs in the background."""
    real = loop.update

    def step(run: TrainingRun, batch: Batch) -> Updated:
        os.kill(os.getpid(), signal.SIGINT)
        return real(run, batch)

    monkeypatch.setattr(loop, "update", step)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert train(recipe, {"train.max_steps": "2"}, out=tmp_path / "run").finished
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_full_disk_behind_the_text_cache(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line; on a disk with space the run goes on, its cache elsewhere."""
    overrides = {
        "data.text_cache": str(tmp_path / "texts"),
        "train.deterministic": "false",
        "train.max_steps": "2",
    }
    with open("/dev/full", "ab") as full, monkeypatch.context() as patch:
        patch.setattr("advflyp.model.text_store.TextStore._own_file", lambda self: full)
        with pytest.raises(
            RunError, match=r"step 1: /dev/full: No space left on device; free some space, then continue"
        ):
            train(recipe, overrides, out=tmp_path / "run")
    overrides["data.text_cache"] = str(tmp_path / "elsewhere")
    assert train(recipe, overrides, out=tmp_path / "run", resume=True).finished


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "torn":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])


@pytest.mark.parametrize(
    "how", ["torn", pytest.param("empty", marks=LONG), pytest.param("one bit", marks=LONG)]
)
def test_a_damaged_checkpoint_is_passed_over(
    expected: tuple[Path, Path], tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, whole = expected
    out = tmp_path / "run"
    overrides = {**VALIDATED, "train.max_steps": "24"}
    real, done = loop.update, 0

    def dying(run: TrainingRun, batch: Batch) -> Updated:
        nonlocal done
        done += 1
        if done == 12:
            raise KeyboardInterrupt
        return real(run, batch)

    monkeypatch.setattr(loop, "update", dying)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, overrides, out=out)
    monkeypatch.undo()
    before, last = checkpoints(out / "checkpoints")
    damage(last, how)
    state, wrong = load_last(out / "checkpoints")
    assert state["progress"]["step"] == step_of(before)
    assert len(wrong) == 1 and last.name in wrong[0]
    train(recipe, overrides, out=out, resume=True)
    assert same(out, whole)
    assert last not in checkpoints(out / "checkpoints")


def test_no_whole_checkpoint(recipe: Path, tmp_path: Path) -> None:
    train(recipe, {"train.max_steps": "3"}, out=tmp_path / "run")
    for path in checkpoints(tmp_path / "run/checkpoints"):
        damage(path, "torn")
    with pytest.raises(Damaged, match=r"no checkpoint in .* is intact"):
        train(recipe, {"train.max_steps": "3"}, out=tmp_path / "run", resume=True)


def test_a_full_disk(expected: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real system call fails: no file may grow beyond what is allowed to a process."""
    recipe, whole = expected
    out = tmp_path / "run"
    full = {"on": False}
    real = loop.update

    def step(run: TrainingRun, batch: Batch) -> Updated:
        if run.state.step == 7 and not full["on"]:
            full["on"] = True
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        return real(run, batch)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    monkeypatch.setattr(loop, "update", step)
    try:
        with pytest.raises(
            RunError, match=r"cannot write to .*checkpoints: File too large\. The last good checkpoint"
        ):
            train(recipe, VALIDATED, out=out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    left = checkpoints(out / "checkpoints")
    assert [step_of(path) for path in left] == [4, 6]
    assert not list((out / "checkpoints").glob("*.partial"))
    monkeypatch.undo()
    train(recipe, VALIDATED, out=out, resume=True)
    assert same(out, whole)


def test_no_space_is_said_with_what_to_do(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from advflyp.training import checkpoint

    real = checkpoint._Hashed.write

    def write(self: checkpoint._Hashed, data: bytes) -> int:
        if self.file.tell() > 10_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, data)

    monkeypatch.setattr(checkpoint._Hashed, "write", write)
    message = (
        r"No space left on device\. There is no checkpoint yet\. Free some space, then continue with --resume"
    )
    with pytest.raises(RunError, match=message):
        train(recipe, out=tmp_path / "run")
    assert not list((tmp_path / "run/checkpoints").iterdir())


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_run_that_diverges(
    recipe: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.update

    def step(run: TrainingRun, batch: Batch) -> Updated:
        if run.state.step == 5:
            with torch.no_grad():
                weight = next(p for p in run.parameters if p.ndim == 2)
                weight.fill_(float("nan" if where == "loss" else "1e20"))
        return real(run, batch)

    monkeypatch.setattr(loop, "update", step)
    overrides = {"checkpoint.every": "2", "log.every": "2"}
    with pytest.raises(
        RunError, match=r"by step 6: the run diverged\. The last good checkpoint is that of step 4"
    ):
        train(recipe, overrides, out=tmp_path / "run")
    state, _ = load_last(tmp_path / "run/checkpoints")
    assert all(value.isfinite().all() for value in state["model"].values() if value.is_floating_point())


@pytest.mark.parametrize("value", ["nan", "inf", "1e30"])
def test_weights_that_the_last_update_broke_are_not_saved(
    recipe: Path, tmp_path: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses and gradients of that step are still fine; weights of 1e30 are finite, and what they compute is not."""
    real = loop.update

    def step(run: TrainingRun, batch: Batch) -> Updated:
        metrics = real(run, batch)
        if run.state.step == 3:
            with torch.no_grad():
                for weight in run.parameters:
                    weight.fill_(float(value))
        return metrics

    monkeypatch.setattr(loop, "update", step)
    message = (
        r"not finite.* by step 4: the run diverged\. The last good checkpoint is that of step 2\. Start again"
    )
    with pytest.raises(RunError, match=message):
        train(recipe, {"checkpoint.every": "2", "train.max_steps": "4"}, out=tmp_path / "run")
    assert [step_of(path) for path in checkpoints(tmp_path / "run/checkpoints")][-1] == 2
    assert not (tmp_path / "run/best").exists()


@pytest.mark.parametrize("lost", ["unlistable", "gone"])
def test_checkpoints_that_are_there_no_more(
    recipe: Path, tmp_path: Path, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is begun anew over the results of a run."""
    out = tmp_path / "run"
    train(recipe, {"train.max_steps": "2"}, out=out)
    before = (out / "metrics.jsonl").read_bytes()
    if lost == "gone":
        (out / "checkpoints").rename(tmp_path / "elsewhere")
        message = "whose checkpoints are gone"
    else:

        def refused(folder: Path) -> list[str]:
            raise PermissionError(13, "Permission denied", str(folder))

        monkeypatch.setattr("advflyp.training.checkpoint.os.listdir", refused)
        message = r"cannot list the checkpoints in .*checkpoints: Permission denied"
    with pytest.raises(ValueError, match=message):
        train(recipe, {"train.max_steps": "2"}, out=out, resume=True)
    assert before and (out / "metrics.jsonl").read_bytes() == before


def test_out_of_memory_names_the_settings(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(run: TrainingRun, batch: Batch) -> Updated:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(loop, "update", step)
    with pytest.raises(RunError, match=r"step 1: out of memory.*--train.micro_batch auto"):
        train(recipe, out=tmp_path / "run")
    # The real one of a CPU says it otherwise.
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert "train.micro_batch" in str(diagnose(caught.value, ranks=1))
    assert diagnose(RuntimeError("size mismatch"), ranks=2) is None


def test_a_second_process_is_refused(expected: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, _ = expected
    out = tmp_path / "run"
    overrides = {**OVERRIDES, "train.epochs": "10000"}
    (process,) = start(1, command(recipe, out, overrides))
    try:
        wait_for_steps(out, process, 2)
        with pytest.raises(ValueError, match=rf"process {process.pid} on \S+ is working on"):
            train(recipe, overrides, out=out, resume=True)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


def test_a_dead_process_ends_the_others(expected: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, _ = expected
    out = tmp_path / "run"
    processes = start(3, command(recipe, out, {**OVERRIDES, "train.epochs": "10000"}))
    try:
        wait_for_steps(out, processes[0], 2)
        processes[1].kill()
        results = finish(processes)
    finally:
        for process in processes:
            process.kill()
    for rank in (0, 2):
        code, _, err = results[rank]
        assert code == 1
        lines = [line for line in err.splitlines() if line.startswith("advflyp")]
        assert len(lines) == 1 and lines[0].startswith(f"advflyp [rank {rank}]: step "), err
        assert "another rank of this run has stopped" in lines[0]
        assert "The last good checkpoint is that of step" in lines[0]
        assert "Traceback" not in err


@pytest.mark.long
def test_several_processes_are_stopped_and_resumed_as_one(
    expected: tuple[Path, Path], tmp_path: Path
) -> None:
    """A signal to one of two; resumed, the weights are those of two that nothing happened to."""
    recipe, _ = expected
    for out in ("cut", "whole"):
        processes = start(2, command(recipe, tmp_path / out, VALIDATED))
        if out == "cut":
            wait_for_steps(tmp_path / out, processes[0], 4)
            processes[1].send_signal(signal.SIGUSR1)
        for code, _, err in finish(processes):
            assert code == 0, err
    assert step_of(checkpoints(tmp_path / "cut/checkpoints")[-1]) < STEPS
    ((code, _, err),) = finish(start(1, command(recipe, tmp_path / "cut", VALIDATED, "--resume")))
    assert code == 2 and "can only be resumed with as many" in err
    run(2, command(recipe, tmp_path / "cut", VALIDATED, "--resume"))
    assert same(tmp_path / "cut", tmp_path / "whole")
    lines = [(line["kind"], line["step"]) for line in read_metrics(tmp_path / "cut")]
    assert lines == [(line["kind"], line["step"]) for line in read_metrics(tmp_path / "whole")]
    # Two processes do the arithmetic of one.
    one, two = (
        [line["pflops"] for line in read_metrics(of) if line["kind"] == "train"]
        for of in (expected[1], tmp_path / "whole")
    )
    assert two == pytest.approx(one, rel=0.05)
