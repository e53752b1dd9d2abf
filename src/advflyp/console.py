"""The only kind of rich console that this package opens."""

import os
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from advflyp.escape import for_terminal
from advflyp.terminal import drop_output


class SafeConsole(Console):
    """A console that prints text as it is: markup, emoji names and terminal commands in it have no effect.

    Once nobody reads the output (`advflyp train … | head`), the console falls silent, so that a closed pipe does not
    end a training run.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            # rich marks its own commands, such as moving the cursor, as control segments.
            yield segment if segment.control else segment._replace(text=for_terminal(segment.text, keep="\n"))

    def on_broken_pipe(self) -> None:
        self.quiet = True
        drop_output()


def is_rank0() -> bool:
    """Whether this process is rank 0, which prints for the whole run."""
    return os.environ.get("RANK", "0") == "0"


def rank0_console() -> SafeConsole:
    """A console that is silent on every rank except rank 0."""
    return SafeConsole(quiet=not is_rank0())
