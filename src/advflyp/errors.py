"""What ends a command with one line: a user's mistake is a `ValueError`; here is the rest."""

GONE = "another process of this run has stopped or cannot be reached; its own message says why"


class RunError(RuntimeError):
    """A run that cannot go on, through nothing that could have been seen before it began. The message is one line."""


class LostRank(RunError):
    """Another process of the run is gone: it was killed, has failed, or its machine has vanished."""

    def __init__(self) -> None:
        super().__init__(GONE)
