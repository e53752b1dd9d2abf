from collections.abc import Iterator

import pytest
import torch
from torch import nn

from advflyp.attack.threat import Threat
from attack.classifiers import train


@pytest.fixture(scope="session")
def plain() -> nn.Module:
    """10 classes, accurate, not robust."""
    return train(10, None)


@pytest.fixture(scope="session")
def robust() -> nn.Module:
    """10 classes, adversarially trained: about a third stands at the radius it was trained for."""
    return train(10, Threat(eps=24 / 255))


@pytest.fixture
def published_in_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Published code has buffers of the default type and casts to `float`: both are float64.

    In float32 a loss near its maximum rises or falls by rounding, and an attack that counts how often it rises goes
    another way on another processor.
    """
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
