"""Requests that mean harm, timed."""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np

from load_tests.fuzz import fuzz
from load_tests.promises.asking import STORY, service
from load_tests.promises.rows import Row
from tests.e2e.process import Served, free_port
from tests.e2e.test_attacks import BOMBS, MIB, Memory
from tests.slow.proxy import MISSING, in_front_of

TOO_MUCH: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/text", {"prompt": "x", "n": 10**9}),
    ("/text", {"prompt": "x", "logprobs": 10**6}),
    ("/text", {"prompt": "x", "stop": ["x" * 100_000]}),
    ("/text", {"prompt": "x" * 1_000_000}),
    ("/image", {"prompt": "x", "num_inference_steps": 10**6}),
    ("/image", {"prompt": "x", "width": 10_000, "height": 10_000}),
    ("/speech", {"text": "word " * 10_000}),
)


def bounds() -> Sequence[Row]:
    with service() as served, httpx.Client(base_url=served.url, timeout=60) as client:
        took_s: list[float] = []
        named = True
        for path, body in TOO_MUCH * 20:
            began = time.monotonic()
            answer = client.post(path, json=body)
            took_s.append(time.monotonic() - began)
            param = str(answer.json()["error"]["param"]).partition(".")[0]
            named &= answer.status_code == 400 and param in body
    p99_ms = float(np.percentile(took_s, 99)) * 1e3
    return [Row("what is far too much is 400 within 50 ms (p99)", f"{p99_ms:.1f} ms", named and p99_ms < 50)]


def bombs() -> Sequence[Row]:
    with service() as served, httpx.Client(base_url=served.url, timeout=60) as client:
        longest_s, most = 0.0, 0
        refused = True
        for path, body in BOMBS.values():
            memory = Memory(served)
            began = time.monotonic()
            refused &= client.post(path, json=body).status_code == 400
            longest_s = max(longest_s, time.monotonic() - began)
            most = max(most, memory.taken())
    measured = f"{longest_s:.2f} s, {most / MIB:+.1f} MiB"
    return [
        Row("bombs are refused within 1 s and 50 MB", measured, refused and longest_s < 1 and most < 50 * MIB)
    ]


def made_up(per_operation: int, phases: str) -> Sequence[Row]:
    """Many with scripted runners, which answer what is good at once; some with the models themselves."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        target = "tests.api.fakes:FakeGateway"
        command = [sys.executable, "-m", "bentoml", "serve", target, "--host", "127.0.0.1"]
        scripted = Served([*command, "--port", str(port)], port, Path(folder) / "log")
        try:
            scripted.wait_ready()
            first = _tried(scripted, "the gateway", Path(folder), per_operation, phases, only_errors=False)
        finally:
            scripted.stop()
    with service(TRIPTYCH_ACCESS_LOG="false") as served, tempfile.TemporaryDirectory() as folder:
        second = _tried(served, "the models", Path(folder), 4, "fuzzing", only_errors=True)
    return [first, second]


def _tried(
    served: Served, what: str, folder: Path, per_operation: int, phases: str, *, only_errors: bool
) -> Row:
    """None of its processes may end."""
    before = [each.pid for each in served.processes()]
    found = list(fuzz(served.url, folder, per_operation, phases, only_errors=only_errors))
    alive = before == [each.pid for each in served.processes()]
    failures = "".join(each.failures for each in found)
    print(failures[-5000:])
    cases = sum(each.cases for each in found)
    failed, lives = "some" if failures else "none", "alive" if alive else "a process died"
    measured = f"{cases} cases, {failed} failed, {lives}"
    promise = f"requests made up from the document, at {what}: never a 5xx, no death"
    return Row(promise, measured, not failures and alive)


def slow_callers(count: int) -> Sequence[Row]:
    """So many slow headers and so many slow bodies, at the proxy of `deploy/`."""
    if MISSING:
        return [Row("slow headers and bodies", f"not tested: {', '.join(MISSING)} not installed", kept=False)]
    with (
        service() as served,
        tempfile.TemporaryDirectory() as folder,
        in_front_of(served.url, Path(folder)) as proxy,
    ):
        slow = [_connected(proxy) for _ in range(2 * count)]
        head = b"POST /text HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        began = time.monotonic()
        for place, caller in enumerate(slow):
            caller.sendall(head if place % 2 else head + b"Content-Length: 100\r\n\r\n{")
        with ThreadPoolExecutor(1) as pool:
            closed = pool.submit(_seconds_until_closed, slow, began)
            statuses = [proxy.post("/text", json={**STORY, "max_tokens": 4}).status_code for _ in range(100)]
            took_s = closed.result()
    good = statuses.count(200)
    return [
        Row(
            f"{count} slow headers and {count} slow bodies are closed within 10 s",
            f"{took_s:.1f} s",
            took_s < 10.5,
        ),
        Row("honest callers beside them (99 %)", f"{good} of {len(statuses)}", good >= 0.99 * len(statuses)),
    ]


def _connected(proxy: httpx.Client) -> ssl.SSLSocket:
    where = urlsplit(str(proxy.base_url))
    plain = socket.create_connection((where.hostname or "", where.port or 0), 60, ("127.0.0.2", 0))
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(plain)


def _seconds_until_closed(callers: Sequence[ssl.SSLSocket], began: float) -> float:
    for caller in callers:
        caller.settimeout(60)
        with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
            while caller.recv(4096):
                pass
        caller.close()
    return time.monotonic() - began
