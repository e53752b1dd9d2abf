"""Every command that writes: killed or interrupted before each operation on files; a disk that is full from each on."""

import errno
import io
import json
import os
import re
import shutil
from pathlib import Path
from signal import SIGINT, SIGTERM, Signals
from typing import Any

import pytest
import torch

from advflyp.cli.main import main
from advflyp.written import RECORD
from faults import Disk, attempt, tree
from helpers import RECIPE, write_folder
from lvlm.conftest import save_llava, write_tasks

SMALL = ["--device", "cpu", "--sets", "mini/flags", "--attacks", "clean", "pgd1", "--limit", "4"]
# What they read is in {inputs}; what they write is in the current folder.
COMMANDS = {
    "eval": ["eval", "{inputs}/tiny", *SMALL, "--batch-size", "2", "--out", "new/r.jsonl"],
    "retrieval": ["retrieval", "{inputs}/tiny", "{inputs}/pairs", "--attacks", "clean", "pgd1", "--batch-size", "8",
                  "--device", "cpu", "--out", "new/r.jsonl"],
    "lvlm eval": ["lvlm", "eval", "{inputs}/llava", "--root", "{inputs}/tasks", "--tasks", "coco,pope-random",
                  "--attack", "apgd1", "--eps", "8/255", "--limit", "2", "--batch-size", "1", "--device", "cpu",
                  "--out", "new/r.jsonl"],
    "interpolate": ["interpolate", "{inputs}/tiny", "{inputs}/tiny", "--alphas", "0.5", *SMALL, "--out", "c.jsonl"],
    "interpolate --save": ["interpolate", "{inputs}/tiny", "{inputs}/tiny", "--save", "0.5", "new/mixed"],
    "report": ["report", "{inputs}/r.jsonl", "--out", "new/report"],
    "compare": ["compare", "{inputs}/r.jsonl", "{inputs}/r.jsonl", "--out", "new/table.md"],
    "export": ["export", "{inputs}/tiny", "--out", "new/exported"],
    "attack": ["attack", "{inputs}/tiny", "{inputs}/pairs/0000.png", "--labels", "cat,dog", "--attack", "pgd1",
               "--device", "cpu", "--out", "new/attack"],
    "publish": ["publish", "{inputs}/tiny", "--repo", "a/b", "--card", "card.md"],
    "pack": ["data", "pack", "{inputs}/pairs", "--per-shard", "6", "--out", "new/shards"],
    "check": ["data", "check", "{inputs}/pairs", "--out", "new/check"],
    "overlap": ["data", "overlap", "{inputs}/pairs", "--against", "mini/flags", "--drop", "new/clean",
                "--out", "new/page"],
    "train": ["train", "{inputs}/recipe.toml", "--resume", "--out", "new/run", "--train.max_steps", "2",
              "--checkpoint.every", "1", "--validate.set", "mini/val", "--validate.limit", "4",
              "--validate.attack", "pgd1"],
}  # fmt: skip
# How many operations of each are tried in the tests that are not slow; those of a training have tests of their own.
SOME = 2
# A training has so many operations that they are dealt out to several tests, which can be run one by one.
PARTS = 8
CASES = [
    *(pytest.param(name, SOME, id=name) for name in COMMANDS if name != "train"),
    *(
        pytest.param(name, slice(None), id=f"{name}, all", marks=pytest.mark.slow)
        for name in COMMANDS
        if name != "train"
    ),
    *(
        pytest.param(
            "train", slice(part, None, PARTS), id=f"train, {part + 1} of {PARTS}", marks=pytest.mark.slow
        )
        for part in range(PARTS)
    ),
]
# Beside what a command leaves, what it keeps while it is unfinished, by which it goes on.
UNFINISHED = re.compile(r".*(\.journal|\.unfinished)|.*/checkpoints/step-\d+")


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and what stderr was told."""
    code = 0
    try:
        main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, capsys.readouterr().err


def results(root: Path) -> dict[str, Any]:
    """What is below `root`, by name, but for what depends on the time and on the process."""
    found: dict[str, Any] = {}
    for name, data in tree(root).items():
        if name.endswith(RECORD):
            continue  # it holds more lines where something was written more than once
        if data is not None and name.endswith(".jsonl"):
            lines = [json.loads(line) for line in data.splitlines() if line]
            # Losses in metrics are means since the last line, which a resumed run has not seen all of.
            found[name] = [
                (line["kind"], line["step"]) if "kind" in line else {**line, "seconds": None}
                for line in lines
            ]
        elif data and name.endswith("manifest.json"):
            found[name] = {**json.loads(data), "created": None}
        elif data and name.endswith(".pt"):
            state = torch.load(io.BytesIO(data), weights_only=True)
            weights = {key: value.numpy().tobytes() for key, value in state["model"].items()}
            # The name ends in a hash of all of it.
            found[name.rpartition("-")[0]] = (weights, state["progress"])
        else:
            found[name] = None if name.endswith(".lock") else data
    return found


@pytest.fixture(scope="module")
def inputs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from advflyp.evaluation.suite import evaluate

    folder = tmp_path_factory.mktemp("inputs")
    shutil.copytree(tiny_folder, folder / "tiny")
    save_llava(folder / "llava")
    write_tasks(folder / "tasks")
    write_folder(folder / "pairs", 16)
    (folder / "recipe.toml").write_text(RECIPE.format(model=folder / "tiny", data=folder / "pairs"))
    evaluate(
        folder / "tiny", ["mini/flags"], ["clean", "pgd1"], limit=4, device="cpu", out=folder / "r.jsonl"
    )
    return folder


class Undisturbed:
    """What each command leaves when nothing happens to it, and its operations on files."""

    def __init__(self, inputs: Path, folder: Path) -> None:
        self.inputs = inputs
        self.folder = folder
        self.known: dict[str, tuple[dict[str, Any], list[str]]] = {}

    def arguments(self, name: str) -> list[str]:
        return [word.replace("{inputs}", str(self.inputs)) for word in COMMANDS[name]]

    def of(self, name: str, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], list[str]]:
        if name not in self.known:
            root = self.folder / name
            root.mkdir()
            disk = Disk(root)
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(root)
                code, error = attempt(disk, lambda: run(self.arguments(name), capsys))
            assert code == 0, error
            self.known[name] = (results(root), disk.done)
        return self.known[name]


@pytest.fixture(scope="module")
def undisturbed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(inputs, tmp_path_factory.mktemp("undisturbed"))


def differences(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, str]:
    """What is there otherwise than it should be."""
    wrong = dict.fromkeys(expected.keys() - found.keys(), "is missing")
    wrong |= dict.fromkeys(found.keys() - expected.keys(), "should not be there")
    return wrong | {
        name: "differs" for name in found.keys() & expected.keys() if found[name] != expected[name]
    }


def places(count: int, some: int | slice) -> list[int]:
    """Those of so many operations that a slice takes, or some that are spread over them."""
    if isinstance(some, slice):
        return list(range(count))[some]
    return sorted({int((n + 0.5) * count / some) for n in range(some)})


def check_said(code: int, error: str, why: str) -> None:
    """One line that says why, and the exit code of a mistake (2), or of a training that cannot go on (1)."""
    assert code in (1, 2) and why in error
    assert error.startswith("advflyp: ") and error.count("\n") == 1


def check_nothing_half_written(root: Path, expected: dict[str, Any], besides: str = "$") -> None:
    """What is there under its name is whole; results are the first ones of those that are to come."""
    found = results(root)
    for name, value in found.items():
        begun = name.endswith(".jsonl") and value is not None and value == expected[name][: len(value)]
        assert (
            begun or value == expected.get(name) or UNFINISHED.fullmatch(name) or re.fullmatch(besides, name)
        ), name


def check_again(
    arguments: list[str], root: Path, expected: dict[str, Any], after: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command leaves what it would have left, or says that this already exists; nothing else lies around."""
    code, error = run(arguments, capsys)
    assert code == 0 or (code == 2 and "already exists" in error), (after, error)
    assert not differences(results(root), expected), after


@pytest.mark.parametrize(("name", "some"), CASES)
def test_killed_before_any_operation(
    name: str, some: int | slice, undisturbed: Undisturbed, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The same command leaves then what it would have left, and nothing else."""
    expected, operations = undisturbed.of(name, capsys)
    arguments = undisturbed.arguments(name)
    for place in places(len(operations), some):
        root = tmp_path / str(place)
        root.mkdir()
        monkeypatch.chdir(root)
        assert attempt(Disk(root, "kill", place), lambda: run(arguments, capsys)) is None
        check_again(arguments, root, expected, operations[place], capsys)


@pytest.mark.parametrize(("name", "some"), CASES)
def test_a_disk_that_is_full_from_any_operation_on(
    name: str, some: int | slice, undisturbed: Undisturbed, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One line; once there is space again, the same command goes on."""
    expected, operations = undisturbed.of(name, capsys)
    arguments = undisturbed.arguments(name)
    for place in places(len(operations), some):
        root = tmp_path / str(place)
        root.mkdir()
        monkeypatch.chdir(root)
        code, error = attempt(Disk(root, "full", place), lambda: run(arguments, capsys))
        if code != 0:  # what was left to do needed no space
            check_said(code, error, os.strerror(errno.ENOSPC))
            check_nothing_half_written(root, expected)
            check_again(arguments, root, expected, operations[place], capsys)
        assert not differences(results(root), expected), operations[place]


@pytest.mark.parametrize(("name", "some"), CASES)
@pytest.mark.parametrize("signals", [(SIGINT,), (SIGINT, SIGINT), (SIGTERM,)], ids=["^C", "^C^C", "SIGTERM"])
def test_interrupted_before_any_operation(
    name: str, signals: tuple[Signals, ...], some: int | slice, undisturbed: Undisturbed, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What is being written is finished or dropped, and one line says how to go on."""
    expected, operations = undisturbed.of(name, capsys)
    arguments = undisturbed.arguments(name)
    for place in places(len(operations), some):
        root = tmp_path / str(place)
        root.mkdir()
        monkeypatch.chdir(root)
        code, error = attempt(Disk(root, signals, place), lambda: run(arguments, capsys))
        # A training goes on to the end of its step, which may be its last.
        if not (name == "train" and code == 0):
            assert code == 128 + signals[0], (operations[place], error)
            assert error.startswith("advflyp: interrupted") and error.count("\n") == 1
            if len(signals) == 1:
                # A draft is left where the removal of one was interrupted.
                check_nothing_half_written(root, expected, besides=r"(.*/)?\.[^/]*\.partial(/.*)?")
        check_again(arguments, root, expected, operations[place], capsys)
