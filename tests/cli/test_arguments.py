"""Command lines from functions."""

from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import pytest

from advflyp.cli.arguments import (
    Arg,
    OutFile,
    Prompts,
    Seed,
    options_of,
    parse,
    with_flags,
)
from advflyp.cli.main import COMMANDS, find_command, main
from advflyp.cli.paths import check_model_path, check_output
from helpers import write_folder


def bake_cake(
    flour: Annotated[str, Arg("FLOUR")],
    toppings: Annotated[tuple[str, ...], Arg("TOPPING")] = (),
    /,
    *,
    sizes: tuple[int, ...] = (1, 2),
    prompts: Prompts = (),
    heat: float = 0.5,
    mode: Literal["fan", "gas"] = "fan",
    limit: int | None = None,
    batch_size: int = 3,
    seed: Seed = 0,
    quick: bool = False,
    columns: dict[str, str] | None = None,
    save: tuple[float, Path] | None = None,
    out: OutFile | None = None,
    secret: Annotated[int, Arg(hidden=True)] = 7,
) -> SimpleNamespace:
    """Bake a cake.

    With love.

    Args:
        flour: What it is made of.
        sizes: How large, 100 % at most.
    """
    return SimpleNamespace(**locals())


def bake(line: str) -> Any:
    return parse(bake_cake, line.split(), "bake")()


def test_values_of_every_kind() -> None:
    made = bake("rye nuts --sizes 3 4 --heat 1/4 --mode GAS --limit 5 --batch_size 9 --quick --save 0.7 a/b")
    assert (made.flour, made.toppings, made.sizes, made.heat) == ("rye", ("nuts",), (3, 4), 0.25)
    assert (made.mode, made.limit, made.batch_size, made.quick) == ("gas", 5, 9, True)
    assert made.save == (0.7, Path("a/b"))
    assert made.secret == 7
    assert bake("--quick rye nuts").toppings == bake("rye --quick nuts").toppings == ("nuts",)


@pytest.mark.parametrize("line", ["3 4", "3,4", "3, 4", "3 ,4", "3,4,", "3 --sizes 4", "3 --sizes=4"])
def test_lists_are_separated_by_spaces_or_commas(line: str) -> None:
    assert bake(f"rye --sizes {line}").sizes == (3, 4)


def test_what_follows_a_list_with_commas_is_no_part_of_it() -> None:
    assert bake("--sizes 3,4 rye nuts") == bake("rye nuts --sizes 3 4")


def test_commas_that_do_not_separate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bake("rye a/{0,1}.tar,b").toppings == ("a/{0,1}.tar", "b")
    assert parse(bake_cake, ["rye", "--prompts", "a photo, of {}"], "bake")().prompts == ("a photo, of {}",)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b").touch()
    assert bake("rye a,b").toppings == ("a,b",)


@pytest.mark.parametrize("line", ["url=A caption=B", "url=A,caption=B"])
def test_pairs(line: str) -> None:
    assert bake(f"rye --columns {line}").columns == {"url": "A", "caption": "B"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "FLOUR is missing; see bake --help"),
        ("rye --sizes", "--sizes needs a value"),
        ("rye --sizes --quick", "--sizes needs a value"),
        ("rye --limit", "--limit needs a value"),
        ("rye --limit x", "--limit must be a whole number, not 'x'"),
        ("rye --sizes 1,x", "--sizes must be a whole number, not 'x'"),
        ("rye --heat warm", "--heat must be a number or a fraction such as 4/255, not 'warm'"),
        ("rye --mode oven", "--mode cannot be 'oven'; known: fan, gas"),
        ("rye --limit=", "--limit is empty; give it a value, or leave it out"),
        ("rye --sizes ,", "--sizes is empty"),
        ("rye --haet 1", "bake has no option --haet; did you mean '--heat'?"),
        ("rye --batch 1", "bake has no option --batch; did you mean '--batch-size'?"),
        ("rye --zzz 1", "bake has no option --zzz; see bake --help"),
        ("rye --secret 1", "bake has no option --secret"),
        ("rye --quick=yes", "--quick takes no value; give it alone, or leave it out"),
        ("rye nuts --seed 1 2 --quick x --haet", "bake has no option --haet"),
        ("rye --columns url", "--columns takes pairs"),
        ("rye --save 1", "--save takes 2 values; see bake --help"),
        ("rye --limit 0", "--limit must be at least 1, not 0"),
        ("rye --batch-size -4", "--batch-size must be at least 1, not -4"),
        ("rye --seed -1", "--seed must be at least 0, not -1"),
        (f"rye --out {'x' * 300}", "--out: File name too long"),
        ("rye --out /dev/full", "/dev/full is not a regular file; name another with --out"),
        ("rye --out /dev/null/x", "/dev/null is not a folder; name another file with --out"),
        ("rye --out /proc/x", "cannot write to /proc"),
        ("rye --out .", ". is a folder; name a file with --out"),
    ],
)
def test_a_mistake_is_one_sentence(line: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        parse(bake_cake, line.split(" ") if line else [], "bake")
    assert str(error.value).startswith(message)


def test_a_folder_for_output(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file; name a folder with --out"):
        check_output(tmp_path / "file", "folder", "--out")
    with pytest.raises(ValueError, match="file is not a folder; name another folder with --out"):
        check_output(tmp_path / "file" / "x", "folder", "--out")
    check_output(tmp_path / "new" / "below", "folder", "--out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_misspelled_path_to_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/advflyp", "mini", "a@b/model"):
        (tmp_path / folder).mkdir(parents=True)
    for name in (
        "runs/advflyp",
        "ViT-B-32/openai",
        "mini/random",
        "hf-hub:a/b",
        "no-such-model",
        "runs/advflyp@ViT-B-32",
    ):
        check_model_path(name)
    with pytest.raises(ValueError, match="there is no model at runs/advflip; did you mean 'runs/advflyp'"):
        check_model_path("runs/advflip")
    with pytest.raises(ValueError, match=r"there is no model at \./nothing$"):
        check_model_path("./nothing")


def test_help(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        bake("--help")
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "FLOUR [TOPPING …]" in printed and "What it is made of. (required)" in printed
    assert "How large, 100 % at most. (default: 1 2)" in printed
    assert "With love." in printed and "secret" not in printed


def test_every_parameter_of_every_command_is_explained() -> None:
    for name, command in [*COMMANDS.items(), *((f"data {k}", v) for k, v in COMMANDS["data"].items())]:  # type: ignore[union-attr]
        if callable(command):
            assert all(option.help for option in options_of(command)), name


def test_commands_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert find_command(["eval", "mini"]) == (COMMANDS["eval"], ["mini"], "advflyp eval")
    assert find_command(["data", "check"])[1:] == ([], "advflyp data check")
    for words, message in (
        ([], "name a command: quickstart, train"),
        (["trian"], "advflyp has no command 'trian'; did you mean 'train'?"),
        (["data"], "name a command: sets"),
        (["data", "chek"], "advflyp data has no command 'chek'; did you mean 'check'?"),
        (["--quick"], "advflyp has no option --quick; options follow a command"),
    ):
        with pytest.raises(ValueError, match=message):
            find_command(words)
    for words, shown in (["data", "--help"], "near-duplicates"), (["-h"], "quickstart"):
        with pytest.raises(SystemExit):
            find_command(words)
        assert shown in capsys.readouterr().out


def test_the_help_of_train_explains_recipe_keys(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0
    assert "--resume" in printed and "--optim.lr\n      Peak learning rate" in printed


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "eval mini --classnames {}/folder",
            "folder is a folder; name a file with --classnames (class names in place of the set's own: one per line, "
            "or a JSON list, in the order of the labels)",
        ),
        (
            "eval mini --classnames /dev/null",
            "/dev/null is a special file; name a file with --classnames (class",
        ),
        (
            "lvlm eval mini-llava --root {}/file",
            "file is a file; name a folder with --root (folder with one subfolder",
        ),
        (
            "publish {}/file --repo a/b",
            "file is a file; name a folder (a run folder, or a folder that `advflyp exp",
        ),
        (
            "publish {0}/folder --repo a/b --results {0}/folder",
            "folder is a folder; name a file with --results (file",
        ),
        (
            "data download {}/folder --out {}/x",
            "folder is a folder; name a list of URLs, a file (.parquet, .csv",
        ),
        ("data sample {}/folder --out {}/x.parquet", "folder holds no *.parquet"),
    ],
)
def test_a_folder_in_place_of_a_file_and_a_file_in_place_of_a_folder(
    line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(SystemExit) as stop:
        main(line.format(tmp_path, tmp_path).split())
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("eval mini --sets mini/food --batch-size 0", "--batch-size must be at least 1, not 0"),
        ("retrieval mini {pairs} --limit 1", "--limit must be at least 2, not 1; retrieval needs two"),
        ("data sample x.parquet --min-side 0", "--min-side must be at least 1, not 0"),
        (
            "data sample x.parquet --max-aspect 0.5",
            "--max-aspect is the longer side over the shorter, at least 1",
        ),
        (
            "data sample x.parquet --min-caption-words 3 --max_caption_words 2",
            "--min-caption-words is above --max-caption-words; no caption can be both",
        ),
    ],
)
def test_messages_name_options_as_they_are_typed(
    line: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "pairs", 2)
    (tmp_path / "x.parquet").write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        main(line.format(pairs="pairs").split())
    assert stop.value.code == 2 and capsys.readouterr().err.startswith(f"advflyp: {message}")


def test_only_names_of_options_become_options() -> None:
    options = options_of(bake_cake)
    for same in (
        "out is a file; name a folder with --out",
        "heat is missing",
        "no batch_size.txt, 'batch_size', x/batch_size, batch_size=3 or data.batch_size",
        "the limit must be at least 1",
        "flour must be ground",
    ):
        assert with_flags(same, options) == same
    assert with_flags("batch_size must be above 3, or batch_size below limit", options) == (
        "--batch-size must be above 3, or --batch-size below limit"
    )
    assert with_flags("limit must be even", options) == "--limit must be even"
