"""A runner served alone, as an entry service, and a gateway that reaches it by its address."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.collector import Collector
from tests.e2e.process import Served, free_port, until

CATALOG = """
models:
  tiny-llama: {family: text.decoder, source: 'embedded:tiny-llama', licence: Apache-2.0}
profiles:
  default: {text: [tiny-llama]}
"""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector().collecting() as collector:
        yield collector


@pytest.fixture
def split(tmp_path: Path, collector: Collector) -> Iterator[Served]:
    """One text runner and one gateway; a profile with no pictures and no speech needs no runner of theirs."""
    catalog = tmp_path / "text.yaml"
    catalog.write_text(CATALOG, encoding="utf-8")
    port = free_port()
    alone = [sys.executable, "-m", "bentoml", "serve", "runners.text:TextRunner", "--port", str(port)]
    shared = {
        "TRIPTYCH_PROFILE": str(catalog),
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    runner = Served([*alone, "--host", "127.0.0.1"], port, tmp_path / "runner", **shared)
    gateway = Served.triptych(tmp_path / "gateway", TRIPTYCH_TEXT_RUNNER_URL=runner.url, **shared)
    try:
        gateway.wait_ready()
        yield gateway
        assert not any("TextRunner" in each.cmdline() for each in gateway.processes())
    finally:
        gateway.stop()
        runner.stop()


def test_a_gateway_reaches_a_runner_by_its_address(split: Served, collector: Collector) -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 6, "stream": True}
    answer = httpx.post(f"{split.url}/text", json=body, timeout=60)
    assert answer.status_code == 200
    assert "[DONE]" in answer.text
    until(lambda: "POST /text" in str(collector.spans), 30, "the gateway's span")
    (trace,) = (names for names in collector.spans.values() if "POST /text" in names)
    until(lambda: "text job" in trace, 30, "the runner's span")
    assert {"step prefill", "step decode"} <= set(trace)
    image = httpx.post(f"{split.url}/image", json={"prompt": "a red circle"}, timeout=60)
    assert image.status_code == 503
    until(lambda: split.readyz()["runners"]["image"]["state"] == "down", 30, "the image runner's state")
    assert "no image model" in split.readyz()["runners"]["image"]["why"]
