"""A runner that is several processes beside its gateway."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.e2e.process import Served, free_port, until

CATALOG = """
models:
  tiny-llama: {family: text.decoder, source: 'embedded:tiny-llama', licence: Apache-2.0}
profiles:
  default: {text: [tiny-llama]}
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Served]:
    catalog = tmp_path / "text.yaml"
    catalog.write_text(CATALOG, encoding="utf-8")
    options = {"TRIPTYCH_PROFILE": str(catalog), "TRIPTYCH_REPLICAS": "text=2"}
    served = Served.triptych(tmp_path / "log", **options)
    try:
        served.wait_ready()
        until(lambda: not served.readyz()["runners"]["text"]["why"], 180, "both processes")
        yield served
    finally:
        served.stop()


def ask(url: str, seed: int, tokens: int = 300) -> httpx.Response:
    body = {"prompt": "Once upon a time", "max_tokens": tokens, "seed": seed, "ignore_eos": True}
    return httpx.post(f"{url}/text", json=body, timeout=120)


def at_work(url: str) -> list[float]:
    """Jobs in each process."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    name = 'triptych_jobs_at_work{modality="text",replica="%d"}'
    told = [line for number in (1, 2) for line in lines if line.startswith(name % number)]
    return [float(line.split()[-1]) for line in told]


def test_two_processes_share_the_work_and_one_may_die(service: Served) -> None:
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, service.url, seed) for seed in range(8)]
        until(lambda: at_work(service.url) == [4, 4], 60, "work in both")
        answers = [each.result() for each in asked]
        assert {each.status_code for each in answers} == {200}
        alone = ask(service.url, 0)
        assert alone.json()["text"] == answers[0].json()["text"]  # whichever process makes it

        second = service.runner("TextRunner2")
        second.send_signal(signal.SIGKILL)
        short = [pool.submit(ask, service.url, seed, 4) for seed in range(16)]
        assert {each.result().status_code for each in short} == {200}
    assert service.readyz()["status"] == "ready"
    until(lambda: service.readyz()["runners"]["text"]["why"] == "", 180, "its successor")
    assert service.runner("TextRunner2").pid != second.pid


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"TRIPTYCH_REPLICAS": "text=2"}, "is one"),
        ({"TRIPTYCH_REPLICAS": "text=0"}, "TRIPTYCH_REPLICAS"),
        ({"TRIPTYCH_REPLICAS": "text=2,text=3"}, "each runner once"),
        (
            {"TRIPTYCH_REPLICAS": "text=2", "TRIPTYCH_TEXT_RUNNER_URL": "http://127.0.0.1:9"},
            "not here but at TRIPTYCH_TEXT_RUNNER_URL",
        ),
    ],
)
def test_what_would_not_be_obeyed_is_refused(tmp_path: Path, options: dict[str, str], said: str) -> None:
    served = Served([sys.executable, "cli.py", "serve", "text"], free_port(), tmp_path / "log", **options)
    until(served.ended, 60, "its refusal")
    assert said in " ".join(served.log.read_text(encoding="utf-8").split())
