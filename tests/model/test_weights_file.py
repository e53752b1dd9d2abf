"""Files that are not what their name says, and files that would run code: one sentence, and nothing is run."""

import argparse
import codecs
import io
import json
import os
import pickle
import shutil
import tracemalloc
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from advflyp.model.load import load_model
from advflyp.model.weights_file import Ignored, read_weights_file

STATE = {"weight": torch.arange(64.0).reshape(8, 8)}


def saved(content: Any, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, command: Any, *arguments: Any) -> None:
        self.call = command, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("where", ["alone", "beside weights"])
@pytest.mark.parametrize(
    ("command", "shown"), [(os.system, f"{os.name}.system"), (exec, "exec"), (eval, "eval")]
)
def test_nothing_of_a_malicious_file_is_run(
    how: str, where: str, command: Any, shown: str, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    arguments = {os.system: (f"touch {made}",), exec: (f"open({str(made)!r}, 'w')",)}
    arguments[eval] = arguments[exec]
    evil: Any = Malicious(command, *arguments[command])
    content = evil if where == "alone" else {"state_dict": STATE, "args": evil}
    data = pickle.dumps(content, protocol=2) if how == "pickle" else saved(content, legacy=how == "legacy")
    path = tmp_path / "evil.pth"
    path.write_bytes(data)
    with pytest.raises(ValueError) as error:
        read_weights_file(path)
    assert not made.exists()
    if how != "pickle":
        assert f"({shown})" in str(error.value) and "nothing of it was run" in str(error.value)
    # The file is a real one: unpickled as torch did by default for years, it does create its own.
    if how == "zip":
        torch.load(path, weights_only=False)
        assert made.exists()


def test_the_allowlist_calls_nothing_either(tmp_path: Path) -> None:
    """Whatever arguments a file gives to a name that is let through, they go nowhere."""

    class Namespace(argparse.Namespace):
        def __reduce__(self) -> Any:
            return argparse.Namespace, (), {"command": "x"}

    path = tmp_path / "x.pt"
    path.write_bytes(saved({"args": Namespace()}))
    assert type(read_weights_file(path)["args"]) is Ignored


@pytest.mark.parametrize("legacy", [False, True])
def test_what_training_scripts_save_beside_the_weights(legacy: bool, tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    content = {
        "args": argparse.Namespace(lr=1e-4, data=Path("x"), nested=argparse.Namespace(a=[1])),
        "config": SimpleNamespace(a=1),
        "best_acc1": np.float64(0.5),
        "acc": np.mean(np.ones(3, np.float32)),
        "labels": np.arange(4),
        "flag": np.bool_(True),
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3).state_dict(),
        "state_dict": STATE,
    }
    path = tmp_path / "x.pth.tar"
    path.write_bytes(saved(content, legacy=legacy))
    read = read_weights_file(path)
    assert torch.equal(read["state_dict"]["weight"], STATE["weight"])
    assert all(type(read[key]) is Ignored for key in ("args", "config", "best_acc1", "acc", "labels", "flag"))


def test_names_that_older_versions_wrote(tmp_path: Path) -> None:
    """A NumPy scalar of NumPy 1, as the releases have it; the name has since moved."""
    data = pickle.dumps(np.float64(1), protocol=2).replace(
        b"numpy._core.multiarray", b"numpy.core.multiarray"
    )
    assert b"numpy.core.multiarray" in data
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}X\x01\x00\x00\x00a" + data[2:-1] + b"s.")
        archive.writestr("x/byteorder", "little")
        archive.writestr("x/version", "3\n")
    assert type(read_weights_file(tmp_path / "x.pt")["a"]) is Ignored


def test_whole_models_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(saved(torch.nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="\\(torch.nn.modules.linear.Linear\\), which may run code"):
        read_weights_file(path)


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return buffer.getvalue()


# What it is → its bytes, and what is said of it.
WRONG: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "x.pt is empty"),
    "text": (
        b"these are\nmy weights",
        "neither a torch checkpoint nor safetensors: it begins with 'these are'",
    ),
    "bytes": (bytes(range(1, 60)), "begins with the bytes 01 02 03 04 05 06 07 08"),
    "newline": (b"\n", "neither a torch checkpoint nor safetensors"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
    "web page": (b"<!DOCTYPE html><html>", "a web page"),
    "cut zip": (saved(STATE)[:-200], "damaged or truncated"),
    "beginning of a zip": (saved(STATE)[:40], "damaged or truncated"),
    "cut legacy": (saved(STATE, legacy=True)[:-100], "damaged or no checkpoint"),
    "beginning of a legacy": (saved(STATE, legacy=True)[:60], "damaged or no checkpoint|cannot be read"),
    "cut safetensors": (safetensors.torch.save(STATE)[:-8], "damaged or truncated"),
    "beginning of safetensors": (safetensors.torch.save(STATE)[:30], "damaged or truncated"),
    "pickle": (
        pickle.dumps(np.ones(3), protocol=4),
        "cannot be read as a checkpoint|damaged or no checkpoint",
    ),
    "list": (saved([1, 2]), "holds a list, not a state dict"),
    "tensor": (saved(torch.ones(2)), "holds a Tensor, not a state dict"),
    "TorchScript": (
        zipped("m/data.pkl", "m/code/__torch__.py", "m/constants.pkl"),
        "a TorchScript archive",
    ),
    "other zip": (zipped("model.pt"), "a zip archive but not a torch checkpoint"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_one_sentence_for_each_kind_of_wrong_file(kind: str, tmp_path: Path) -> None:
    path, (data, message) = tmp_path / "x.pt", WRONG[kind]
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read_weights_file(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read .*x.pt: No such file"):
        read_weights_file(tmp_path / "x.pt")
    with pytest.raises(ValueError, match="cannot read .*: not a regular file"):
        read_weights_file(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip_model.safetensors", r"cannot read .*open_clip_model\.safetensors: not a regular file"),
        ("open_clip_config.json", "holds no model"),
        ("tokenizer.json", r"the tokenizer in .* cannot be read: tokenizer\.json is not a regular file"),
    ],
)
def test_a_pipe_in_a_model_s_folder(tiny_folder: Path, tmp_path: Path, name: str, message: str) -> None:
    """Nobody writes into it, so that reading it would wait for ever."""
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    if name == "tokenizer.json":
        config = json.loads((folder / "open_clip_config.json").read_text())
        config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": ".", "tokenizer_kwargs": {}}
        (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_model(folder)
    if name.endswith(".safetensors"):
        with pytest.raises(ValueError, match="cannot read .*: not a regular file"):
            read_weights_file(folder / name)
        with pytest.raises(ValueError, match="there is no file|cannot read"):
            load_model(f"{folder / name}@{tiny_folder}")


def test_archives_that_were_packed_again(tmp_path: Path) -> None:
    """Compressed entries cannot be mapped into memory."""
    path = tmp_path / "x.pt"
    with (
        zipfile.ZipFile(io.BytesIO(saved(STATE))) as old,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    try:
        assert torch.equal(read_weights_file(path)["weight"], STATE["weight"])
    except ValueError as error:
        assert "\n" not in str(error)


def test_archives_of_nothing_but_zeros(tmp_path: Path) -> None:
    """A few kilobytes that would take all memory are refused before anything is unpacked."""
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"")
        with archive.open("archive/data/0", "w") as member:
            for _ in range(80):
                member.write(bytes(1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"x\.pt is 1,0\d\d times as large when it is unpacked"):
            read_weights_file(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def hexadecimal(times: int, name: str) -> Any:
    """Bytes that double at each of `times` calls."""
    inner: Any = b"x"
    for _ in range(times):
        inner = Malicious(codecs.encode, inner, name)
    return inner


@pytest.mark.parametrize("how", ["zip", "legacy"])
@pytest.mark.parametrize("kind", ["bytearray", "hex", "HEX" + "-" * 99])
def test_a_few_bytes_do_not_become_many(how: str, kind: str, tmp_path: Path) -> None:
    """torch lets a pickle call both; the file is refused before either is called."""
    large = Malicious(bytearray, 1 << 28) if kind == "bytearray" else hexadecimal(24, kind)
    path = tmp_path / "x.pt"
    path.write_bytes(saved({"weight": STATE["weight"], "more": large}, legacy=how == "legacy"))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"x\.pt builds bytes, which weights do not need"):
            read_weights_file(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("kind", "tensor"),
    [
        ("sparse", torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (10**11,))),
        ("sparse", torch.eye(3).to_sparse_csr()),
        ("meta", torch.empty(10**11, device="meta")),
        ("complex", torch.zeros(3, dtype=torch.complex64)),
    ],
)
def test_tensors_that_no_weights_are(kind: str, tensor: torch.Tensor, tmp_path: Path) -> None:
    """A few bytes describe 10¹¹ values, which would count as weights that the file holds."""
    path = tmp_path / "x.pt"
    path.write_bytes(saved({"weight": STATE["weight"], "more": tensor}))
    with pytest.raises(ValueError, match=f"x.pt holds a {kind} tensor; save dense tensors of real numbers"):
        read_weights_file(path)


def test_lists_that_hold_one_another(tmp_path: Path) -> None:
    """2¹⁰⁰ paths lead to the same tensor, and one goes round in a circle."""
    path, shared, circle = tmp_path / "x.pt", [STATE["weight"]], []
    for _ in range(100):
        shared = [shared, shared]
    circle.append(circle)
    for more in (shared, circle):
        path.write_bytes(saved({"state_dict": STATE, "more": more}))
        assert torch.equal(read_weights_file(path)["state_dict"]["weight"], STATE["weight"])
    path.write_bytes(saved({"state_dict": STATE, "more": [circle, torch.zeros(1).expand(20_000_000, 16)]}))
    with pytest.raises(ValueError, match="that repeats fewer"):
        read_weights_file(path)


def test_a_tensor_that_repeats_one_value(tmp_path: Path) -> None:
    """Its copies would take all memory."""
    path = tmp_path / "x.pt"
    path.write_bytes(saved({"state_dict": {"weight": torch.zeros(1).expand(20_000_000, 16)}}))
    assert path.stat().st_size < 10_000
    with pytest.raises(ValueError, match=r"x\.pt holds a tensor of 320,000,000 values that repeats fewer"):
        read_weights_file(path)
    # Views of a larger tensor are fine.
    path.write_bytes(saved({"weight": STATE["weight"][2:5, ::2].T}))
    assert torch.equal(read_weights_file(path)["weight"], STATE["weight"][2:5, ::2].T)
