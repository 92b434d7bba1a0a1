"""What `triptych serve` starts, and how it ends: its own settings of BentoML's supervisor."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.process import Served, free_port, until

PICTURES = {"prompt": "a red circle", "num_inference_steps": 100, "num_images": 8, "seed": 1}
"""Far more work than anybody gets while the service stops."""
CATALOG = """
models:
  tiny-sd: {family: image.stable_diffusion, source: 'embedded:tiny-sd', licence: Apache-2.0}
profiles:
  default: {image: [tiny-sd]}
"""


@pytest.fixture
def split(tmp_path: Path) -> Iterator[tuple[Served, Served]]:
    """A gateway, and the image runner that `triptych serve image` serves alone, started after it."""
    catalog = tmp_path / "image.yaml"
    catalog.write_text(CATALOG, encoding="utf-8")
    port = free_port()
    gateway = Served.triptych(
        tmp_path / "gateway",
        TRIPTYCH_PROFILE=str(catalog),
        TRIPTYCH_IMAGE_RUNNER_URL=f"http://127.0.0.1:{port}",
        TRIPTYCH_DRAIN_S="1",
    )
    runner = Served(
        [sys.executable, "cli.py", "serve", "image"],
        port,
        tmp_path / "runner",
        TRIPTYCH_PROFILE=str(catalog),
        TRIPTYCH_DRAIN_S="1",
    )
    try:
        gateway.wait_ready()
        yield gateway, runner
    finally:
        gateway.stop()
        runner.stop()


def test_services_of_one_user_keep_their_metrics_and_stop_in_time(split: tuple[Served, Served]) -> None:
    gateway, runner = split
    small = {"prompt": "a red circle", "num_inference_steps": 2}
    assert httpx.post(f"{gateway.url}/image", json=small, timeout=60).status_code == 200
    done = 'triptych_rows_total{modality="image",outcome="done"}'
    assert done in httpx.get(f"{runner.url}/metrics").text
    assert "triptych_requests_total" in httpx.get(f"{gateway.url}/metrics").text
    until(lambda: "is ready on http://127.0.0.1" in gateway.log.read_text(), 30, "its greeting")

    statuses: list[int] = []

    def draw() -> None:
        with contextlib.suppress(httpx.HTTPError):  # the connection may just close
            statuses.append(httpx.post(f"{gateway.url}/image", json=PICTURES, timeout=60).status_code)

    drawing = threading.Thread(target=draw)
    drawing.start()
    until(lambda: "denoise" in httpx.get(f"{runner.url}/metrics").text, 30, "a step of the pictures")
    gateway.send(signal.SIGTERM)
    until(gateway.ended, 30, "its end")
    drawing.join()
    assert statuses != [200], "the pictures in flight were drawn to their end"


def test_unknown_paths_leave_nothing(service: Served) -> None:
    with httpx.Client(base_url=service.url) as client:
        before = len(client.get("/metrics").content)
        for i in range(50):
            assert client.get(f"/nowhere-{i}" + "x" * 5000).status_code == 404
        assert len(client.get("/metrics").content) < before + 10_000


def test_a_taken_port_is_said_in_a_line(service: Served, tmp_path: Path) -> None:
    port = int(service.url.rpartition(":")[2])
    second = Served([sys.executable, "cli.py", "serve"], port, tmp_path / "log")
    until(second.ended, 60, "its refusal")
    said = second.log.read_text(encoding="utf-8")
    assert "cannot be listened on" in said
    assert "Traceback" not in said


SUPERVISE = """
from commands.supervisor import supervise
from pathlib import Path
from settings import settings
supervise("tests.api.fakes:FakeGateway", Path.cwd(), settings())
"""


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Served]:
    """The scripted runners in processes of their own, under our supervisor."""
    state = {"TRIPTYCH_STATE_DIR": str(tmp_path / "state")}
    served = Served([sys.executable, "-c", SUPERVISE], free_port(), tmp_path / "log", **state)
    try:
        served.wait_ready()
        yield served
    finally:
        served.stop()


def test_other_users_of_the_machine_reach_only_the_gateway(supervised: Served) -> None:
    port = int(supervised.url.rpartition(":")[2])
    folders: set[Path] = set()
    for process in supervised.processes():
        for socket in process.net_connections("all"):
            if isinstance(socket.laddr, str):
                folders.update([Path(socket.laddr).parent] if socket.laddr.startswith("/") else ())
            elif socket.laddr and not socket.raddr:
                assert socket.laddr[1] == port, f"{process.cmdline()} listens on {socket.laddr}"
    assert folders
    for folder in folders:
        assert folder.stat().st_mode & 0o077 == 0, folder


def test_a_killed_gateway_is_back_and_its_work_has_ended(supervised: Served) -> None:
    with _hanging(supervised) as request:
        supervised.runner("fake-gateway").kill()
        request.join(10)
        assert not request.is_alive(), "its caller waits for an answer from nobody"
    until(lambda: supervised.readyz().get("status") == "ready", 30, "its return")
    until(lambda: "0 alive" in supervised.readyz()["runners"]["text"]["why"], 10, "the end of its work")


def test_told_twice_to_end_it_waits_for_nobody(supervised: Served) -> None:
    processes = supervised.processes()
    with _hanging(supervised):
        supervised.send(signal.SIGTERM)
        until(lambda: not supervised.readyz(), 30, "the first signal's effect")
        assert not supervised.ended()
        supervised.send(signal.SIGTERM)
        until(supervised.ended, 3, "its end")
    assert not any(map(_lives, processes))


def test_a_killed_supervisor_leaves_no_process(supervised: Served) -> None:
    processes = supervised.processes()
    assert len(processes) == 5
    supervised.send(signal.SIGKILL)
    until(lambda: not any(map(_lives, processes)), 10, "the end of its processes")


@contextlib.contextmanager
def _hanging(served: Served) -> Generator[threading.Thread]:
    """A request that is at work until it is cut off."""

    def hang() -> None:
        with contextlib.suppress(httpx.HTTPError):
            httpx.post(f"{served.url}/text", json={"prompt": "hang"}, timeout=60)

    request = threading.Thread(target=hang)
    request.start()
    until(lambda: "1 alive" in served.readyz()["runners"]["text"]["why"], 30, "the request")
    yield request
    request.join()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
