"""The GPU bench is run where no BentoML is: the engine and the models import without it."""

from __future__ import annotations

import subprocess
import sys

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
