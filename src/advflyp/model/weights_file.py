"""Untrusted weights files → plain values and tensors, without running any code in them."""

import codecs
import json
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from advflyp.errors import SkippedSample, first_line
from advflyp.limits import open_regular

# The first bytes of files that get saved under a checkpoint's name by mistake.
MISTAKEN = {
    b"version https://git-lfs": "a pointer of Git LFS and not the file itself; fetch it with 'git lfs pull'",
    b"<!doctype html": "a web page, as failed downloads leave them; download the file again",
    b"<html": "a web page, as failed downloads leave them; download the file again",
}
# Limits on what a zip file unpacks to: weights hardly compress, whereas zeros shrink to a thousandth.
MOST_UNPACKED, SPARE_BYTES = 10, 64 << 20
# torch lets a pickle call these, as "module name" in its opcodes: `bytearray(10**12)` takes ten bytes.
BYTEARRAYS, ENCODE = {"builtins bytearray", "__builtin__ bytearray"}, "_codecs encode"
DAMAGED = "{} is damaged or no checkpoint ({}); download or copy it again"
# The magic number, the protocol, facts about the machine, the objects, and the keys of their data.
LEADING_PICKLES = 5


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
    with open_weights(path) as file:
        head = file.read(64)
    if not head:
        raise ValueError(f"{path} is empty; download or copy it again")
    if head.startswith(b"PK"):
        # Memory-mapped, since the optimiser's state, which may be twice the weights, need not be read.
        return _read_torch(path, mmap=_check_zip(path))
    if _is_pickle(head):
        _check_pickles(path)
        return _read_torch(path, mmap=False)
    if head[8:9] == b"{":
        return _read_safetensors(path)
    for start, meaning in MISTAKEN.items():
        if head.lstrip().lower().startswith(start):
            raise ValueError(f"{path} is {meaning}")
    raise ValueError(f"{path} is neither a torch checkpoint nor safetensors: it begins with {_shown(head)}")


def open_weights(path: Path) -> BinaryIO:
    """Open a file for reading. ValueError if that fails, or if it is a pipe, which may never end, or the like."""
    try:
        return open_regular(path)
    except SkippedSample as reason:
        raise ValueError(f"cannot read {path}: {reason}") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from None


def check_floating(stored: Mapping[str, Any], own: Mapping[str, Tensor], file: object) -> None:
    """ValueError if a weight of a model is stored as whole numbers or booleans, which torch would turn into weights.

    Args:
        stored: What a file holds. A tensor counts as a weight if its name ends as that of one of the model, whatever
            wrappers or other releases put before it.
        own: The model's tensors.
        file: The file, in the message.
    """
    weights = {key.rpartition(".")[2] for key, value in own.items() if value.is_floating_point()}
    for key, value in stored.items():
        if isinstance(value, Tensor) and not value.is_floating_point() and key.rpartition(".")[2] in weights:
            raise ValueError(
                f"{file} stores {key} as whole numbers, which are no weights; save it as float32 or float16"
            )


def _is_pickle(head: bytes) -> bool:
    # The second byte is the protocol.
    return head[:1] == b"\x80" and b"\x02" <= head[1:2] <= b"\x05"


def _check_pickles(path: Path) -> None:
    """Check the pickles that a file in torch's format from before 2020 begins with; raw data follow them."""
    with open_weights(path) as file:
        for _ in range(LEADING_PICKLES):
            _check_pickle(file, path)


def _check_pickle(file: IO[bytes], path: Path) -> None:
    """ValueError for a pickle that makes large objects of a few bytes, with what torch lets a pickle call."""
    called: set[str] = set()
    texts: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if isinstance(argument, str):
                (called.add if opcode.name == "GLOBAL" else texts.append)(argument)
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(DAMAGED.format(path, _shortened(error))) from None
    if BYTEARRAYS & called or (ENCODE in called and any(map(_is_of_bytes, texts))):
        raise ValueError(
            f"{path} builds bytes, which weights do not need; where it was made, save the state dict alone"
        )


def _is_of_bytes(name: str) -> bool:
    """Whether this is the name of a codec that turns bytes into other bytes, such as "hex", which doubles them."""
    try:
        return not codecs.lookup(name)._is_text_encoding
    except (LookupError, ValueError):
        return False


def _check_zip(path: Path) -> bool:
    """Whether the archive is uncompressed; ValueError if it is not a torch checkpoint, or unpacks to far more."""
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
        RuntimeError,
    ):  # the last for zip versions it cannot read
        raise ValueError(f"{path} is damaged or truncated; download or copy it again") from None
    if any("/code/" in name for name in names):
        raise ValueError(
            f"{path} is a TorchScript archive, which holds a program beside its weights and is not run here; save the "
            "state dict of the model alone (OpenAI's own weights are ViT-B-32/openai and so on)"
        )
    pickled = next((name for name in names if name.endswith("data.pkl")), None)
    if pickled is None:
        raise ValueError(
            f"{path} is a zip archive but not a torch checkpoint; unpack it and name a file in it"
        )
    if unpacked > MOST_UNPACKED * packed + SPARE_BYTES:
        raise ValueError(
            f"{path} is {unpacked // packed:,} times as large when it is unpacked, which real weights never are; save "
            "the state dict again, uncompressed, where it was made"
        )
    try:
        with zipfile.ZipFile(path) as archive, archive.open(pickled) as file:
            _check_pickle(file, path)
    except (zipfile.BadZipFile, RuntimeError) as error:  # encrypted, or compressed in an unknown way
        raise ValueError(DAMAGED.format(path, _shortened(error))) from None
    return stored


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
        raise ValueError(DAMAGED.format(path, _shortened(error))) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict")
    for tensor in _tensors(content):
        if kind := _kind(tensor):
            raise ValueError(f"{path} holds a {kind} tensor; save dense tensors of real numbers")
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            # Copies of the tensor would take more memory than the file.
            raise ValueError(
                f"{path} holds a tensor of {tensor.numel():,} values that repeats fewer; save a copy (`.contiguous()`)"
            )
    return content


def _tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor in a tree of tables and lists, which may refer to itself."""
    left, seen = [tree], {id(tree)}
    while left:
        part = left.pop()
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, Mapping | list | tuple):
            inner = {id(one): one for one in (part.values() if isinstance(part, Mapping) else part)}
            left += [one for key, one in inner.items() if key not in seen]
            seen |= inner.keys()


def _kind(tensor: Tensor) -> str:
    """What a tensor is that no weight is: its size would say nothing about the file's, or its values would be cut."""
    kinds = {
        "sparse": tensor.layout != torch.strided,
        "meta": tensor.is_meta,
        "quantised": tensor.is_quantized,
        "complex": tensor.is_complex(),
    }
    return next((name for name, is_so in kinds.items() if is_so), "")


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
