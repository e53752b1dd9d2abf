"""Batches of another process are those of threads, to the last bit, and nothing outlives what it belongs to."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import TensorDataset

from advflyp.data.config import DataConfig
from advflyp.data.pairs.images import ImageReader
from advflyp.data.pairs.pairs import Pairs, Tokenizer
from advflyp.data.pairs.process import BatchProcess
from advflyp.data.training import open_training
from advflyp.errors import RunError
from advflyp.model.clip import CLIP
from helpers import class_folder, members, pairs, picture, write_folder, write_shards, write_tar

CPU = torch.device("cpu")


def opened(
    tiny: CLIP,
    train: object,
    wanted: Any = "pairs",
    data: Any = None,
    tokenizer: Tokenizer | None = None,
    **config: Any,
) -> Pairs:
    config = DataConfig(**{"train": str(train), "batch_size": 8, "workers": 2, "loader": "process", **config})
    reader = ImageReader(tiny.config["preprocess_cfg"])
    return open_training(config, wanted, reader, seed=0, device=CPU, tokenizer=tokenizer, data=data)


def child(stream: Any) -> "subprocess.Popen[bytes]":
    return stream._process.child.process


def equal(found: list[Any], wanted: list[Any]) -> bool:
    return len(found) == len(wanted) and all(
        torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and (a.captions, a.position) == (b.captions, b.position)
        for a, b in zip(found, wanted, strict=True)
    )


def test_the_same_batches(tiny: CLIP, tmp_path: Path) -> None:
    """Two epochs, a resumed one, and one after a consumer that stopped early; with skipped samples."""
    bad = [("a.png", b"not an image"), ("a.txt", b"x"), ("d.txt", b"no image")]
    tar = write_tar(tmp_path / "x.tar", members(pairs(75)) + bad)
    threads, process = (
        opened(tiny, tar, loader="threads", drop_last=False),
        opened(tiny, tar, drop_last=False),
    )
    first = list(threads.epoch(0))
    assert equal(list(process.epoch(0)), first)
    assert process.skipped == threads.skipped and process.skipped.counts.total() == 2
    kept = child(process)
    assert equal(list(process.epoch(1)), list(threads.epoch(1))) and child(process) is kept
    assert process.skipped == threads.skipped and process.skipped.counts.total() == 4
    assert equal(list(process.epoch(0, first[3].position)), first[4:])
    epoch: Any = process.epoch(2)
    next(epoch)
    epoch.close()
    assert kept.returncode == -signal.SIGKILL
    assert equal(list(process.epoch(2)), list(threads.epoch(2)))


def test_labelled_images(tiny: CLIP, tmp_path: Path) -> None:
    folder = class_folder(tmp_path / "set", [picture("red", "circle", Random(seed)) for seed in range(18)])
    kind = {"train": f"folder:{folder}", "wanted": "labelled"}
    assert equal(list(opened(tiny, **kind).epoch(0)), list(opened(tiny, **kind, loader="threads").epoch(0)))


def test_tokens_are_made_by_the_process(tiny: CLIP, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", members(pairs(24)))
    for batch in opened(tiny, tar, tokenizer=tiny.tokenizer).epoch(0):
        assert torch.equal(batch.tokens, tiny.tokenizer(batch.captions))
    assert [batch.tokens for batch in opened(tiny, tar).epoch(0)] == [None, None, None]


def shards(folder: Path, n: int) -> Path:
    return write_shards(folder, n, per_shard=5)


def table(folder: Path, n: int) -> Path:
    write_folder(folder, n)
    rows = [f"{number:04d}.png,a caption" for number in range(n)]
    (folder / "table.csv").write_text("\n".join(["image,caption", *rows]))
    return folder / "table.csv"


def parquet(folder: Path, n: int) -> Path:
    folder.mkdir()
    images, captions = zip(*pairs(n), strict=True)
    pq.write_table(pa.table({"image": images, "caption": captions}), folder / "pairs.parquet")
    return folder / "pairs.parquet"


@pytest.mark.parametrize("write", [write_folder, shards, table, parquet])
def test_every_source_can_be_sent(tiny: CLIP, tmp_path: Path, write: Any) -> None:
    source = opened(tiny, write(tmp_path / "data", 16), loader="threads")
    sent = pickle.loads(pickle.dumps(source))
    assert equal(list(sent.epoch(0)), list(source.epoch(0)))


def test_what_cannot_be_sent_is_refused(tiny: CLIP) -> None:
    class Own(TensorDataset):
        def __getitem__(self, index: int) -> tuple[Any, str]:  # type: ignore[override]
            return super().__getitem__(index)[0], "a caption"

    data = Own(torch.zeros(8, 3, 32, 32))
    with pytest.raises(
        ValueError,
        match=r'data.loader = "process" cannot be used: this data cannot be sent.*leave the key out',
    ):
        list(opened(tiny, "own", data=data).epoch(0))


@pytest.mark.gpu
def test_memory_is_given_back_when_the_gpu_has_its_copy() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device here")
    source = BatchProcess(Endless(), 6, torch.device("cuda"))
    seen = []
    busy = torch.rand(4096, 4096, device="cuda")
    for number, batch in zip(range(50), source.batches(0), strict=False):
        assert batch["images"].is_pinned()
        busy = busy @ busy  # the copy has to wait for it
        seen.append((number, batch["images"].to("cuda", non_blocking=True)))
    assert all(image.eq(number).all() for number, image in seen)


def test_what_the_source_raises_is_raised_here(tiny: CLIP, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pairs", 16)
    for index in range(8):
        (folder / f"{index:04d}.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match="8 of 16 samples of .* cannot be used"):
        list(opened(tiny, folder).epoch(0))


@pytest.mark.long
def test_a_process_that_is_killed_is_named(tiny: CLIP, tmp_path: Path) -> None:
    stream: Any = opened(tiny, write_folder(tmp_path / "pairs", 160))
    list(stream.epoch(0))
    os.kill(child(stream).pid, signal.SIGKILL)
    with pytest.raises(RunError, match="the loader process died .signal 9"):
        list(stream.epoch(1))
    assert len(list(stream.epoch(1))) == 20


class Endless:
    """Batches that never end, of known bytes."""

    def batches(self, request: int) -> Iterator[dict[str, Any]]:
        while True:
            yield {"images": torch.full((2, 3), request, dtype=torch.uint8), "of": os.getpid()}
            request += 1


def test_slots_are_given_back() -> None:
    source = BatchProcess(Endless(), 6, CPU)
    batches: Any = source.batches(0)
    for number, batch in zip(range(200), batches, strict=False):
        assert batch["images"].eq(number).all() and batch["images"].shape == (2, 3)
    batches.close()


PARENT = """
import torch
from data.pairs.test_process import Endless
from advflyp.data.pairs.process import BatchProcess
for batch in BatchProcess(Endless(), 6, torch.device("cpu")).batches(0):
    print(batch["of"], flush=True)
    input()
"""


@pytest.mark.long
def test_the_process_ends_with_its_parent() -> None:
    tests = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([tests, *sys.path])}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, signal.SIGTERM)  # which the parent alone heeds
        os.kill(pid, signal.SIGINT)
        time.sleep(0.2)
        os.kill(pid, 0)
        parent.kill()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and _is_running(pid):
        time.sleep(0.05)
    assert not _is_running(pid)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
