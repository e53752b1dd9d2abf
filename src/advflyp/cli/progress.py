"""What the data commands print: their progress, and what shards hold."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.filesize import decimal

from advflyp.terminal import say
from advflyp.wording import counted

if TYPE_CHECKING:
    from advflyp.data.pairs.manifest import Manifest


@contextmanager
def counter(noun: str, done: str) -> Iterator[Callable[[int], None]]:
    """Show the progress of a long command."""
    from advflyp.console import SafeConsole
    from advflyp.training.runlog import Status

    with Status(SafeConsole(), f"no {noun} {done} yet") as status:
        yield lambda number: status.update(f"{counted(number, noun)} {done}")


def print_manifest(manifest: "Manifest", out: Path) -> None:
    """Print what shards hold, and what was skipped."""
    size = decimal(sum(shard.bytes for shard in manifest.shards))
    pairs, shards = counted(manifest.pairs, "pair"), counted(len(manifest.shards), "shard")
    say(f"{pairs} in {shards} of {out}, {size}")
    for reason, number in manifest.failures.items():
        say(f"  {number:,} skipped: {reason}")
