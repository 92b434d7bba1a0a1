"""What `triptych plan` predicts is what the runners take, at their full number of requests."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.catalog import Modality, models_served
from runners.demand import want
from tests.e2e.process import Served

CROWDS = 4
BODIES: dict[Modality, tuple[str, dict[str, Any]]] = {
    Modality.TEXT: ("TextRunner", {"prompt": "Once upon a time", "max_tokens": 450, "temperature": 1.5}),
    Modality.IMAGE: ("ImageRunner", {"prompt": "a red circle", "num_inference_steps": 3}),
    Modality.SPEECH: ("SpeechRunner", {"text": "one two three"}),
}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service of its own: other tests' requests (large pictures, crowds) would count in the peak."""
    served = Served.triptych(tmp_path_factory.mktemp("memory") / "log")
    try:
        served.wait_ready()
        yield served
    finally:
        served.stop()


def peak_gib(pid: int) -> float:
    """The most memory that the process has ever had."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 2**30


@pytest.mark.parametrize("modality", list(Modality))
def test_the_embedded_models_take_what_was_predicted(fresh: Served, modality: Modality) -> None:
    entries = models_served("embedded", modality)
    name, body = BODIES[modality]
    rows = max(entry.max_rows for entry in entries.values())

    def ask(seed: int) -> int:
        return httpx.post(f"{fresh.url}/{modality}", json={**body, "seed": seed}, timeout=120).status_code

    # The peak is where all are in one step: on a busy machine those of one crowd may come apart.
    with ThreadPoolExecutor(rows) as crowd:
        for _ in range(CROWDS):
            assert set(crowd.map(ask, range(rows))) == {200}
    predicted = want(modality, entries).parts("cpu").total
    assert peak_gib(fresh.runner(name).pid) == pytest.approx(predicted, rel=0.1)
