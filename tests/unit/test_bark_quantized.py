"""Bark in 8 and 4 bits by bitsandbytes, on the embedded model: its layers shrink, its speech stays."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
import soundfile
import torch

from models.footprint import measure
from models.protocol import ModelSpec
from models.sources import EMBEDDED
from models.speech.bark import Bark, load
from tests.unit.tiny_speech import make_job, say

FOLDER = EMBEDDED / "tiny-bark"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def loaded(quantization: str | None) -> Bark:
    return load(ModelSpec(name="tiny", folder=FOLDER, max_rows=4, quantization=quantization))


def spectrum(data: bytes) -> np.ndarray:
    """How loud each band is over all, [bands]."""
    sound, _ = soundfile.read(io.BytesIO(data))
    return np.log1p(np.abs(np.fft.rfft(sound, 4096)).reshape(-1)[:2048].reshape(32, -1).mean(1))


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_it_speaks_in_fewer_bits(quantization: str) -> None:
    plain, shrunk = loaded(None), loaded(quantization)
    jobs = [make_job("one two three", voice=voice, temperature=0) for voice in ("ada", "otto")]
    expected = [result.data for result in say(plain, jobs).results]
    together = [result.data for result in say(shrunk, jobs).results]
    alone = [say(shrunk, [job]).results[0].data for job in jobs]
    assert together == alone, "company changed a sound"
    assert together[0] != together[1]
    for said, whole in zip(together, expected, strict=True):
        assert said != whole, "nothing was quantized"
        assert 0.6 < len(said) / len(whole) < 1.6
        assert np.corrcoef(spectrum(said), spectrum(whole))[0, 1] > 0.5


def test_the_plan_knows_what_shrinks() -> None:
    memory = measure(FOLDER, "speech.bark")
    assert 0 < memory.quantizable < memory.parameters


def test_the_plan_knows_how_long_the_stages_caches_are() -> None:
    """Each its own length: that of the semantic stage follows from how much the checkpoint may say."""
    memory = measure(FOLDER, "speech.bark")
    lanes = loaded(None)._lanes  # pyright: ignore[reportPrivateUsage]
    kept = [layer for bank in lanes.banks for stage in (bank.semantic, bank.coarse) for layer in stage.memory]
    predicted = memory.cache_rows * memory.context * memory.cache_values_per_token
    assert sum(layer.numel() for layer in kept) == pytest.approx(predicted, rel=0.2)  # whole key steps
