"""The command as a user runs it: exit codes, one clear line, nothing half-written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from advflyp.cli.evaluate import batch_size_of, check_attacks
from advflyp.cli.main import main, split_recipe_keys
from advflyp.training.runlog import read_metrics


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_answers_at_once() -> None:
    """No heavy import: torch alone takes seconds."""
    code = (
        "import sys\n"
        "from advflyp.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'open_clip', 'matplotlib', 'accelerate', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "quickstart" in result.stdout


def test_train_and_eval(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    code, printed, _ = run(
        "train", recipe, "--out", out, "--optim.lr", "1e-4", "--train.epochs=1", capsys=capsys
    )
    assert code == 0
    assert f"4 steps; the model is {out}" in printed.replace("\n", "")
    assert "lr = 0.0001" in (out / "recipe.toml").read_text()
    assert read_metrics(out)
    results = tmp_path / "r.jsonl"
    code, printed, _ = run("eval", out, "--sets", "mini/flags", "mini/fashion", "--attacks", "clean", "pgd2",
                           "--eps", "1/255", "4/255", "--limit", 8, "--out", results, capsys=capsys)  # fmt: skip
    assert code == 0
    assert "flags" in printed and "fashion" in printed
    assert len(results.read_text().splitlines()) == 6


def test_a_run_that_nothing_validated_says_so(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ("train", recipe, "--train.max_steps", 1)
    for chosen, is_told in (("none", True), ("mini/flags", False)):
        how = ("--out", tmp_path / chosen, "--validate.set", chosen, "--validate.limit", 4)
        code, printed, _ = run(*shared, *how, capsys=capsys)
        assert code == 0 and ("no validation was run" in printed) == is_told
        assert ("before and after: clean" in printed) != is_told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "no.toml"], "there is no recipe no.toml; `advflyp recipes` lists"),
        (["train", "{recipe}", "--optim.lrr", "1"], "unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
        (["train", "{recipe}", "--optim.lr", "fast"], "optim.lr must be a number or a fraction"),
        (["train", "{recipe}", "--optim.lr"], "--optim.lr needs a value"),
        (["train", "{recipe}", "--attack.eps", "0"], "eps must be above 0"),
        (["train", "{recipe}", "--data.batch_size", "0"], "data.batch_size must be at least 2"),
        (["train", "{recipe}", "--data.batch_size", "1"], "contrastive loss compares pairs"),
        (
            ["train", "{recipe}", "--data.train", "nowhere/{0..3}.tar"],
            "(there is nothing at nowhere/0.tar)",
        ),
        (["train", "{recipe}", "--data.train", "{tmp}/empty.tar"], "holds no pairs"),
        (["train", "{recipe}", "--model.name", "no-such-model"], "there is no model 'no-such-model'"),
        (["train", "{recipe}", "--out", "{tmp}/other"], "holds another run"),
        (["train", "{recipe}", "--out", "/proc/advflyp"], "/proc"),
        (["train", "{recipe}", "--train.device", "cuda"], "there is no device 'cuda' here"),
        (["eval", "no-such-model"], "there is no model 'no-such-model'"),
        (["eval", "{model}", "--eps", "0"], "eps must be above 0"),
        (["eval", "{model}", "--sets", "mini/foot"], "there is no set 'mini/foot'; did you mean 'mini/food'"),
        (["eval", "{model}", "--optim.lr", "1"], "--optim.lr is a recipe key; it goes with `advflyp train`"),
        (["report", "{tmp}/nothing", "--out", "{tmp}/report"], "nothing"),
        (["reproduce", "--out", "{tmp}/r", "--only", "table15"], "the plan has no experiment 'table15'"),
        (["reproduce", "--out", "{tmp}/r", "--seeds", "0"], "--seeds must be at least 1"),
        (["reproduce", "--out", "{tmp}/r", "--pairs", "x.tar"], "are for --scale paper"),
        (["reproduce", "--out", "{tmp}/empty.tar"], "is a file; name a folder with --out"),
        (["reproduce", "--out", "{tmp}/other"], "holds other files (best); name a new folder"),
        (["reproduce", "--out", "{tmp}/r", "--report-only"], "plan.json"),
        (["interpolate", "{model}", "mini", "--out", "{tmp}/c.jsonl"], "have different architectures"),
        (["interpolate", "{model}", "{model}", "--alphas", "0,2"], "alpha"),
        (["interpolate", "{model}", "{tmp}/nothing"], "nothing"),
        (
            ["interpolate", "{model}", "{model}", "--save", "0.5", "{tmp}/other"],
            "other already exists; name a new",
        ),
        (["eval", "{model}", "--sets", "mini/foods"], "did you mean 'mini/food'?"),
        (["data", "check", "/dev/zero"], "/dev/zero is a device, not a regular file"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, recipe: Path, tiny_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import torch

    from helpers import write_tar

    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    write_tar(tmp_path / "empty.tar", [])
    (tmp_path / "other/best").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    places = {"{recipe}": recipe, "{tmp}": tmp_path, "{model}": tiny_folder}
    for place, value in places.items():
        arguments = [argument.replace(place, str(value)) for argument in arguments]
    code, _, error = run(*arguments, capsys=capsys)
    assert code == 2
    assert message in error
    assert error.startswith("advflyp: ") and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_radii_are_in_pixels() -> None:
    """A plain 1 is a grey level that was meant; the whole range is what the typographic attack may want."""
    assert check_attacks(["typographic"], ["255/255", "4/255"], "linf") == [1, 4 / 255]
    assert check_attacks(["pgd10"], ["1", "2"], "l2") == [1, 2]
    for word in ("1", "1.0", "2", "510/255"):
        with pytest.raises(ValueError, match="in pixels of"):
            check_attacks(["pgd10"], [word], "linf")
    assert batch_size_of("Auto") == "auto"
    with pytest.raises(ValueError, match="must be a whole number, not 'atuo'; or write auto"):
        batch_size_of("atuo")


def test_recipe_keys_are_told_from_options() -> None:
    others, keys = split_recipe_keys(["train", "r.toml", "--a.b", "-1", "--out=x.y", "--c.d=e=f", "--resume"])
    assert others == ["train", "r.toml", "--out=x.y", "--resume"]
    assert keys == {"a.b": "-1", "c.d": "e=f"}
    assert split_recipe_keys(["--a.b", "1", "--", "--c.d", "2"]) == (["--", "--c.d", "2"], {"a.b": "1"})


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, _ = run("trian", capsys=capsys)
    assert code == 2


def test_a_command_uses_no_tf32_unless_the_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, used in ((None, "0"), ("1", "1")):
        monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
        if given is not None:
            monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", given)
        with pytest.raises(SystemExit):
            main(["eval", "--help"])
        assert os.environ["NVIDIA_TF32_OVERRIDE"] == used


WITHOUT_TORCH = """
import io, sys
from contextlib import redirect_stderr, redirect_stdout
from advflyp.cli.main import main
for line in sys.stdin.read().splitlines():
    printed = io.StringIO()
    try:
        with redirect_stderr(printed), redirect_stdout(printed):
            main(line.split(" "))
    except SystemExit:
        pass
    for module in ("torch", "open_clip", "pyarrow"):
        assert module not in sys.modules, f"{line}: {module} was imported before: {printed.getvalue()}"
"""


def test_cheap_mistakes_and_help_come_before_torch(tmp_path: Path) -> None:
    """It takes seconds to import."""
    lines = [
        "--version", "train --help", "train nothing", "train advflyp_full --optim.lrr 1", "train advflyp_full --lr 1",
        "recipes", "recipes --keys", "recipes mini/tecoa", "eval mini --eps 0", "eval mini --attacks pgd",
        "eval mini --limit 0", "eval ./nothing", "interpolate mini ../nothing", "eval mini --out /dev/full",
        "retrieval mini nothing", "compare no.jsonl no.jsonl",
        "report no.jsonl", "report", "predict mini no.png --labels a,b", "attack mini no.png --labels a,b",
        "interpolate mini mini --alphas 2", "publish nothing --repo a/b", "data --help",
        "data check nothing", "data pack nothing --out x", "data overlap nothing", "data download no.csv --out x",
        "data sample no.parquet", "data fetch", "eval mini --sets eurosta", "eval mini --sets ./picturs",
        "interpolate mini mini --sets eurosta", "data fetch eurosta", "data caption eurosta --out x",
        "data overlap . --against eurosta", "train advflyp_full --validate.set eurosta", "publish . --repo a/b --send",
        "train advflyp_full --data.train picturs", "train mini/tecoa --method.loss clip", "train picturs.toml",
        "publish . --repo a/b --licence apache",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH],
        input="\n".join(lines), cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_reader_that_has_enough_is_no_failure() -> None:
    """`advflyp recipes | head`."""
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -m advflyp recipes --keys | true; echo ${{PIPESTATUS[0]}}'],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr == "" and done.stdout.strip() in ("0", "141")


def test_env_says_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    code, printed, _ = run("env", capsys=capsys)
    found = {line.split()[0]: line for line in printed.splitlines()}
    assert code == 0 and all(line.strip() for line in printed.splitlines())
    assert torch.__version__ in found["torch"]
    assert str(torch.get_num_threads()) in found["threads"]
    assert "auto is fp32: tests compute in float32" in found["precision"]
    assert {"advflyp", "python", "system", "processor", "instructions", "GPUs"} <= found.keys()


def test_what_tables_print_is_what_options_take(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed, error = run("eval", tiny_folder, "--sets", "food,mini/flags", "--attacks", "Clean,PGD-1",
                               "--limit", 4, "--norm", "Linf", capsys=capsys)  # fmt: skip
    assert (code, error) == (0, "")
    assert "food" in printed and "flags" in printed and "PGD-1" in printed


def test_relative_paths_with_spaces(
    recipe: Path,
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every command that reads or writes files, called from another folder than that of the files."""
    home, there = tmp_path / "my home", tmp_path / "my files"
    home.mkdir()
    there.mkdir()
    monkeypatch.chdir(home)
    (there / "a model").symlink_to(tiny_folder)
    (there / "my pairs").symlink_to(tmp_path / "pairs")
    (there / "a recipe.toml").write_text(recipe.read_text())
    (there / "class names.txt").write_bytes("cat\r\ndog\r\n".encode("utf-8-sig"))
    folder = Path("../my files")
    model, photo = folder / "a model", folder / "my pairs" / "0000.png"
    results, retrieved = folder / "new/my results.jsonl", folder / "new/my retrieval.jsonl"
    small = ["--limit", 4, "--device", "cpu"]
    pairs = folder / "my pairs"
    for line in (
        ["train", folder / "a recipe.toml", "--data.train", pairs, "--train.max_steps", 2, "--out", folder / "a run"],
        ["eval", model, "--sets", "mini/flags", "--attacks", "clean", "--out", results, *small],
        ["retrieval", model, pairs, "--attacks", "clean", "--out", retrieved, *small],
        ["compare", results, results, "--out", folder / "new/my table.md"],
        ["report", results, folder / "a run", "--out", folder / "a report"],
        ["interpolate", model, folder / "a run", "--save", 0.5, folder / "a mixture"],
        ["predict", model, photo, "--labels", folder / "class names.txt", "--device", "cpu"],
        ["attack", model, photo, "--labels", folder / "class names.txt", "--attack", "pgd1", "--out",
         folder / "an attack", "--device", "cpu"],
        ["export", folder / "a run", "--format", "open_clip", "--out", folder / "an export"],
        ["publish", folder / "an export", "--repo", "a/b", "--card", folder / "a card.md"],
        ["data", "check", pairs, "--out", folder / "a check"],
        ["data", "pack", pairs, "--out", folder / "my shards"],
        ["data", "check", folder / "my shards"],
        ["data", "overlap", folder / "my shards", "--against", "mini/flags", "--drop", folder / "clean shards"],
    ):  # fmt: skip
        code, _, error = run(*line, capsys=capsys)
        assert code == 0, (line, error)
    made = {path.name for path in there.iterdir()}
    assert {"a run", "new", "a report", "a mixture", "an attack", "an export", "a card.md", "a check"} <= made
    assert {"my shards", "clean shards"} <= made
    assert list(home.iterdir()) == []
