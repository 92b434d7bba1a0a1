"""The end of a service: drained, then told to stop, it gives each caller its whole answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.process import ROOT, Served

STORY = {"prompt": "Once upon a time", "max_tokens": 128, "seed": 4}
PICTURE = {"prompt": "a red circle", "num_inference_steps": 100}


def test_a_drained_service_ends_well_what_it_has(tmp_path: Path) -> None:
    served = Served.triptych(tmp_path / "log", TRIPTYCH_DRAIN_S="100")
    try:
        served.wait_ready()
        with ThreadPoolExecutor(10) as pool:
            asked: list[tuple[str, dict[str, Any]]] = [
                *[("/text", STORY)] * 4,
                *[("/image", PICTURE)] * 4,
                *[("/text", {**STORY, "stream": True}), ("/image", {**PICTURE, "stream": True})],
            ]
            begun = [threading.Event() for _ in asked]
            answers = [
                pool.submit(_ask, served, path, body, its)
                for (path, body), its in zip(asked, begun, strict=True)
            ]
            assert begun[-1].wait(60), "the last, a stream, did not begin"
            _drain(served, tmp_path)
            started = time.monotonic()
            assert served.readyz()["status"] == "draining"
            assert time.monotonic() - started < 5  # 0.5 s on a machine with nothing else to do
            refused = httpx.post(f"{served.url}/text", json=STORY)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            assert int(refused.headers["Retry-After"]) >= 1
            supervisor = served.processes()[0]
            supervisor.send_signal(signal.SIGTERM)
            assert [answer.result()[0] for answer in answers] == [200] * 10
            assert "[DONE]" in answers[8].result()[1]
            assert "event: result" in answers[9].result()[1]
            assert supervisor.wait(60) == 0
    finally:
        served.stop()


def _ask(served: Served, path: str, body: dict[str, Any], begun: threading.Event) -> tuple[int, str]:
    """The status and the whole answer; `begun` is set at its first byte."""
    with httpx.stream("POST", f"{served.url}{path}", json=body, timeout=120) as answer:
        parts: list[bytes] = []
        for part in answer.iter_bytes():
            begun.set()
            parts.append(part)
    return answer.status_code, b"".join(parts).decode("utf-8", "replace")


def _drain(served: Served, folder: Path) -> None:
    where = {"PORT": served.url.rpartition(":")[2], "TRIPTYCH_STATE_DIR": str(folder / "state")}
    subprocess.run([sys.executable, "cli.py", "drain"], cwd=ROOT, env={**os.environ, **where}, check=True)
