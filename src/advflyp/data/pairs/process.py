"""Make batches in a process of its own, so that reading and decoding do not share the interpreter with training.

Parent and child talk over one socket. Images are in shared memory, in a few slots of one batch each; the child fills a
free slot, and the parent gives it back once the device has its copy.
"""

import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch
from torch import Tensor

from advflyp.errors import RunError

# As many batches ahead of the training as with threads, and one that is being made.
SLOTS = 4
_SERVE = "import sys; sys.path[:] = {}; from advflyp.data.pairs.process import serve; serve({}, {})"
NOT_SENT = 'data.loader = "process" cannot be used: this data cannot be sent to another process ({}); leave the key out'
_END = None


class Batches(Protocol):
    """A source whose batches can be made in another process; it has to be picklable."""

    def batches(self, request: Any, /) -> Iterator[dict[str, Any]]:
        """Dictionaries whose "images", where there are any, are uint8 and no larger than a slot."""
        ...


class BatchProcess:
    """A process that makes the batches of one source; it begins with the first epoch and is kept for the next ones.

    Args:
        source: Makes the batches.
        slot: Bytes of the images of the largest batch.
        device: Where images go; for CUDA the memory is pinned.

    Raises:
        ValueError: The source cannot be pickled.
    """

    def __init__(self, source: Batches, slot: int, device: torch.device) -> None:
        self.slot = slot
        self.on_cuda = device.type == "cuda"
        try:
            self.source = pickle.dumps(source)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise ValueError(NOT_SENT.format(error)) from None
        self.child: _Child | None = None

    def batches(self, request: Any) -> Iterator[dict[str, Any]]:
        """The source's batches for a request. The images of one are valid until the next is asked for.

        A consumer that stops early ends the process.

        Raises:
            RunError: The process was ended from outside.
            Exception: What the source raises.
        """
        child = self.child or _Child(self.source, self.slot, pinned=self.on_cuda)
        self.child = None  # until the epoch has come to its end
        lent: deque[tuple[int, torch.cuda.Event | None]] = deque()
        try:
            child.send(pickle.dumps((request,)))  # not to be taken for a slot
            while (message := child.receive()) is not _END:
                if isinstance(message, BaseException):
                    raise message
                slot, shape, batch = message
                if slot is None:
                    yield batch
                    continue
                yield {**batch, "images": _in_slot(child.memory, slot, shape)}
                lent.append((slot, self._copied()))
                if len(lent) > 1:
                    child.give_back(*lent.popleft())
            for one in lent:
                child.give_back(*one)
            self.child = child
        finally:
            if self.child is not child:
                child.close()

    def _copied(self) -> torch.cuda.Event | None:
        """On CUDA, an event that marks the end of the copy that the consumer started."""
        if not self.on_cuda:
            return None
        event = torch.cuda.Event()
        event.record()
        return event


class _Child:
    """The process, seen from the parent."""

    def __init__(self, source: bytes, slot: int, *, pinned: bool) -> None:
        with _shared_file(SLOTS * slot) as file:
            self.memory = torch.frombuffer(mmap.mmap(file, 0), dtype=torch.uint8)
            ours, theirs = socket.socketpair()
            with theirs:
                fds = (theirs.fileno(), file)
                # -P: the current folder is on the path only if it is on ours.
                command = [sys.executable, "-P", "-c", _SERVE.format(sys.path, *fds)]
                process = subprocess.Popen(command, pass_fds=fds)
        self.process, self.connection = process, Connection(ours.detach())
        if pinned:
            cudart: Any = torch.cuda.cudart()
            torch.cuda.check_error(cudart.cudaHostRegister(self.memory.data_ptr(), len(self.memory), 0))
        self.close = weakref.finalize(self, _close, process, self.connection, self.memory, pinned)
        self.send(source)

    def send(self, data: bytes) -> None:
        with suppress(OSError):  # it has ended, which `receive` says
            self.connection.send_bytes(data)

    def receive(self) -> Any:
        try:
            return pickle.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            code = self.process.wait()
            how = f"signal {-code} ended it" if code < 0 else f"it ended with status {code}"
            raise RunError(
                f"the loader process died ({how}; out of memory?); continue with --resume"
            ) from None

    def give_back(self, slot: int, copied: "torch.cuda.Event | None") -> None:
        if copied is not None:
            copied.synchronize()  # of the batch before the last: done long ago
        self.send(pickle.dumps(slot))


@contextmanager
def _shared_file(size: int) -> Iterator[int]:
    """The descriptor of an unnamed file for shared memory; /dev/shm is small in many containers."""
    with (
        os.fdopen(os.memfd_create("batches"), "r+b")
        if hasattr(os, "memfd_create")
        else tempfile.TemporaryFile()
    ) as file:
        os.ftruncate(file.fileno(), size)
        yield file.fileno()


def _in_slot(memory: Tensor, slot: int, shape: tuple[int, ...]) -> Tensor:
    return memory[slot * len(memory) // SLOTS :][: torch.Size(shape).numel()].view(shape)


def _close(process: "subprocess.Popen[bytes]", connection: Connection, memory: Tensor, pinned: bool) -> None:
    connection.close()
    process.kill()
    process.wait()
    if pinned:
        cudart: Any = torch.cuda.cudart()
        cudart.cudaHostUnregister(memory.data_ptr())


class _Parent:
    """The parent, seen from the child. The child exits with it, without waiting for its own decoding threads."""

    def __init__(self, fd: int) -> None:
        self.connection = Connection(fd)

    def send(self, message: Any) -> None:
        data = pickle.dumps(message)
        try:
            self.connection.send_bytes(data)
        except OSError:
            os._exit(0)

    def receive(self) -> bytes:
        try:
            return self.connection.recv_bytes()
        except (EOFError, OSError):
            os._exit(0)


def serve(connection_fd: int, memory_fd: int) -> None:
    """Run the child: make the batches of each epoch that the parent requests, until the parent is gone."""
    # The parent decides when to stop: it may want a few batches more, to end a step and save a checkpoint.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent = _Parent(connection_fd)
    memory = torch.frombuffer(mmap.mmap(memory_fd, 0), dtype=torch.uint8)
    free = list(range(SLOTS))
    sent = parent.receive()
    try:
        source: Batches = pickle.loads(sent)
    except Exception as error:  # unpickling may raise anything
        parent.send(ValueError(NOT_SENT.format(error)))
        return
    while True:
        message = pickle.loads(parent.receive())
        if isinstance(message, int):
            free.append(message)
            continue
        try:
            for batch in source.batches(message[0]):
                _serve(batch, parent, memory, free)
        except Exception as error:  # raised again in the parent
            parent.send(_picklable(error))
        else:
            parent.send(_END)


def _serve(batch: dict[str, Any], parent: _Parent, memory: Tensor, free: list[int]) -> None:
    images: Tensor | None = batch.pop("images", None)
    if images is None:
        parent.send((None, None, batch))
        return
    while not free:
        free.append(pickle.loads(parent.receive()))
    slot = free.pop()
    _in_slot(memory, slot, images.shape).copy_(images)
    parent.send((slot, tuple(images.shape), batch))


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # its class takes other arguments than a message
        return RuntimeError("".join(traceback.format_exception(error)))
    return error
