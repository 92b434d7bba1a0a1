"""The image triptych:cpu as operators run it: without a network, read-only, as nobody special.

`make test-container` builds it first. CONTAINER_ENGINE is the engine's command with its own options
(`podman`), CONTAINER_RUN_OPTIONS what else `run` needs on this machine.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

IMAGE = "triptych:cpu"


def found() -> str:
    """As deploy/container/build.sh chooses: a docker whose engine answers, else podman."""
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "info"], capture_output=True).returncode == 0:
        return docker
    return "podman"


ENGINE = shlex.split(os.environ.get("CONTAINER_ENGINE") or found())
OPTIONS = shlex.split(os.environ.get("CONTAINER_RUN_OPTIONS", ""))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(shutil.which(ENGINE[0]) is None, reason="neither docker nor podman is here"),
]
ASK = Path(__file__).with_name("ask.py").read_text(encoding="utf-8")


def engine(*arguments: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*ENGINE, *arguments], capture_output=True, text=True)
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done


@dataclass
class Machine:
    """A volume, and what runs with it."""

    volume: str

    def options(self, *more: str) -> list[str]:
        return ["--network", "none", "--read-only", "-v", f"{self.volume}:/data", *OPTIONS, *more]

    def run(self, *command: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """The image's own command with these arguments, until it ends."""
        return engine("run", "--rm", *self.options(IMAGE), *command, code=code)

    def shell(self, script: str) -> str:
        return engine("run", "--rm", *self.options("--entrypoint", "/bin/sh", IMAGE), "-c", script).stdout


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    volume = f"triptych-test-{uuid.uuid4().hex[:8]}"
    engine("volume", "create", volume)
    yield Machine(volume)
    engine("volume", "rm", "-f", volume)


@pytest.fixture(scope="module")
def served(machine: Machine) -> Iterator[str]:
    """The name of a container that serves, ready."""
    name = machine.volume
    engine("run", "-d", "--name", name, *machine.options("-e", "TRIPTYCH_KEYLESS=true", IMAGE))
    try:
        deadline = time.monotonic() + 180
        while engine("exec", name, "python", "-c", ASK, "ready", code=None).returncode != 0:
            assert time.monotonic() < deadline, engine("logs", name).stdout[-5000:]
            time.sleep(0.5)
        yield name
    finally:
        engine("rm", "-f", name)


def test_it_answers_without_a_network(served: str) -> None:
    told: dict[str, Any] = json.loads(engine("exec", served, "python", "-c", ASK, "everything").stdout)
    assert "star" in told["text"].lower()
    assert told["picture"] == [128, 128]
    assert told["seconds"] > 0.3
    assert told["width"] == 128
    assert told["network"] is False


def test_it_runs_as_nobody_special_on_a_system_it_cannot_change(served: str, machine: Machine) -> None:
    assert engine("exec", served, "id", "-u").stdout.strip() == "1034"
    assert engine("exec", served, "touch", "/home/bentoml/bento/src/x", code=None).returncode != 0
    assert engine("exec", served, "touch", "/data/x").returncode == 0
    written = machine.shell("ls /data").split()
    assert {"state", "tmp"} <= set(written)


def test_it_has_nothing_that_a_cpu_does_not_need(machine: Machine) -> None:
    names = " -o ".join(
        f"-name '{name}'" for name in ("lib*cuda*.so*", "libcudnn*", "libcublas*", "libnccl*")
    )
    found = machine.shell(f"find /app /usr {names}; command -v gcc cc g++ make uv; true")
    assert not found.split()


def test_it_tells_its_health_and_its_port() -> None:
    (told,) = json.loads(engine("image", "inspect", IMAGE).stdout)
    config = told["Config"]
    health = config.get("Healthcheck") or told.get("Healthcheck")
    assert "livez" in " ".join(health["Test"])
    assert "3000/tcp" in config["ExposedPorts"]
    assert config["User"] == "1034"


def test_it_is_not_open_by_mistake_and_keeps_its_keys(machine: Machine) -> None:
    refused = machine.run("serve", code=2)
    assert "TRIPTYCH_KEYLESS" in refused.stderr + refused.stdout
    key = machine.run("keys", "create", "ann").stdout
    assert "tt_" in key
    assert "ann" in machine.run("keys", "list").stdout, "the volume did not keep it"


def test_it_stops_when_it_is_told_to(served: str) -> None:
    engine("stop", "-t", "60", served)
    (told,) = json.loads(engine("inspect", served).stdout)
    assert told["State"]["ExitCode"] == 0
