"""Moved to `advflyp.data.pairs.images`."""

from advflyp.moved import forward

__getattr__ = forward(__name__, "advflyp.data.pairs.images")
