"""The load driver: the same arrivals every time, latency from when a request was due, failures counted."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from load_tests.load import Answer, Request, offer, offer_in_turn, poisson
from load_tests.report import hardware, summary, table_of


class _Echo(BaseHTTPRequestHandler):
    """Answers the status that it is asked for, and keeps how many were at work at once."""

    at_once = most_at_once = 0
    lock = threading.Lock()
    together = threading.Barrier(3)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            type(self).at_once += 1
            type(self).most_at_once = max(self.most_at_once, self.at_once)
        if asked.get("meet"):
            self.together.wait(30)
        self.send_response(asked["status"])
        self.send_header("Content-Length", "5")
        self.end_headers()
        with self.lock:
            type(self).at_once -= 1
        self.wfile.write(b"12345")

    def log_message(self, format: str, *args: Any) -> None:
        del format, args


@pytest.fixture
def url() -> Iterator[str]:
    _Echo.at_once = _Echo.most_at_once = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def size(answer: Answer) -> float:
    return float(len(answer.body))


def test_open_loop_sends_however_many_are_unanswered(url: str) -> None:
    requests = [Request("/any", {"status": 200, "meet": True})] * 3
    samples = offer(url, requests, [0.0, 0.01, 0.02], size)
    assert [sample.due_s for sample in samples] == [0.0, 0.01, 0.02]
    assert all(sample.units == 5 and sample.end_s >= sample.first_byte_s > 0.02 for sample in samples)
    assert _Echo.most_at_once == 3


def test_closed_loop_has_one_request_a_client(url: str) -> None:
    samples = offer_in_turn(url, [Request("/any", {"status": 200})] * 20, clients=2, units=size)
    assert len(samples) == 20
    assert _Echo.most_at_once <= 2


def test_failures_count_and_have_no_units(url: str) -> None:
    requests = [Request("/any", {"status": status}) for status in (200, 503, 200)]
    told = summary(offer(url, requests, [0, 0, 0]))
    assert (told["requests"], told["failed"]) == (3, 1)
    assert told["per_s"] > 0
    assert told["latency_p99_ms"] >= told["latency_p50_ms"] > 0
    nobody = offer("http://127.0.0.1:9", requests[:1], [0])
    assert summary(nobody) == {"requests": 1, "failed": 1}


def test_arrivals_are_the_same_every_time_and_have_their_rate() -> None:
    due = poisson(2000, rate_per_s=4.0, seed=1)
    assert due == sorted(due) == poisson(2000, rate_per_s=4.0, seed=1)
    assert due[-1] == pytest.approx(500, rel=0.1)


def test_a_table_shows_its_columns_and_hardware_is_one_line() -> None:
    table = table_of([{"server": "a", "per_s": 1.23456}, {"server": "b"}], ["server", "per_s"])
    assert table.splitlines() == ["| server | per_s |", "| --- | --- |", "| a | 1.235 |", "| b |  |"]
    assert "cores" in hardware()
    assert "\n" not in hardware()
