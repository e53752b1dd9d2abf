"""Files of weights: pickles that want to run something, archives and safetensors that lie, damaged ones."""

import io
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from argparse import Namespace
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from advflyp.model.load import load_model
from fuzz.documents import tiny
from fuzz.mutate import EDGES, altered, as_json, mutated, text, value


class Evil:
    """Unpickled as anybody's function with anybody's arguments."""

    def __init__(self, call: Any, arguments: tuple[Any, ...]) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


CALLS = (
    (os.system, ("true",)), (eval, ("open('evil', 'w')",)), (exec, ("open('evil', 'w')",)), (open, ("evil", "w")),
    (__import__, ("this",)), (torch.load, ("in/w.pt",)), (torch.hub.load, ("a/b", "c")),
    (shutil.rmtree, ("in",)), (torch.empty, (2**40,)), (bytearray, (2**34,)), (Namespace, ()), (print, ("\x1b[2J",)),
    (torch.Tensor, (2**20, 2**20)), (complex, ("x",)), (list, (range(10**9),)),
    (torch.storage.UntypedStorage, (2**40,)),
)  # fmt: skip


@cache
def state() -> dict[str, torch.Tensor]:
    """The weights of a tiny model."""
    return safetensors.torch.load_file(tiny() / "open_clip_model.safetensors")


def make(rng: random.Random, folder: Path) -> Callable[[], object]:
    """A file of weights, and the model that somebody would make of it."""
    data = tensors(rng) if rng.random() < 0.3 else checkpoint(rng)
    if rng.random() < 0.3:
        data = mutated(rng, data)
    suffix = rng.choice(("pt", "safetensors", "pth.tar", "bin"))
    path = folder / "in" / f"w.{suffix}"
    if rng.random() < 0.3:
        # As the weights of a folder.
        model = shutil.copytree(tiny(), folder / "in" / "model")
        (model / "open_clip_model.safetensors").unlink()
        path = model / f"w.{suffix.replace('pt', 'bin') if suffix == 'pt' else suffix}"
        path.write_bytes(data)
        return lambda: load_model(model)
    path.write_bytes(data)
    alone = rng.random() < 0.2
    return lambda: load_model(str(path) if alone else f"{path}@{tiny()}")


def checkpoint(rng: random.Random) -> bytes:
    """As torch saves it, with more in it than weights."""
    weights: dict[Any, Any] = dict(state())
    for _ in range(rng.choice((0, 0, 1, 3))):
        weights[rng.choice(list(weights))] = strange(rng)
    content: Any = {
        rng.choice(("state_dict", "model", "partial_state_dict", "vision_encoder_state_dict")): weights,
        "epoch": rng.choice((1, value(rng))),
    }
    if rng.random() < 0.3:
        content["recipe"] = rng.choice(
            ('[model]\nname = "mini"', '[model]\nname = "hf-hub:a/b"', text(rng), "a=[" * 999)
        )
    if rng.random() < 0.3:
        content = rng.choice((weights, altered(rng, content), list(weights.items()), value(rng)))
    if rng.random() < 0.3:
        call, arguments = rng.choice(CALLS)
        evil = Evil(call, arguments)
        content = (
            rng.choice(({**content, "x": evil}, {"state_dict": {"a": evil}}, [evil]))
            if isinstance(content, dict)
            else evil
        )
    try:
        data = saved(rng, content)
    except RecursionError:
        data = saved(rng, state())
    return rezipped(rng, data) if data.startswith(b"PK") and rng.random() < 0.3 else data


def saved(rng: random.Random, content: Any) -> bytes:
    """In one of torch's formats, or as a plain pickle."""
    stream = io.BytesIO()
    match rng.randrange(8):
        case 0:
            torch.save(content, stream, _use_new_zipfile_serialization=False)
        case 1:
            stream.write(pickle.dumps(without_tensors(content), rng.randrange(2, 6)))
        case _:
            torch.save(content, stream)
    return stream.getvalue()


def without_tensors(content: Any) -> Any:
    """A plain pickle holds none."""
    return {"a": [1], "x": content.get("x")} if isinstance(content, dict) else [str(content)[:99]]


def strange(rng: random.Random) -> Any:
    """Something in the place of a tensor."""
    return rng.choice((
        torch.zeros(0), torch.zeros(()), torch.full((3, 3), float("nan")), torch.zeros(2, 2, dtype=torch.complex64),
        torch.zeros(1).expand(2**40), torch.zeros(3).to_sparse(), torch.zeros(3, dtype=torch.bool), value(rng),
        torch.zeros(2, 2, device="meta"), torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
    ))  # fmt: skip


def rezipped(rng: random.Random, data: bytes) -> bytes:
    """The members packed again: compressed, changed, too many, beside a program."""
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(stream, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as new,
    ):
        for info in old.infolist():
            content = old.read(info)
            if rng.random() < 0.1:
                content = rng.choice((mutated(rng, content), b"", content[:-1], bytes(1 << 20)))
            new.writestr(info.filename, content)
        if rng.random() < 0.2:
            new.writestr(
                rng.choice(("archive/code/a.py", "../evil", "/evil", "archive/data.pkl")), b"import os"
            )
    return stream.getvalue()


def tensors(rng: random.Random) -> bytes:
    """Safetensors whose header says what it likes."""
    data = safetensors.torch.save(state())
    size = struct.unpack("<Q", data[:8])[0]
    if rng.random() < 0.7:
        header: Any = json.loads(data[8 : 8 + size])
        for _ in range(rng.choice((1, 2))):
            header = altered(rng, header)
        written = as_json(rng, header)
        length = rng.choice((len(written),) * 6 + EDGES)
        return struct.pack("<Q", length) + written + data[8 + size :]
    return mutated(rng, data)
