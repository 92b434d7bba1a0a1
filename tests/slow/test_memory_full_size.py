"""What `triptych plan` predicts is what runners take with models of full size, on a CPU.

The checkpoints are in half precision: loaded as float32 they are copied, and no longer part of their files.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch

from load_tests.full_size import write_bark_small, write_sd15, write_tinyllama
from models.catalog import Modality, models_served
from runners.demand import want
from tests.e2e.process import Served

pytestmark = pytest.mark.slow

CATALOG = """
models:
  model: {{family: {family}, source: 'folder:{folder}', licence: none, max_rows: {rows}}}
profiles:
  default: {{{modality}: [model]}}
"""


@dataclass(frozen=True)
class Case:
    modality: Modality
    family: str
    write: Callable[[Path], object]
    rows: int
    body: dict[str, Any]
    """What fills the room that is kept for each of its requests."""


CASES = {
    "tinyllama": Case(
        Modality.TEXT,
        "text.decoder",
        write_tinyllama,
        2,
        {"prompt": "the cat sat on the mat " * 250, "max_tokens": 2},
    ),
    "stable-diffusion-1.5": Case(
        Modality.IMAGE,
        "image.stable_diffusion",
        partial(write_sd15, dtype=torch.float16),
        1,
        {"prompt": "a red circle", "num_inference_steps": 1, "width": 512, "height": 512},
    ),
    "bark-small": Case(
        Modality.SPEECH,
        "speech.bark",
        write_bark_small,
        2,
        {"text": "one two three"},
    ),
}


def taken_gib(process: psutil.Process) -> float:
    """Without the checkpoint's files, where they are mapped still: those pages are the kernel's to take."""
    maps = process.memory_maps(grouped=True)
    return sum(each.rss for each in maps if not each.path.endswith(".safetensors")) / 2**30


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", list(CASES))
def test_a_full_size_model_takes_what_was_predicted(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    case.write(tmp_path / "model")
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(
        CATALOG.format(
            family=case.family, folder=tmp_path / "model", rows=case.rows, modality=case.modality.value
        ),
        encoding="utf-8",
    )
    predicted = want(case.modality, models_served(str(catalog), case.modality)).parts("cpu").total
    served = Served.triptych(tmp_path / "log", TRIPTYCH_PROFILE=str(catalog), TRIPTYCH_TIMEOUT_S="800")
    try:
        served.wait_ready()
        runner = served.runner(f"{case.modality.capitalize()}Runner")
        taken = taken_gib(runner)

        def ask(seed: int) -> int:
            body = {**case.body, "seed": seed}
            return httpx.post(f"{served.url}/{case.modality}", json=body, timeout=800).status_code

        with ThreadPoolExecutor(case.rows) as crowd:
            asked = [crowd.submit(ask, seed) for seed in range(case.rows)]
            while wait(asked, timeout=1).not_done:  # no more often: it holds the process up
                taken = max(taken, taken_gib(runner))
        assert {each.result() for each in asked} == {200}
    finally:
        served.stop()
    assert taken == pytest.approx(predicted, rel=0.1)
