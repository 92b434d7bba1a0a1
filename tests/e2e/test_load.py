"""`make load` in a few seconds: the crowd asks everything, the report tells it, the thresholds decide."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from load_tests.crowd.page import write_page
from load_tests.crowd.ramp import OPEN_CLIENTS, measure
from load_tests.crowd.verdict import THRESHOLDS, compared, verdict
from tests.e2e.process import Served


@pytest.fixture(scope="module")
def report(service: Served) -> dict[str, Any]:
    return measure(service.url, clients=[2, 6], stage_s=3)


def test_the_crowd_grows_and_asks_at_each_door(report: dict[str, Any]) -> None:
    first, second, opened = report["stages"]
    assert [first["clients"], second["clients"], opened["clients"]] == [2, 6, OPEN_CLIENTS]
    assert not any(stage["failed"] for stage in report["stages"]), report["stages"]
    asked = first["names"].keys() | second["names"].keys()
    assert any(name.startswith("/v1/") for name in asked)
    assert any(not name.startswith("/v1/") for name in asked)
    for stage in (first, second):
        assert stage["requests"] == sum(told["requests"] for told in stage["names"].values()) > 0
        assert 0 < stage["latency_p50_ms"] <= stage["latency_p99_ms"]
    told = second["modalities"]["text"]
    assert told["work_ms"] > 0
    assert told["rows_per_step"] >= 1


def test_its_page_shows_all_of_it(report: dict[str, Any], tmp_path: Path) -> None:
    told = {**report, "verdict": verdict(report)}
    write_page(told, tmp_path / "load.html")
    page = (tmp_path / "load.html").read_text(encoding="utf-8")
    assert all(name in page for stage in report["stages"] for name in stage["names"])
    assert "data:image/png;base64,iVBOR" in page
    assert all(row["what"] in page for row in told["verdict"])


def test_a_threshold_that_is_passed_fails_it(report: dict[str, Any], tmp_path: Path) -> None:
    name = next(iter(report["stages"][0]["names"]))
    wanted = yaml.safe_load(THRESHOLDS.read_text(encoding="utf-8"))
    wanted["latency"] = [{"clients": 2, "name": name, "p95_ms": most} for most in (0.001, 10**6)]
    wanted["throughput"] = [{"clients": 6, "per_s": 10**6}]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(wanted), encoding="utf-8")
    assert [row["good"] for row in verdict(report, tmp_path / "own.yaml")] == [True, False, True, False]


def test_two_reports_are_compared(report: dict[str, Any]) -> None:
    slower = copy.deepcopy(report)
    name, told = next(iter(slower["stages"][0]["names"].items()))
    told["latency_p95_ms"] *= 2
    rows = [row for row in compared(report, slower).splitlines() if row.startswith(f"| 2 | {name} |")]
    assert "| 2.00 |" in rows[0]
