"""What the system refuses, as a sentence."""

import errno
import os
from pathlib import Path

import pytest

from advflyp.cli.main import main
from advflyp.errors import naming, refusal

# What is over once the user has done something about it, and what another path is the answer to.
PASSING = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
}  # fmt: skip
LASTING = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
    errno.ENOENT, errno.ENOLCK, errno.EINVAL,
}  # fmt: skip


@pytest.mark.parametrize("number", sorted(PASSING | LASTING))
def test_which_file_why_and_what_to_do(
    number: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> None:
        raise OSError(number, os.strerror(number), "some/file")

    monkeypatch.setattr("advflyp.cli.environment.describe_environment", refused)
    with pytest.raises(SystemExit) as stopped:
        main(["env"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith(f"advflyp: some/file: {os.strerror(number)}; ") and error.count("\n") == 1
    assert ("then give the same command again" in error) == (number in PASSING)


@pytest.mark.parametrize(
    "error", [OSError("something else"), ConnectionRefusedError(errno.ECONNREFUSED, "refused")]
)
def test_what_no_user_can_mend_keeps_its_traceback(error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    def failed() -> None:
        raise error

    monkeypatch.setattr("advflyp.cli.environment.describe_environment", failed)
    with pytest.raises(OSError) as caught:
        main(["env"])
    assert caught.value is error


def test_a_failed_write_names_its_file(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="No space left") as caught,
        naming(tmp_path / "r.jsonl"),
        open("/dev/full", "wb", buffering=0) as file,
    ):
        file.write(b"x")
    assert refusal(caught.value) == (
        f"{tmp_path}/r.jsonl: No space left on device; free some space, then give the same command again"
    )
    with pytest.raises(FileNotFoundError) as missing, naming(tmp_path / "r.jsonl"):
        (tmp_path / "other").read_bytes()
    assert "other: No such file" in str(refusal(missing.value))


@pytest.mark.parametrize(
    "arguments",
    [["report", "{there}/r.jsonl"], ["eval", "mini", "--out", "r.jsonl"], ["data", "pack", "{there}", "--out", "x"],
     ["eval", "mini", "--sets", "a:b"]],
)  # fmt: skip
def test_a_current_folder_that_was_deleted(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r.jsonl").write_text("")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(SystemExit) as stopped:
        main([word.replace("{there}", str(tmp_path)) for word in arguments])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "advflyp: the current folder was deleted; change to another one\n"
