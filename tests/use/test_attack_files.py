"""The folder of `advflyp attack`, whenever the command that writes it is killed."""

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from advflyp import files
from advflyp.cli.main import main
from advflyp.use import attack_image
from advflyp.use.attack_files import OURS, RECORD, draft_of
from advflyp.use.attack_image import AttackedImage

ASKED = {"eps": "4/255"}


def write(out: Path) -> None:
    with draft_of(out, ASKED) as draft:
        for name in sorted(OURS):
            files.write_text(draft / name, '{"asked": {"eps": "4/255"}}')


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("renamings", range(8))
def test_killed_at_any_renaming_it_can_be_repeated(
    tmp_path: Path, renamings: int, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real, done = tmp_path / "deep" / "at", os.rename, []
    if again:
        write(out)

    def rename(source: Path, target: Path) -> None:
        if len(done) == renamings:
            raise KeyboardInterrupt
        done.append(real(source, target))

    with monkeypatch.context() as patch:
        patch.setattr(files, "_renamed", lambda one, other, how: False)
        patch.setattr(os, "rename", rename)
        patch.setattr(os, "replace", rename)
        # As after a kill: nothing is cleaned up.
        patch.setattr(files, "_clear", lambda work: None)
        if renamings < len(OURS) + 1 + again:
            with pytest.raises(KeyboardInterrupt):
                write(out)
        else:
            write(out)
    write(out)
    assert {path.name for path in out.iterdir()} == OURS
    assert [path.name for path in tmp_path.rglob("*.partial")] == []


def test_an_answer_is_not_written_over_another(tmp_path: Path) -> None:
    write(tmp_path / "at")
    with (
        pytest.raises(ValueError, match="holds the results of another attack"),
        draft_of(tmp_path / "at", {}),
    ):
        pass
    (tmp_path / "at" / "notes.txt").touch()
    with (
        pytest.raises(ValueError, match=r"holds other files \(notes.txt\)"),
        draft_of(tmp_path / "at", ASKED),
    ):
        pass
    assert {path.name for path in (tmp_path / "at").iterdir()} == {*OURS, "notes.txt"}


def test_of_two_processes_neither_takes_the_place_of_the_other(tmp_path: Path) -> None:
    """The one that finishes last, with another request, leaves what is there by then."""
    with (
        pytest.raises(ValueError, match="holds the results of another attack"),
        draft_of(tmp_path / "at", {"eps": "8/255"}) as draft,
    ):
        files.write_text(draft / RECORD, '{"asked": {"eps": "8/255"}}')
        write(tmp_path / "at")
    assert (tmp_path / "at" / RECORD).read_text() == '{"asked": {"eps": "4/255"}}'
    assert {path.name for path in tmp_path.iterdir()} == {"at"}


def test_an_image_that_changes_before_it_is_attacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "a.png"
    Image.new("RGB", (64, 64), "red").save(image)
    real = attack_image.attack_image

    def later(*arguments: Any, **options: Any) -> AttackedImage:
        Image.new("RGB", (64, 64), "blue").save(image)
        return real(*arguments, **options)

    monkeypatch.setattr(attack_image, "attack_image", later)
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "attack",
                "mini",
                str(image),
                "--labels",
                "cat,dog",
                "--attack",
                "fgsm",
                "--out",
                f"{tmp_path}/at",
            ]
        )
    assert stopped.value.code == 2 and "was changed before it was attacked" in capsys.readouterr().err
    assert not (tmp_path / "at").exists()
