"""Moved to `advflyp.data.sets.labelled`."""

from advflyp.moved import forward

__getattr__ = forward(__name__, "advflyp.data.sets.labelled")
