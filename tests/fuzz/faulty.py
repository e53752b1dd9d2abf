"""Misdeeds, which the watch has to notice: without them the suite could be blind."""

import json
import os
import pickle
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fuzz.watch import command


def make(rng: random.Random, folder: Path) -> Callable[[], object]:
    """The misdeed whose number the folder's name ends with."""
    return list(MISDEEDS.values())[int(folder.name.rpartition("-")[2])]


def _run_code() -> None:
    Path("out/evil.py").write_text("x = 1")
    exec(compile("x = 1", os.path.abspath("in/evil.py"), "exec"))


def _spin() -> None:
    end = time.process_time() + 0.6
    while time.process_time() < end:
        pass


def _connect() -> None:
    with socket.socket() as tried:
        tried.connect_ex(("127.0.0.1", 9))


def _die_in_a_thread() -> None:
    thread = threading.Thread(target=lambda: 1 // 0)
    thread.start()
    thread.join()


# What the watch says of it: the misdeed.
MISDEEDS: dict[str, Callable[[], object]] = {
    "KeyError: ": lambda: {}["x"],
    "JSONDecodeError: ": lambda: json.loads("{"),
    "invalid literal for int()": lambda: int("x"),
    "exit 3, ": lambda: sys.exit(3),
    "changed outside of out: ": lambda: os.close(os.open("in/x", os.O_CREAT)),
    "open '/": lambda: open(os.path.abspath("out/../in/x"), "wb").close(),
    "os.mkdir '/": lambda: os.mkdir(os.path.abspath("beside")),
    "socket.connect ": _connect,
    "socket.getaddrinfo ": lambda: socket.getaddrinfo("localhost", 9),
    "subprocess.Popen ": lambda: subprocess.run(["true"], check=True),
    "os.system ": lambda: os.system("true"),
    "pickle.find_class ": lambda: pickle.loads(b"cos\nsystem\n."),
    "code of the input is run: ": _run_code,
    "a thread died: ": _die_in_a_thread,
    "printed: ": lambda: print("\x1b[2J"),
    "MB of memory": lambda: len(b"x" * (100 << 20)),
    "s of processor": _spin,
}
# What is no misdeed: a mistake of the user's, and what is written to the output.
ALLOWED: tuple[Callable[[], object], ...] = (
    lambda: command("data", "check", "in/nothing"),
    lambda: Path(os.path.abspath("out/x")).write_text("x"),
)
MISDEEDS |= {f"nothing {number}": use for number, use in enumerate(ALLOWED)}
