import pytest
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
