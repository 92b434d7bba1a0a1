"""Processes that die or are told to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import httpx
import psutil

from load_tests.promises.asking import LONG_PICTURE, MIXED, PICTURE, service, status_of
from load_tests.promises.rows import Row
from tests.e2e.process import ROOT, Served, until

CLIENTS = 16
RESTART_S = 5.0


def runner_killed() -> Sequence[Row]:
    """`kill -9` of the picture runner under 16 clients, a third of them at pictures."""
    with service() as served:
        statuses: Counter[tuple[str, int]] = Counter()
        strangers: list[str] = []
        told_s: list[float] = []
        ends = threading.Event()
        killed: list[float] = []

        def client(number: int) -> None:
            path, body = MIXED[number % 3]
            with httpx.Client(base_url=served.url, timeout=120) as mine:
                asked = 0
                while not ends.is_set():
                    asked += 1
                    nonce = f"{number}-{asked}"
                    began = time.monotonic()
                    answer = mine.post(path, json=body, headers={"X-Request-Id": nonce})
                    statuses[path, answer.status_code] += 1
                    if answer.headers["X-Request-Id"] != nonce:
                        strangers.append(nonce)
                    if answer.status_code == 503:
                        told_s.append(time.monotonic() - max(began, killed[0] if killed else began))
                        if int(answer.headers.get("Retry-After", "0")) < 1:
                            strangers.append(f"{nonce} has no Retry-After")
                        time.sleep(0.05)

        crowd = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
        for each in crowd:
            each.start()
        time.sleep(2)
        runner = served.runner("ImageRunner")
        killed.append(time.monotonic())
        runner.kill()
        until(lambda: _is_another(served, runner), 30, "a new process")
        anew_s = time.monotonic() - killed[0]
        until(lambda: status_of(served.url, "/image", PICTURE) == 200, 120, "the runner's return")
        back_s = time.monotonic() - killed[0]
        ends.set()
        for each in crowd:
            each.join()
        others = Counter({key: n for key, n in statuses.items() if key[0] != "/image"})
        good = sum(n for (_, status), n in others.items() if status == 200) / max(1, others.total())
        wrong = sum(
            n for (path, status), n in statuses.items() if path == "/image" and status not in (200, 503)
        )
    longest_s = max(told_s, default=0.0)
    return [
        Row(
            "a killed runner's requests get 503 within 1 s",
            f"{longest_s:.2f} s",
            bool(told_s) and longest_s < 1 and not wrong,
        ),
        Row(
            f"it is started anew within {RESTART_S:g} s, and then loads",
            f"{anew_s:.1f} s; it answers after {back_s:.1f} s",
            anew_s < RESTART_S,
        ),
        Row(
            "the other modalities answer meanwhile (99.9 %)", f"{good:.2%} of {others.total()}", good >= 0.999
        ),
        Row("no answer goes to the wrong client", f"{len(strangers)} of {statuses.total()}", not strangers),
    ]


def _is_another(served: Served, before: psutil.Process) -> bool:
    try:
        return served.runner("ImageRunner").pid != before.pid
    except (StopIteration, psutil.NoSuchProcess):
        return False


def drained() -> Sequence[Row]:
    with service(TRIPTYCH_DRAIN_S="60") as served:
        state = str(served.log.parent / "state")
        where = {"PORT": served.url.rpartition(":")[2], "TRIPTYCH_STATE_DIR": state}
        subprocess.run([sys.executable, "cli.py", "drain"], cwd=ROOT, env={**os.environ, **where}, check=True)
        began = time.monotonic()
        status = httpx.get(f"{served.url}/readyz", timeout=5).status_code
        took_s = time.monotonic() - began
        refused = status_of(served.url, "/text", {"prompt": "x"})
    return [
        Row(
            "drained, /readyz is 503 within 0.5 s",
            f"{status} after {took_s * 1e3:.0f} ms",
            status == 503 and took_s < 0.5,
        ),
        Row("drained, new work is 503", str(refused), refused == 503),
    ]


def told_twice() -> Sequence[Row]:
    with service(TRIPTYCH_DRAIN_S="60") as served:
        processes = served.processes()
        drawing = _asking(served)
        served.send(signal.SIGTERM)
        time.sleep(1)
        waited = not served.ended()
        began = time.monotonic()
        served.send(signal.SIGTERM)
        until(lambda: served.ended() and not _alive(processes), 30, "its end")
        took_s = time.monotonic() - began
        drawing.join()
    return [Row("a second SIGTERM ends it within 3 s", f"{took_s:.2f} s", waited and took_s < 3)]


def supervisor_killed() -> Sequence[Row]:
    with service() as served:
        processes = served.processes()
        drawing = _asking(served)
        began = time.monotonic()
        served.send(signal.SIGKILL)
        with suppress(AssertionError):
            until(lambda: not _alive(processes), 15, "the end of its processes")
        took_s, left = time.monotonic() - began, len(_alive(processes))
        drawing.join()
    return [
        Row(
            "killed, it leaves no process after 10 s",
            f"{left} after {took_s:.2f} s",
            not left and took_s < 10,
        )
    ]


def _asking(served: Served) -> threading.Thread:
    drawing = threading.Thread(target=status_of, args=(served.url, "/image", LONG_PICTURE))
    drawing.start()
    time.sleep(1)
    return drawing


def _alive(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    return [each for each in processes if Path(f"/proc/{each.pid}").exists() and _runs(each)]


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
