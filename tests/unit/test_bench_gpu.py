"""The GPU bench is run where no BentoML is: the engine and the models import without it."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch

from load_tests import gpu_speech
from load_tests.full_size import BARK_SIZES
from load_tests.gpu import measure
from models.image.stable_diffusion import load
from models.protocol import ModelSpec
from models.sources import EMBEDDED
from tests.e2e.process import ROOT

WITHOUT_BENTOML = """
import sys
sys.modules["bentoml"] = sys.modules["_bentoml_sdk"] = sys.modules["_bentoml_impl"] = None
import load_tests.gpu, runners.engine, models.loading, models.image.stable_diffusion_xl
import models.speech.bark, models.text.decoder
"""


def test_engine_and_models_import_without_bentoml() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_BENTOML], cwd=ROOT, check=True, capture_output=True)


def test_it_measures_each_batch() -> None:
    model = load(ModelSpec(name="tiny", folder=EMBEDDED / "tiny-sd"))
    records = measure(model, [1, 3], steps=2)
    assert [record["batch"] for record in records] == [1, 3]
    assert all(record["images_per_s"] > 0 and record["share_of_limit"] > 0 for record in records)


def test_it_measures_speech_of_fixed_length(monkeypatch: pytest.MonkeyPatch) -> None:
    size = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "bias": False}
    monkeypatch.setitem(BARK_SIZES, "tiny", size)
    lanes = gpu_speech.random_bark("tiny", "cpu", torch.float32, max_rows=10)
    records = gpu_speech.measure_speech("tiny", lanes, [1, 10], 20, time.perf_counter, lambda: 0.0)
    assert [record["together"] for record in records] == [1, 10]
    assert records[1]["sound_s"] == pytest.approx(10 * records[0]["sound_s"]), "a saying ended early"
    assert all(record["real_time_factor"] > 0 for record in records)
