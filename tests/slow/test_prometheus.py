"""Prometheus for real with `deploy/prometheus`: it comes in by its key, and takes what it is asked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from tests.e2e.process import ROOT, Served, free_port, until
from tests.e2e.test_dashboard import EXPRESSIONS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed here"),
]
DEPLOY = ROOT / "deploy" / "prometheus"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Served]:
    served = Served.triptych(tmp_path / "log")
    try:
        served.wait_ready()
        yield served
    finally:
        served.stop()


def key_for_metrics(folder: Path) -> str:
    made = subprocess.run(
        [sys.executable, "cli.py", "keys", "create", "prometheus", "--route", "/metrics"],
        cwd=ROOT,
        env={"TRIPTYCH_STATE_DIR": str(folder / "state")},
        capture_output=True,
        text=True,
        check=True,
    )
    return made.stdout


def test_it_watches_the_service(service: Served, tmp_path: Path) -> None:
    (tmp_path / "metrics.key").write_text(key_for_metrics(tmp_path), encoding="utf-8")
    config = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    job["authorization"]["credentials_file"] = str(tmp_path / "metrics.key")
    job["static_configs"][0]["targets"] = [service.url.removeprefix("http://")]
    config["global"]["scrape_interval"] = "1s"
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    shutil.copy(DEPLOY / "alerts.yaml", tmp_path)
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={tmp_path}/prometheus.yaml",
        f"--storage.tsdb.path={tmp_path}/tsdb",
    ]
    with (tmp_path / "prometheus.log").open("wb") as log:
        running = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=10) as client:
            until(lambda: value(client, 'up{job="triptych"}') == 1, 60, "Prometheus's first look")
            for expression in EXPRESSIONS:
                query = expression.replace("$__rate_interval", "1m")  # which Grafana fills in
                told = client.get("/query", params={"query": query}).json()
                assert told["status"] == "success", (expression, told)
            (group,) = client.get("/rules").json()["data"]["groups"]
            assert {rule["name"] for rule in group["rules"]} >= {"TriptychDown", "TriptychWaits"}
            until(lambda: not unhealthy(client), 60, "the rules' first evaluation")
    finally:
        running.terminate()
        running.wait(30)


def value(client: httpx.Client, query: str) -> float | None:
    try:
        found = client.get("/query", params={"query": query}).json()["data"]["result"]
    except (httpx.HTTPError, KeyError, json.JSONDecodeError):
        return None
    return float(found[0]["value"][1]) if found else None


def unhealthy(client: httpx.Client) -> list[str]:
    (group,) = client.get("/rules").json()["data"]["groups"]
    return [rule["name"] for rule in group["rules"] if rule["health"] != "ok"]
