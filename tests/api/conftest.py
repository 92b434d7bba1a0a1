"""The gateway with its fake runners inside this process, and a caller that can hang up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from gateway.keys import Key, Terms, create_key
from gateway.office import Office
from tests.api.fakes import SECRET, STARTED, FakeGateway, FakeRunner

Make = Callable[..., tuple[Key, dict[str, str]]]

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:  # BentoML 1.4.39 reads the fields of each request the old way
            item.add_marker(pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute"))


@pytest.fixture(scope="session")
def built() -> Starlette:
    app = FakeGateway.to_asgi()
    assert isinstance(app, Starlette)
    return app


@pytest.fixture
async def app(built: Starlette) -> AsyncIterator[Starlette]:
    async with built.router.lifespan_context(built):
        yield built


@pytest.fixture
async def client(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        yield client


@pytest.fixture
def office(app: Starlette) -> Office:  # noqa: ARG001 - it is opened with it
    office: Office = FakeGateway.inner.office
    return office


@pytest.fixture
def make(office: Office) -> Make:
    """Makes a key with the given terms; gives it and the headers of its requests."""

    def make(**terms: Any) -> tuple[Key, dict[str, str]]:
        key, text = create_key(office.store, SECRET.encode(), "ann", Terms(**terms))
        return key, {"Authorization": f"Bearer {text}"}

    return make


@pytest.fixture
def runners(app: Starlette) -> dict[str, FakeRunner]:  # noqa: ARG001 - they start with it
    return STARTED
