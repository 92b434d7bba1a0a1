from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.process import Served


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The service with the embedded models, started once for all tests."""
    served = Served.triptych(tmp_path_factory.mktemp("service") / "log")
    try:
        served.wait_ready()
        yield served
    finally:
        served.stop()


@pytest.fixture
def client(service: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=120) as client:
        yield client
