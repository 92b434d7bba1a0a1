"""What the checks ask for, and how they look at the service."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.process import Served

STORY: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 24, "seed": 4}
PICTURE: dict[str, Any] = {"prompt": "a red circle", "num_inference_steps": 6, "seed": 1}
SAYING: dict[str, Any] = {"text": "one two", "seed": 3}
LONG_PICTURE: dict[str, Any] = {
    "prompt": "a red circle",
    "num_inference_steps": 100,
    "num_images": 8,
    "width": 256,
    "height": 256,
}
MIXED = (("/text", STORY), ("/image", PICTURE), ("/speech", SAYING))


TEMPORARY = "tmp"
"""The folder of a service's own temporary files, beside its log."""


@contextmanager
def service(**environment: str) -> Generator[Served]:
    """One of our own, ready; its processes are gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / TEMPORARY
        temporary.mkdir()
        served = Served.triptych(Path(folder) / "log", TMPDIR=str(temporary), **environment)
        try:
            served.wait_ready()
            yield served
        finally:
            served.stop()


def metric(served: Served, name: str) -> float:
    """The sum of all series whose beginning is `name`."""
    lines = httpx.get(f"{served.url}/metrics", timeout=30).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def at_work(served: Served) -> float:
    return metric(served, "triptych_jobs_at_work")


def seconds_until_idle(served: Served, limit_s: float = 30) -> float:
    """How long the runners take from now until they have no job."""
    began = time.monotonic()
    while at_work(served) > 0 and time.monotonic() - began < limit_s:
        time.sleep(0.02)
    return time.monotonic() - began


def status_of(url: str, path: str, body: dict[str, Any], **headers: str) -> int:
    """0 where the connection broke."""
    with suppress(httpx.TransportError):
        return httpx.post(f"{url}{path}", json=body, headers=headers, timeout=120).status_code
    return 0
