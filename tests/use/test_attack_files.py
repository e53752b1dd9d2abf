"""The folder of `advflyp attack`, whenever the command that writes it is killed."""

import os
from pathlib import Path

import pytest

from advflyp import files
from advflyp.use.attack_files import OURS, draft_of

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
