"""What the server of processes.py imports before it forks."""

import advflyp.cli
import advflyp.evaluation.suite
import advflyp.training.trainer  # noqa: F401
