"""Moved to `advflyp.model.load`."""

from advflyp.moved import forward

__getattr__ = forward(__name__, "advflyp.model.load")
