"""Runners served alone, as entry services, and a gateway that reaches them by their addresses and a token."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.remote import REFUSED, RemoteRunner
from jobs import TextJob, encode_job
from tests.e2e.collector import Collector
from tests.e2e.process import Served, free_port, until

CATALOG = """
models:
  tiny-llama: {family: text.decoder, source: 'embedded:tiny-llama', licence: Apache-2.0}
profiles:
  default: {text: [tiny-llama]}
"""
TOKEN = "a token of the tests"  # noqa: S105 - it opens nothing
STORY = {"prompt": "Once upon a time", "max_tokens": 6}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector().collecting() as collector:
        yield collector


@pytest.fixture
def shared(tmp_path: Path, collector: Collector) -> dict[str, str]:
    """A profile with no pictures and no speech needs no runner of theirs."""
    catalog = tmp_path / "text.yaml"
    catalog.write_text(CATALOG, encoding="utf-8")
    return {
        "TRIPTYCH_PROFILE": str(catalog),
        "TRIPTYCH_RUNNER_TOKEN": TOKEN,
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }


@pytest.fixture
def runners(tmp_path: Path, shared: dict[str, str]) -> Iterator[list[Served]]:
    """Two text runners, as `triptych serve text` starts them."""
    command = [sys.executable, "cli.py", "serve", "text"]
    started = [
        Served(command, free_port(), tmp_path / f"runner{number}", TRIPTYCH_RUNNERS="text", **shared)
        for number in range(2)
    ]
    yield started
    for each in started:
        each.stop()


@pytest.fixture
def gateway(tmp_path: Path, shared: dict[str, str], runners: list[Served]) -> Iterator[Served]:
    urls = ",".join(each.url for each in runners)
    served = Served.triptych(tmp_path / "gateway", TRIPTYCH_TEXT_RUNNER_URL=urls, **shared)
    try:
        served.wait_ready()
        until(lambda: not served.readyz()["runners"]["text"]["why"], 180, "both replicas")
        yield served
    finally:
        served.stop()


def rows(runner: Served) -> float:
    lines = httpx.get(f"{runner.url}/metrics").text.splitlines()
    name = 'triptych_rows_total{modality="text",outcome="done"}'
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def ask(url: str, seed: int) -> httpx.Response:
    return httpx.post(f"{url}/text", json={**STORY, "seed": seed}, timeout=120)


def test_a_gateway_and_two_replicas(gateway: Served, runners: list[Served], collector: Collector) -> None:
    assert not any("TextRunner" in each.cmdline() for each in gateway.processes())
    _streams_and_traces(gateway, collector)
    _wants_the_token(runners[0])
    _shares_the_work(gateway, runners)
    _loses_one(gateway, runners)


def _streams_and_traces(gateway: Served, collector: Collector) -> None:
    answer = httpx.post(f"{gateway.url}/text", json={**STORY, "stream": True}, timeout=60)
    assert answer.status_code == 200
    assert "[DONE]" in answer.text
    until(lambda: "POST /text" in str(collector.spans), 30, "the gateway's span")
    (trace,) = (names for names in collector.spans.values() if "POST /text" in names)
    until(lambda: "text job" in trace, 30, "the runner's span")
    assert {"step prefill", "step decode"} <= set(trace)
    image = httpx.post(f"{gateway.url}/image", json={"prompt": "a red circle"}, timeout=60)
    assert image.status_code == 503
    until(lambda: gateway.readyz()["runners"]["image"]["state"] == "down", 30, "the image runner's state")
    assert "no image model" in gateway.readyz()["runners"]["image"]["why"]


def _wants_the_token(runner: Served) -> None:
    job = encode_job(TextJob(id="a", timeout_s=10, seed=0, prompt="Once", max_tokens=2, temperature=0))
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        for path, body in (("run", {"job": job}), ("state", {}), ("cancel", {"id": "a"})):
            answer = httpx.post(f"{runner.url}/{path}", json=body, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_runner_token")
    assert asyncio.run(_state_told(runner.url, "wrong")) == {"state": "down", "why": REFUSED}
    right = {"Authorization": f"Bearer {TOKEN}"}
    assert '"done"' in httpx.post(f"{runner.url}/run", json={"job": job}, headers=right).text
    assert httpx.get(f"{runner.url}/readyz").status_code == 200


async def _state_told(url: str, token: str) -> dict[str, Any]:
    remote = RemoteRunner(url, token)
    try:
        return await remote.state()
    finally:
        await remote.close()


def _shares_the_work(gateway: Served, runners: list[Served]) -> None:
    before = [rows(each) for each in runners]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda seed: ask(gateway.url, seed), range(24)))
    assert {each.status_code for each in answers} == {200}
    shares = [rows(each) - then for each, then in zip(runners, before, strict=True)]
    assert sum(shares) == 24
    assert min(shares) >= 4, shares
    texts = {each.json()["seed"]: each.json()["text"] for each in answers}
    assert all(ask(gateway.url, seed).json()["text"] == text for seed, text in list(texts.items())[:4])


def _loses_one(gateway: Served, runners: list[Served]) -> None:
    """What has made nothing yet goes to the other; the gateway stays ready."""
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, gateway.url, seed) for seed in range(24)]
        for process in reversed(runners[0].processes()):
            os.kill(process.pid, signal.SIGKILL)
        answers = [each.result() for each in asked]
    assert {each.status_code for each in answers} == {200}
    assert gateway.readyz()["status"] == "ready"
    until(lambda: "1 of 2" in gateway.readyz()["runners"]["text"]["why"], 30, "the loss")


def test_a_runner_is_not_open_by_mistake(tmp_path: Path) -> None:
    command = [sys.executable, "cli.py", "serve", "text"]
    served = Served(command, free_port(), tmp_path / "log", HOST="0.0.0.0")  # noqa: S104 - it must refuse that
    until(served.ended, 60, "its refusal")
    assert "TRIPTYCH_RUNNER_TOKEN" in served.log.read_text(encoding="utf-8")
