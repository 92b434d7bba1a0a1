"""The servers that are compared, each a process of its own that is started, warmed up and stopped."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import httpx
import psutil

from tests.e2e.process import START_S, Served, free_port, until

CORES = len(os.sched_getaffinity(0))
"""Every server may use all of them."""


class Server(Served):
    """One of those compared; ready when `ready_path` answers 200."""

    def __init__(
        self, name: str, command: list[str], port: int, log: Path, ready_path: str, **environment: str
    ) -> None:
        self.name = name
        self._ready_path = ready_path
        super().__init__(command, port, log, **environment)

    def wait_ready(self) -> float:
        def ready() -> bool:
            assert self._process.poll() is None, self.log.read_text(encoding="utf-8")
            try:
                return httpx.get(self.url + self._ready_path, timeout=5).status_code == 200
            except httpx.HTTPError:
                return False

        return until(ready, START_S, f"{self.name} ready")

    def stop(self) -> None:
        """Ends all of it; a peer that does not end when asked is killed."""
        processes = self.processes() if self._process.poll() is None else []
        for process in processes[:1]:
            process.terminate()
        _, alive = psutil.wait_procs(processes, timeout=5)
        for process in alive:
            process.kill()
        self._process.wait()


def ours(
    log_folder: Path,
    catalog: Path,
    name: str = "triptych",
    python: Path = Path(sys.executable),
    **environment: str,
) -> Server:
    """Triptych with a catalog of the one modality that is measured, on as many threads as it chooses."""
    return Server(
        name,
        [str(python), "cli.py", "serve"],
        free_port(),
        log_folder / f"{name}.log",
        "/readyz",
        TRIPTYCH_PROFILE=str(catalog),
        **environment,
    )


def baseline(name: str, log_folder: Path, ready_path: str, **environment: str) -> Server:
    """The program `load_tests/baselines/NAME.py`, which listens on the port that PORT says.

    It has a thread a core, and torch's own way of waiting, which spins: to give the core up while waiting
    makes a small model on two threads more than twice as slow.
    """
    command = [sys.executable, "-m", f"load_tests.baselines.{name}"]
    threads = {"OMP_NUM_THREADS": str(CORES)}
    log = log_folder / f"{name}.log"
    return Server(name, command, free_port(), log, ready_path, **threads, **environment)
