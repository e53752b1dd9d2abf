"""Moved to `advflyp.data.sets.images`."""

from advflyp.moved import forward

__getattr__ = forward(__name__, "advflyp.data.sets.images")
