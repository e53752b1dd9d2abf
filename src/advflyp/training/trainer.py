"""Moved to `advflyp.training.loop`."""

from advflyp.moved import forward

__getattr__ = forward(__name__, "advflyp.training.loop")
