"""What the gateway adds to a chat over the runner's own time, at one client: fails above its threshold."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import httpx

from load_tests.report import percentiles_ms, write_results
from tests.e2e.process import Served

MOST_P50_MS = 8.0
REQUESTS = 200
WARM_UP = 20
CHAT = {"messages": [{"role": "user", "content": "What is a star?"}], "max_tokens": 4, "temperature": 0}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        served = Served.triptych(Path(folder) / "log")
        try:
            served.wait_ready()
            with httpx.Client(base_url=served.url, timeout=60) as client:
                added = [_added_s(client) for _ in range(WARM_UP + REQUESTS)][WARM_UP:]
        finally:
            served.stop()
    found = percentiles_ms("added", added)
    record = {"route": "/v1/chat/completions", "clients": 1, **found}
    write_results("overhead", [record], list(record))
    if found["added_p50_ms"] > MOST_P50_MS:
        sys.exit(f"The gateway adds {found['added_p50_ms']} ms, more than {MOST_P50_MS} ms.")


def _added_s(client: httpx.Client) -> float:
    """From the caller's first byte to the answer's last, less the runner's time from arrival to end."""
    started = time.perf_counter()
    answer = client.post("/v1/chat/completions", json=CHAT)
    elapsed_s = time.perf_counter() - started
    answer.raise_for_status()
    return elapsed_s - float(answer.headers["X-Total-Ms"]) / 1000


if __name__ == "__main__":
    main()
