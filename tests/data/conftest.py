"""A web server on this machine, and an address of it that takes the part of the internet."""

from collections.abc import Iterator

import pytest

from advflyp.data.isolated import advflyp_guard as guard
from webserver import PUBLIC, Server, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture
def internet(monkeypatch: pytest.MonkeyPatch) -> None:
    real = guard.is_public
    monkeypatch.setattr(guard, "is_public", lambda address: address == PUBLIC or real(address))
