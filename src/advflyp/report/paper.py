"""Moved to `advflyp.paper.page`."""

from advflyp.moved import forward

__getattr__ = forward(__name__, "advflyp.paper.page")
