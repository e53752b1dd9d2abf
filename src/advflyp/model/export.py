"""Moved to `advflyp.model.interop.export`."""

from advflyp.moved import forward

__getattr__ = forward(__name__, "advflyp.model.interop.export")
