"""`deploy/compose.yaml`, by a compose tool's own parser: what each profile starts, and what it mounts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.process import ROOT

DEPLOY = ROOT / "deploy"
WATCHERS = {"nginx", "prometheus", "grafana"}


def services(profile: str, folder: Path) -> dict[str, Any]:
    """Parsed by podman-compose, which asks its engine for no more than a version."""
    engine = folder / "podman"
    engine.write_text("#!/bin/sh\necho podman version 5.0.0\n")
    engine.chmod(0o755)
    tool = [sys.executable, "-m", "podman_compose", "--profile", profile, "-f", str(DEPLOY / "compose.yaml")]
    told = subprocess.run(
        [*tool, "config"],
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = yaml.safe_load(told.stdout)["services"]
    return {name: each for name, each in found.items() if profile in each.get("profiles", [profile])}


@pytest.mark.parametrize(
    ("profile", "ours", "image", "cards"),
    [
        ("cpu", "triptych", "triptych:cpu", None),
        ("gpu", "triptych-gpu", "triptych:gpu", 1),
        ("gpus", "triptych-gpus", "triptych:gpu", "all"),
    ],
)
def test_a_profile(tmp_path: Path, profile: str, ours: str, image: str, cards: int | str | None) -> None:
    found = services(profile, tmp_path)
    assert set(found) == WATCHERS | {ours}
    service = found[ours]
    assert service["image"] == image
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "ports" not in service, "callers come in through nginx"
    devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    assert [device["count"] for device in devices] == ([] if cards is None else [cards])
    for name in WATCHERS - {"nginx"}:
        assert all(str(port).startswith("127.0.0.1:") for port in found[name]["ports"]), name


def test_what_is_mounted_is_there(tmp_path: Path) -> None:
    made_by_operators = {"./tls", "./metrics.key"}
    for name, service in services("cpu", tmp_path).items():
        for volume in service.get("volumes", ()):
            source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
            if source.startswith(".") and source not in made_by_operators:
                assert (DEPLOY / source).exists(), (name, source)


def test_nginx_looks_for_the_gateway_where_it_is(tmp_path: Path) -> None:
    found = services("cpu", tmp_path)
    script = found["nginx"]["command"][-1]
    told = re.search(r"sed s/([^/]+)/([^/]+)/", script)
    assert told
    old, new = told.groups()
    config = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    assert config.count(old) == 1
    host, _, port = new.partition(":")
    assert host in found["triptych"]["networks"]["inside"]["aliases"]
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text(encoding="utf-8"))
    assert prometheus["scrape_configs"][0]["static_configs"][0]["targets"] == [f"{host}:{port}"]
