"""The command line: find the command, parse its arguments, call it. Heavy imports happen inside the commands."""

import logging
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, NoReturn

from advflyp.__about__ import __version__
from advflyp.cli import data, evaluate, leaderboard, lvlm, models, train, use, web
from advflyp.cli.arguments import parse
from advflyp.cli.environment import env
from advflyp.config import suggest
from advflyp.errors import RunError, refusal
from advflyp.recipes import describe_keys, known_keys
from advflyp.terminal import nobody_reads, prepare_streams, say

Command = Callable[..., None]
DATA: Mapping[str, Command] = {
    "sets": data.sets,
    "fetch": data.fetch,
    "sample": web.sample,
    "download": web.download,
    "pack": data.pack,
    "check": data.check,
    "overlap": data.overlap,
    "caption": data.caption,
}
COMMANDS: Mapping[str, Command | Mapping[str, Command]] = {
    "quickstart": train.quickstart,
    "train": train.train,
    "pretrain": train.train,
    "validate": train.validate,
    "recipes": train.recipes,
    "eval": evaluate.evaluate,
    "protocols": evaluate.protocols,
    "compare": evaluate.compare,
    "retrieval": evaluate.retrieval,
    "report": evaluate.report,
    "leaderboard": leaderboard.leaderboard,
    "interpolate": evaluate.interpolate,
    "reproduce": train.reproduce,
    "models": models.models,
    "sets": data.sets,
    "attacks": models.attacks,
    "methods": models.methods,
    "export": models.export,
    "publish": models.publish,
    "predict": use.predict,
    "attack": use.attack,
    "demo": use.demo,
    "data": DATA,
    "lvlm": {"eval": lvlm.evaluate},
    "env": env,
}
ABOUT = {
    "advflyp": "Make CLIP-like models adversarially robust, and measure how robust they are.",
    "advflyp pretrain": "The same as train, under the name of what recipes such as mini/pretrain do.",
    "advflyp data": "Training and test data, from nothing to shards.",
    "advflyp lvlm": "Large vision-language models that see through a robust image tower.",
}
TRAINING = ("advflyp train", "advflyp pretrain")
WITH_KEYS = (*TRAINING, "advflyp validate")
# How to continue an interrupted command.
RESUMING = {
    "continue with --resume": TRAINING,
    "with --out, the same command resumes": (
        "advflyp eval", "advflyp retrieval", "advflyp interpolate", "advflyp lvlm eval",
    ),
    "the same command resumes": (
        "advflyp quickstart", "advflyp reproduce", "advflyp leaderboard", "advflyp data caption",
        "advflyp data download",
    ),
}  # fmt: skip
# A value pasted by mistake can be a megabyte long.
LONGEST_LINE = 1000


class Terminated(KeyboardInterrupt):
    """SIGTERM: like Ctrl-C, it lets whatever is being written be finished or dropped."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit codes: 0 done, 2 the user's mistake (one line on stderr), 130 Ctrl-C, 143 SIGTERM, 1 anything else."""
    prepare_streams()
    try:
        with _sigterm_unwinds():
            try:
                _run(list(sys.argv[1:] if arguments is None else arguments))
            finally:
                sys.stdout.flush()  # the reader of what is buffered may have gone, too
    except ValueError as error:
        _fail(error, 2)
    except KeyboardInterrupt as stop:
        _fail("interrupted", _code_of(stop))
    except RunError as error:
        _fail(error, 1)
    except BrokenPipeError:
        if not nobody_reads():
            raise
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        sentence = refusal(error)
        if sentence is None:
            raise
        _fail(sentence, 2)


def _run(words: list[str]) -> None:
    # open_clip announces every random initialisation as a warning.
    logging.getLogger().setLevel(logging.ERROR)
    # Adversarial images are evaluated in float32, but torch would have NVIDIA's libraries round convolutions. They read
    # this once, later.
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    if words[:1] in (["--version"], ["-V"]):
        say(f"advflyp {__version__}")
        return
    words, keys = split_recipe_keys(words)
    command, words, prog = find_command(words)
    call = _parse(command, words, prog)
    if keys and prog not in WITH_KEYS:
        raise ValueError(f"--{next(iter(keys))} is a recipe key; it goes with `advflyp train`")
    if keys:
        call = partial(call, overrides=keys)
    try:
        call()
    except KeyboardInterrupt as stop:
        # Its files are intact: each is written completely, or not at all.
        how = next((how for how, progs in RESUMING.items() if prog in progs), "the same command starts over")
        _fail(f"interrupted; {how}", _code_of(stop))


def find_command(words: Sequence[str]) -> tuple[Command, list[str], str]:
    """The command that the words begin with, the remaining words, and the command as the user called it.

    --help prints and exits. ValueError if there is no such command.
    """
    found: Command | Mapping[str, Any] = COMMANDS
    prog, rest = "advflyp", list(words)
    while isinstance(found, Mapping):
        name = rest.pop(0) if rest else ""
        if name in ("-h", "--help"):
            say(*_help(prog, found))
            sys.exit(0)
        if not name:
            raise ValueError(f"name a command: {', '.join(found)}; see {prog} --help")
        if name.startswith("-"):
            raise ValueError(f"{prog} has no option {name}; options follow a command, see {prog} --help")
        if name not in found:
            raise ValueError(f"{prog} has no command '{name}'{suggest(name, found)}")
        found, prog = found[name], f"{prog} {name}"
    return found, rest, prog


def _help(prog: str, commands: Mapping[str, Any]) -> list[str]:
    lines = [f"usage: {prog} COMMAND …", "", ABOUT[prog], ""]
    for name, command in commands.items():
        about = ABOUT.get(f"{prog} {name}") or command.__doc__ or ""
        first = about.partition("\n")[0]
        lines += textwrap.wrap(first, 96, initial_indent=f"  {name:12} ", subsequent_indent=" " * 15)
    return [*lines, "", f"`{prog} COMMAND --help` explains one."]


def _parse(command: Command, words: Sequence[str], prog: str) -> Command:
    """Bind a command to its arguments; for commands that train, --help and suggestions include recipe keys."""
    if prog not in WITH_KEYS:
        return parse(command, words, prog)
    try:
        return parse(command, words, prog, [f"--{key}" for key in known_keys()])
    except SystemExit:  # tyro has printed the options
        say("", *describe_keys())
        raise


def split_recipe_keys(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separate `--table.key value` and `--table.key=value` from the other arguments."""
    pending, others, keys = list(arguments), [], {}
    while pending and pending[0] != "--":
        argument = pending.pop(0)
        name, equals, value = argument.partition("=")
        if not (name.startswith("--") and "." in name):
            others.append(argument)
            continue
        if not equals:
            if not pending or pending[0].startswith("--"):
                raise ValueError(f"{name} needs a value")
            value = pending.pop(0)
        keys[name[2:]] = value
    return others + pending, keys


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Within the block, SIGTERM raises `Terminated`; a second one ends the process at once."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        raise Terminated

    # Only the main thread may set signal handlers in Python; a handler that is set already stays.
    listens = threading.current_thread() is threading.main_thread()
    if not listens or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _code_of(stop: KeyboardInterrupt) -> int:
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def _fail(error: Exception | str, code: int) -> NoReturn:
    """Print one line on stderr, and exit."""
    line = " ".join(str(error).splitlines())
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE // 2]} … {line[-LONGEST_LINE // 2 :]}"
    rank = os.environ.get("RANK") if code == 1 else None
    # Every rank of a run sees a mistake; one rank per machine reports it.
    if code == 1 or os.environ.get("LOCAL_RANK", "0") == "0":
        say(f"advflyp{f' [rank {rank}]' if rank else ''}: {line}", to_stderr=True)
    sys.exit(code)
