"""The folder of `advflyp attack`, whenever the command that writes it is killed."""

from pathlib import Path

import pytest

from advflyp.use.attack_files import OURS, draft_of

ASKED = {"eps": "4/255"}


def write(out: Path) -> None:
    with draft_of(out, ASKED) as draft:
        for name in OURS:
            (draft / name).write_text('{"asked": {"eps": "4/255"}}')


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("renamings", range(3))
def test_killed_at_any_renaming_it_can_be_repeated(
    tmp_path: Path, renamings: int, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real, done = tmp_path / "deep" / "at", Path.replace, []
    if again:
        write(out)

    def replace(path: Path, target: Path) -> None:
        if len(done) == renamings:
            raise KeyboardInterrupt
        done.append(real(path, target))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        if again or renamings == 0:
            with pytest.raises(KeyboardInterrupt):
                write(out)
        else:
            write(out)
    write(out)
    assert {path.name for path in out.iterdir()} == OURS and not list(tmp_path.rglob("*.partial"))
