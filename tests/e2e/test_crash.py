"""A killed runner: its own requests are told at once, the others go on, and it comes back by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.process import Served, until

RESTART_S = 5
"""The supervisor looks for dead processes every second."""
LOAD_S = 60
"""What a runner may take to load; more than it takes, for the tests' machine is busy."""

PICTURE = {"prompt": "a red circle", "num_inference_steps": 100, "width": 256, "height": 256}
WORDS = {"prompt": "Once upon a time", "max_tokens": 4}


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[Served]:
    served = Served.triptych(tmp_path / "log")
    try:
        served.wait_ready()
        yield served
    finally:
        served.stop()


def test_a_killed_runner_harms_only_its_own_requests(own_service: Served) -> None:
    url = own_service.url
    before = _steps(url)
    in_flight: list[tuple[httpx.Response, float]] = []

    def draw() -> None:
        in_flight.append((httpx.post(f"{url}/image", json=PICTURE, timeout=60), time.monotonic()))

    drawing = [threading.Thread(target=draw) for _ in range(4)]
    for thread in drawing:
        thread.start()
    until(lambda: _steps(url) > before, 30, "a step of the pictures")
    killed = time.monotonic()
    own_service.runner("ImageRunner").kill()
    for thread in drawing:
        thread.join()
    for response, ended in in_flight:
        _assert_unavailable(response)
        assert ended - killed < 1, "the requests in flight were not told at once"
    asked = time.monotonic()
    _assert_unavailable(httpx.post(f"{url}/image", json=PICTURE, timeout=60))
    assert time.monotonic() - asked < 1
    others = [httpx.post(f"{url}/text", json=WORDS, timeout=60).status_code for _ in range(10)]
    others.append(httpx.post(f"{url}/speech", json={"text": "one"}, timeout=60).status_code)
    assert set(others) == {200}
    assert own_service.readyz()["runners"]["image"]["state"] != "ready"
    until(lambda: own_service.readyz().get("status") == "ready", RESTART_S + LOAD_S, "its return")
    small = {"prompt": "a red circle", "num_inference_steps": 2}
    assert httpx.post(f"{url}/image", json=small, timeout=60).status_code == 200


def _assert_unavailable(response: httpx.Response) -> None:
    assert response.status_code == 503, response.text
    assert int(response.headers["Retry-After"]) >= 1
    assert "restarting" in response.json()["error"]["message"]


def _steps(url: str) -> float:
    name = 'triptych_step_seconds_count{lane="denoise",modality="image"}'
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))
