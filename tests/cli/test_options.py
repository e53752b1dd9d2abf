"""Every option of every command with values that nobody means: exit code 0 or 2, one line on stderr."""

import io
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from advflyp.cli.arguments import Option, options_of
from advflyp.cli.main import COMMANDS, main
from advflyp.config import Typed
from advflyp.model.load import load_model
from advflyp.recipes import known_keys
from advflyp.training.recipe import read_recipe
from helpers import encoded_png, picture, write_folder

LONG = "9" * 5000
VALUES = ("", " ", ",", "x", "no/such/thing", "-1", "0", "1/0", "nan", "1e400", "9" * 30, LONG, "a\nb", "/dev/full",
          "/proc/x", "/dev/null/x", "é·\udce9", "1,2", "mini/", "hf-hub:", "x:y", "{0..3}", "*")  # fmt: skip

# What each command is called with besides the option at hand: enough to succeed, and little to compute.
BASE = {
    "quickstart": "",
    "train": "recipe.toml",
    "pretrain": "recipe.toml",
    "recipes": "",
    "protocols": "",
    "models": "",
    "eval": "model --sets classes --attacks clean --limit 2 --device cpu",
    "compare": "results.jsonl results.jsonl",
    "retrieval": "model pairs --attacks clean --limit 2 --device cpu",
    "report": "results.jsonl",
    "interpolate": "model model --sets classes --attacks clean --limit 2 --alphas 0 --device cpu",
    "reproduce": "--dry-run",
    "export": "model",
    "publish": "model --repo a/b",
    "predict": "model photo.png --labels cat,dog --device cpu",
    "attack": "model photo.png --labels cat,dog --attack pgd1 --device cpu",
    "demo": "model --port 0 --device cpu",
    "data sets": "",
    "data fetch": "eurosat",
    "data sample": "metadata.parquet --num 4",
    "data download": "urls.parquet --out shards",
    "data pack": "pairs --out packed",
    "data check": "pairs",
    "data overlap": "pairs --against classes",
    "data caption": "classes --out captions --model model",
    "lvlm eval": "model --root classes",
    "env": "",
    "validate": "recipe.toml",
    "leaderboard": "",
    "sets": "",
    "attacks": "",
    "methods": "",
}


def commands(
    group: Mapping[str, Any] = COMMANDS, before: str = ""
) -> Iterator[tuple[str, Callable[..., None]]]:
    for name, command in group.items():
        if isinstance(command, Mapping):
            yield from commands(command, f"{before}{name} ")
        else:
            yield before + name, command


def nothing(*_: Any, **__: Any) -> None: ...


def refused(*_: Any, **__: Any) -> None:
    raise ValueError("not here")


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """What the base calls name."""
    folder = tmp_path_factory.mktemp("things")
    (folder / "model").symlink_to(tiny_folder)
    write_folder(folder / "pairs", 4)
    for name in ("cat", "dog"):
        write_folder(folder / "classes" / name, 2)
    (folder / "photo.png").write_bytes(encoded_png(picture("red", "circle", random.Random(0))))
    rows = {"url": [f"http://x/{n}" for n in range(8)], "caption": ["a cat"] * 8}
    for name in ("metadata", "urls"):
        pq.write_table(pa.table(rows), folder / f"{name}.parquet")
    (folder / "recipe.toml").write_text(
        '[data]\ntrain = "pairs"\nbatch_size = 2\n[method]\nname = "advflyp"\n'
    )
    run = folder / "run"
    run.mkdir()
    (run / "recipe.toml").write_text((folder / "recipe.toml").read_text())
    (run / "metrics.jsonl").write_text(json.dumps({"kind": "data", "step": 1, "skipped": {}}) + "\n")
    with redirect_stdout(io.StringIO()), pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        words = "eval model --sets classes --attacks clean --limit 2 --device cpu --out results.jsonl"
        main(words.split(" "))
    return folder


@pytest.fixture
def calls(
    things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[list[str]], tuple[int, str]]:
    """Runs a command line where `things` are; what takes long or needs the network does nothing."""
    for thing in things.iterdir():
        (tmp_path / thing.name).symlink_to(thing)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    from advflyp.model.interop import export
    from advflyp.training.loop import RunResult

    done = RunResult(out=tmp_path, steps=1, best=None)
    once = load_model("model")
    for module in (
        "model.load",
        "evaluation.suite",
        "evaluation.retrieval",
        "use.predict",
        "use.attack_image",
        "use.demo",
    ):
        monkeypatch.setattr(
            f"advflyp.{module}.load_model",
            lambda name, **how: once if str(name) == "model" else load_model(name, **how),
        )
    monkeypatch.setattr("advflyp.evaluation.suite.compiled", nullcontext)
    monkeypatch.setattr("advflyp.paper.reproduce._print_cost", nothing)
    monkeypatch.setattr("advflyp.use.quickstart.quickstart", nothing)
    monkeypatch.setattr(
        "advflyp.training.loop.train", lambda path, keys, **_: [read_recipe(path, keys), done][1]
    )
    monkeypatch.setattr("advflyp.report.pages.report.write_report", lambda out, **_: out)
    monkeypatch.setattr(export, "FORMATS", {"hf": lambda model, out, pictures: export.Exported(out, 0.0)})
    monkeypatch.setattr("advflyp.model.interop.publish.send", refused)
    monkeypatch.setattr("advflyp.use.demo._gradio", nothing)
    monkeypatch.setattr("advflyp.use.demo.served", lambda *_: nullcontext("here"))
    monkeypatch.setattr(
        "advflyp.use.demo.threading", SimpleNamespace(Event=lambda: SimpleNamespace(wait=nothing))
    )
    monkeypatch.setattr("advflyp.data.sets.fetch._fetch_files", refused)
    monkeypatch.setattr("advflyp.data.sets.fetch._fetch_wds", refused)
    monkeypatch.setattr("advflyp.data.web.download.find_img2dataset", refused)
    monkeypatch.setattr("advflyp.data.tools.caption.Captioner", refused)

    def call(words: list[str]) -> tuple[int, str]:
        errors = io.StringIO()
        with redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")), redirect_stderr(errors):
            try:
                main(words)
            except SystemExit as stop:
                return int(stop.code or 0), errors.getvalue()
            except Exception as error:
                raise AssertionError(f"advflyp {' '.join(words)[:200]}: {error!r}") from error
        return 0, errors.getvalue()

    return call


def tried(option: Option, values: Sequence[str]) -> Iterator[list[str]]:
    """Ways to give an option."""
    if option.hint is bool:
        yield [option.flag]
        yield [option.flag, option.flag]
        yield [f"{option.flag}=yes"]
        return
    for value in values:
        yield [value] if option.is_positional else [f"{option.flag}={value}"]
    if not option.is_positional:
        yield [option.flag]
        yield [option.flag, "x", option.flag, "1"]
        yield [option.flag, "x", "y", "z"]


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.long)], ids=["some", "all"])
@pytest.mark.parametrize(("name", "command"), list(commands()), ids=[name for name, _ in commands()])
def test_no_value_of_an_option_ends_in_a_traceback(
    name: str, command: Callable[..., None], every: int, calls: Callable[[list[str]], tuple[int, str]]
) -> None:
    base = BASE[name].split()
    code, error = calls([*name.split(), *base])
    assert code in (0, 2) and error.count("\n") == (1 if code else 0), error
    for number, option in enumerate(options_of(command)):
        # Others for the next option, so that every value comes to every command.
        for words in tried(option, VALUES[number % every :: every]):
            line = [*name.split(), *(words if option.is_positional else [*base, *words])]
            code, error = calls(line)
            assert code in (0, 2), (line, error)
            if code:
                assert error.startswith("advflyp: ") and error.count("\n") == 1, (line, error)
                assert len(error) < 1200


def test_no_value_of_a_recipe_key_ends_in_a_traceback(things: Path) -> None:
    for key in known_keys():
        for value in VALUES:
            try:
                read_recipe(things / "recipe.toml", {key: Typed(value)})
            except ValueError as error:
                assert "codec" not in str(error)
