"""The command as a user runs it: exit codes, one clear line, nothing half-written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from advflyp.cli import main, split_recipe_keys
from advflyp.runlog import read_metrics


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
        "from advflyp.cli import main\n"
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
        (["train", "{recipe}", "--data.train", "{tmp}/empty.tar"], "hold no pairs"),
        (["train", "{recipe}", "--model.name", "no-such-model"], "there is no model 'no-such-model'"),
        (["train", "{recipe}", "--out", "{tmp}/other"], "holds another run"),
        (["train", "{recipe}", "--out", "/proc/advflyp"], "/proc"),
        (["train", "{recipe}", "--train.device", "cuda"], "there is no device 'cuda' here"),
        (["eval", "no-such-model"], "there is no model 'no-such-model'"),
        (["eval", "{model}", "--eps", "0"], "eps must be above 0"),
        (["eval", "{model}", "--sets", "mini/foot"], "there is no set 'mini/foot'; did you mean 'mini/food'"),
        (["eval", "{model}", "--optim.lr", "1"], "--optim.lr is a recipe key; it goes with `advflyp train`"),
        (["data", "mini"], "say what to make: --build, or --sets"),
        (["report", "{tmp}/nothing", "--out", "{tmp}/report"], "nothing"),
        (["reproduce", "--out", "{tmp}/r", "--only", "table15"], "the plan has no experiment 'table15'"),
        (["reproduce", "--out", "{tmp}/r", "--seeds", "0"], "--seeds must be at least 1"),
        (["reproduce", "--out", "{tmp}/r", "--pairs", "x.tar"], "go with --scale paper"),
        (["reproduce", "--out", "{tmp}/empty.tar"], "is a file; name a folder with --out"),
        (["reproduce", "--out", "{tmp}/other"], "holds other things (best); name a new folder"),
        (["reproduce", "--out", "{tmp}/r", "--report-only"], "plan.json"),
        (["interpolate", "{model}", "mini", "--out", "{tmp}/c.jsonl"], "have different architectures"),
        (["interpolate", "{model}", "{model}", "--alphas", "0,2"], "alpha"),
        (["interpolate", "{model}", "{tmp}/nothing"], "nothing"),
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


def test_recipe_keys_are_told_from_options() -> None:
    others, keys = split_recipe_keys(["train", "r.toml", "--a.b", "-1", "--out=x.y", "--c.d=e=f", "--resume"])
    assert others == ["train", "r.toml", "--out=x.y", "--resume"]
    assert keys == {"a.b": "-1", "c.d": "e=f"}


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
