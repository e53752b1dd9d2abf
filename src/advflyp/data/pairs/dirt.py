"""Samples that cannot be used: each is left out, counted by its reason, and named once for every reason."""

from collections import Counter
from dataclasses import dataclass, field

# Fewer samples than this say nothing about the data; the end of an epoch always does.
ENOUGH = 500


@dataclass
class Dirt:
    """What was left out so far.

    counts:   {reason: samples}
    examples: {reason: the key of the first}
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, key: str) -> None:
        self.counts[reason] += 1
        self.examples.setdefault(reason, key)

    def copy(self) -> "Dirt":
        """One of its own: what is added to either does not reach the other."""
        return Dirt(self.counts.copy(), dict(self.examples))

    def describe(self) -> str:
        """The reasons, the most frequent first: "12 truncated image (such as 00003.tar:0042), 1 no caption (…)"."""
        return ", ".join(
            f"{count:,} {reason}" + (f" (such as {self.examples[reason]})" if reason in self.examples else "")
            for reason, count in self.counts.most_common()
        )
