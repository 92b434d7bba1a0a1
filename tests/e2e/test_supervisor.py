"""What `triptych serve` starts, and how it ends: its own settings of BentoML's supervisor."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.process import Served, free_port, until

PICTURES = {"prompt": "a red circle", "num_inference_steps": 100, "num_images": 8, "seed": 1}
"""Far more work than anybody gets while the service stops."""
CATALOG = """
models:
  tiny-sd: {family: image.stable_diffusion, source: 'embedded:tiny-sd', licence: Apache-2.0}
profiles:
  default: {image: [tiny-sd]}
"""


@pytest.fixture
def split(tmp_path: Path) -> Iterator[tuple[Served, Served]]:
    """A gateway, and the image runner that `triptych serve image` serves alone, started after it."""
    catalog = tmp_path / "image.yaml"
    catalog.write_text(CATALOG, encoding="utf-8")
    port = free_port()
    gateway = Served.triptych(
        tmp_path / "gateway",
        TRIPTYCH_PROFILE=str(catalog),
        TRIPTYCH_IMAGE_RUNNER_URL=f"http://127.0.0.1:{port}",
        TRIPTYCH_DRAIN_S="1",
    )
    runner = Served(
        [sys.executable, "cli.py", "serve", "image"],
        port,
        tmp_path / "runner",
        TRIPTYCH_PROFILE=str(catalog),
        TRIPTYCH_DRAIN_S="1",
    )
    try:
        gateway.wait_ready()
        yield gateway, runner
    finally:
        gateway.stop()
        runner.stop()


def test_services_of_one_user_keep_their_metrics_and_stop_in_time(split: tuple[Served, Served]) -> None:
    gateway, runner = split
    small = {"prompt": "a red circle", "num_inference_steps": 2}
    assert httpx.post(f"{gateway.url}/image", json=small, timeout=60).status_code == 200
    done = 'triptych_rows_total{modality="image",outcome="done"}'
    assert done in httpx.get(f"{runner.url}/metrics").text
    assert "triptych_requests_total" in httpx.get(f"{gateway.url}/metrics").text
    until(lambda: "is ready on http://127.0.0.1" in gateway.log.read_text(), 30, "its greeting")

    statuses: list[int] = []

    def draw() -> None:
        with contextlib.suppress(httpx.HTTPError):  # the connection may just close
            statuses.append(httpx.post(f"{gateway.url}/image", json=PICTURES, timeout=60).status_code)

    drawing = threading.Thread(target=draw)
    drawing.start()
    until(lambda: "denoise" in httpx.get(f"{runner.url}/metrics").text, 30, "a step of the pictures")
    gateway.send(signal.SIGTERM)
    until(gateway.ended, 30, "its end")
    drawing.join()
    assert statuses != [200], "the pictures in flight were drawn to their end"


def test_unknown_paths_leave_nothing(service: Served) -> None:
    with httpx.Client(base_url=service.url) as client:
        before = len(client.get("/metrics").content)
        for i in range(50):
            assert client.get(f"/nowhere-{i}" + "x" * 5000).status_code == 404
        assert len(client.get("/metrics").content) < before + 10_000


def test_a_taken_port_is_said_in_a_line(service: Served, tmp_path: Path) -> None:
    port = int(service.url.rpartition(":")[2])
    second = Served([sys.executable, "cli.py", "serve"], port, tmp_path / "log")
    until(second.ended, 60, "its refusal")
    said = second.log.read_text(encoding="utf-8")
    assert "cannot be listened on" in said
    assert "Traceback" not in said
