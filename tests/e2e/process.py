"""The real service as its users start it: a supervisor, a gateway and three runners."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[2]
START_S = 180
"""A loaded machine may take its time; a quiet one takes about a tenth of it."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Waits until `condition` holds, and gives the seconds it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_s, f"{what} did not happen in {timeout_s} s"
        time.sleep(0.05)
    return time.monotonic() - started


class Served:
    """A supervisor process and what it started; `log` is the file with what they printed."""

    def __init__(self, command: list[str], port: int, log: Path, **environment: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "PORT": str(port), "BENTOML_DO_NOT_TRACK": "true", **environment},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @classmethod
    def triptych(cls, log: Path, **environment: str) -> Served:
        """With a state folder beside its log."""
        state = {"TRIPTYCH_STATE_DIR": str(log.parent / "state")}
        return cls([sys.executable, "cli.py", "serve"], free_port(), log, **state | environment)

    def readyz(self) -> dict[str, Any]:
        """The status and the runners' states; empty before anything answers."""
        try:
            answer: dict[str, Any] = httpx.get(f"{self.url}/readyz", timeout=5).json()
        except (httpx.HTTPError, ValueError):
            return {}
        return answer

    def wait_ready(self) -> float:
        def ready() -> bool:
            assert self._process.poll() is None, self.log.read_text(encoding="utf-8")
            return self.readyz().get("status") == "ready"

        try:
            return until(ready, START_S, "ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log.read_text(encoding='utf-8')[-5000:]}") from None

    def processes(self) -> list[psutil.Process]:
        supervisor = psutil.Process(self._process.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def runner(self, name: str) -> psutil.Process:
        """The process that serves the runner of that class name."""
        return next(each for each in self.processes() if name in each.cmdline())

    def send(self, number: signal.Signals) -> None:
        """To the supervisor alone, as container engines do."""
        self._process.send_signal(number)

    def ended(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> None:
        """Stops it as Ctrl-C and container engines do; afterwards none of its processes is left."""
        if self._process.poll() is not None:
            return
        processes = self.processes()
        self._process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(processes, timeout=40)
        for process in alive:
            process.kill()
        self._process.wait()
        assert not alive, f"left behind: {alive}"
