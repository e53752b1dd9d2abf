"""The one kind of rich console that this package opens."""

import os
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from advflyp.escape import for_terminal
from advflyp.terminal import drop_output


class SafeConsole(Console):
    """A console on which text is only text: nothing in it is markup, an emoji's name or a terminal's command.

    Once nobody reads what it prints (`advflyp train … | head`) it is silent: output that is not wanted is no reason to
    lose a training.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            # rich's own commands, such as moving the cursor, are marked as such.
            yield segment if segment.control else segment._replace(text=for_terminal(segment.text, keep="\n"))

    def on_broken_pipe(self) -> None:
        self.quiet = True
        drop_output()


def is_rank0() -> bool:
    """Whether this process speaks for its run."""
    return os.environ.get("RANK", "0") == "0"


def rank0_console() -> SafeConsole:
    """A console that is silent on every rank of a run but the first."""
    return SafeConsole(quiet=not is_rank0())
