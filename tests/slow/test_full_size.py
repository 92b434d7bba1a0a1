"""Stable Diffusion 1.5 at its full size, with random weights: our rows against diffusers' own pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from load_tests.full_size import write_sd15
from models.image.stable_diffusion import load
from models.protocol import ModelSpec
from tests.unit.drawing import apart, draw, image_job
from tests.unit.test_stable_diffusion import by_diffusers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning"),  # diffusers' schedulers under numpy 2
]


@pytest.mark.timeout(600)
def test_a_small_picture_is_the_pipelines_within_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_sd15(tmp_path / "sd15")
    model = load(ModelSpec(name="sd15", folder=folder))
    loader: Any = StableDiffusionPipeline
    pipe = loader.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    jobs = [
        image_job(num_inference_steps=2, width=64, height=64, seed=seed, scheduler=scheduler)
        for seed, scheduler in ((1, "ddim"), (2, "dpmpp_2m"))
    ]
    for job, ours in zip(jobs, draw(model, *jobs), strict=True):
        assert apart(ours, by_diffusers(pipe, job, monkeypatch)) <= 2
