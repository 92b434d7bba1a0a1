"""The service answers requests that are made up from its document as that says."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from load_tests.fuzz import fuzz
from tests.e2e.process import Served, free_port


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    port = free_port()
    target = "tests.api.fakes:FakeGateway"
    command = [sys.executable, "-m", "bentoml", "serve", target, "--host", "127.0.0.1", "--port", str(port)]
    served = Served(command, port, tmp_path_factory.mktemp("fakes") / "log")
    try:
        served.wait_ready()
        yield served
    finally:
        served.stop()


def test_made_up_requests_are_answered_as_the_document_says(service: Served, tmp_path: Path) -> None:
    """In short; `make chaos` makes up twenty thousand."""
    cases = 0
    for fuzzed in fuzz(service.url, tmp_path, per_operation=4, phases="examples,fuzzing"):
        assert not fuzzed.failures, fuzzed.failures
        cases += fuzzed.cases
    assert cases > 100
