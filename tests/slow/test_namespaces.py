"""A gateway and two text runners on hosts of their own (network namespaces): cut off, slow, killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.e2e.process import Served, until
from tests.e2e.test_split import CATALOG, TOKEN, ask, rows

ALLOWED = os.geteuid() == 0 and shutil.which("ip") is not None and shutil.which("tc") is not None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ALLOWED, reason="network namespaces need root, ip and tc"),
    pytest.mark.timeout(600),
]
NET = "10.213.77"
PORT = 3000
LOOK_AGAIN_S = 60.0
"""A runner that is cut off is silent for 15 s before it counts as gone."""


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@dataclass
class Host:
    """A namespace with one address, on the bridge that the test itself is on."""

    name: str
    address: str

    def start(self, folder: Path, *arguments: str, **environment: str) -> Served:
        command = ["ip", "netns", "exec", self.name, sys.executable, "cli.py", "serve", *arguments]
        state = {"TRIPTYCH_STATE_DIR": str(folder / f"{self.name}-state"), "HOST": self.address}
        served = Served(command, PORT, folder / f"{self.name}.log", **state, **environment)
        served.url = f"http://{self.address}:{PORT}"
        return served

    def link(self, state: str) -> None:
        run("ip", "-n", self.name, "link", "set", "eth0", state)

    def slow_down(self) -> None:
        limits = ["rate", "16kbit", "burst", "2kb", "latency", "400ms"]
        run("ip", "netns", "exec", self.name, "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", *limits)

    def hurry(self) -> None:
        run("ip", "netns", "exec", self.name, "tc", "qdisc", "del", "dev", "eth0", "root")


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    """The gateway's, and two runners'."""
    mark = uuid.uuid4().hex[:6]
    bridge = f"br{mark}"
    made = [Host(f"host{number}{mark}", f"{NET}.{number}") for number in (1, 2, 3)]
    run("ip", "link", "add", bridge, "type", "bridge")
    try:
        run("ip", "addr", "add", f"{NET}.254/24", "dev", bridge)
        run("ip", "link", "set", bridge, "up")
        for number, host in enumerate(made):
            here = f"v{number}{mark}"
            run("ip", "netns", "add", host.name)
            run("ip", "link", "add", here, "type", "veth", "peer", "name", "eth0", "netns", host.name)
            run("ip", "link", "set", here, "master", bridge, "up")
            run("ip", "-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth0")
            run("ip", "-n", host.name, "link", "set", "lo", "up")
            host.link("up")
        yield made
    finally:
        for host in made:
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True)
        run("ip", "link", "del", bridge)


def crowd(url: str, count: int, meanwhile: Callable[[], None] | None = None) -> list[int]:
    """The statuses of `count` requests, eight at once."""
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, url, seed) for seed in range(count)]
        if meanwhile is not None:
            meanwhile()
        return [each.result().status_code for each in asked]


def kill(served: Served) -> None:
    for process in reversed(served.processes()):
        os.kill(process.pid, signal.SIGKILL)


def test_one_is_cut_off_one_is_slow_and_one_is_killed(hosts: list[Host], tmp_path: Path) -> None:
    catalog = tmp_path / "text.yaml"
    catalog.write_text(CATALOG, encoding="utf-8")
    shared = {"TRIPTYCH_PROFILE": str(catalog), "TRIPTYCH_RUNNER_TOKEN": TOKEN}
    here, first, second = hosts
    runners = [host.start(tmp_path, "text", TRIPTYCH_RUNNERS="text", **shared) for host in (first, second)]
    urls = ",".join(each.url for each in runners)
    gateway = here.start(tmp_path, TRIPTYCH_KEYLESS="true", TRIPTYCH_TEXT_RUNNER_URL=urls, **shared)
    try:
        gateway.wait_ready()
        both = lambda: not gateway.readyz()["runners"]["text"]["why"]  # noqa: E731 - it is asked twice
        until(both, 180, "both runners")
        assert set(crowd(gateway.url, 8)) == {200}

        statuses = crowd(gateway.url, 24, meanwhile=lambda: first.link("down"))
        # What the lost host had begun is told so, with a Retry-After; all else was done by the other.
        assert set(statuses) <= {200, 503}
        assert statuses.count(503) <= 8
        until(lambda: "1 of 2" in gateway.readyz()["runners"]["text"]["why"], LOOK_AGAIN_S, "the loss")
        assert set(crowd(gateway.url, 8)) == {200}
        first.link("up")
        until(both, LOOK_AGAIN_S, "its return")

        second.slow_down()
        before = [rows(each) for each in runners]
        assert set(crowd(gateway.url, 60)) == {200}
        shares = [rows(each) - then for each, then in zip(runners, before, strict=True)]
        assert shares[0] > shares[1], "the slow one got as many"
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            httpx.post(f"{runners[0].url}/state", json={}).raise_for_status()

        second.hurry()
        # A killed process closes its connections: what has made nothing yet goes on elsewhere at once.
        assert set(crowd(gateway.url, 24, meanwhile=lambda: kill(runners[0]))) == {200}
        until(lambda: "1 of 2" in gateway.readyz()["runners"]["text"]["why"], LOOK_AGAIN_S, "its death")
        assert gateway.readyz()["status"] == "ready"
    finally:
        for served in (gateway, *runners):
            served.stop()
