"""`triptych bench` against the real service."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.e2e.process import ROOT, Served, free_port


def bench(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "cli.py", "bench", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_it_tells_how_fast_each_endpoint_is(service: Served) -> None:
    told = json.loads(bench("--url", service.url, "--requests", "3", "--clients", "2", "--json").stdout)
    assert [each["endpoint"] for each in told] == ["text", "image", "speech", "embed"]
    for each in told:
        assert (each["requests"], each["failed"]) == (3, 0)
        assert 0 < each["p50_ms"] <= each["p95_ms"]
        assert each["per_s"] > 0
    assert "pictures" in bench("image", "--url", service.url, "--requests", "1").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("video",), 2, "There is no video"),
        (("text", "--url", "http://[::"), 2, "--url http://[:: is none"),
        (("text", "--url", f"http://127.0.0.1:{free_port()}"), 3, "cannot be reached"),
    ],
)
def test_what_is_wrong_is_said(arguments: tuple[str, ...], code: int, said: str) -> None:
    assert said in bench(*arguments, code=code).stderr


def test_a_request_that_fails_is_told(service: Served) -> None:
    said = bench("text", "--url", f"{service.url}/nowhere", "--requests", "2", code=1)
    assert "404" in said.stderr
