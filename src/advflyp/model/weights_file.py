"""Untrusted weights files → plain values and tensors, without running any code in them."""

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from advflyp.errors import first_line

# The first bytes of files that get saved under a checkpoint's name by mistake.
MISTAKEN = {
    b"version https://git-lfs": "a pointer of Git LFS and not the file itself; fetch it with 'git lfs pull'",
    b"<!doctype html": "a web page, as failed downloads leave them; download the file again",
    b"<html": "a web page, as failed downloads leave them; download the file again",
}
# Limits on what a zip file unpacks to: weights hardly compress, whereas zeros shrink to a thousandth.
MOST_UNPACKED, SPARE_BYTES = 10, 64 << 20
PICKLE_PROTOCOLS = b"\x02\x03\x04\x05"


class Ignored:
    """An inert stand-in for the objects that training scripts save beside the weights."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# These are never called: `Ignored` takes their place, whatever arguments a file holds for them.
IGNORED = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "datetime.datetime",
    "datetime.timedelta",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(
        f"numpy.dtypes.{name}DType"
        for name in ("Float64", "Float32", "Float16", "Int64", "Int32", "Bool", "Str")
    ),
)


def read_weights_file(path: Path) -> dict[str, Any]:
    """Read a torch checkpoint (zip or pickle) or a safetensors file onto the CPU; its name does not matter.

    ValueError if the file is neither, is damaged, or holds more than tensors and plain values. No code in it is run.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None
    if not head:
        raise ValueError(f"{path} is empty; download or copy it again")
    if head.startswith(b"PK"):
        return _read_zip(path)
    if head[0] == 0x80 and head[1:2] in {bytes([protocol]) for protocol in PICKLE_PROTOCOLS}:
        return _read_torch(path, mmap=False)
    if head[8:9] == b"{":
        return _read_safetensors(path)
    for start, meaning in MISTAKEN.items():
        if head.lstrip().lower().startswith(start):
            raise ValueError(f"{path} is {meaning}")
    raise ValueError(f"{path} is neither a torch checkpoint nor safetensors: it begins with {_shown(head)}")


def _read_zip(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            stored = all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
            unpacked = sum(info.file_size for info in archive.infolist())
            packed = path.stat().st_size
    except (
        zipfile.BadZipFile,
        OSError,
        ValueError,
        NotImplementedError,
    ):  # the last for zip versions it cannot read
        raise ValueError(f"{path} is damaged or truncated; download or copy it again") from None
    if any("/code/" in name for name in names):
        raise ValueError(
            f"{path} is a TorchScript archive, which holds a program beside its weights and is not run here; save the "
            "state dict of the model alone (OpenAI's own weights are ViT-B-32/openai and so on)"
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise ValueError(
            f"{path} is a zip archive but not a torch checkpoint; unpack it and name a file in it"
        )
    if unpacked > MOST_UNPACKED * packed + SPARE_BYTES:
        raise ValueError(
            f"{path} is {unpacked // packed:,} times as large when it is unpacked, which weights are not; save the "
            "state dict anew where it was made"
        )
    # Memory-mapped, since the optimiser's state, which may be twice the weights, need not be read.
    return _read_torch(path, mmap=stored)


def _read_torch(path: Path, *, mmap: bool) -> dict[str, Any]:
    allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [(Ignored, name) for name in IGNORED]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
            warnings.simplefilter("ignore", UserWarning)  # of an unusual pickle protocol
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None:
            raise ValueError(f"{path} cannot be read as a checkpoint: {_shortened(error)}") from None
        raise ValueError(
            f"{path} holds more than tensors and plain values ({found[1]}), which may run code, and is refused; "
            "nothing of it was run: where it was made, save the model's state dict alone and load that"
        ) from None
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(
            f"{path} is damaged or no checkpoint ({_shortened(error)}); download or copy it again"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict")
    return content


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return dict(safetensors.torch.load_file(path))
    except (safetensors.SafetensorError, json.JSONDecodeError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or truncated ({_shortened(error)}); download or copy it again"
        ) from None


def _shortened(error: Exception) -> str:
    return first_line(error)[:120].rstrip(".")


def _shown(head: bytes) -> str:
    text = head[:24].decode("utf-8", errors="replace").splitlines()[0]
    return repr(text) if text.isprintable() and text else f"the bytes {head[:8].hex(' ')}"
