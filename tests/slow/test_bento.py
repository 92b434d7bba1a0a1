"""`bentoml build` works offline, and the Bento serves from its store with nothing of this tree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.e2e.process import ROOT, Served, free_port

pytestmark = pytest.mark.slow


@pytest.mark.timeout(600)
def test_the_built_bento_serves_from_its_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BENTOML_DO_NOT_TRACK", "true")
    bentoml = [sys.executable, "-m", "bentoml"]
    built = subprocess.run(
        [*bentoml, "build", "--output", "tag"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
    tag = built.strip().splitlines()[-1].removeprefix("__tag__:")
    bento = next((tmp_path / "home" / "bentos" / "triptych").glob("*/src"))
    assert not list(bento.glob("tests*")), "the Bento holds the tests"
    assert not list(bento.rglob("training")), "the Bento holds the recipes"
    port = free_port()
    served = Served(
        [*bentoml, "serve", tag, "--port", str(port), "--host", "127.0.0.1"], port, tmp_path / "log"
    )
    try:
        served.wait_ready()
        text = httpx.post(f"{served.url}/text", json={"prompt": "Once", "max_tokens": 3}, timeout=60)
        image = httpx.post(
            f"{served.url}/image", json={"prompt": "a ring", "num_inference_steps": 2}, timeout=60
        )
        speech = httpx.post(f"{served.url}/speech", json={"text": "one"}, timeout=60)
        assert [each.status_code for each in (text, image, speech)] == [200, 200, 200]
        runner = served.runner("ImageRunner")
        assert Path(runner.cwd()) == bento, "the runner does not run from the store"
    finally:
        served.stop()
